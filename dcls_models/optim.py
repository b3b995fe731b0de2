"""What training needs to know about the positions: optimizer groups and the repulsive loss."""

from typing import Any

import timm.optim
import torch
from torch import nn

from .layers import DclsNd

ParamGroup = dict[str, Any]


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.05,
    positions_lr_scale: float = 5.0,
    layer_decay: float | None = None,
) -> list[ParamGroup]:
    """Optimizer groups as the authors train: positions (and sigma) apart, faster and never decayed.

    Args:
        model: Any model, with DCLS layers or without.
        lr: Base learning rate, for a schedule to start from.
        weight_decay: For the parameters that decay: all but biases, norms and what the model excludes.
        positions_lr_scale: Factor on the learning rate of positions and sigma.
        layer_decay: Factor per layer, counted from the head; it multiplies with ``positions_lr_scale``.

    Returns:
        Groups for a torch or timm optimizer, each with ``name``, ``params``, ``lr`` (all factors included, so
        that any scheduler works) and ``weight_decay``; every trainable parameter is in exactly one.
    """
    skip: Any = getattr(model, "no_weight_decay", tuple)()
    if layer_decay is None:
        base = timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip)
    else:
        base = timm.optim.param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay
        )
    scales = {id(p): group.get("lr_scale", 1.0) for group in base for p in group["params"]}
    decayed = {id(p) for group in base if group["weight_decay"] for p in group["params"]}
    readers = _first_readers(model)
    groups: dict[tuple[str, float], ParamGroup] = {}
    for p in model.parameters():
        if not p.requires_grad:
            continue
        scale, decay = scales[id(p)], 0.0
        kind = "no_decay"
        if id(p) in readers:  # as deep in the model as the first layer that reads them
            kind, scale = "positions", positions_lr_scale * scales.get(id(readers[id(p)]), scale)
        elif id(p) in decayed:
            kind, decay = "decay", weight_decay
        new = {"name": kind, "params": [], "lr": lr * scale, "weight_decay": decay}
        groups.setdefault((kind, scale), new)["params"].append(p)
    return list(groups.values())


def _first_readers(model: nn.Module) -> dict[int, nn.Parameter]:
    """For every positions and sigma the weight of the first layer that reads them."""
    readers: dict[int, Any] = {}
    for layer in model.modules():
        if isinstance(layer, DclsNd):
            for p in (layer.positions, layer.sigma):
                readers.setdefault(id(p), layer.weight)
    return readers


def holders(model: nn.Module) -> list[Any]:
    """The modules that register positions, each once, in the order of the model."""
    return list(dict.fromkeys(m.holder() for m in model.modules() if isinstance(m, DclsNd)))


def repulsion(model: nn.Module) -> torch.Tensor:
    """How much the elements of a kernel crowd each other; the authors add its square to the loss.

    The mean over position tensors of ``2 / (n (n - 1) out in) * sum relu(1 - distance)``, over all pairs of
    elements of a kernel (Khalfaoui-Hassani et al. 2021, arXiv:2112.03740); coincident elements do not push.

    Returns:
        A scalar.

    Raises:
        ValueError: If the model has no DCLS layer of two elements or more.
    """
    whole = [_whole(h.positions) for h in holders(model) if h.positions.shape[-1] > 1]
    terms = [_crowding(positions.flatten(1, -2)) for positions in whole]
    if not terms:
        raise ValueError(f"{type(model).__name__} has no DCLS layer of two elements or more")
    return torch.stack(terms).mean()


def _whole(positions: torch.Tensor) -> torch.Tensor:
    """All of a tensor, also of one that is distributed over processes (FSDP2)."""
    return positions.full_tensor() if hasattr(positions, "full_tensor") else positions


def _crowding(positions: torch.Tensor) -> torch.Tensor:
    """The crowding of positions ``(axes, r, n)``: r kernels of n elements."""
    n = positions.shape[-1]
    i, j = torch.triu_indices(n, n, 1, device=positions.device)
    squared = (positions[..., i] - positions[..., j]).square().sum(0)  # r pairs
    apart = squared > 0
    distance = torch.where(apart, squared, 1).sqrt() * apart
    return (1 - distance).relu().mean()
