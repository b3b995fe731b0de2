"""How positions stay inside the kernel: position p of an axis of size K satisfies ``|p| <= K // 2``.

What is stored is clamped after the step of any ``torch.optim`` optimizer (the authors' clamp) and before a
state dict is written; a forward computes with ``inside``, which never looks at another device or process. The
clamp writes through ``.data``: values inside the range do not change, so nothing that autograd has saved is
spoilt, and two forwards before one backward, or two layers that share positions, raise no error.

Only a checkpoint brings positions from outside (the authors' audio trainer never clamps), through
``load_state_dict`` or a loader that puts new parameters in place of the old ones (transformers, accelerate).
They are kept as they are, so that the model computes what its authors' does, until something changes them.
"""

import logging
import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .interpolation import per_axis

_logger = logging.getLogger(__name__)
Holder: TypeAlias = Any  # an nn.Module that registers positions: see ``positions``
_HOLDERS: "weakref.WeakSet[Holder]" = weakref.WeakSet()  # all that are alive, for the optimizer hook


def track(holder: Holder) -> None:
    """Registers a holder with the optimizer hook; call it again after copying or unpickling."""
    _HOLDERS.add(holder)


def inside(positions: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The positions, clamped to the range, with the gradient of the positions themselves.

    ``torch.clamp`` alone has no gradient at the limits (torch 2.15; it had in earlier releases).
    """
    stored, limit = positions.detach(), per_axis(size, positions) // 2
    return positions + (stored.clamp(-limit, limit) - stored)  # type: ignore[arg-type]


def as_loaded(holder: Holder) -> bool:
    """Whether a checkpoint brought positions from outside, and they are still those."""
    positions = holder.positions
    if torch.compiler.is_compiling() or not isinstance(positions, torch.Tensor):
        return holder.positions_kept_at is not None  # while a graph is recorded nothing changes
    if _was_replaced(holder):
        keep_loaded_outside(holder)
    kept, now = holder.positions_kept_at, _state_of(positions)
    if kept is None:
        return False
    return kept[0] != now[0] or kept == now  # a copy is another tensor, with a history of its own


def note_parameter(holder: Holder) -> None:
    """Remembers which parameter the holder has, so that another one in its place is noticed."""
    holder.positions_seen = (id(holder), id(holder._parameters["positions"]))


def forget_loaded(holder: Holder) -> None:
    """For new values of the positions: whatever a checkpoint brought is gone."""
    holder.positions_kept_at = None
    note_parameter(holder)


def _was_replaced(holder: Holder) -> bool:
    """Whether another parameter is in place than at the last look, in the same holder (not in a copy)."""
    if type(holder._parameters.get("positions")) is not nn.Parameter:
        return False  # a functional call, or a distributed tensor
    earlier = getattr(holder, "positions_seen", (0, 0))
    note_parameter(holder)
    return bool(earlier[0] == id(holder) and earlier != holder.positions_seen)


@torch.no_grad()
def clamp_positions(holder: Holder) -> None:
    """Clamps the stored positions, unless they are as a checkpoint brought them."""
    if as_loaded(holder):
        holder.positions_kept_at = _state_of(holder.positions)
        return
    holder.positions_kept_at = None
    size, stored = holder.positions_size, holder.positions.data
    if len(set(size)) == 1:
        stored.clamp_(-(size[0] // 2), size[0] // 2)
    elif hasattr(stored, "placements"):
        _clamp_shard_(stored, size)
    else:
        for axis, k in enumerate(size):
            stored[axis].clamp_(-(k // 2), k // 2)


def _clamp_shard_(stored: Any, size: Sequence[int]) -> None:
    """Clamps what this process has of a distributed tensor (FSDP2), without asking the others."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = stored.device_mesh
    like = {"dtype": stored.dtype, "device": stored.device}
    rows = [torch.full(stored.shape[1:], float(k // 2), **like) for k in size]
    limit = DTensor.from_local(torch.stack(rows), mesh, [Replicate()] * mesh.ndim, run_check=False)
    local = limit.redistribute(placements=stored.placements).to_local()
    stored.to_local().clamp_(-local, local)


def _state_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Differs from an earlier value when the tensor is another one or was written to."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


@torch.no_grad()  # not part of what a checkpointed forward saves and computes again
def keep_loaded_outside(holder: Holder, incompatible_keys: Any = None) -> None:
    """After a load: notes and reports positions outside the kernel."""
    positions = holder._parameters.get("positions")
    if positions is None:
        return
    note_parameter(holder)
    holder.positions_kept_at = None
    if positions.is_meta or hasattr(positions, "placements"):
        return  # no values to look at, or only a shard of them
    size = holder.positions_size
    outside = sum(int((row.abs() > k // 2).sum()) for row, k in zip(positions, size, strict=True))
    if outside:
        holder.positions_kept_at = _state_of(positions)
        _logger.warning(
            "%d of %d loaded positions of %s lie outside the kernel; they are kept until training "
            "changes them",
            outside,
            positions.numel(),
            type(holder).__name__,
        )


def clamp_before_saving(holder: Holder, prefix: str, keep_vars: bool) -> None:
    """Before a state dict is written: clamps the positions that go into it."""
    if "positions" in holder._parameters:
        clamp_positions(holder)


def _clamp_after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _HOLDERS:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for holder in list(_HOLDERS):
        positions = holder._parameters.get("positions")
        if id(positions) in stepped:
            if positions.grad is not None:  # it has moved, whether that was counted or not
                holder.positions_kept_at = None
            clamp_positions(holder)


register_optimizer_step_post_hook(_clamp_after_step)
