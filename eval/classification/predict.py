"""What single images show, in a model's opinion."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import nn

from dcls_models.files import one_line, printable
from dcls_models.images import EXTENSIONS, label_names, read_image, transform_of
from dcls_models.pictures import write_picture
from eval.options import exif_option, load, model_options, picture_option
from eval.preprocessing import files_of, refuse_unreadable

Answers = list[tuple[str, float]]  # class names and probabilities, best first


@torch.inference_mode()
def predict(model: nn.Module, images: Sequence[Path], top: int = 3, exif: bool = False) -> list[Answers]:
    """The best classes of single images.

    Args:
        model: In eval mode.
        images: Image files.
        top: How many classes.
        exif: Whether images are turned as their EXIF data say.

    Returns:
        Per image ``(class name, probability)``, best first.

    Raises:
        ValueError: If an image cannot be read, or the model gives NaN.
    """
    transform, names = transform_of(model), label_names(model)
    answers = []
    for file in images:
        try:
            image = read_image(file, exif)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as an image: {one_line(error)}") from error
        scores = model(transform(image)[None])[0].softmax(0)
        if scores.isnan().any():
            raise ValueError(f"the model gives NaN for {file}")
        best = scores.topk(min(top, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        answers.append([(names[i], probability) for i, probability in pairs])
    return answers


def draw_predictions(images: Sequence[Path], answers: Sequence[Answers], exif: bool = False) -> Figure:
    """Draws images with their best class; green where it is the name of the image's folder, else red."""
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    size = (max(6, 1.5 * columns), 1.75 * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(
        "What the model says of each image, and how sure it is.\n"
        "Green: the image's class, which is the name of its folder; red: another",
        fontsize=10,
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, file, ((name, probability), *_) in zip(axes.flat, images, answers, strict=False):
        axis.imshow(read_image(file, exif))
        colour = "tab:green" if name == file.parent.name else "tab:red"
        axis.set_title(f"{name} ({probability:.0%})", fontsize=9, color=colour)
    return figure


def run(arguments: argparse.Namespace) -> None:
    """Says what single images show.

    Raises:
        ValueError: If one cannot be read.
    """
    images = files_of(arguments.images, EXTENSIONS, "images")
    model = load(arguments.model, arguments.checkpoint)
    answers: dict[Path, Answers] = {}
    unreadable = []
    for image in images:
        try:
            (answers[image],) = predict(model, [image], exif=arguments.exif)
        except ValueError as error:
            unreadable.append(str(error))
        else:
            best = ", ".join(f"{name} {probability:.1%}" for name, probability in answers[image])
            print(printable(f"{image}: {best}"))
    if arguments.picture and answers:
        write_picture(
            arguments.picture, draw_predictions, list(answers), list(answers.values()), arguments.exif
        )
    refuse_unreadable(unreadable, len(images))


def add_commands(commands: Any) -> None:
    """Adds ``predict``."""
    command = commands.add_parser(
        "predict", parents=[model_options(), picture_option(), exif_option()], help="what single images show"
    )
    command.add_argument("images", nargs="+", help="image files, patterns of them, or folders")
    command.set_defaults(run=run)
