"""Starts a DCLS model from the weights of the dense model that it was made from.

With integer positions an element of ``v0``, ``v1`` or ``max`` (``sigma`` 0) is one pixel, so enough elements
hold any dense kernel; otherwise the weights are a least-squares fit for positions on the pixels where the
dense kernels (of all layers that share positions) have the most energy.
"""

import logging
from collections import defaultdict
from typing import NamedTuple

import timm
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .files import one_line
from .layers import Dcls2dSame, DclsNd, dense_kernel
from .layers.in_range import Holder, inside

_logger = logging.getLogger(__name__)

GAUSS_SIGMA = 0.03  # width 0.30 pixels: as sharp as it gets, while |sigma| still has a gradient
FIT_BATCH = 2**22  # numbers in one batch of interpolation maps during the fit


class WarmStart(NamedTuple):
    """What a warm start kept.

    Attributes:
        residuals: For each layer ``||kernel - dense|| / ||dense||``, before the jitter.
        logits_change: Largest change of an output against the dense model, before the jitter, over the
            largest output; None without an example input.
        jitter_change: The same for the jitter alone.
    """

    residuals: dict[str, float]
    logits_change: float | None
    jitter_change: float | None


def warm_start(
    model: nn.Module,
    source: nn.Module | str,
    *,
    jitter: float = 1e-3,
    example_input: torch.Tensor | None = None,
) -> WarmStart:
    """Copies a dense model into the DCLS model that was made from it.

    Exact for ``v0``, and to rounding for ``v1`` and ``max``, if ``kernel_count`` covers the dense kernel (49
    for 7x7); ``gauss`` always spreads. With fewer elements it is a least-squares fit.

    Args:
        model: The DCLS model, for instance ``timm.create_model("convnext_dcls_tiny", kernel_count=49)``.
        source: The dense model with the same names, or a timm name, whose pretrained weights are taken.
        jitter: How far, in pixels, positions of ``v1`` and ``max`` are moved off the integers afterwards:
            there they would have no gradient and stay for ever.
        example_input: Images on which the effect on the output is measured; by default one random image of
            the size in ``model.pretrained_cfg``, if there is one.

    Returns:
        The residual of each layer and the change of the logits, which are logged as well.

    Raises:
        ValueError: If the model has no DCLS layer, or the source has other parameters than the model or a
            kernel that does not fit. The model is then as before.

    >>> model = timm.create_model("test_convnext_dcls", kernel_count=49)
    >>> report = warm_start(model, timm.create_model("test_convnext"))
    """
    if isinstance(source, str):
        heads = {k: getattr(model, k) for k in ("num_classes", "in_chans") if hasattr(model, k)}
        return warm_start(
            model,
            timm.create_model(source, pretrained=True, **heads),
            jitter=jitter,
            example_input=example_input,
        )
    layers = {name: m for name, m in model.named_modules() if isinstance(m, DclsNd)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DCLS layer; make some with dclsify")
    convs = {name: _counterpart(name, layer, source) for name, layer in layers.items()}
    image = _example(model) if example_input is None else example_input
    exact = _logits(source, image)
    _copy_others(model, source)

    shared: dict[nn.Module, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        shared[layer.holder()].append(name)
    residuals: dict[str, float] = {}
    for names in shared.values():
        missed = _fit([layers[n] for n in names], [convs[n] for n in names])
        residuals |= dict(zip(names, missed, strict=True))

    fitted = _logits(model, image)
    for holder, names in shared.items():
        if jitter and layers[names[0]].version in ("v1", "max"):
            _jitter(holder, jitter)
    report = WarmStart(residuals, _change(exact, fitted), _change(fitted, _logits(model, image)))
    worst = max(residuals, key=lambda name: residuals[name])
    _logger.log(
        logging.WARNING if residuals[worst] > 1e-2 else logging.INFO,
        "warm start: relative residual of the kernels %.2g at worst (%s); logits changed by %s of "
        "the largest, by the jitter of %g pixels %s",
        residuals[worst],
        worst,
        report.logits_change,
        jitter,
        report.jitter_change,
    )
    return report


def _counterpart(name: str, layer: DclsNd, source: nn.Module) -> _ConvNd:
    conv = dict(source.named_modules()).get(name)
    if not isinstance(conv, _ConvNd) or isinstance(conv, DclsNd):
        raise ValueError(f"the source has no dense convolution {name!r}, it has {type(conv).__name__}")
    check_counterpart(name, layer, conv)
    return conv


def check_example(model: nn.Module, image: torch.Tensor | None) -> None:
    """Raises ValueError if a model cannot take the images on which a warm start measures its effect."""
    image = _example(model) if image is None else image
    try:
        _logits(model, image)
    except (RuntimeError, TypeError, AssertionError) as error:
        shape = None if image is None else tuple(image.shape)
        raise ValueError(
            f"{type(model).__name__} does not take example_input {shape}: {one_line(error)}"
        ) from error


def check_counterpart(name: str, layer: DclsNd, conv: _ConvNd) -> None:
    """Raises ValueError if a layer cannot start from a dense convolution."""
    same = ("in_channels", "out_channels", "groups", "stride", "dilation", "padding_mode")
    if any(getattr(conv, k) != getattr(layer, k) for k in same):
        raise ValueError(f"{name}: the source has {conv}, which does not fit {layer}")
    if layer.dilated_kernel_size != layer.kernel_size:
        raise ValueError(
            f"{name}: {type(layer).__name__} has axes that are not learned; a warm start is for Dcls1d, "
            "2d, 3d"
        )
    if any(k > size for k, size in zip(conv.kernel_size, layer.kernel_size, strict=True)):
        raise ValueError(
            f"{name}: a dense kernel of {conv.kernel_size} does not fit into a dilated kernel of "
            f"{layer.kernel_size}"
        )
    _place(name, layer, conv)


def _place(name: str, layer: DclsNd, conv: _ConvNd) -> list[slice]:
    """The pixels of the dilated kernel that see what the pixels of the dense kernel see."""
    place = []
    for axis, dilation in enumerate(conv.dilation):
        start = (_padding_before(layer)[axis] - _padding_before(conv)[axis]) / dilation
        end = start + conv.kernel_size[axis]
        if start != int(start) or start < 0 or end > layer.kernel_size[axis]:
            raise ValueError(
                f"{name}: {layer} pads so that its pixels cannot lie on those of {conv}; an odd "
                "dilated_kernel_size for an odd kernel, an even one for an even kernel always fits"
            )
        place.append(slice(int(start), int(end)))
    return place


def _padding_before(conv: _ConvNd) -> list[float]:
    if isinstance(conv, Conv2dSame | Dcls2dSame):  # half pixels: how they are rounded depends on the input
        return [d * (k - 1) / 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    if conv.padding == "same":
        return [d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    return [0] * len(conv.kernel_size) if isinstance(conv.padding, str) else list(conv.padding)


def _copy_others(model: nn.Module, source: nn.Module) -> None:
    """Copies everything that is not part of a kernel; checks all of it before the first copy."""
    holders = {m.holder() for m in model.modules() if isinstance(m, DclsNd)}
    own = set()
    for name, module in model.named_modules(remove_duplicate=False):
        keys = ["weight"] if isinstance(module, DclsNd) else []
        keys += ["positions", "sigma"] if module in holders else []
        own |= {f"{name}.{key}" if name else key for key in keys}
    ours = {k: v.shape for k, v in model.state_dict().items() if k not in own}
    theirs = {k: v for k, v in source.state_dict().items() if k not in own}
    differ = sorted(
        k
        for k in ours.keys() | theirs.keys()
        if k not in ours or k not in theirs or ours[k] != theirs[k].shape
    )
    if differ:
        raise ValueError(
            f"the source differs from the model in {len(differ)} tensors besides the kernels "
            f"({', '.join(differ[:4])}{', ...' if len(differ) > 4 else ''}); make both with the same "
            "arguments (num_classes, in_chans, depths, ...)"
        )
    model.load_state_dict(theirs, strict=False)


@torch.no_grad()
def _fit(layers: list[DclsNd], convs: list[_ConvNd]) -> list[float]:
    """Fits layers that share positions; r pairs (out, in), b layers, k pixels, n elements."""
    first, holder = layers[0], layers[0].holder()
    size = first.dilated_kernel_size
    target, covered = _targets(layers, convs)  # r b k, k
    count = min(first.kernel_count, int(covered.sum()))
    energy = target.square().sum(1).masked_fill(~covered, -1)
    axes = [torch.arange(k, dtype=torch.float64) - k // 2 for k in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # axes k
    positions = holder.positions.double().cpu().flatten(1, 2).clone()  # axes r n
    positions[..., :count] = grid[:, energy.topk(count).indices]
    holder.positions.copy_(positions.view_as(holder.positions))
    if holder.sigma is not None:
        holder.sigma.fill_(GAUSS_SIGMA if first.version == "gauss" else 0.0)

    weight = target.new_zeros(*target.shape[:2], first.kernel_count)
    rows = max(1, FIT_BATCH // (count * target.shape[-1]))
    for r in range(0, len(target), rows):
        maps = _maps(first, positions[:, r : r + rows, :count])  # r n k
        gram = maps @ maps.mT + 1e-12 * torch.eye(count, dtype=maps.dtype)
        weight[r : r + rows, :, :count] = torch.linalg.solve(gram, maps @ target[r : r + rows].mT).mT
    residuals = []
    for layer, fitted, wanted in zip(layers, weight.unbind(1), target.unbind(1), strict=True):
        layer.weight.copy_(fitted.view_as(layer.weight))
        missed = layer.kernel().double().cpu().flatten(2).flatten(0, 1) - wanted
        residuals.append((missed.norm() / wanted.norm().clamp(min=1e-30)).item())
    return residuals


def _targets(layers: list[DclsNd], convs: list[_ConvNd]) -> tuple[torch.Tensor, torch.Tensor]:
    """The dense kernels, padded to the size of the dilated ones, and which pixels they cover."""
    targets = []
    covered = torch.zeros(layers[0].kernel_size, dtype=torch.bool)
    for layer, conv in zip(layers, convs, strict=True):
        place = _place("", layer, conv)
        target = torch.zeros(*conv.weight.shape[:2], *layer.kernel_size, dtype=torch.float64)
        target[(slice(None), slice(None), *place)] = conv.weight.double().cpu()
        targets.append(target.flatten(2).flatten(0, 1))
        covered[tuple(place)] = True
    return torch.stack(targets, 1), covered.flatten()


def _maps(layer: DclsNd, positions: torch.Tensor) -> torch.Tensor:
    """The interpolation map of each element, ``(r, n, pixels)``, for positions ``(axes, r, n)``."""
    one = torch.ones_like(positions[0]).unsqueeze(-1)
    sigma = None
    if layer.sigma is not None:
        sigma = torch.full_like(positions, GAUSS_SIGMA if layer.version == "gauss" else 0.0).unsqueeze(-1)
    kernels = dense_kernel(one, positions.unsqueeze(-1), sigma, layer.dilated_kernel_size, layer.version)
    return kernels.flatten(2)


@torch.no_grad()
def _jitter(holder: Holder, jitter: float) -> None:
    """Moves every position by up to ``jitter`` pixels, back inwards where that would leave the kernel."""
    distance = torch.empty_like(holder.positions).uniform_(jitter / 2, jitter)
    # far from 0, half precision may not resolve the jitter
    distance = distance.maximum(torch.finfo(distance.dtype).eps * holder.positions.abs())
    moved = holder.positions + torch.where(torch.rand_like(distance) < 0.5, -distance, distance)
    limited = inside(moved, holder.positions_size)
    holder.positions.copy_(2 * limited - moved)


def _example(model: nn.Module) -> torch.Tensor | None:
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    if size is None:
        return None
    chans = getattr(model, "in_chans", size[0])
    return torch.randn(1, chans, *size[1:], generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: nn.Module, image: torch.Tensor | None) -> torch.Tensor | None:
    if image is None:
        return None
    modes = {module: module.training for module in model.modules()}
    try:
        like = next(model.parameters())
        return model.eval()(image.to(like.device, like.dtype if image.is_floating_point() else None))
    finally:
        for module, training in modes.items():
            module.training = training


def _change(before: torch.Tensor | None, after: torch.Tensor | None) -> float | None:
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return None
    before, after = before.double().cpu(), after.double().cpu()
    return ((after - before).abs().max() / before.abs().max()).item()
