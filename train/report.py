"""What a run leaves to look at: summary, learning curves, confusion matrix, predictions; what is next."""

import csv
import logging
import math
import shlex
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import BasePredictionWriter
from torchmetrics.classification import MulticlassConfusionMatrix

from dcls_models.files import one_line, printable, replaced
from dcls_models.pictures import write_picture
from train.readers import IGNORED
from train.summary import last_scores, nothing_done, of_this_epoch

_logger = logging.getLogger(__name__)
DRAWN = 16  # sample predictions
COUNTED = 1000  # classes; the confusion matrix of more would take gigabytes
NAMED = 40  # so many classes fit beside a picture


class Report(pl.Callback):
    """Writes ``summary.csv`` in timm's shape each epoch, and pictures when the training ends.

    Args:
        pictures: Whether to draw ``curves.png``, ``confusion.png`` and ``predictions.png``.
    """

    leaves_files = True
    measures = ("loss", "top1", "top5")  # of a validation
    headline = "top1"
    command = "python -m train"
    drawn = "curves, confusions and predictions"

    def __init__(self, pictures: bool = True) -> None:
        self.pictures = pictures
        self.confusion: MulticlassConfusionMatrix | None = None
        self.seen: tuple[torch.Tensor, ...] | None = None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Empties the confusion matrix."""
        classes = pl_module.hparams["num_classes"]
        if classes <= COUNTED:
            self.confusion = MulticlassConfusionMatrix(classes, ignore_index=IGNORED).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts, and keeps images of the whole validation: folders are in the order of classes."""
        images, labels = batch
        if self.confusion is not None:
            self.confusion.update(outputs.argmax(1), labels)
        if trainer.is_global_zero:
            batches = trainer.num_val_batches[0]
            self.keep(batch_idx, batches, images, labels, outputs)

    def keep(self, at: int, batches: float, *batch: torch.Tensor) -> None:
        """Keeps images, labels and logits, evenly spread over ``batches`` (shards do not know how many)."""
        first, last = (DRAWN * i // batches if batches < math.inf else DRAWN * bool(i) for i in (at, at + 1))
        count = min(int(last - first), len(batch[0]))
        chosen = torch.arange(count, device=batch[0].device) * len(batch[0]) // max(1, count)
        images, labels, logits = (part[chosen].cpu() for part in batch)
        kept = (images, labels, logits.float().softmax(1))
        before = self.seen if at else None
        self.seen = kept if before is None else tuple(map(torch.cat, zip(before, kept, strict=True)))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds a row to the summary, in the place of those of an earlier run or after the checkpoint."""
        metrics = of_this_epoch(trainer)  # processes average together
        if not trainer.is_global_zero:
            return
        keys = [f"{k}{end}" for end in ("", "_ema")[: 1 + (pl_module.ema is not None)] for k in self.measures]
        row = {"epoch": trainer.current_epoch, "train_loss": metrics.get("train/loss_epoch", "")}
        row |= {f"eval_{k}": metrics.get(f"val/{k}", "") for k in keys} | {"lr": metrics.get("lr", "")}
        file = _in(trainer, "summary.csv")
        try:
            add_row(file, row)
        except (OSError, csv.Error) as error:  # the checkpoint is worth more, and comes next
            _logger.warning("cannot write %s: %s", file, one_line(error))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the pictures, reports unreadable images, and says what to do next."""
        confusion = self.confusion.compute().cpu() if self.confusion is not None else None
        if not trainer.is_global_zero or nothing_done(trainer):
            return
        names = pl_module.hparams["class_names"] or [str(i) for i in range(pl_module.hparams["num_classes"])]
        summary = _in(trainer, "summary.csv")
        if self.pictures and summary.is_file():
            write_picture(_in(trainer, "curves.png"), draw_curves, summary, ("loss", self.headline, "lr"))
            if confusion is not None:
                write_picture(_in(trainer, "confusion.png"), draw_confusion, confusion, names)
            if self.seen is not None:
                picture = _in(trainer, "predictions_val.png")
                write_picture(picture, self.draw_seen, names, trainer.datamodule)
        for line in trainer.datamodule.unreadable():
            _logger.warning("%s", line)
        print(_next_steps(trainer, self), file=sys.stderr)

    def draw_seen(self, names: list[str], data: Any) -> Figure:
        """Draws what was kept of the validation."""
        assert self.seen is not None
        return draw_predictions(*self.seen, names, data)


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` into the run's folder: path, best class, probability."""

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        """Writes all rows at once.

        Raises:
            DataError: If no image could be read.
        """
        names, images = pl_module.hparams["class_names"], trainer.datamodule.predict_set
        probabilities, best = torch.cat(list(predictions)).max(1)
        rows = []
        for i, (label, p) in enumerate(zip(best.tolist(), probabilities.tolist(), strict=True)):
            index = i * trainer.world_size + trainer.global_rank
            if index < len(images) and not images.unreadable[index]:
                rows.append([images.filename(index), names[label] if names else label, f"{p:.6f}"])
        pl_module.count_measured(len(rows))
        file = predictions_file(trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        # a name that is no UTF-8 is written with escapes
        with (
            replaced(file) as part,
            part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out,
        ):
            csv.writer(out).writerows([["path", "prediction", "probability"], *rows])
        print(f"wrote {printable(str(file))}", file=sys.stderr)


def predictions_file(trainer: pl.Trainer) -> Path:
    """Where the images that a process has predicted are listed."""
    part = "" if trainer.world_size == 1 else f"_{trainer.global_rank}"
    return _in(trainer, f"predictions{part}.csv")


def _next_steps(trainer: pl.Trainer, report: Report) -> str:
    """What a training gave, and what somebody types after it."""
    root = trainer.default_root_dir
    typed = shlex.quote(str(root))
    longer = 2 * max(1, trainer.current_epoch)
    said = last_scores(trainer, report.headline)
    if not (Path(root) / "checkpoints" / "last.ckpt").is_file():
        return f"\n{said}; there is no checkpoint."
    if report.pictures:
        said += f"; {report.drawn if report.seen else 'curves'} are drawn in {root}"
    return (
        f"\n{said}.\n"
        "Next:\n"
        f"  python -m hub export --checkpoint {typed}/checkpoints/last.ckpt --out {typed}\n"
        f"  tensorboard --logdir {typed}\n"
        f"  {report.command} fit --config {typed}/logs/config.yaml --ckpt_path last "
        f"--trainer.max_epochs {longer}"
    )


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Adds an epoch to a summary, in the place of itself and of later ones; lines without an epoch go."""
    before = []
    if file.is_file():
        with file.open(newline="", errors="replace") as old:
            before = [line for line in csv.DictReader(old) if (line.get("epoch") or "").isdecimal()]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as part, part.open("w", newline="") as new:
        writer = csv.DictWriter(new, list(row), restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*(line for line in before if int(line["epoch"]) < row["epoch"]), row])


def draw_curves(summary: Path, parts: tuple[str, ...] = ("loss", "top1", "lr")) -> Figure:
    """Draws columns of ``summary.csv`` over the epochs: those whose name contains one of three parts."""
    with summary.open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, part in zip(axes, parts, strict=True):
        for name in (n for n in (rows[0] if rows else {}) if part in n):
            points = [(int(float(r["epoch"])), float(r[name])) for r in rows if r[name]]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else None)
        axis.set(xlabel="epoch", title=part)
        if axis.lines:
            axis.legend(fontsize=8)
    return figure


def draw_confusion(counts: torch.Tensor, names: list[str]) -> Figure:
    """Draws how often each class (row) was taken for each (column), as a share of the row."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, 3 + 0.3 * len(names))
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    figure.colorbar(axis.imshow(shares, vmin=0, vmax=1, cmap="Blues"), shrink=0.8)
    if len(names) <= NAMED:
        ticks = [_short(name) for name in names]
        axis.set_xticks(range(len(names)), ticks, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), ticks, fontsize=7)
    axis.set(xlabel="predicted", ylabel="true", title="validation, share of each true class")
    return figure


def draw_predictions(
    images: torch.Tensor,
    labels: torch.Tensor,
    probabilities: torch.Tensor,
    names: list[str],
    data: Any,
) -> Figure:
    """Draws validation images with what the model says of them, in red where it is wrong."""
    mean, std = (torch.tensor(data.hparams[k]).view(-1, 1, 1) for k in ("mean", "std"))
    figure, axes = plt.subplots(2, DRAWN // 2, figsize=(DRAWN, 5), layout="constrained")
    figure.suptitle("Validation images, and what the model says of them with which probability (red: wrong)")
    for axis in axes.flat:
        axis.axis("off")
    shown = zip(axes.flat, images, labels.tolist(), probabilities, strict=False)
    for axis, image, label, p in shown:
        if label != IGNORED:
            axis.imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0))
            best = int(p.argmax())
            said = f"{_short(names[best])} {float(p[best]):.0%}"
            said += "" if best == label else f"\n(is {_short(names[label])})"
            axis.set_title(said, fontsize=9, color="black" if best == label else "tab:red")
    return figure


def _in(trainer: pl.Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / name


def _short(name: str) -> str:
    return shorten(name, 30, placeholder="...") if " " in name else name[:30] + "..." * (len(name) > 30)
