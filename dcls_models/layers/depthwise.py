"""Depthwise convolution with large kernels: all three of its passes as fast forward convolutions.

On a CPU, ATen's weight gradient takes up to fifty times as long as its forward pass. But the gradients of a
convolution are convolutions, too: of the output's gradient with the flipped kernel, and of the input with
the output's gradient as one large kernel, every image and channel a channel of its own. And oneDNN, which
computes them, has for every shape one memory layout that is fast: the input is taken there and back.

On a GPU, ``triton_depthwise`` computes what it was measured, or is asked, to compute. Everything else is left
to ``torch.nn.functional.conv2d``.

Shape letters: N batch, C channels, H x W image, K kernel.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from . import triton_depthwise
from .interpolation import without_autocast

# Measured with torch 2.15 (oneDNN 3) on x86-64, images of 7 to 56 pixels, K of 3 to 31; AVX2 by switching
# AVX-512 off. `python -m eval layers` measures them again.
_CAPABILITY = torch.backends.cpu.get_cpu_capability() if torch.backends.mkldnn.is_available() else ""
_AVX512 = "AVX512" in _CAPABILITY
OURS_FROM = 7 if _AVX512 else 9  # from this K on ATen's weight gradient is the slower one
NCHW_PADDING = 6 if _AVX512 else 4  # with more, the NCHW convolution is more than ten times slower
NHWC_SLOW = (12, 13) if _AVX512 else ()  # at these K the channels_last convolution is twice as slow
CHUNK = 2**19  # numbers of the input that the weight gradient works on at a time: they stay in the cache


def depthwise_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    padding: Sequence[int] = (0, 0),
) -> torch.Tensor:
    """``F.conv2d`` of stride 1 with one kernel per channel, differentiable any number of times.

    Args:
        input: ``(N, C, H, W)``, in either memory layout, which the output keeps, or a view of one.
        weight: ``(C, 1, K, K)``; the two sides may differ.
        bias: ``(C,)``.
        padding: Zeros on either side of each axis, less than K.

    Returns:
        ``(N, C, H + 2 padding - K + 1, W + 2 padding - K + 1)``, equal to ``F.conv2d`` up to rounding.
    """
    tensors = _cast_for_autocast(input, weight, bias)
    if not _is_ours(*tensors, padding):
        return F.conv2d(input, weight, bias, padding=padding, groups=weight.shape[0])
    if not (input.is_cpu and torch.is_autocast_enabled("cpu")):
        return _Convolution.apply(*tensors, tuple(padding))
    in_float32 = (None if t is None else t.float() for t in tensors)  # faster here than the short types
    return _Convolution.apply(*in_float32, tuple(padding)).to(torch.get_autocast_dtype("cpu"))


def _cast_for_autocast(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What autocast would convolve on a GPU, where it may be convolved here; ``F.conv2d`` casts by itself."""
    if not (input.is_cuda and torch.is_autocast_enabled("cuda") and triton_depthwise.enabled()):
        return input, weight, bias
    if torch.float64 in (input.dtype, weight.dtype):
        return input, weight, bias
    dtype = torch.get_autocast_dtype("cuda")
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _is_ours(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or min(weight.shape[2:]) < OURS_FROM:
        return False
    if _is_transformed(input, weight, bias):
        return False
    if bias is not None and (bias.dtype != weight.dtype or bias.shape != weight.shape[:1]):
        return False
    if input.device.type != "cpu":
        return triton_depthwise.chosen(input, weight, padding)
    if "AVX" not in _CAPABILITY or not torch.backends.mkldnn.enabled:
        return False
    if any(p >= k for p, k in zip(padding, weight.shape[2:], strict=True)):
        return False
    if input.ndim != 4 or not input.numel():
        return False
    dtypes = {input.dtype, weight.dtype}
    if torch.float64 in dtypes or not (dtypes == {torch.float32} or torch.is_autocast_enabled("cpu")):
        return False  # oneDNN has no float64
    graph, best = torch.is_grad_enabled(), _best_layout(weight.shape[2:], padding)
    if best is None:
        return graph and weight.requires_grad
    trained = graph and (weight.requires_grad or input.requires_grad)
    return trained or not input.is_contiguous(memory_format=best)


def _is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Whether vmap or forward-mode derivatives are at work, which know ATen's functions only."""
    if forward_ad._current_level >= 0:
        return True
    # the older vmap is that of ``is_grads_batched`` and ``torch.autograd.functional``
    return any(is_functorch_wrapped_tensor(t) or is_legacy_batchedtensor(t) for t in tensors if t is not None)


def _best_layout(size: Sequence[int], padding: Sequence[int]) -> torch.memory_format | None:
    """The layout in which oneDNN is fast; None if both are."""
    if max(padding) > NCHW_PADDING:
        return torch.channels_last
    return torch.contiguous_format if max(size) in NHWC_SLOW else None


def _convolve(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
) -> torch.Tensor:
    if not input.is_cpu:
        output = triton_depthwise.convolution(input, weight, padding)
        return output if bias is None else output + bias[:, None, None]
    layout = _best_layout(weight.shape[2:], padding)
    if layout is None or input.is_contiguous(memory_format=layout):
        return F.conv2d(input, weight, bias, padding=padding, groups=len(weight))
    back = torch.contiguous_format if layout == torch.channels_last else torch.channels_last
    input = input.contiguous(memory_format=layout)
    return F.conv2d(input, weight, bias, padding=padding, groups=len(weight)).contiguous(memory_format=back)


def _correlate(input: torch.Tensor, grad: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """``(C, 1, K, K)``: the convolution of the images with the gradients of their outputs, summed."""
    if not input.is_cpu:
        sides = zip(input.shape[2:], grad.shape[2:], padding, strict=True)
        return triton_depthwise.correlation(input, grad, [i + 2 * p - g + 1 for i, g, p in sides], padding)
    images = max(1, CHUNK // input[0].numel())
    parts = []
    for x, g in zip(input.split(images), grad.split(images), strict=True):
        count = len(x) * x.shape[1]
        if max(padding) > NCHW_PADDING:
            x = x.permute(2, 3, 0, 1).contiguous().view(1, *x.shape[2:], count).permute(0, 3, 1, 2)
        else:
            x = x.contiguous().view(1, count, *x.shape[2:])
        kernels = g.reshape(count, 1, *g.shape[2:])
        lags = F.conv2d(x, kernels, padding=padding, groups=count)
        lags = lags.view(-1, input.shape[1], *lags.shape[2:])
        parts.append(torch.sum(lags, 0, out=torch.empty_like(lags[0])))  # ten times slower in another layout
    return reduce(torch.add, parts).contiguous().unsqueeze(1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
    ) -> torch.Tensor:
        with without_autocast(input.device.type):  # a backward pass may be in one
            return _convolve(input, weight, bias, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, weight, _, ctx.padding = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            _input_gradient(grad, weight, ctx.padding) if of_input else None,
            _weight_gradient(input, grad, ctx.padding) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
            None,
        )


class _Correlation(torch.autograd.Function):
    """The weight gradient as a function of input and output gradient, linear in both."""

    @staticmethod
    def forward(input: torch.Tensor, grad: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
        with without_autocast(input.device.type):
            return _correlate(input, grad, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, grad, ctx.padding = inputs
        ctx.save_for_backward(input, grad)

    @staticmethod
    def backward(ctx: Any, weight: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, grad = ctx.saved_tensors
        of_input, of_grad = ctx.needs_input_grad[:2]
        return (
            _input_gradient(grad, weight, ctx.padding) if of_input else None,
            _output(input, weight, ctx.padding) if of_grad else None,
            None,
        )


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    outer = tuple(k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True))
    return _output(grad, weight.flip(-2, -1), outer)


def _output(input: torch.Tensor, weight: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    if _is_transformed(input, weight):
        return F.conv2d(input, weight, padding=padding, groups=len(weight))
    return _Convolution.apply(input, weight, None, padding)


def _weight_gradient(input: torch.Tensor, grad: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    if not _is_transformed(input, grad):
        return _Correlation.apply(input, grad, padding)
    sides = zip(input.shape[2:], grad.shape[2:], padding, strict=True)
    size = (input.shape[1], 1, *(i + 2 * p - g + 1 for i, g, p in sides))
    return conv2d_weight(input, size, grad, padding=padding, groups=size[0])
