"""Who holds the positions of a layer, how layers share them, and how they stay inside the kernel.

A *holder* is the module that registers ``positions`` (and ``sigma``): a layer itself, or a container,
such as a stage, on behalf of all its layers. Layers read from their holder at every forward, so one
registered tensor serves them all whatever is done to the model (assignment, ``to_empty``, deepcopy,
safetensors, FSDP2).

In range: position p of an axis of size K satisfies ``|p| <= K // 2``. ``project_`` clamps what is stored
and is called where it can matter: after the step of any ``torch.optim.Optimizer`` (the authors' clamp),
at the start of a training forward (for loops written by hand; not where the forward is compiled), and
before a state dict is written. It writes through ``.data``: values inside the range do not change, so
nothing that autograd has saved is spoilt, and two forwards before one backward, or two layers that share
positions, raise no error.

Only a checkpoint brings positions from outside (the authors' audio trainer never clamps). They are kept
as they are, so that the model computes what its authors' does, until something changes them.
"""

import logging
import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch._C._functorch import is_batchedtensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .interpolation import per_axis

if TYPE_CHECKING:
    from .dcls import DclsNd

_logger = logging.getLogger(__name__)
Holder: TypeAlias = Any  # an nn.Module that ``hold`` has been called on
_LAYERS: "weakref.WeakSet[DclsNd]" = weakref.WeakSet()  # every layer alive, for the optimizer hook


def track(layer: "DclsNd") -> None:
    """Makes a layer known to the optimizer hook; needed again after unpickling or copying."""
    _LAYERS.add(layer)


def hold(holder: Holder, positions: nn.Parameter, sigma: nn.Parameter | None, size: Sequence[int]) -> None:
    """Registers positions and sigma on their holder, with the hooks that load and save them.

    Args:
        holder: The module that registers them.
        positions: ``(axes, out_channels, in_channels // groups, ..., kernel_count)``, in pixels.
        sigma: The same shape, or None for a version without.
        size: Size of the dilated kernel along each learned axis.
    """
    holder.register_parameter("positions", positions)
    holder.register_parameter("sigma", sigma)
    holder.positions_size = tuple(size)
    holder.positions_kept_at = None
    holder.register_load_state_dict_pre_hook(_translate_on_load)
    holder.register_load_state_dict_post_hook(_keep_loaded_outside)
    holder.register_state_dict_pre_hook(_project_on_save)


def share_positions(holder: Holder, layers: Sequence["DclsNd"]) -> None:
    """Makes layers share one set of positions (and sigma), held by a container around them.

    The holder takes those of the first layer, as in the authors' models.

    Args:
        holder: A module that contains all the layers and is called, directly or through a parent,
            whenever they are (a stage).
        layers: Layers of one version, kernel size and shape that hold their own positions.

    Raises:
        ValueError: If a layer is outside the holder or does not fit the first, or the holder already
            has something of that name.
    """
    members = set(holder.modules())
    for layer in layers:
        if layer not in members:
            raise ValueError(f"{layer} is not inside the module that is to hold its positions")
    check_shareable(holder, layers)
    first = layers[0]
    positions, sigma = first.positions, first.sigma
    for layer in layers:
        layer.read_from(holder)
    hold(holder, positions, sigma, first.dilated_kernel_size)
    holder.reparameterize = partial(_fuse_layers, holder)  # timm calls it before it fuses the layers


def _fuse_layers(holder: Holder) -> None:
    """Fuses the layers that share the positions of ``holder``, which then hold nothing for anybody."""
    for parent in list(holder.modules()):
        for name, layer in list(parent.named_children()):
            if layer in _LAYERS and layer.holder() is holder:
                setattr(parent, name, layer.fuse())
    del holder.positions, holder.sigma, holder.reparameterize


def check_shareable(holder: nn.Module, layers: Sequence["DclsNd"]) -> None:
    """Raises what ``share_positions`` would, also before the layers are inside the holder."""
    for layer in layers:
        first = layers[0]
        if (layer.version, layer.dilated_kernel_size, layer.weight.shape) != (
            first.version,
            first.dilated_kernel_size,
            first.weight.shape,
        ):
            raise ValueError(
                f"layers that share positions must have one version, kernel size and shape, got {first} "
                f"and {layer}; share them over smaller containers, or not at all"
            )
    if layers and hasattr(holder, "positions"):
        raise ValueError(f"{type(holder).__name__} already has an attribute 'positions'")


