"""A kernel built part by part: what is made on the way stays in the caches of a CPU and is not kept."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .tracing import is_in_transform, is_traced, is_transformed

FROM = 2**18  # elements: the depthwise convolutions of a ConvNeXt have a tenth of that
ELEMENTS = 2**16  # of a part

Build = Callable[..., torch.Tensor]


def in_parts(build: Build, weight: torch.Tensor, *by_axis: torch.Tensor) -> torch.Tensor:
    """``build(weight, *by_axis)`` of some output channels after the other, on a CPU.

    Autograd would keep twenty numbers for an element, where elements are most of what a ResNet trains; here
    the gradient builds the kernel again.

    Args:
        build: Makes a kernel whose first axis is that of the weight.
        weight: ``(out_channels, ..., n)``.
        *by_axis: Tensors ``(axes, *weight.shape)``.
    """
    tensors = (weight, *by_axis)
    if is_traced() or is_in_transform() or is_transformed(*tensors):
        return build(*tensors)  # before sizes are compared, which tracers would note
    if not weight.is_cpu or weight.numel() < FROM or any(t.shape[1:] != weight.shape for t in by_axis):
        return build(*tensors)
    kernel: torch.Tensor = _InParts.apply(build, *tensors)
    return kernel


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, build: Build, *tensors: torch.Tensor) -> torch.Tensor:
        """The kernel."""
        ctx.build = build
        ctx.save_for_backward(*tensors)
        return _joined([build(*part) for part in _parts(*tensors)], 0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of each part; with a graph of its own where gradients of gradients are asked for."""
        again = torch.is_grad_enabled() or is_in_transform()
        needed = [i for i, needs in enumerate(ctx.needs_input_grad[1:]) if needs]
        found: dict[int, list[torch.Tensor]] = {i: [] for i in needed}
        with torch.enable_grad():
            parts = list(_parts(*ctx.saved_tensors))
            for part, of_part in zip(parts, grad.split([len(p[0]) for p in parts]), strict=True):
                if not again:
                    part = tuple(t.detach().requires_grad_(i in needed) for i, t in enumerate(part))
                leaves = [part[i] for i in needed]
                grads = torch.autograd.grad(ctx.build(*part), leaves, of_part, create_graph=again)
                for i, g in zip(needed, grads, strict=True):
                    found[i].append(g)
        return None, *(_joined(found[i], int(i > 0)) if i in found else None for i in range(len(parts[0])))


def _parts(weight: torch.Tensor, *by_axis: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    rows = max(1, ELEMENTS // max(1, weight[0].numel()))
    return zip(weight.split(rows), *(t.split(rows, 1) for t in by_axis), strict=True)


def _joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
