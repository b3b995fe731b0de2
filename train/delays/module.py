"""The LightningModule: a network of delays, the authors' loss, optimizer and schedules (arXiv:2306.17670)."""

import math
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from dcls_models.layers import narrowed
from dcls_models.spiking import DelayNet, summed_softmax
from train.metrics import classification_metrics
from train.optimizer import build_optimizer, schedule_length
from train.ranges import Count, CountOrNone, NotNegative, Range, ShareBelowOne, check_ranges
from train.task import Task

Batch = tuple[torch.Tensor, torch.Tensor]


class SpikingClassifier(Task):
    """Classification of spike trains.

    Args:
        name: ``DelayNet``, the only model; what a checkpoint is compared by.
        inputs: Input channels; the command line takes them from the data.
        num_classes: Number of classes; likewise.
        class_names: Their names in the order of the outputs, saved with the model; likewise.
        hidden: Neurons of the hidden layers.
        max_delay: The largest delay in frames, an even number (the authors' kernel size less 1).
        tau: Time constant of the membranes in frames.
        dropout: Share of the hidden neurons that a sample does without.
        delays: ``learned``, ``fixed`` (random and whole) or ``none``.
        tail: Frames that every layer appends; by default, as the authors, half of ``max_delay``.
        kernel_count: Taps per synapse.
        axonal: One delay per sending neuron instead of one per synapse.
        lr: Largest learning rate of the weights (one cycle, from a 25th of it).
        positions_lr_scale: The delays' first learning rate over ``lr`` (cosine to 0); 0 keeps them where they
            start, with Gaussians that narrow.
        weight_decay: L2 of the synaptic weights.
        opt: Optimizer, by its timm name.
        opt_kwargs: More arguments of the optimizer.
        cycle_beta1: Whether Adam's first beta moves against the learning rate (torch's one cycle does so).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        name: Literal["DelayNet"] = "DelayNet",
        inputs: Count = 40,
        num_classes: Count = 20,
        class_names: list[str] | None = None,
        hidden: list[Count] = [48, 48],  # noqa: B006 (nobody changes it)
        max_delay: CountOrNone = 24,
        tau: Annotated[float, Range(1)] = 1.005,
        dropout: ShareBelowOne = 0.2,
        delays: Literal["learned", "fixed", "none"] = "learned",
        tail: CountOrNone | None = None,
        kernel_count: Count = 1,
        axonal: bool = False,
        lr: NotNegative = 5e-3,
        positions_lr_scale: NotNegative = 20.0,
        weight_decay: NotNegative = 1e-5,
        opt: str = "adam",
        opt_kwargs: dict[str, Any] | None = None,
        cycle_beta1: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_ranges("model", self, self.hparams)
        self.model: DelayNet = DelayNet.of_run(self.hparams)
        self.metrics = classification_metrics(num_classes)

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        """Scores ``(N, num_classes)`` of spikes ``(N, inputs, frames)``."""
        return summed_softmax(self.model(spikes))

    def configure_optimizers(self) -> dict[str, Any]:
        """One Adam with groups, which equals the authors' two, and schedules that go by the epoch."""
        hp = self.hparams
        options = {k: hp[k] for k in ("opt", "lr", "weight_decay", "opt_kwargs")}
        optimizer = build_optimizer(self.groups(), **options)
        schedule = ByEpoch(optimizer, *schedule_length(self.trainer), hp["cycle_beta1"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The cross-entropy of the summed softmax.

        Raises:
            ValueError: If the delays are longer than the recordings.
        """
        longest = self.model.config["max_delay"]
        if batch[0].shape[-1] <= longest and self.model.delays():
            raise ValueError(
                f"model.max_delay is {longest} frames, but the recordings of a batch have "
                f"{batch[0].shape[-1]}: choose a smaller one"
            )
        scores = self(batch[0].float())
        loss = F.cross_entropy(scores, batch[1])
        hits = (scores.argmax(1) == batch[1]).float().mean()
        metrics = {"train/loss": loss, "train/top1": 100 * hits}
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(scores))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Counts; delays are whole (eval mode)."""
        scores = self(batch[0].float())
        self.metrics["top1"].update(scores, batch[1])
        self.metrics["top5"].update(scores, batch[1])
        self.metrics["loss"].update(F.cross_entropy(scores, batch[1]), len(scores))
        return scores

    def on_validation_epoch_end(self) -> None:
        """Logs the loss, and accuracies in percent."""
        self._log_metrics("val")

    def test_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """As in validation."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for key, value in self.metrics.compute().items():
            self.log(f"{stage}/{key}", value * (1 if key == "loss" else 100), prog_bar=key == "top1")
        self.metrics.reset()


class ByEpoch:
    """Learning rates that follow from the number of the epoch: one cycle for weights, a cosine for delays.

    Args:
        optimizer: With groups that have a ``name``.
        updates: Updates of the whole training.
        updates_per_epoch: Updates of an epoch.
        cycle_beta1: Whether the first beta cycles as well.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, updates: int, updates_per_epoch: int, cycle_beta1: bool
    ) -> None:
        self.optimizer, self.updates, self.updates_per_epoch = optimizer, updates, updates_per_epoch
        epochs = max(1, -(-updates // updates_per_epoch))
        cycle, cosine = one_cycle(epochs), half_cosine(epochs)
        self.rates = [cosine if g["name"] == "positions" else [c[0] for c in cycle] for g in self.groups]
        self.betas = [c[1] for c in cycle] if cycle_beta1 else None
        self.highest = [group["lr"] for group in self.groups]
        self.step_update(0)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    def step_update(self, num_updates: int) -> None:
        """Sets what the next update uses, after so many."""
        epoch = min(num_updates // self.updates_per_epoch, len(self.rates[0]) - 1)
        for group, rates, highest in zip(self.groups, self.rates, self.highest, strict=True):
            group["lr"] = highest * rates[epoch]
            if self.betas and group["name"] != "positions":
                group["betas"] = (self.betas[epoch], group["betas"][1])

    def state_dict(self) -> dict[str, Any]:
        """Nothing: all follows from the config."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is needed."""


def one_cycle(epochs: int) -> list[tuple[float, float]]:
    """Per epoch the share of the largest learning rate, and beta1, as ``OneCycleLR`` stepped per epoch."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=max(epochs, 4))
    values = []
    for _ in range(epochs):
        values.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        schedule.step()
    return values


def half_cosine(epochs: int) -> list[float]:
    """Per epoch the share of the first learning rate, as ``CosineAnnealingLR`` stepped per epoch."""
    return [(1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]


class NarrowDelays(pl.Callback):
    """Sets the width of the Gaussians at the start of every epoch, from the number of the epoch only.

    Args:
        end: The last ``sigma``: Gaussians of ``end + 0.27`` frames.
        until: Share of the training in which they narrow; they start half of ``max_delay`` wide.
    """

    def __init__(self, end: float = 0.23, until: float = 0.25) -> None:
        if not (end > 0 and 0 <= until <= 1):
            raise ValueError(f"narrow.end must be above 0 and narrow.until from 0 to 1, got {end}, {until}")
        self.end, self.until = end, until

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets it in all layers."""
        for layer in pl_module.model.delays():  # type: ignore[operator,union-attr]
            epochs = trainer.max_epochs or 1
            layer.set_sigma(
                narrowed(trainer.current_epoch, epochs, layer.max_delay / 2, self.end, self.until)
            )
