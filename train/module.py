"""The LightningModule: a timm model, its loss, its optimizer."""

import logging
import math
from collections import Counter
from typing import Any

import pytorch_lightning as pl
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

import dcls_models  # noqa: F401  (registers the models)
from dcls_models.optim import holders, param_groups, repulsion

_logger = logging.getLogger(__name__)


class Classifier(pl.LightningModule):
    """Image classification with any timm model.

    Args:
        name: Name of a timm model, one of the zoo's for instance.
        pretrained: Whether to start from published weights.
        num_classes: Number of classes; the command line takes it from the data.
        class_names: Their names in the order of the outputs, saved with the model; likewise from the data.
        model_kwargs: More arguments of the model (``kernel_count``, ``drop_path_rate``, ``depths``, ...).
        opt: Optimizer, by its timm name.
        lr: Learning rate for the batch size that is used.
        weight_decay: Weight decay of the parameters that decay.
        positions_lr_scale: Factor on the learning rate of positions and sigma (the authors: 5).
        layer_decay: Factor on the learning rate per layer, counted from the head.
        warmup_epochs: Epochs of linear warm-up; then the rate follows half a cosine down to ``min_lr``.
        min_lr: Where the cosine ends.
        label_smoothing: Share of the target that is spread over all classes.
        repulsive_from_epoch: First epoch (from 0) in which the square of the repulsive loss is added (the
            authors' ConvNeXt recipe: 21); never by default.
        channels_last: Memory layout; by far the faster one for large depthwise kernels on a CPU.
    """

    def __init__(
        self,
        name: str = "convnext_dcls_tiny",
        pretrained: bool = False,
        num_classes: int = 1000,
        class_names: list[str] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        opt: str = "adamw",
        lr: float = 4e-3,
        weight_decay: float = 0.05,
        positions_lr_scale: float = 5.0,
        layer_decay: float | None = None,
        warmup_epochs: float = 0.0,
        min_lr: float = 1e-6,
        label_smoothing: float = 0.1,
        repulsive_from_epoch: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if ":" not in name and not timm.is_model(name.split(".")[0]):
            raise ValueError(
                f"timm knows no model {name!r}; timm.list_models('*dcls*') lists those of the zoo"
            )
        self.model = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, **(model_kwargs or {})
        )
        if repulsive_from_epoch is not None and not holders(self.model):
            raise ValueError(f"{name} has no DCLS layer: leave out model.repulsive_from_epoch")
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        return self.model(images.contiguous(memory_format=self.layout))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross-entropy, plus the repulsive loss where it is asked for."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.hparams["label_smoothing"])
        self.log("train/loss", loss, prog_bar=True)
        start = self.hparams["repulsive_from_epoch"]
        if start is not None and self.current_epoch >= start:
            loss = loss + repulsion(self.model) ** 2
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Logs loss and top-1 accuracy (percent)."""
        images, labels = batch
        logits = self(images)
        self.val_top1(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True)
        self.log("val/top1", self.val_top1, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """The groups of ``dcls_models.optim`` and timm's cosine, stepped per update."""
        hp = self.hparams
        groups = param_groups(
            self.model, hp["lr"], hp["weight_decay"], hp["positions_lr_scale"], hp["layer_decay"]
        )
        counts = Counter({g["name"]: 0 for g in groups})
        for group in groups:
            counts[group["name"]] += len(group["params"])
        _logger.info("parameters per group: %s", dict(counts))
        optimizer = create_optimizer_v2(groups, opt=hp["opt"], lr=hp["lr"], weight_decay=hp["weight_decay"])
        per_epoch = self._updates_per_epoch()
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=self._total_updates(per_epoch),
            lr_min=hp["min_lr"],
            warmup_t=round(hp["warmup_epochs"] * per_epoch),
            warmup_lr_init=hp["min_lr"],
            t_in_epochs=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: Any) -> None:
        """Timm's schedulers are told the number of updates."""
        scheduler.step_update(num_updates=self.global_step)

    def _total_updates(self, per_epoch: int) -> int:
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        limits = [n for n in (epochs * per_epoch, steps) if n > 0]  # -1: no such limit
        if not limits:
            raise ValueError("set trainer.max_epochs or trainer.max_steps: the schedule needs an end")
        return min(limits)

    def _updates_per_epoch(self) -> int:
        """Of the optimizer; not ``trainer.estimated_stepping_batches``, which spoils resuming (2.6)."""
        trainer = self.trainer
        batches, limit = trainer.datamodule.train_batches(trainer.world_size), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else math.ceil(batches * (limit or 1.0))
        return math.ceil(batches / trainer.accumulate_grad_batches)
