"""The LightningModule: a timm model, its loss, its averaged copy, its metrics."""

from typing import Any, Literal

import torch
from timm.data import Mixup
from timm.loss import create_classification_loss
from timm.models import model_parameters
from timm.utils.agc import adaptive_clip_grad
from torch.nn import functional as F

from dcls_models import CheckpointError
from dcls_models.files import some
from dcls_models.layers.linear import use_fast_linear
from dcls_models.loading import check_takes
from dcls_models.optim import holders, repulsion
from train.metrics import IGNORED, classification_metrics
from train.models import (
    build_checked,
    build_model,
    compile_model,
    freeze_all_but_head,
    to_memory_layout,
)
from train.ranges import (
    Count,
    CountOrNone,
    NotNegative,
    Positive,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    check_ranges,
)
from train.task import Task
from train.teacher import Teacher

Batch = tuple[torch.Tensor, torch.Tensor]


class Classifier(Task):
    """Image classification with any timm model.

    Args:
        name: Name of a timm model, one of the zoo's for instance; ``local-dir:FOLDER``, ``hf-hub:USER/NAME``.
        pretrained: Whether to start from published weights; a model without any starts from random ones.
        warm_start: Name of a dense timm model whose pretrained weights the DCLS model starts from.
        num_classes: Number of classes; the command line takes it from the data.
        class_names: Their names in the order of the outputs, saved with the model; likewise from the data.
        model_kwargs: More arguments of the model (``kernel_count``, ``drop_path_rate``, ``depths``, ...).
        head_only: Whether only the classifier is trained.
        opt: Optimizer, by its timm name.
        opt_kwargs: More arguments of the optimizer (``betas``, ``eps``, ``momentum``, ...).
        lr: Learning rate for the batch size that is used.
        weight_decay: Weight decay of the parameters that decay.
        positions_lr_scale: Factor on the learning rate of positions and sigma (the authors: 5).
        layer_decay: Factor on the learning rate per layer, counted from the head.
        agc: Adaptive gradient clipping, the head excepted (norm and value: ``trainer.gradient_clip_val``).
        sched: Schedule, by its timm name, stepped per update.
        sched_kwargs: More arguments of the schedule (``decay_epochs``, ``decay_rate``, ``k_decay``, ...).
        warmup_epochs: Epochs of linear warm-up, part of the schedule.
        warmup_lr: Where the warm-up starts.
        min_lr: Where the schedule ends.
        loss: ``ce`` (softmax), ``bce`` (one-against-all), or ``jsd`` (softmax, and all versions of an image
            alike: Jensen-Shannon divergence, for AugMix).
        loss_kwargs: More arguments of timm's loss (``bce_target_thresh``, ``bce_sum``, ...).
        label_smoothing: Share of the target that is spread over all classes.
        augment_splits: How many versions of an image are in a batch; the command line takes it from the data.
        mixup: Alpha of mixup; 0 is none.
        cutmix: Alpha of cutmix; 0 is none.
        mixup_kwargs: More arguments of timm's ``Mixup`` (``prob``, ``switch_prob``, ``mode``).
        mixup_off_epoch: First epoch (from 0) without mixup and cutmix.
        repulsive_from_epoch: First epoch (from 0) in which the square of the repulsive loss is added (the
            authors' ConvNeXt recipe: 21); never by default.
        teacher: A model, as in ``dcls_models.loading.load_model``, whose outputs are to be matched.
        teacher_weight: Share of that in the loss.
        teacher_loss: ``soft`` (KL divergence to its probabilities) or ``hard`` (cross-entropy with the class
            that it decides for, as in DeiT).
        teacher_temperature: Of both softmaxes of ``soft``.
        ema_decay: Decay of the averaged weights, which are validated and saved beside the raw ones.
        ema_warmup: Whether the decay starts low (timm's warm-up).
        channels_last: Memory layout of images; by far the faster one for large depthwise kernels on a CPU
            (and not taken there where it is not safe: FastViT).
        grad_checkpointing: Whether activations are computed again in the backward pass, to save memory.
        fast_linear: Whether linear layers are computed by oneDNN on a CPU where that is the faster way, as on
            AMD processors; the outputs are the same up to rounding.
        compile: Backend of ``torch.compile`` (``inductor``) for the model; not compiled by default.

    Raises:
        ValueError: If timm knows no such model, or an argument does not fit it.
    """

    def __init__(
        self,
        name: str = "convnext_dcls_tiny",
        pretrained: bool = False,
        warm_start: str | None = None,
        num_classes: Count = 1000,
        class_names: list[str] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        head_only: bool = False,
        opt: str = "adamw",
        opt_kwargs: dict[str, Any] | None = None,
        lr: NotNegative = 4e-3,
        weight_decay: NotNegative = 0.05,
        positions_lr_scale: NotNegative = 5.0,
        layer_decay: ShareAboveZero | None = None,
        agc: Positive | None = None,
        sched: str = "cosine",
        sched_kwargs: dict[str, Any] | None = None,
        warmup_epochs: NotNegative = 0.0,
        warmup_lr: NotNegative = 1e-6,
        min_lr: NotNegative = 1e-6,
        loss: str = "ce",
        loss_kwargs: dict[str, Any] | None = None,
        label_smoothing: ShareBelowOne = 0.1,
        augment_splits: CountOrNone = 0,
        mixup: NotNegative = 0.0,
        cutmix: NotNegative = 0.0,
        mixup_kwargs: dict[str, Any] | None = None,
        mixup_off_epoch: CountOrNone | None = None,
        repulsive_from_epoch: CountOrNone | None = None,
        teacher: str | None = None,
        teacher_weight: Share = 0.5,
        teacher_loss: Literal["soft", "hard"] = "soft",
        teacher_temperature: Positive = 1.0,
        ema_decay: ShareBelowOne | None = None,
        ema_warmup: bool = True,
        channels_last: bool = True,
        grad_checkpointing: bool = False,
        fast_linear: bool = False,
        compile: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_ranges("model", self, self.hparams)
        self.model = build_model(name, pretrained, warm_start, num_classes, model_kwargs or {})
        if repulsive_from_epoch is not None and not holders(self.model):
            raise ValueError(f"{name} has no DCLS layer: leave out model.repulsive_from_epoch")
        if head_only:
            freeze_all_but_head(self.model)
        if grad_checkpointing:
            self.model.set_grad_checkpointing(True)
        if fast_linear:
            use_fast_linear(self.model)
        self.mixup = None
        if mixup or cutmix:
            mix = {"label_smoothing": label_smoothing, "num_classes": num_classes, **(mixup_kwargs or {})}
            self.mixup = build_checked(
                Mixup, "model.mixup_kwargs", mixup_alpha=mixup, cutmix_alpha=cutmix, **mix
            )
        if (loss == "jsd" and augment_splits < 2) or (augment_splits and self.mixup is not None):
            raise ValueError(
                "model.loss jsd needs two or more versions of an image (data.augment_splits); mixup and "
                f"cutmix would mix them: got {augment_splits}, model.mixup {mixup}, model.cutmix {cutmix}"
            )
        how = {"smoothing": label_smoothing, "soft_targets": self.mixup is not None}
        how |= {"jsd_splits": augment_splits, **(loss_kwargs or {})}
        self.criterion = build_checked(create_classification_loss, "model.loss_kwargs", loss_type=loss, **how)
        self.average(ema_decay, ema_warmup)
        metrics = {suffix: classification_metrics(num_classes) for suffix in self.evaluated()}
        self.metrics = torch.nn.ModuleDict(metrics)
        self.teacher: Teacher | None = None
        self.measured = 0  # images of the last validation
        self._sharded = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        return self.model(self._to_memory_layout(images))

    def example_input(self) -> torch.Tensor | None:
        """An image of the size that the data have."""
        side = getattr(self.trainer.datamodule, "hparams", {}).get("img_size")
        return torch.zeros(1, 3, side, side) if side else None

    def setup(self, stage: str) -> None:
        """Makes sure that the model takes such images."""
        super().setup(stage)
        example = self.example_input()
        if example is not None and not self._sharded:
            size = " x ".join(str(n) for n in example.shape[1:])
            advice = f"images of {size}: choose another data.img_size or other model.model_kwargs"
            check_takes(self.model, example, f"{self.hparams['name']} does not take {advice}")

    def configure_model(self) -> None:
        """Compiles the model, and shards it (FSDP2)."""
        if self.device_mesh is not None and not self._sharded:
            if self.device_mesh["tensor_parallel"].size() > 1:  # Lightning's default
                raise ValueError(
                    "these models are sharded over data only: give --trainer.strategy.data_parallel_size N "
                    "(all devices) and --trainer.strategy.tensor_parallel_size 1"
                )
            from torch.distributed.fsdp import fully_shard  # not in every build of torch

            self._sharded = True
            for model in self.evaluated().values():
                for part in (*holders(model), model):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])
        compile_model(self.model, self.hparams["compile"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes sure that the outputs mean the same.

        Raises:
            CheckpointError: If the checkpoint is for other classes, also if they are as many.
        """
        stored, now = checkpoint["hyper_parameters"].get("class_names"), self.hparams["class_names"]
        if stored and now and list(stored) != list(now):
            raise CheckpointError(
                f"the checkpoint is for other classes than the data have: {_few(stored)}, not {_few(now)}"
            )
        super().on_load_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        """Fetches the teacher, and makes sure that batches can be mixed.

        Raises:
            ValueError: If they cannot, or the teacher has other classes.
        """
        batch_size = getattr(self.trainer.datamodule, "hparams", {}).get("batch_size", 2)
        if self.mixup is not None and batch_size % 2:
            raise ValueError(f"mixup and cutmix need an even data.batch_size, got {batch_size}")
        hp = self.hparams
        if hp["teacher"] and self.teacher is None:
            options = (hp["teacher_loss"], hp["teacher_temperature"])
            self.teacher = Teacher(hp["teacher"], hp["num_classes"], self.device, *options)

    def on_train_start(self) -> None:
        """Runs the epoch-start hook, which Lightning skips in a resumed epoch."""
        super().on_train_start()
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Ends mixup; keeps frozen layers as they are in use."""
        off = self.hparams["mixup_off_epoch"]
        if self.mixup is not None and off is not None:
            self.mixup.mixup_enabled = self.current_epoch < off
        if self.hparams["head_only"]:
            self.model.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of the recipe, with the teacher's and the repulsive loss where they are asked for."""
        images, target = batch
        if self.mixup is not None:
            if len(images) % 2:  # an unreadable image was left out: the last one is there twice
                images, target = (torch.cat([part, part[-1:]]) for part in batch)
            images, target = self.mixup(images, target)
        if images.ndim == 5:  # (N, versions, C, H, W): the first version of all images, then the second, ...
            target = target.repeat(images.shape[1])
            images = images.transpose(0, 1).flatten(0, 1)
        logits = self(images)
        loss = self.criterion(logits, target)
        if self.teacher is not None:
            weight, data = self.hparams["teacher_weight"], self.trainer.datamodule.hparams
            distance = self.teacher.distance(images, logits, data["mean"], data["std"])
            loss = (1 - weight) * loss + weight * distance
        self.log("train/loss_step", loss, prog_bar=True, batch_size=len(images))
        once = {"on_step": False, "on_epoch": True, "sync_dist": True}
        self.log("train/loss_epoch", loss, batch_size=len(images), **once)
        start = self.hparams["repulsive_from_epoch"]
        if start is not None and self.current_epoch >= start:
            repulsive = repulsion(self.model) ** 2
            self.log("train/repulsive", repulsive)
            loss = loss + repulsive
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clips as the trainer says, and adaptively where it is asked for."""
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        if self.hparams["agc"] is not None:
            adaptive_clip_grad(model_parameters(self.model, exclude_head=True), self.hparams["agc"])

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Measures the raw and the averaged weights; returns the logits of the raw ones."""
        images, labels = batch
        outputs = {
            suffix: model(self._to_memory_layout(images)) for suffix, model in self.evaluated().items()
        }
        count = (labels != IGNORED).sum()
        for suffix, logits in outputs.items():
            measured = self.metrics[suffix]
            logits = logits.float()
            measured["top1"].update(logits, labels)
            measured["top5"].update(logits, labels)
            if count:
                measured["loss"].update(F.cross_entropy(logits, labels, ignore_index=IGNORED), count)
        return outputs["raw"]

    def on_validation_epoch_end(self) -> None:
        """Logs loss and accuracies in percent, of the averaged weights with ``_ema``."""
        self._log_metrics("val")

    def test_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """As in validation."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Probabilities ``(N, num_classes)``, of the averaged weights where there are any."""
        return list(self.evaluated().values())[-1](self._to_memory_layout(batch[0])).float().softmax(1)

    def _to_memory_layout(self, images: torch.Tensor) -> torch.Tensor:
        return to_memory_layout(images, self.hparams["channels_last"])

    def _log_metrics(self, stage: str) -> None:
        for suffix, metrics in self.metrics.items():
            self.measured = self.count_measured(metrics["loss"].weight)
            end = "" if suffix == "raw" else f"_{suffix}"
            for key, value in metrics.compute().items():
                percent = 1 if key == "loss" else 100
                self.log(f"{stage}/{key}{end}", percent * value, prog_bar=key == "top1")
            metrics.reset()


def _few(names: list[str]) -> str:
    return f"{len(names)} ({some(names)})"
