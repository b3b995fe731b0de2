"""Depthwise convolution with large kernels, with gradients, on the device that its input is on.

The gradients of a depthwise convolution are depthwise convolutions, too: of the output's gradient with the
flipped kernel, and of the input with the output's gradient. Each device in ``DEVICES`` says what it takes on,
and computes ``convolution`` and ``correlation`` without autograd; everything else is left to
``torch.nn.functional.conv2d``.

Shape letters: N batch, C channels, H x W image, K kernel.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ..interpolation import without_autocast
from . import cpu, gpu

DEVICES: dict[str, ModuleType] = {"cpu": cpu, "cuda": gpu}


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
    tensors = _admitted(input, weight, bias, padding)
    if tensors is None:
        return F.conv2d(input, weight, bias, padding=padding, groups=weight.shape[0])
    output = _Convolution.apply(*tensors, tuple(padding))
    kind = input.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output


def _admitted(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """What the device convolves, cast as autocast wants it; None where ATen is to do it."""
    device = DEVICES.get(input.device.type)
    if device is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if input.ndim != 4 or not input.numel() or _is_transformed(input, weight, bias):
        return None
    if any(p >= k for p, k in zip(padding, weight.shape[2:], strict=True)):
        return None
    if bias is not None and (bias.dtype != weight.dtype or bias.shape != weight.shape[:1]):
        return None
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None
    tensors = device.admit(input, weight, bias, padding)
    return tensors


def _is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Whether vmap or forward-mode derivatives are at work, which know ATen's functions only."""
    if forward_ad._current_level >= 0:
        return True
    # the older vmap is that of ``is_grads_batched`` and ``torch.autograd.functional``
    return any(is_functorch_wrapped_tensor(t) or is_legacy_batchedtensor(t) for t in tensors if t is not None)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
    ) -> torch.Tensor:
        with without_autocast(input.device.type):  # a backward pass may be in one
            output: torch.Tensor = DEVICES[input.device.type].convolution(input, weight, padding, bias)
            return output

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
            size = _kernel_size(input, grad, padding)
            weight: torch.Tensor = DEVICES[input.device.type].correlation(input, grad, size, padding)
            return weight

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
    shape = (input.shape[1], 1, *_kernel_size(input, grad, padding))
    return conv2d_weight(input, shape, grad, padding=padding, groups=shape[0])


def _kernel_size(input: torch.Tensor, grad: torch.Tensor, padding: Sequence[int]) -> tuple[int, ...]:
    sides = zip(input.shape[2:], grad.shape[2:], padding, strict=True)
    return tuple(i + 2 * p - g + 1 for i, g, p in sides)
