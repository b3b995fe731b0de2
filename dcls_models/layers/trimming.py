"""Smaller kernels for deployment: the empty borders of kernels, cut off."""

from typing import Any, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def trim(model: ModuleT, tolerance: float = 0.0) -> ModuleT:
    """Cuts the borders of all kernels in which every weight is empty, as far as the padding allows.

    Both ends of an axis lose the same number of pixels, and the padding shrinks with them, so that with a
    tolerance of 0 the outputs stay the same. DCLS layers are left alone until they are fused. Convolutions
    that share one weight have one each afterwards.

    Args:
        model: Changed in place: its ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``, but not their
            subclasses, whose padding may follow other rules. It may be a convolution itself.
        tolerance: The largest absolute weight that counts as empty.

    Returns:
        The same model.

    Raises:
        ValueError: If ``tolerance`` is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance=}")
    for conv in model.modules():
        if type(conv) in CONVOLUTIONS and "weight" in conv._parameters:
            _trim_conv(conv, tolerance)
    return model


def _trim_conv(conv: Any, tolerance: float) -> None:
    weight, padding = conv.weight, conv.padding
    if not weight.numel():
        return
    for axis, (k, dilation) in enumerate(zip(conv.kernel_size, conv.dilation, strict=True)):
        dim = 2 + axis
        empty = weight.abs().le(tolerance)  # not so for NaN
        filled = empty.movedim(dim, 0).flatten(1).all(1).logical_not()
        first, last = (int(i) for i in filled.nonzero()[[0, -1]]) if filled.any() else (k // 2, k // 2)
        cut = 0 if padding == "valid" else min(first, k - 1 - last)
        if not isinstance(padding, str):
            cut = min(cut, padding[axis] // dilation)
            padding = tuple(p - cut * dilation if a == axis else p for a, p in enumerate(padding))
        weight = weight.narrow(dim, cut, k - 2 * cut)
    if weight.shape == conv.weight.shape:
        return
    conv.weight = nn.Parameter(weight.clone(), requires_grad=conv.weight.requires_grad)
    conv.kernel_size = tuple(weight.shape[2:])
    conv.padding = padding
    # what nn.ConvNd derives from both, for the padding modes that it computes itself
    fresh = type(conv)(1, 1, conv.kernel_size, padding=padding, dilation=conv.dilation, device="meta")
    conv._reversed_padding_repeated_twice = fresh._reversed_padding_repeated_twice
