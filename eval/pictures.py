"""What a model says of single images."""

import argparse
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import nn

from dcls_models.loading import load_model
from eval.images import label_names, transform_of
from eval.options import drawn, which_model


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[Path], top: int = 3) -> list[list[tuple[str, float]]]:
    """The best classes of single images.

    Args:
        model: In eval mode.
        images: Image files.
        top: How many classes.

    Returns:
        Per image ``(class name, probability)``, best first.

    Raises:
        ValueError: If an image cannot be read.
    """
    transform, names = transform_of(model), label_names(model)
    found = []
    for file in images:
        try:
            with Image.open(file) as image:
                pixels = image.convert("RGB")
        except OSError as error:
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        scores = model(transform(pixels)[None])[0].softmax(0)
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


def run_predict(arguments: argparse.Namespace) -> None:
    """Says what single images show."""
    # not every shell expands patterns
    images = [Path(p) for given in arguments.images for p in (sorted(glob(given)) or [given])]  # noqa: PTH207
    model = load_model(arguments.model, arguments.checkpoint)
    found: dict[Path, list[tuple[str, float]]] = {}
    unreadable = []
    for image in images:
        try:
            (found[image],) = predict(model, [image])
        except ValueError as error:
            unreadable.append(str(error))
        else:
            best = ", ".join(f"{name} {probability:.1%}" for name, probability in found[image])
            print(f"{image}: {best}")
    if arguments.picture and found:
        draw_predictions(list(found), list(found.values()), arguments.picture)
    if unreadable:
        raise ValueError("; ".join(unreadable))


def add_commands(commands: Any) -> None:
    """Adds ``predict``."""
    command = commands.add_parser("predict", parents=[which_model(), drawn()], help="what single images show")
    command.add_argument("images", nargs="+", help="image files, or patterns of them")
    command.set_defaults(run=run_predict)
