"""What is heard in single sounds, in a model's opinion."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import nn

from dcls_models.files import one_line, printable
from dcls_models.folders import files_below
from dcls_models.sounds import EXTENSIONS, fitted, read_sound
from eval.audio.data import class_names
from eval.audio.tagging import model_of_sounds
from eval.results import write_picture

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
        ValueError: If it cannot be read.
    """
    front_end: Any = model.front_end
    rate, seconds = (front_end.settings[k] for k in ("sample_rate", "seconds"))
    try:
        waveform = fitted(read_sound(file, rate, seconds), front_end.samples)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a sound: {one_line(error)}") from error
    spectrogram = front_end(waveform[None])
    best = model(spectrogram)[0].sigmoid().topk(min(top, model.num_classes))
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


def run(arguments: argparse.Namespace, files: list[str]) -> None:
    """Says what is heard in sounds.

    Raises:
        ValueError: If one cannot be read.
    """
    model = model_of_sounds(arguments)
    names = class_names(model, getattr(arguments, "labels", None))
    front_end: Any = model.front_end
    shown, unreadable = [], []
    for file in sounds_of(files):
        try:
            answers, spectrogram = predict(model, file, names)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        shown.append((file, answers, spectrogram))
        best = ", ".join(f"{name} {probability:.1%}" for name, probability in answers)
        print(printable(f"{file}: {best}"))
    if arguments.picture and shown:
        write_picture(arguments.picture, lambda: draw(shown, front_end.settings["seconds"]))
    if unreadable:
        raise ValueError("; ".join(unreadable))


def sounds_of(given: list[str]) -> list[Path]:
    """Sound files: those that are given, and all below a folder.

    Raises:
        FileNotFoundError: If a folder has no sound.
    """
    files: list[Path] = []
    for path in map(Path, given):
        below = [Path(file) for file in files_below(path, EXTENSIONS)] if path.is_dir() else [path]
        if not below:
            raise FileNotFoundError(f"no sounds in {path} ({' '.join(EXTENSIONS)})")
        files += below
    return files
