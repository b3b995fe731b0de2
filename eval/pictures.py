"""Pictures of what a model has learned and of what it says."""

import argparse
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import nn

from dcls_models.layers import DclsNd
from dcls_models.loading import load_model
from eval.images import label_names, transform_of
from eval.options import png, which_model


def draw_kernels(model: nn.Module, path: Path, columns: int = 8) -> int:
    """Draws the first kernels of the first layer of every holder of positions, with the elements on them.

    Args:
        model: A model with 2d DCLS layers.
        path: The picture to write.
        columns: Kernels (output channels) per layer.

    Returns:
        How many layers are drawn.

    Raises:
        ValueError: If the model has no DCLS layer.
    """
    layers = {
        m.holder(): (name, m) for name, m in reversed(list(model.named_modules())) if isinstance(m, DclsNd)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DCLS layer to draw")
    rows = list(reversed(layers.values()))
    size = (1.5 * columns, 1.75 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for (name, layer), line in zip(rows, axes, strict=True):
        kernels = layer.kernel().detach().float().cpu()[:, 0]
        for channel, axis in enumerate(line):
            axis.axis("off")
            if channel < len(kernels):
                _draw_kernel(axis, kernels[channel], layer.positions.detach().cpu()[:, channel, 0])
        line[0].set_title(name, fontsize=8, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return len(rows)


def _draw_kernel(axis: plt.Axes, kernel: torch.Tensor, positions: torch.Tensor) -> None:
    height, width = kernel.shape
    largest = kernel.abs().max().item()
    axis.imshow(kernel.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
    y, x = positions.tolist()
    axis.scatter([p + width // 2 for p in x], [p + height // 2 for p in y], s=3, color="black")


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[Path], top: int = 3) -> list[list[tuple[str, float]]]:
    """The best classes of single images.

    Args:
        model: In eval mode.
        images: Image files.
        top: How many classes.

    Returns:
        Per image ``(class name, probability)``, best first.
    """
    transform, names = transform_of(model), label_names(model)
    found = []
    for file in images:
        with Image.open(file) as image:
            scores = model(transform(image.convert("RGB"))[None])[0].softmax(0)
        best = scores.topk(min(top, len(scores)))
        found.append(
            [(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        )
    return found


def draw_predictions(images: Sequence[Path], found: list[list[tuple[str, float]]], path: Path) -> None:
    """Draws images with their best class; green where it is the name of the image's folder, else red."""
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    size = (1.5 * columns, 1.75 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, file, ((name, probability), *_) in zip(axes.flat, images, found, strict=False):
        with Image.open(file) as image:
            axis.imshow(image.convert("RGB"))
        colour = "tab:green" if name == file.parent.name else "tab:red"
        axis.set_title(f"{name} ({probability:.0%})", fontsize=9, color=colour)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run_kernels(arguments: argparse.Namespace) -> None:
    """Draws the learned kernels."""
    drawn = draw_kernels(load_model(arguments.model, arguments.checkpoint), arguments.output)
    print(f"drew kernels of {drawn} layers: {arguments.output}")


def run_predict(arguments: argparse.Namespace) -> None:
    """Says what single images show."""
    # not every shell expands patterns
    images = [Path(p) for given in arguments.images for p in (sorted(glob(given)) or [given])]  # noqa: PTH207
    found = predict(load_model(arguments.model, arguments.checkpoint), images)
    for image, best in zip(images, found, strict=True):
        print(f"{image}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in best))
    if arguments.output:
        draw_predictions(images, found, arguments.output)


def add_commands(commands: Any) -> None:
    """Adds ``kernels`` and ``predict``."""
    command = commands.add_parser("kernels", parents=[which_model()], help="a picture of the learned kernels")
    command.add_argument("--output", type=png, required=True, help="PNG file to write")
    command.set_defaults(run=run_kernels)

    command = commands.add_parser("predict", parents=[which_model()], help="what single images show")
    command.add_argument("images", nargs="+", help="image files, or patterns of them")
    command.add_argument("--output", type=png, help="PNG file to write")
    command.set_defaults(run=run_predict)
