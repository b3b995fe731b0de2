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

from dcls_models.pictures import write_picture
from dcls_models.spiking import DelayNet, summed_softmax
from train.summary import last_scores, nothing_done, of_this_epoch

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
        metrics = {k: v for k, v in of_this_epoch(trainer).items() if k in CURVES}
        self.history.append({"epoch": float(trainer.current_epoch), **metrics})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves and draws."""
        if not trainer.is_global_zero or nothing_done(trainer):
            return
        root, net, data = Path(trainer.default_root_dir), _model(pl_module), trainer.datamodule  # type: ignore[attr-defined]
        names = pl_module.hparams["class_names"] or [str(i) for i in range(pl_module.hparams["num_classes"])]
        net.save(root, class_names=pl_module.hparams["class_names"], data=dict(data.hparams))
        if self.pictures:
            write_picture(root / "curves.png", draw_curves, self.history)
            if self.before:
                now = [layer.delays.cpu() for layer in net.delays()]
                write_picture(root / "delays.png", draw_delays, self.before, now, net.config["max_delay"])
            if (sample := next((s for s in map(data.val_set.__getitem__, range(9)) if s), None)) is not None:
                batch, labels = data.collate([sample])
                write_picture(root / "raster.png", draw_raster, net.cpu(), batch[0], int(labels), names)
        for line in data.unreadable():
            _logger.warning("%s", line)
        print(next_steps(trainer, self.pictures), file=sys.stderr)


def _model(pl_module: pl.LightningModule) -> DelayNet:
    return pl_module.model  # type: ignore[return-value]


def next_steps(trainer: pl.Trainer, pictures: bool) -> str:
    """What somebody types after a training."""
    root, typed = trainer.default_root_dir, shlex.quote(str(trainer.default_root_dir))
    said = last_scores(trainer, "top1")
    drawn = "delays, spikes and curves are drawn and " if pictures else ""
    return (
        f"\n{said}; {drawn}the model is saved in {root}.\n"
        "Next:\n"
        f"  python -m eval delays --checkpoint {typed}/checkpoints/last.ckpt --output {typed}/results.json\n"
        f"  python -m train.delays fit --config {typed}/logs/config.yaml --ckpt_path last "
        f"--trainer.max_epochs {2 * max(1, trainer.current_epoch)}"
    )


def draw_delays(before: list[torch.Tensor], after: list[torch.Tensor], max_delay: int) -> Figure:
    """Draws per layer how many synapses have which delay, in frames, at the start and now."""
    figure, axes = plt.subplots(
        1, len(before), figsize=(4.2 * len(before), 3.9), squeeze=False, layout="constrained"
    )
    edges = [d - 0.5 for d in range(max_delay + 2)]
    for i, (axis, start, now) in enumerate(zip(axes[0], before, after, strict=True)):
        axis.hist(now.flatten().tolist(), edges, color="tab:red", alpha=0.7, label="after training")
        axis.hist(start.flatten().tolist(), edges, histtype="step", color="0.2", label="before: random")
        moved = (now - start).abs().float().mean()
        place = "to the readout" if i == len(before) - 1 else f"to hidden layer {i + 1}"
        axis.set(xlabel="delay (frames)", title=f"{place}: moved by {moved:.1f} frames on average")
        axis.title.set_fontsize(10)
    axes[0, 0].set_ylabel("synapses")
    figure.suptitle(
        "Delays of the synapses. Where red rises above the line, training has gathered them", fontsize=11
    )
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


@torch.no_grad()
def draw_raster(net: DelayNet, spikes: torch.Tensor, label: int, names: list[str]) -> Figure:
    """Draws a recording on its way through the network, with its class and the network's answer.

    Args:
        net: Left in the mode in which it is.
        spikes: ``(inputs, frames)``.
        label: The class of the recording.
        names: Of the classes.
    """
    was_training = net.training
    *hidden, membranes = net.eval().activities(spikes[None])
    net.train(was_training)
    scores = summed_softmax(membranes)[0]
    answer = int(scores.argmax())
    rasters = [spikes, *(layer[0] for layer in hidden)]
    figure, axes = plt.subplots(
        len(rasters) + 1, 1, figsize=(9, 1.9 * len(rasters) + 3), sharex=True, layout="constrained"
    )
    for i, (axis, raster) in enumerate(zip(axes, rasters, strict=False)):
        neurons, frames = raster.nonzero(as_tuple=True)
        axis.scatter(frames, neurons, s=5, color="black", marker="|", linewidth=0.8)
        axis.set(ylabel="input channel" if i == 0 else f"neuron of layer {i}", ylim=(-1, len(raster)))
    shares = membranes[0].softmax(0)
    axes[-1].plot(shares.T, color="0.8", linewidth=0.8)
    axes[-1].plot(shares[label], color="tab:green", label=f"right: {names[label]}")
    if answer != label:
        axes[-1].plot(shares[answer], color="tab:red", label=f"answered: {names[answer]}")
    axes[-1].set(ylabel="readout: share of a class", xlabel="time (frames)", ylim=(-0.02, 1.02))
    axes[-1].axvline(spikes.shape[1] - 0.5, color="0.5", linewidth=0.8, linestyle=":")
    axes[-1].legend(fontsize=9, loc="upper left")
    figure.suptitle(
        f'"{names[label]}", and the network answers "{names[answer]}" '
        f"({'right' if answer == label else 'wrong'}, score {float(scores[answer] / scores.sum()):.0%})\n"
        "A mark is a spike; grey are the other classes, after the dotted line only late spikes arrive. "
        "The answer is the class\nwith the largest area below its line: look where it parts from the others",
        fontsize=10,
    )
    return figure


def draw_curves(history: list[dict[str, float]]) -> Figure:
    """Draws losses and accuracies over the epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    names = {"train": "training, with dropout and wide delays", "val": "validation, with whole delays"}
    for axis, part in zip(axes, ("loss", "top1"), strict=True):
        for split, name in names.items():
            points = [(row["epoch"], row[f"{split}/{part}"]) for row in history if f"{split}/{part}" in row]
            axis.plot([e for e, _ in points], [v for _, v in points], label=name)
        axis.set(xlabel="epoch", ylabel="cross-entropy" if part == "loss" else "recordings recognised (%)")
    figure.suptitle("Learning: still better at the end means that more epochs may help", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure
