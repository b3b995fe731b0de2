"""The LightningModule: waveforms to spectrograms on the device, augmented; a timm model; its measures."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dcls_models import CheckpointError, LogMel
from dcls_models.loading import check_takes
from train.audio.augment import erased, mixed, smoothed
from train.audio.metrics import Tagging
from train.models import build_model, compile_model, to_memory_layout
from train.ranges import Count, NotNegative, Share, ShareAboveZero, ShareBelowOne, check_ranges
from train.task import Task

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Tagger(Task):
    """Audio tagging with any timm model, with binary cross-entropy as the authors train.

    Args:
        name: Name of a timm model, one of the zoo's for instance; ``local-dir:FOLDER``, ``hf-hub:USER/NAME``.
            A model of images gets a stem of one channel.
        pretrained: Whether to start from published weights; a model without any starts from random ones.
        warm_start: Name of a dense timm model whose pretrained weights the DCLS model starts from.
        num_classes: Number of classes; the command line takes it from the data.
        class_names: Their names in the order of the outputs, saved with the model; likewise from the data.
        one_label: Whether each sound has exactly one class, so that top-1 is measured; likewise.
        front_end: The settings of ``dcls_models.LogMel``; likewise.
        model_kwargs: More arguments of the model (``kernel_count``, ``drop_path_rate``, ``depths``, ...).
        opt: Optimizer, by its timm name.
        opt_kwargs: More arguments of the optimizer (``betas``, ``eps``, ...).
        lr: Learning rate for the batch size that is used.
        weight_decay: Weight decay of the parameters that decay.
        positions_lr_scale: Factor on the learning rate of positions and sigma (the authors: 5).
        layer_decay: Factor on the learning rate per layer, counted from the head.
        sched: Schedule, by its timm name, stepped per update.
        sched_kwargs: More arguments of the schedule.
        warmup_epochs: Epochs of linear warm-up, part of the schedule.
        warmup_lr: Where the warm-up starts.
        min_lr: Where the schedule ends.
        label_smoothing: Share of the target that is spread over all classes, before mixing.
        mixup: Alpha of mixup, of whole batches; 0 is none.
        erase_prob: Probability that a box of the linear spectrogram is erased.
        ema_decay: Decay of the averaged weights, which are validated and saved beside the raw ones.
        ema_warmup: Whether the decay starts low (timm's warm-up).
        channels_last: Memory layout of spectrograms; the faster one for large depthwise kernels on a CPU.
        grad_checkpointing: Whether activations are computed again in the backward pass, to save memory.
        compile: Backend of ``torch.compile`` (``inductor``) for the model; not compiled by default.

    Raises:
        ValueError: If timm knows no such model, or an argument does not fit.
    """

    def __init__(
        self,
        name: str = "convnext_dcls_audio_tiny",
        pretrained: bool = False,
        warm_start: str | None = None,
        num_classes: Count = 527,
        class_names: list[str] | None = None,
        one_label: bool = False,
        front_end: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        opt: str = "adamw",
        opt_kwargs: dict[str, Any] | None = None,
        lr: NotNegative = 4e-3,
        weight_decay: NotNegative = 0.05,
        positions_lr_scale: NotNegative = 5.0,
        layer_decay: ShareAboveZero | None = None,
        sched: str = "cosine",
        sched_kwargs: dict[str, Any] | None = None,
        warmup_epochs: NotNegative = 0.0,
        warmup_lr: NotNegative = 0.0,
        min_lr: NotNegative = 1e-6,
        label_smoothing: ShareBelowOne = 0.1,
        mixup: NotNegative = 0.8,
        erase_prob: Share = 0.25,
        ema_decay: ShareBelowOne | None = None,
        ema_warmup: bool = True,
        channels_last: bool = True,
        grad_checkpointing: bool = False,
        compile: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_ranges("model", self, self.hparams)
        one_channel = {"in_chans": 1, **(model_kwargs or {})}
        self.model = build_model(name, pretrained, warm_start, num_classes, one_channel)
        self.model.front_end = LogMel(**(front_end or {}))
        bands, frames = self.front_end.input_size[1:]
        advice = (
            "give longer clips (data.seconds), more bands (data.front_end.mels) or another model.model_kwargs"
        )
        said = f"{name} does not take spectrograms of {bands} bands and {frames} frames: {advice}"
        check_takes(self.model, self.example_input(), said)
        if grad_checkpointing:
            self.model.set_grad_checkpointing(True)
        self.average(ema_decay, ema_warmup)
        self.metrics = nn.ModuleDict({suffix: Tagging(one_label) for suffix in self.evaluated()})

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of waveforms ``(N, samples)``."""
        return self._logits(self.model, self.front_end(waveforms))

    @property
    def front_end(self) -> LogMel:
        """From waveforms to spectrograms."""
        return self.model.front_end  # type: ignore[return-value]

    def example_input(self) -> torch.Tensor:
        """The spectrogram of a clip."""
        return torch.zeros(1, *self.front_end.input_size)

    def configure_model(self) -> None:
        """Compiles the model, not the whole module: parameters keep their names."""
        compile_model(self.model, self.hparams["compile"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes sure that inputs and outputs mean the same.

        Raises:
            CheckpointError: If the checkpoint is for other classes or for other spectrograms.
        """
        for key, what in (("class_names", "classes"), ("front_end", "spectrograms (front_end)")):
            stored, now = checkpoint["hyper_parameters"].get(key), self.hparams[key]
            if stored and now and stored != now:
                raise CheckpointError(f"the checkpoint is for other {what} than those that are asked for")
        super().on_load_checkpoint(checkpoint)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of the recipe, over the sounds that could be read."""
        waveforms, targets, readable = batch
        hp = self.hparams
        if readable.any():
            waveforms, targets = waveforms[readable], targets[readable]
        power = erased(self.front_end.linear(waveforms), hp["erase_prob"])
        spectrograms, targets = self.front_end.from_linear(power), smoothed(targets, hp["label_smoothing"])
        if hp["mixup"]:
            spectrograms, targets = mixed(spectrograms, targets, hp["mixup"])
        loss = F.binary_cross_entropy_with_logits(self._logits(self.model, spectrograms), targets)
        loss = loss * readable.any()  # processes take as many steps, also of nothing
        self.log("train/loss_step", loss, prog_bar=True, batch_size=len(targets))
        once = {"on_step": False, "on_epoch": True, "sync_dist": True}
        self.log("train/loss_epoch", loss, batch_size=len(targets), **once)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Measures the raw and the averaged weights; returns the logits of the raw ones."""
        waveforms, targets, readable = batch
        spectrograms = self.front_end(waveforms)
        logits = {suffix: self._logits(model, spectrograms) for suffix, model in self.evaluated().items()}
        for suffix, values in logits.items():
            self.metrics[suffix].update(values[readable], targets[readable])
        return logits["raw"]

    def on_validation_epoch_end(self) -> None:
        """Logs loss, mAP and top-1 in percent, of the averaged weights with ``_ema``."""
        for suffix, metric in self.metrics.items():
            self.count_measured(sum(len(logits) for logits in metric.logits))
            end = "" if suffix == "raw" else f"_{suffix}"
            for key, value in metric.compute().items():
                self.log(f"val/{key}{end}", value, prog_bar=key == "map", sync_dist=True)
            metric.reset()

    def _logits(self, model: nn.Module, spectrograms: torch.Tensor) -> torch.Tensor:
        return model(to_memory_layout(spectrograms, self.hparams["channels_last"]))
