"""The kernels of a model, learned or dense: pictures and statistics per stage."""

import argparse
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from dcls_models.layers import Dcls2d
from dcls_models.layers.interpolation import SCHEMES
from dcls_models.layers.positions import stage_title
from dcls_models.provenance import state_dict_sha256
from eval.options import baseline_option, json_option, model_options, models, picture_option
from eval.results import write_result
from eval.section import Section

COLUMNS = 8  # kernels on the picture, per stage
COLOURS = (
    "Red: positive weights, blue: negative, pale: none, each kernel on a scale of its own{dots}.\n"
    "The averages on the right: yellow where there is much, dark where there is nothing. As far from the\n"
    "middle as there is colour, so far a kernel sees."
)
SECTION = Section(
    "Kernels",
    "Per stage, in pixels: the mean distance from the middle, weighted with |kernel|, and the share of "
    "|kernel| outside the middle 7 x 7; of the elements, their mean distance, the share at the edge of "
    "their range, and sigma.",
    {
        "name": ("stage", 0),
        "size": ("size", 0),
        "version": ("version", 0),
        "radius": ("radius", 2),
        "outside_7x7": ("outside 7 x 7", 3),
        "mean_distance": ("mean distance", 2),
        "at_border": ("at the edge", 3),
        "sigma/mean": ("sigma", 2),
    },
)


