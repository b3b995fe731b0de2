"""What a run leaves: the model, and pictures of delays before and after, of spikes, and of learning."""

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from dcls_models.spiking import DelayNet

_logger = logging.getLogger(__name__)
CURVES = ("train/loss", "val/loss", "train/top1", "val/top1")


class DelaysReport(pl.Callback):
    """Draws ``delays.png``, ``raster.png`` and ``curves.png``, saves the model, and says what is next.

    Args:
        pictures: Whether to draw.
    """

    leaves_files = True

    def __init__(self, pictures: bool = True) -> None:
        self.pictures = pictures
        self.before: list[torch.Tensor] = []
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Where the delays started, and the curves so far, for a resumed run."""
        return {"before": self.before, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The same."""
        self.before, self.history = state_dict["before"], state_dict["history"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers where the delays start."""
        if not self.before:
            self.before = [layer.delays.cpu() for layer in _model(pl_module).delays()]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds to the curves, and logs how many frames the delays have moved."""
        for i, (before, layer) in enumerate(zip(self.before, _model(pl_module).delays(), strict=True)):
            moved = (layer.delays.cpu() - before).abs().float().mean()
            pl_module.log(f"delays/moved_{i}", moved, rank_zero_only=True)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k in CURVES}
        self.history.append({"epoch": float(trainer.current_epoch), **metrics})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves and draws."""
        if not trainer.is_global_zero:
            return
        root, net, data = Path(trainer.default_root_dir), _model(pl_module), trainer.datamodule  # type: ignore[attr-defined]
        net.save(root, class_names=pl_module.hparams["class_names"], data=dict(data.hparams))
        if self.pictures:
            figures = {"curves.png": draw_curves(self.history)}
            if self.before:
                now = [layer.delays.cpu() for layer in net.delays()]
                figures["delays.png"] = draw_delays(self.before, now, net.config["max_delay"])
            if (sample := next((s for s in map(data.val_set.__getitem__, range(9)) if s), None)) is not None:
                figures["raster.png"] = draw_raster(net.cpu(), sample[0].float())
            for name, figure in figures.items():
                figure.savefig(root / name, dpi=110)
                plt.close(figure)
        for line in data.unreadable():
            _logger.warning("%s", line)
        print(next_steps(trainer), file=sys.stderr)


def _model(pl_module: pl.LightningModule) -> DelayNet:
    return pl_module.model  # type: ignore[return-value]


def next_steps(trainer: pl.Trainer) -> str:
    """What somebody types after a training."""
    root, typed = trainer.default_root_dir, shlex.quote(str(trainer.default_root_dir))
    top1 = trainer.callback_metrics.get("val/top1")
    said = f"val/top1 {float(top1):.2f} %" if top1 is not None else "nothing was validated"
    return (
        f"\n{said}; delays, spikes and curves are drawn in {root}, the model is saved there.\n"
        "Next:\n"
        f"  python -m eval delays --checkpoint {typed}/checkpoints/last.ckpt --output {typed}/results.json\n"
        f"  python -m train.delays fit --config {typed}/logs/config.yaml --ckpt_path last "
        f"--trainer.max_epochs {2 * max(1, trainer.current_epoch)}"
    )


def draw_delays(before: list[torch.Tensor], after: list[torch.Tensor], max_delay: int) -> Figure:
    """Draws per layer how many synapses have which delay, in frames, at the start and now."""
    figure, axes = plt.subplots(
        1, len(before), figsize=(4.2 * len(before), 3.2), squeeze=False, layout="constrained"
    )
    edges = [d - 0.5 for d in range(max_delay + 2)]
    for i, (axis, start, now) in enumerate(zip(axes[0], before, after, strict=True)):
        axis.hist(now.flatten().tolist(), edges, color="tab:red", alpha=0.7, label="trained")
        axis.hist(start.flatten().tolist(), edges, histtype="step", color="0.3", label="at the start")
        moved = (now - start).abs().float().mean()
        axis.set(xlabel="delay (frames)", title=f"layer {i + 1}, moved by {moved:.1f} frames on average")
        axis.title.set_fontsize(10)
    axes[0, 0].set_ylabel("synapses")
    axes[0, 0].legend(fontsize=8)
    return figure


@torch.no_grad()
def draw_raster(net: DelayNet, spikes: torch.Tensor) -> Figure:
    """Draws the spikes of a recording ``(inputs, frames)``, those of the hidden layers, and the readout."""
    was_training = net.training
    *hidden, membranes = net.eval().activities(spikes[None])
    net.train(was_training)
    rasters = [spikes, *(layer[0] for layer in hidden)]
    figure, axes = plt.subplots(
        len(rasters) + 1, 1, figsize=(9, 1.9 * (len(rasters) + 1)), sharex=True, layout="constrained"
    )
    for i, (axis, raster) in enumerate(zip(axes, rasters, strict=False)):
        neurons, frames = raster.nonzero(as_tuple=True)
        axis.scatter(frames, neurons, s=3, color="black", marker="|")
        axis.set(ylabel="input" if i == 0 else f"layer {i}", ylim=(-1, len(raster)))
    axes[-1].plot(membranes[0].T, linewidth=0.9)
    axes[-1].set(ylabel="readout", xlabel="frame")
    return figure


def draw_curves(history: list[dict[str, float]]) -> Figure:
    """Draws losses and accuracies over the epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, part in zip(axes, ("loss", "top1"), strict=True):
        for split in ("train", "val"):
            points = [(row["epoch"], row[f"{split}/{part}"]) for row in history if f"{split}/{part}" in row]
            axis.plot([e for e, _ in points], [v for _, v in points], label=split)
        axis.set(xlabel="epoch", title="loss" if part == "loss" else "top-1 (%)")
        axis.legend(fontsize=8)
    return figure
