"""Depthwise convolution on a CPU: all of its passes as forward convolutions of oneDNN.

oneDNN is fast in one memory layout per shape: the input is converted to it, and the output back. ATen's
weight gradient takes up to fifty times as long as its forward pass; here it is a convolution, too, of the
input with the output's gradient as one large kernel, every image and channel a channel of its own.

Shape letters: N batch, C channels, H x W image, K kernel.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch.nn import functional as F

from dcls_models.layers.interpolation import without_autocast

from .layout import layout_of

# Measured with torch 2.15 (oneDNN 3) on x86-64, images of 7 to 56 pixels, K of 3 to 31; AVX2 by switching
# AVX-512 off. `python -m eval layers` measures them again.
_CAPABILITY = torch.backends.cpu.get_cpu_capability() if torch.backends.mkldnn.is_available() else ""
_AVX512 = "AVX512" in _CAPABILITY
OURS_FROM = 7 if _AVX512 else 9  # from this K on ATen's weight gradient is the slower one
NCHW_PADDING = 6 if _AVX512 else 4  # with more, the NCHW convolution is more than ten times slower
NHWC_SLOW = (12, 13) if _AVX512 else ()  # at these K the channels_last convolution is twice as slow
CHUNK = 2**19  # numbers of the input that the weight gradient works on at a time: they stay in the cache

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def admit(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> Tensors | None:
    """The tensors to convolve here, in float32 under autocast; None where ATen is at least as fast."""
    if "AVX" not in _CAPABILITY or not torch.backends.mkldnn.enabled or min(weight.shape[2:]) < OURS_FROM:
        return None
    autocast = torch.is_autocast_enabled("cpu")
    dtypes = {input.dtype, weight.dtype}
    if torch.float64 in dtypes or not (autocast or dtypes == {torch.float32}):
        return None  # oneDNN has no float64
    if not _pays(input, weight, padding):
        return None
    if not autocast:
        return input, weight, bias
    return input.float(), weight.float(), None if bias is None else bias.float()  # faster than short types


def _pays(input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> bool:
    """Whether ATen would meet a slow layout or its slow weight gradient."""
    graph, best = torch.is_grad_enabled(), _best_layout(weight.shape[2:], padding)
    if best is None:
        return graph and weight.requires_grad
    if graph and (weight.requires_grad or input.requires_grad):
        return True
    if torch.compiler.is_compiling():
        return best == torch.contiguous_format  # the compiler takes channels_last where it may choose
    return not input.is_contiguous(memory_format=best)


def _best_layout(size: Sequence[int], padding: Sequence[int]) -> torch.memory_format | None:
    """The layout in which oneDNN is fast; None if both are."""
    if max(padding) > NCHW_PADDING:
        return torch.channels_last
    return torch.contiguous_format if max(size) in NHWC_SLOW else None


def convolution(
    input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``F.conv2d`` in the fast layout; the output has that of the input."""
    fast = _best_layout(weight.shape[2:], padding)
    image = input if fast is None else input.contiguous(memory_format=fast)
    with without_autocast("cpu"):  # a backward pass may be in one
        output = F.conv2d(image, weight, bias, padding=padding, groups=len(weight))
    return output.contiguous(memory_format=layout_of(input))


def correlation(
    input: torch.Tensor, grad: torch.Tensor, size: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """The weight gradient ``(C, 1, *size)`` from the input and the gradient of the output."""
    images = max(1, CHUNK // input[0].numel())
    parts = []
    for x, g in zip(input.split(images), grad.split(images), strict=True):
        count = len(x) * x.shape[1]
        if max(padding) > NCHW_PADDING:
            x = x.permute(2, 3, 0, 1).contiguous().view(1, *x.shape[2:], count).permute(0, 3, 1, 2)
        else:
            x = x.contiguous().view(1, count, *x.shape[2:])
        kernels = g.reshape(count, 1, *g.shape[2:])
        with without_autocast("cpu"):
            lags = F.conv2d(x, kernels, padding=padding, groups=count).view(-1, input.shape[1], *size)
        parts.append(torch.sum(lags, 0, out=torch.empty_like(lags[0])))  # ten times slower in another layout
    return reduce(torch.add, parts).contiguous().unsqueeze(1)