def inside(positions: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The positions, clamped to the range, with the gradient of the positions themselves.

    ``torch.clamp`` alone has no gradient at the limits (torch 2.15; it had in earlier releases).
    """
    stored, limit = positions.detach(), per_axis(size, positions) // 2
    return positions + (stored.clamp(-limit, limit) - stored)  # type: ignore[arg-type]


@torch.no_grad()
def project_(holder: Holder) -> None:
    """Clamps the stored positions, unless they are as a checkpoint brought them."""
    if isinstance(holder.positions, torch.Tensor) and is_batchedtensor(holder.positions):
        return  # vmap over models shows no stored values; ``inside`` clamps what is used
    if holder.positions_kept_at is not None:
        kept, now = holder.positions_kept_at, _state_of(holder.positions)
        if kept[0] != now[0]:  # the holder was copied: another tensor, with a history of its own
            holder.positions_kept_at = kept = now
        if kept == now:
            return
        holder.positions_kept_at = None
    size, stored = holder.positions_size, holder.positions.data
    if len(set(size)) == 1:
        stored.clamp_(-(size[0] // 2), size[0] // 2)
    elif isinstance(stored, torch.Tensor) and hasattr(stored, "placements"):  # an FX proxy has any name
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


def translate_reference_keys(holder: Holder, state_dict: dict[str, Any], prefix: str) -> None:
    """Turns the authors' keys below ``prefix`` (``P``, ``SIG``, one copy per layer) into the holder's.

    The authors' rows are in another order than the axes they move along (all versions but ``v0`` reverse
    it), and each row is centred by its own size, whatever axis it moves along; ours give the same kernel.

    Raises:
        ValueError: If the copies of layers that share positions disagree.
    """
    for name, layer in holder.named_modules():
        if layer not in _LAYERS or layer.holder() is not holder:
            continue
        base = f"{prefix}{name}." if name else prefix
        for key in ("DCK.IDX", "DCK.lim"):  # index grids that Dcls2_1d of the authors stores
            state_dict.pop(base + key, None)
        for theirs, ours in (("P", "positions"), ("SIG", "sigma")):
            if base + theirs not in state_dict:
                continue
            rows = state_dict.pop(base + theirs)
            translated = _reorder(rows, layer, shift=theirs == "P")
            known = state_dict.setdefault(prefix + ours, translated)
            if not torch.equal(known, translated):
                raise ValueError(
                    f"{base}{theirs} differs from the copy of another layer that shares it: the checkpoint "
                    "was made without sharing positions, or is damaged"
                )


def _reorder(rows: torch.Tensor, layer: "DclsNd", shift: bool) -> torch.Tensor:
    size = layer.dilated_kernel_size
    order = {1: (0,), 2: (1, 0), 3: (2, 1, 0)}[len(size)]
    if layer.version == "v0":
        order = {1: (0,), 2: (0, 1), 3: (0, 2, 1)}[len(size)]
    if len(rows) != len(size):
        raise ValueError(f"expected positions of {len(size)} rows, one per axis, got {tuple(rows.shape)}")
    centre = [size[row] // 2 - size[axis] // 2 if shift else 0 for axis, row in enumerate(order)]
    return torch.stack([rows[row] + offset for row, offset in zip(order, centre, strict=True)])


def _translate_on_load(
    module: Holder,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    try:
        if "positions" in module._parameters:
            translate_reference_keys(module, state_dict, prefix)
    except ValueError as error:
        error_msgs.append(str(error))


def _keep_loaded_outside(module: Holder, incompatible_keys: Any) -> None:
    positions = module._parameters.get("positions")
    if positions is None:
        return
    module.positions_kept_at = None
    if positions.is_meta or hasattr(positions, "placements"):
        return  # no values to look at, or only a shard of them
    size = module.positions_size
    outside = sum(int((row.abs() > k // 2).sum()) for row, k in zip(positions, size, strict=True))
    if outside:
        module.positions_kept_at = _state_of(positions)
        _logger.warning(
            "%d of %d loaded positions of %s lie outside the kernel; they are kept until training "
            "changes them",
            outside,
            positions.numel(),
            type(module).__name__,
        )


def _project_on_save(module: Holder, prefix: str, keep_vars: bool) -> None:
    if "positions" in module._parameters:
        project_(module)


def _project_after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _LAYERS:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    holders = set()
    for layer in list(_LAYERS):
        if stepped & {id(layer.weight), id(layer.positions), id(layer.sigma)}:
            layer.drop_cache()  # fused optimizers count no writes
            holders.add(layer.holder())
    for holder in holders:
        positions = holder._parameters.get("positions")
        if id(positions) in stepped:
            if positions.grad is not None:  # it has moved, whether that was counted or not
                holder.positions_kept_at = None
            project_(holder)


register_optimizer_step_post_hook(_project_after_step)