def stages_of(model: nn.Module) -> dict[str, list[nn.Conv2d]]:
    """The layers whose kernels are looked at, by stage (timm's ``feature_info``).

    They are those with learned positions, or in a model without any the depthwise convolutions of stride 1.

    Raises:
        ValueError: If there is no such layer.
    """
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    layers = {name: m for name, m in convolutions.items() if isinstance(m, Dcls2d)} or {
        name: m
        for name, m in convolutions.items()
        if m.groups == m.in_channels > 1 and m.stride == (1, 1) and max(m.kernel_size) > 1
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DCLS layer and no depthwise convolution to look at")
    names = [info["module"] for info in getattr(model, "feature_info", [])]
    stages: dict[str, list[nn.Conv2d]] = {}
    for name, layer in layers.items():
        stage = next((s for s in names if name.startswith(s + ".")), name)
        stages.setdefault(stage, []).append(layer)
    return stages


def kernel_of(layer: nn.Conv2d) -> torch.Tensor:
    """The dense kernel ``(out_channels, in_channels // groups, height, width)``."""
    kernel = layer.kernel() if isinstance(layer, Dcls2d) else layer.weight
    return kernel.detach().float().cpu()


def magnitude(layers: Sequence[nn.Conv2d]) -> torch.Tensor:
    """The mean ``|kernel|`` of layers, over all their channels, ``(height, width)`` of the largest."""
    means = [kernel_of(layer).abs().mean((0, 1)) for layer in layers]
    height, width = (max(mean.shape[axis] for mean in means) for axis in (0, 1))
    total = torch.zeros(height, width)
    for mean in means:  # with the middles, index K // 2, on each other
        top, left = height // 2 - mean.shape[0] // 2, width // 2 - mean.shape[1] // 2
        bottom, right = height - mean.shape[0] - top, width - mean.shape[1] - left
        total += F.pad(mean, (left, right, top, bottom))
    return total / len(means)


def distances(height: int, width: int) -> torch.Tensor:
    """The distance of each pixel of a kernel from its middle, ``(height, width)``, in pixels."""
    y, x = (torch.arange(size) - size // 2 for size in (height, width))
    return (y[:, None].square() + x.square()).sqrt()


def elements(layers: Sequence[nn.Conv2d]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the elements of layers sit, shared positions once, and how wide they are.

    Returns:
        Positions ``(2, n)`` and standard deviations or half widths ``(2, n)`` in pixels; the latter
        ``(2, 0)`` for versions that learn none.
    """
    layers = list({layer.holder(): layer for layer in layers}.values())
    positions = [layer.positions.detach().float().cpu().flatten(1) for layer in layers]
    offsets = [SCHEMES[layer.version].sigma_offset for layer in layers]
    sigma = [
        layer.sigma.detach().float().cpu().flatten(1).abs() + offset
        for layer, offset in zip(layers, offsets, strict=True)
        if offset is not None
    ]
    return torch.cat(positions, 1), torch.cat(sigma, 1) if sigma else torch.zeros(2, 0)


def statistics(name: str, layers: Sequence[nn.Conv2d]) -> dict[str, Any]:
    """What a stage's kernels are like.

    Returns:
        ``name``, ``layers`` and ``size`` (pixels); ``radius``, the mean distance from the middle weighted
        with ``|kernel|``, in pixels, and ``outside_7x7``, the share of ``|kernel|`` there. With learned
        positions also ``version``, ``kernel_count``, ``mean_distance`` of the elements from the middle in
        pixels, ``at_border``, the share of elements within half a pixel of the edge of their range, and
        ``sigma`` (mean and standard deviation in pixels) where it is learned.
    """
    mass = magnitude(layers)
    height, width = mass.shape
    radius = (mass * distances(height, width)).sum() / mass.sum()
    inner = mass[max(0, height // 2 - 3) : height // 2 + 4, max(0, width // 2 - 3) : width // 2 + 4]
    outside = (1 - inner.sum() / mass.sum()).clamp(min=0)
    row = {"name": name, "layers": len(layers), "size": [height, width]}
    row |= {"radius": radius.item(), "outside_7x7": outside.item()}
    first = layers[0]
    if isinstance(first, Dcls2d):
        positions, sigma = elements(layers)
        limit = torch.tensor([k // 2 for k in first.dilated_kernel_size])[:, None]
        at_border = (positions.abs() >= limit - 0.5).any(0).float().mean()
        row |= {"version": first.version, "kernel_count": first.kernel_count}
        row |= {"mean_distance": positions.norm(dim=0).mean().item(), "at_border": at_border.item()}
        if sigma.numel():
            row["sigma"] = {"mean": sigma.mean().item(), "std": sigma.std().item()}
    return row


def draw_kernels(stages: dict[str, list[nn.Conv2d]]) -> Figure:
    """Draws, in a row per stage, kernels of its first layer, their mean magnitude, positions and sigma.

    Args:
        stages: Titles and layers.
    """
    learned = [layer for layers in stages.values() for layer in layers if isinstance(layer, Dcls2d)]
    columns = COLUMNS + 1 + bool(learned) + any(layer.sigma is not None for layer in learned)
    size = (1.5 * columns, 1.8 * len(stages) + 1.3)
    figure, axes = plt.subplots(len(stages), columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(
        f"The first {COLUMNS} kernels of each stage, pixel by pixel, and averages over all of them"
    )
    dots = (
        "; a dot: where an element sits, between up to four pixels that share its weight" if learned else ""
    )
    figure.supxlabel(COLOURS.format(dots=dots), fontsize=9)
    for (title, layers), line in zip(stages.items(), axes, strict=True):
        for axis in line:
            axis.axis("off")
        first = layers[0]
        for channel, (axis, kernel) in enumerate(zip(line[:COLUMNS], kernel_of(first)[:, 0], strict=False)):
            _draw_kernel(axis, kernel)
            if isinstance(first, Dcls2d):
                y, x = first.positions.detach().cpu()[:, channel, 0].tolist()
                height, width = kernel.shape
                axis.scatter([p + width // 2 for p in x], [p + height // 2 for p in y], s=3, color="black")
        height, width = first.kernel_size
        line[0].set_title(f"{title}: {height}x{width} pixels", fontsize=8, loc="left")
        line[COLUMNS].imshow(magnitude(layers), cmap="viridis", vmin=0)
        line[COLUMNS].set_title("mean |weight|", fontsize=8)
        if isinstance(first, Dcls2d):
            _draw_elements(line[COLUMNS + 1 :], layers)
    return figure


def _draw_kernel(axis: plt.Axes, kernel: torch.Tensor) -> None:
    largest = kernel.abs().max().item()
    axis.imshow(kernel, cmap="RdBu_r", vmin=-largest, vmax=largest)


def _draw_elements(axes: Sequence[plt.Axes], layers: Sequence[nn.Conv2d]) -> None:
    positions, sigma = elements(layers)
    density, *more = axes
    edges = [torch.arange(k + 1) - k // 2 - 0.5 for k in layers[0].dilated_kernel_size]
    counts, _ = torch.histogramdd(positions.T.contiguous(), edges)
    density.imshow(counts, cmap="viridis", vmin=0)
    density.set_title("number of elements", fontsize=8)
    if sigma.numel():
        (widths,) = more
        widths.axis("on")
        widths.hist(sigma.flatten(), bins=30)
        widths.tick_params(labelsize=6)
        widths.set(yticks=[])
        widths.set_title("sigma (pixels)", fontsize=8)


def run(arguments: argparse.Namespace) -> None:
    """Says how the kernels are, draws them, and writes their statistics."""
    rows, shown = [], {}
    for name, model in models(arguments):
        stages = stages_of(model)
        title = f"{name.rpartition('/')[2]} " if arguments.baseline else ""
        shown |= {f"{title}{stage_title(stage)}": layers for stage, layers in stages.items()}
        measured = [statistics(stage, layers) for stage, layers in stages.items()]
        rows.append({"model": name, "state_dict_sha256": state_dict_sha256(model), "stages": measured})
    write_result(arguments, {**rows[-1], "rows": rows}, lambda: draw_kernels(shown))
    for row in rows:
        for stage in row["stages"]:
            print(f"{row['model']} {stage['name']}: {_say(stage)}")


def _say(stage: dict[str, Any]) -> str:
    height, width = stage["size"]
    text = f"{height} x {width}, radius {stage['radius']:.2f}, {stage['outside_7x7']:.0%} outside 7 x 7"
    if "mean_distance" in stage:
        text += f"; elements {stage['mean_distance']:.2f} from the middle"
        text += f", {stage['at_border']:.0%} at the edge"
    if "sigma" in stage:
        text += f", sigma {stage['sigma']['mean']:.2f}"
    return text


def add_commands(commands: Any) -> None:
    """Adds ``kernels``."""
    parents = [model_options(), baseline_option(), json_option(), picture_option()]
    command = commands.add_parser("kernels", parents=parents, help="the learned kernels")
    command.set_defaults(run=run, device="cpu")
