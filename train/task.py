"""The LightningModule that every task is one of: optimizer, schedule, average, finiteness, exact resume."""

from typing import Any

import pytorch_lightning as pl
import torch
from timm.utils import ModelEmaV3
from torch import nn

from dcls_models.optim import ParamGroup, param_groups
from train.checkpoints import NotFiniteError
from train.errors import DataError
from train.optimizer import build_optimizer, build_schedule, schedule_length
from train.place import count_epochs, place, settle
from train.seeding import run_seed, seed_from


class Task(pl.LightningModule):
    """A model that is trained as this project trains: a subclass makes ``model`` and takes the steps.

    Its hyper-parameters (``save_hyperparameters``) hold ``opt``, ``opt_kwargs``, ``lr``, ``weight_decay``,
    ``positions_lr_scale``, ``sched``, ``sched_kwargs``, ``warmup_epochs``, ``warmup_lr`` and ``min_lr``, and
    ``layer_decay`` where it has one. Everything random in a step is seeded from the run's seed and the place
    of the step, so that nothing of a generator has to be saved.
    """

    model: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.ema: ModelEmaV3 | None = None
        self._finite: torch.Tensor | None = None
        self._stored_per_epoch: int | None = None  # updates of an epoch, in the checkpoint to go on from
        self.validated = (-1, 0)  # the last validation: in which epoch, after how many updates
        self._ahead = 0  # how many updates the schedule is ahead of those that were made

    def average(self, decay: float | None, warmup: bool) -> None:
        """Keeps a moving average of ``model`` as ``ema``, unless there is no decay; it is saved as well.

        Args:
            decay: How much of the average an update keeps.
            warmup: Whether the decay starts low (timm's warm-up).
        """
        if decay is not None:
            self.ema = ModelEmaV3(self.model, decay=decay, use_warmup=warmup).requires_grad_(False)

    def groups(self) -> list[ParamGroup]:
        """The optimizer's groups, each with its name, learning rate and weight decay."""
        hp = self.hparams
        rates = {k: hp[k] for k in ("lr", "weight_decay", "positions_lr_scale")}
        return param_groups(self.model, layer_decay=hp.get("layer_decay"), **rates)

    def warmup_epochs(self, updates_per_epoch: int) -> float:
        """How long the learning rate rises."""
        return self.hparams["warmup_epochs"]

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and schedule of timm, with our groups, stepped per update."""
        hp = self.hparams
        options = {k: hp[k] for k in ("opt", "lr", "weight_decay", "opt_kwargs")}
        optimizer = build_optimizer(self.groups(), **options)
        updates, per_epoch = schedule_length(self.trainer)
        options = {k: hp[k] for k in ("sched", "warmup_lr", "min_lr", "sched_kwargs")}
        options["warmup_epochs"] = self.warmup_epochs(per_epoch)
        scheduler = build_schedule(optimizer, updates, per_epoch, **options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Prepares the trainer to go on from checkpoints."""
        count_epochs(self.trainer)

    def on_train_start(self) -> None:
        """Sets the learning rates of the first update of a resumed training.

        They follow from the config of now; where an epoch has another number of updates than it had, from
        how much of the training is done.
        """
        if not self.global_step:
            return
        for config in self.trainer.lr_scheduler_configs:
            per_epoch = getattr(config.scheduler, "updates_per_epoch", None)
            if self._stored_per_epoch not in (None, per_epoch) and (self.trainer.max_epochs or -1) > 0:
                at = place(self.trainer)
                done = at.epoch * per_epoch + at.batch // self.trainer.accumulate_grad_batches
                self._ahead = done - self.global_step
            self.lr_scheduler_step(config.scheduler, None)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Tells timm's schedulers the number of updates; others, as of a callback, step as they do."""
        if hasattr(scheduler, "step_update"):
            scheduler.step_update(num_updates=self.global_step + self._ahead)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds dropout, drop path and all else that is random in a step."""
        seed_from(run_seed(), self.current_epoch, batch_idx, self.global_rank)

    def on_validation_end(self) -> None:
        """Notes when it was: a training that is cut short ends in an epoch without one."""
        self.validated = (self.current_epoch, self.global_step)

    def count_measured(self, mine: Any) -> int:
        """How many samples all processes have measured, of ``mine`` each.

        Raises:
            DataError: If there was none: nothing could be read.
        """
        measured = int(self.all_gather(torch.as_tensor(mine, device=self.device)).sum())
        if not measured:
            raise DataError("none of what was to be measured could be read: the log names the files")
        return measured

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Stops a training whose loss is not finite; on a GPU, which would have to wait, it looks rarely."""
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        if not loss.is_cuda or self.trainer.fit_loop.batch_idx % 50 == 0:
            self.check_finite()

    def check_finite(self) -> None:
        """Stops a training that has come to nothing.

        Raises:
            NotFiniteError: If a loss was infinite or NaN.
        """
        if self._finite is not None and not self._finite.item():
            raise NotFiniteError(
                f"the loss is not finite in update {self.global_step} (epoch {self.current_epoch}); lower "
                "model.lr, clip gradients (trainer.gradient_clip_val) or use trainer.precision 32-true, and "
                "go on from the last checkpoint with --ckpt_path last"
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the learning rates, of the head and of the last positions where they differ by layer."""
        rates = {
            "lr_positions" if g.get("name", "").startswith("positions") else "lr": g["lr"]
            for g in optimizer.param_groups
        }
        self.log_dict(rates)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then averages: positions are inside the kernel by then, and a checkpoint sees both."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)

    def evaluated(self) -> dict[str, nn.Module]:
        """The models that are measured: ``raw``, and ``ema`` where there is an average."""
        return {"raw": self.model} if self.ema is None else {"raw": self.model, "ema": self.ema.module}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint say in one way where the training is."""
        for config in self.trainer.lr_scheduler_configs:
            checkpoint["updates_per_epoch"] = getattr(config.scheduler, "updates_per_epoch", None)
        if checkpoint.get("loops"):
            settle(checkpoint["loops"]["fit_loop"], place(self.trainer), self.trainer.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the checkpoint's schedule out: it would keep the end of a training that is made longer."""
        checkpoint["lr_schedulers"] = []
        self._stored_per_epoch = checkpoint.get("updates_per_epoch")
