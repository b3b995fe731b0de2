"""What is heard in single sounds, in a model's opinion."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import nn

from dcls_models.files import one_line, printable
from dcls_models.pictures import write_picture
from dcls_models.sounds import EXTENSIONS, fitted, read_sound
from eval.audio.data import class_names
from eval.audio.tagging import model_of_sounds
from eval.preprocessing import files_of, refuse_unreadable

TOP = 5
COLUMNS = 4
Answers = list[tuple[str, float]]  # class names and probabilities, best first


@torch.inference_mode()
def predict(
    model: nn.Module, file: Path, names: list[str] | None = None, top: int = TOP
) -> tuple[Answers, torch.Tensor]:
    """The likeliest tags of a sound, of as much of its beginning as the model was trained on.

    Args:
        model: In eval mode, with its ``front_end``.
        file: The sound.
        names: Of the classes; their numbers by default.
        top: How many tags.

    Returns:
        Pairs of class name and probability (of each class by itself), best first; and the spectrogram
        ``(mels, frames)``.

    Raises:
        ValueError: If it cannot be read, or the model gives NaN.
    """
    front_end: Any = model.front_end
    rate, seconds = (front_end.settings[k] for k in ("sample_rate", "seconds"))
    try:
        waveform = fitted(read_sound(file, rate, seconds), front_end.samples)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a sound: {one_line(error)}") from error
    spectrogram = front_end(waveform[None])
    scores = model(spectrogram)[0].sigmoid()
    if scores.isnan().any():
        raise ValueError(f"the model gives NaN for {file}")
    best = scores.topk(min(top, model.num_classes))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(names[i] if names else str(i), probability) for i, probability in pairs], spectrogram[0, 0]


def draw(shown: list[tuple[Path, Answers, torch.Tensor]], seconds: float) -> Figure:
    """Draws spectrograms with their likeliest tags."""
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (3.6 * columns, 2.8 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (file, answers, spectrogram) in zip(axes.flat, shown, strict=False):
        extent = (0, seconds, 0, len(spectrogram))
        axis.imshow(spectrogram.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma")
        tags = "\n".join(f"{name} {probability:.0%}" for name, probability in answers[:3])
        axis.set_title(f"{file.name}\n{tags}", fontsize=8)
        axis.set(xlabel="seconds", ylabel="mel band")
    return figure


def run(arguments: argparse.Namespace) -> None:
    """Says what is heard in sounds.

    Raises:
        ValueError: If one cannot be read.
    """
    files = files_of(arguments.images, EXTENSIONS, "sounds")
    model = model_of_sounds(arguments)
    names = class_names(model, arguments.labels)
    front_end: Any = model.front_end
    shown, unreadable = [], []
    for file in files:
        try:
            answers, spectrogram = predict(model, file, names)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        shown.append((file, answers, spectrogram))
        best = ", ".join(f"{name} {probability:.1%}" for name, probability in answers)
        print(printable(f"{file}: {best}"))
    if arguments.picture and shown:
        write_picture(arguments.picture, draw, shown, front_end.settings["seconds"])
    refuse_unreadable(unreadable, len(files))
