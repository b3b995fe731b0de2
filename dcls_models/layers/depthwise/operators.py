"""Depthwise convolution with large kernels as an operator of torch, with one kernel per device.

``dcls::depthwise_conv2d`` and its weight gradient ``dcls::depthwise_conv2d_weight`` are differentiable any
number of times: the gradients of a depthwise convolution are depthwise convolutions, too, of the output's
gradient with the flipped kernel, and of the input with the output's gradient. Each module in ``DEVICES`` has
their kernels, and says which convolutions it computes faster than ATen.

Everything else is left to ``torch.nn.functional.conv2d``, and so is what leaves the machine (export, ONNX,
``torch.jit.trace``, ``make_fx``) and what transforms functions (``torch.func``, forward-mode derivatives).

Shape letters: N batch, C channels, H x W image, K kernel.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from dcls_models.layers.tracing import is_recorded, is_transformed

from . import cpu, gpu
from .layout import layout_of

DEVICES: dict[str, ModuleType] = {"cpu": cpu, "cuda": gpu}

Gradients = tuple[torch.Tensor | None, ...]


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
    input, weight, bias = tensors
    output = convolution(input, weight, padding, bias)
    kind = input.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output


def _admitted(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """What the device convolves, cast as autocast wants it; None where ATen is to do it."""
    device = DEVICES.get(input.device.type)
    if device is None or is_recorded() or is_transformed(input, weight, bias):
        return None
    if input.ndim != 4 or not input.numel():
        return None
    if any(p >= k for p, k in zip(padding, weight.shape[2:], strict=True)):
        return None
    if bias is not None and (bias.dtype != weight.dtype or bias.shape != weight.shape[:1]):
        return None
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None
    tensors = device.admit(input, weight, bias, padding)
    return tensors


convolution = torch.library.custom_op(
    "dcls::depthwise_conv2d",
    cpu.convolution,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, Tensor weight, SymInt[] padding, Tensor? bias) -> Tensor",
)
correlation = torch.library.custom_op(
    "dcls::depthwise_conv2d_weight",
    cpu.correlation,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, Tensor grad, SymInt[] size, SymInt[] padding) -> Tensor",
)
convolution.register_kernel("cuda", gpu.convolution)
correlation.register_kernel("cuda", gpu.correlation)


@convolution.register_fake
def _(
    input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], bias: torch.Tensor | None = None
) -> torch.Tensor:
    sides = zip(input.shape[2:], weight.shape[2:], padding, strict=True)
    shape = (*input.shape[:2], *(i + 2 * p - k + 1 for i, k, p in sides))
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout_of(input))


@correlation.register_fake
def _(input: torch.Tensor, grad: torch.Tensor, size: Sequence[int], padding: Sequence[int]) -> torch.Tensor:
    return input.new_empty(input.shape[1], 1, *size)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, weight, ctx.padding, _ = inputs
    ctx.save_for_backward(input, weight)


def _gradients(ctx: Any, grad: torch.Tensor) -> Gradients:
    input, weight = ctx.saved_tensors
    of_input, of_weight, _, of_bias = ctx.needs_input_grad
    return (
        _input_gradient(grad, weight, ctx.padding) if of_input else None,
        _weight_gradient(input, grad, weight.shape[2:], ctx.padding) if of_weight else None,
        None,
        grad.sum((0, 2, 3)) if of_bias else None,
    )


def _save_correlation(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, grad, _, ctx.padding = inputs
    ctx.save_for_backward(input, grad)


def _correlation_gradients(ctx: Any, weight: torch.Tensor) -> Gradients:
    """The weight gradient is linear in both the input and the output's gradient."""
    input, grad = ctx.saved_tensors
    of_input, of_grad = ctx.needs_input_grad[:2]
    return (
        _input_gradient(grad, weight, ctx.padding) if of_input else None,
        _convolve(input, weight, ctx.padding) if of_grad else None,
        None,
        None,
    )


convolution.register_autograd(_gradients, setup_context=_save)
correlation.register_autograd(_correlation_gradients, setup_context=_save_correlation)


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    outer = [k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True)]
    return _convolve(grad, weight.flip(-2, -1), outer)


def _convolve(input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    if is_transformed(input, weight):
        return F.conv2d(input, weight, padding=padding, groups=len(weight))
    return convolution(input, weight, padding, None)


def _weight_gradient(
    input: torch.Tensor, grad: torch.Tensor, size: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    if is_transformed(input, grad):
        channels = input.shape[1]
        return conv2d_weight(input, (channels, 1, *size), grad, padding=padding, groups=channels)
    return correlation(input, grad, size, padding)
