"""What a training on sounds leaves to look at: curves, and spectrograms with what the model says of them."""

from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from train.report import Report

DRAWN = 6  # sounds
SAID = 3  # tags of each


class TagReport(Report):
    """Writes ``summary.csv`` each epoch, and pictures when the training ends.

    Args:
        pictures: Whether to draw ``curves.png`` and ``predictions_val.png``.
    """

    measures = ("loss", "map", "top1")
    headline = "map"
    command = "python -m train.audio"
    drawn = "curves and predictions"

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts no confusions: a sound may have several classes."""

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps some sounds of the first batch."""
        waveforms, targets, readable = batch
        kept = readable.nonzero().flatten()[:DRAWN]
        if batch_idx == 0 and trainer.is_global_zero and len(kept):
            spectrograms = pl_module.front_end(waveforms[kept])[:, 0].cpu()
            self.seen = spectrograms, targets[kept].cpu(), outputs[kept].float().sigmoid().cpu()

    def draw_seen(self, names: list[str], data: Any) -> Figure:
        """Draws the spectrograms; tags that the sound has are black, others red."""
        assert self.seen is not None
        spectrograms, targets, probabilities = self.seen
        figure, axes = plt.subplots(2, DRAWN // 2, figsize=(13, 6), layout="constrained", squeeze=False)
        figure.suptitle(
            "Validation sounds, and the tags that the model finds most likely (red: not among theirs)"
        )
        for axis in axes.flat[len(spectrograms) :]:
            axis.axis("off")
        for axis, *shown in zip(axes.flat, spectrograms, targets, probabilities, strict=False):
            draw_tags(axis, *shown, names, data.front_end["seconds"])
        return figure


def draw_tags(
    axis: Any,
    spectrogram: torch.Tensor,
    target: torch.Tensor,
    probabilities: torch.Tensor,
    names: list[str],
    seconds: float,
) -> None:
    """Draws a spectrogram ``(mels, frames)`` with its own tags above it and the likeliest ones in it."""
    mels = len(spectrogram)
    axis.imshow(
        spectrogram.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, mels), cmap="magma"
    )
    own = ", ".join(names[i] for i in target.nonzero().flatten().tolist())
    axis.set_title(own, fontsize=9)
    axis.set(xlabel="seconds", ylabel="mel band")
    best = probabilities.topk(min(SAID, len(probabilities)))
    for line, (value, i) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        colour = "black" if target[i] else "tab:red"
        box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5}
        place = {"xy": (0.02, 0.93 - 0.09 * line), "xycoords": "axes fraction", "va": "top"}
        axis.annotate(f"{names[i]} {value:.0%}", color=colour, fontsize=8, bbox=box, **place)
