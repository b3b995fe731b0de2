"""Depthwise convolution with large kernels on a CPU, by the way that was measured to be the fastest.

ATen's weight gradient takes time in proportion to the area of the kernel, and from 17x17 on its NCHW
forward is more than ten times slower than its channels_last one. Here the weight gradient is a correlation
by FFT, the input gradient of very large kernels a forward with the flipped kernel, and NCHW images go
through channels_last. Everything else, and every other device, is left to ``torch.nn.functional.conv2d``.

Shape letters: N batch, C channels, H x W image, K kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# Measured on x86-64 (AVX-512), torch 2.15, 1 thread, images of 7 to 56 pixels, batch 1 and 8, K of 3 to 31:
FFT_FROM = 7  # from this K on the FFT is faster than ATen's weight gradient, 200 times at most
LARGE_FROM = 15  # from this K on the flipped forward and the detour through channels_last are faster
SMALL_IMAGE = 14  # below this side ATen's input gradient is faster

FFT_BATCH = 2**22  # numbers in one batch of transforms


def depthwise_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    padding: Sequence[int] = (0, 0),
) -> torch.Tensor:
    """``F.conv2d`` of stride 1 with one kernel per channel, differentiable any number of times.

    Args:
        input: ``(N, C, H, W)``, in either memory layout, which the output keeps.
        weight: ``(C, 1, K, K)``; the two sides may differ.
        bias: ``(C,)``.
        padding: Zeros on either side of each axis, less than K.

    Returns:
        ``(N, C, H + 2 padding - K + 1, W + 2 padding - K + 1)``, equal to ``F.conv2d`` up to rounding.
    """
    if not _is_ours(input, weight, padding):
        return F.conv2d(input, weight, bias, padding=padding, groups=len(weight))
    output = _Convolution.apply(input, weight, tuple(padding))
    return output if bias is None else output + bias[:, None, None]


def _is_ours(input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if any(is_functorch_wrapped_tensor(t) for t in (input, weight)) or forward_ad._current_level >= 0:
        return False  # vmap and forward-mode derivatives
    if any(p >= k for p, k in zip(padding, weight.shape[2:], strict=True)):
        return False
    if input.device.type != "cpu" or input.ndim != 4 or not input.numel():
        return False
    if input.dtype != weight.dtype or input.dtype not in (torch.float32, torch.float64):
        return False
    trained = torch.is_grad_enabled() and weight.requires_grad and min(weight.shape[2:]) >= FFT_FROM
    return trained or min(weight.shape[2:]) >= LARGE_FROM


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(input: torch.Tensor, weight: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
        if min(weight.shape[2:]) < LARGE_FROM or input.is_contiguous(memory_format=torch.channels_last):
            return F.conv2d(input, weight, padding=padding, groups=len(weight))
        detour = input.contiguous(memory_format=torch.channels_last)
        return F.conv2d(detour, weight, padding=padding, groups=len(weight)).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, weight, ctx.padding = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        of_input, of_weight = ctx.needs_input_grad[:2]
        return (
            _input_gradient(grad, weight, ctx.padding) if of_input else None,
            _Correlation.apply(input, grad, tuple(weight.shape[2:]), ctx.padding) if of_weight else None,
            None,
        )


class _Correlation(torch.autograd.Function):
    """The weight gradient ``(C, 1, K, K)`` as a function of input and output gradient, linear in both."""

    @staticmethod
    def forward(
        input: torch.Tensor, grad: torch.Tensor, size: tuple[int, int], padding: tuple[int, int]
    ) -> torch.Tensor:
        # lags from -padding to K - 1 - padding are wanted; others may wrap around
        reach = [
            (input.shape[2 + a] + p, grad.shape[2 + a] + k - 1 - p, k)
            for a, (k, p) in enumerate(zip(size, padding, strict=True))
        ]
        sides = [_smooth(max(lengths)) for lengths in reach]
        images = max(1, FFT_BATCH // (input.shape[1] * sides[0] * sides[1]))
        spectrum: Any = 0
        for x, g in zip(input.split(images), grad.split(images), strict=True):
            transformed = [torch.fft.rfft2(t.contiguous(), s=sides) for t in (x, g)]
            spectrum = spectrum + (transformed[0] * transformed[1].conj()).sum(0)
        lags = torch.fft.irfft2(spectrum, s=sides).roll(padding, (-2, -1))
        return lags[:, None, : size[0], : size[1]].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        input, grad, _, ctx.padding = inputs
        ctx.save_for_backward(input, grad)

    @staticmethod
    def backward(ctx: Any, weight: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, grad = ctx.saved_tensors
        of_input, of_grad = ctx.needs_input_grad[:2]
        return (
            _input_gradient(grad, weight, ctx.padding) if of_input else None,
            _Convolution.apply(input, weight, ctx.padding) if of_grad else None,
            None,
            None,
        )


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    size = weight.shape[2:]
    if min(size) >= LARGE_FROM and min(grad.shape[2:]) >= SMALL_IMAGE:
        outer = tuple(k - 1 - p for k, p in zip(size, padding, strict=True))
        return _Convolution.apply(grad, weight.flip(-2, -1), outer)
    shape = (
        *grad.shape[:2],
        *(g + k - 1 - 2 * p for g, k, p in zip(grad.shape[2:], size, padding, strict=True)),
    )
    return conv2d_input(shape, weight, grad, padding=padding, groups=len(weight))


def _smooth(n: int) -> int:
    """The first number from ``n`` on without prime factors above 5: a fast length for an FFT."""
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1
