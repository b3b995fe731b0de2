"""The progress bar: what it says besides the batches."""

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar of each epoch with images per second over all devices, and the time left in all."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._start = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._start = (time.monotonic(), trainer.global_step)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Adds ``img/s`` and ``left`` (validation included), and leaves out the version number."""
        items = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        seconds, updates = time.monotonic() - self._start[0], trainer.global_step - self._start[1]
        if not trainer.training or updates < 2:
            return items
        hparams: Any = trainer.datamodule.hparams if trainer.datamodule else {}
        per_update = hparams.get("batch_size", 0) * trainer.world_size * trainer.accumulate_grad_batches
        if per_update:
            unit = getattr(trainer.datamodule, "unit", "images")
            items["img/s" if unit == "images" else f"{unit}/s"] = round(per_update * updates / seconds)
        schedules = trainer.lr_scheduler_configs
        total = getattr(schedules[0].scheduler, "updates", 0) if schedules else 0
        left = timedelta(seconds=round((total - trainer.global_step) * seconds / updates))
        return {**items, "left": str(left)} if total else items
