"""Checkpoints that survive: written whole or not at all, at moments from which training goes on exactly.

``last.ckpt`` is written every so many updates, at the end of every epoch, and when the process is asked to
stop (SIGTERM, Ctrl-C, SIGUSR1), always between two updates.
"""

import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, StochasticWeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dcls_models.files import one_line, replaced
from train.ranges import Count, check_ranges
from train.run_folder import LAST, put_aside
from train.signals import SIGNALS, Stopped, set_handler

_logger = logging.getLogger(__name__)
AGAIN = 3.0  # seconds; torchrun and schedulers pass on signals that a process has already got


class NotFiniteError(RuntimeError):
    """The loss is infinite or NaN."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint, to the disk, and renames: a file of that name is always a whole one.

    Lightning's own way moves a file from the temporary folder, which across file systems is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Saves.

        Raises:
            OSError: If it cannot be written; an earlier checkpoint of that name is still there.
        """
        if "://" in str(path):  # a bucket, whose objects appear whole
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(path) as part, part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            before = "; what was saved before is still there" if path.exists() else ""
            raise OSError(f"cannot write {path}: {cause}{before}") from error


class KeepLast(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` in the run's folder, and stops the training when a signal asks for it.

    Args:
        every_n_updates: How often to save besides the ends of epochs.
    """

    leaves_files = True

    def __init__(self, every_n_updates: Count = 1000) -> None:
        check_ranges("keep_last", self, {"every_n_updates": every_n_updates})
        self.every_n_updates = every_n_updates
        self.received = 0
        self.started_at = 0  # the update that this run goes on from
        self._handlers: dict[int, Any] = {}

    def path(self, trainer: pl.Trainer) -> Path:
        """Where the checkpoint is."""
        return Path(trainer.default_root_dir) / "checkpoints" / LAST

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes sure that a checkpoint is one file.

        Raises:
            ValueError: If the strategy would write a folder.
        """
        if getattr(trainer.strategy, "_save_distributed_checkpoint", False):
            raise ValueError("checkpoints are one file: --trainer.strategy.save_distributed_checkpoint false")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over from Lightning, which stops in the middle of an accumulation."""
        self.received, first = 0, 0.0
        self.started_at = trainer.global_step

        def note(signum: int, frame: FrameType | None) -> None:
            nonlocal first
            if self.received:
                if time.monotonic() - first < AGAIN:
                    return
                raise Stopped(signum)  # asked again: now
            self.received, first = signum, time.monotonic()
            _logger.warning("%s: saving after this update, then stopping", signal.Signals(signum).name)

        self._handlers = {s: set_handler(s, note) for s in SIGNALS}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Puts the checkpoints of an earlier run in the same folder aside with the first update."""
        if trainer.is_global_zero and trainer.global_step == 0 and not trainer.fast_dev_run:
            put_aside(Path(trainer.default_root_dir), ("checkpoints",))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time to, between two updates and after a validation that was due between them."""
        if trainer.global_step == self.started_at or not _between_updates(trainer):
            return
        if self._asked(trainer):
            self._save(trainer, pl_module)
            self._stop(trainer)
        if batch_idx and trainer.global_step % self.every_n_updates == 0:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves."""
        self._save(trainer, pl_module)
        if self._asked(trainer) and not trainer.fit_loop.done:
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves once more where a callback has put other weights into the model at the end."""
        if any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks):
            self._save(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Saves before the update that failed, where that is possible.

        Not among several processes, which would wait for each other, nor when saving or the loss or the first
        update is what failed: the checkpoint before is better then.
        """
        saveable = isinstance(exception, Exception) and not isinstance(exception, NotFiniteError | OSError)
        moved_on = trainer.global_step > self.started_at
        if saveable and moved_on and _between_updates(trainer) and trainer.world_size == 1 and self._handlers:
            try:
                self._save(trainer, pl_module)
            except (OSError, NotFiniteError) as error:  # what failed first is what is to be said last
                _logger.warning("%s", one_line(error))
        self._restore_handlers()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back."""
        self._restore_handlers()

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if hasattr(pl_module, "check_finite"):
            pl_module.check_finite()
        trainer.save_checkpoint(self.path(trainer))

    def _asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return bool(self.received)
        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        self.received = int(received)
        return bool(self.received)

    def _stop(self, trainer: pl.Trainer) -> None:
        _logger.warning("saved %s; go on with --ckpt_path last", self.path(trainer))
        raise Stopped(self.received)

    def _restore_handlers(self) -> None:
        for signum, handler in self._handlers.items():
            set_handler(signum, handler)
        self._handlers = {}


def _between_updates(trainer: pl.Trainer) -> bool:
    """Whether no gradients are being accumulated."""
    processed = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    return processed % trainer.accumulate_grad_batches == 0
