"""What the tests of the trainer share: tiny data, a tiny model with everything random, kills."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar

from dcls_models._timm import save_for_hf
from train.command import main

TINY = [
    *("--model.name", "test_convnext_dcls", "--data.img_size", "32", "--data.num_workers", "0"),
    *("--model.model_kwargs", "{depths: [1, 1, 1, 1], dims: [8, 8, 8, 16], patch_size: 2, kernel_count: 5}"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.accelerator", "cpu", "--report.pictures", "false", "--positions.kernels", "0"),
]
SMALL_DATA = ["--data.batch_size", "8"]  # six batches of the 48 images of ``write_images``
RANDOM = [
    *("--model.mixup", "0.8", "--model.cutmix", "1.0", "--model.ema_decay", "0.9", "--data.re_prob", "0.3"),
    *("--data.auto_augment", "rand-m9-mstd0.5-inc1", "--model.model_kwargs.drop_path_rate", "0.2"),
    *("--model.lr", "1e-3", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"),
]


def write_images(root: Path, classes: int = 4, train: int = 12, val: int = 5, side: int = 16) -> Path:
    """Noise, brighter in one corner per class."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        for split, count in (("train", train), ("val", val)):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 160, (side, side, 3), dtype=np.uint8)
                y, x = divmod(label, 2)
                pixels[y * side // 2 : (y + 1) * side // 2, x * side // 2 : (x + 1) * side // 2] += 90
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return root


def fit(root: Path, run: Path, *more: str, command: str = "fit") -> None:
    """Runs the command line on a small data set with a tiny model."""
    where = ["--data.root", str(root), "--trainer.default_root_dir", str(run)]
    main([command, *TINY, *SMALL_DATA, *where, *more])


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, and what is in them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def last(run: Path) -> dict[str, Any]:
    """What ``last.ckpt`` of a run holds."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two checkpoints hold the same numbers, bit by bit: weights, averages and the optimizer's."""
    pairs = [(one["state_dict"], other["state_dict"])]
    states = [c["optimizer_states"][0]["state"] for c in (one, other)]
    pairs += list(zip(states[0].values(), states[1].values(), strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


class SignalAt(pl.Callback):
    """Sends this process and its workers a signal after a training batch, or in validation."""

    def __init__(self, epoch: int, batch: int, name: str = "SIGTERM", stage: str = "train") -> None:
        self.epoch, self.batch, self.signal, self.stage = epoch, batch, signal.Signals[name], stage

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, idx: int
    ) -> None:
        self._send("train", trainer.current_epoch, idx)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, idx: int, dataloader_idx: int = 0
    ) -> None:
        self._send("val", trainer.current_epoch, idx)

    def _send(self, stage: str, epoch: int, idx: int) -> None:
        if (stage, epoch, idx) == (self.stage, self.epoch, self.batch):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, self.signal)
                worker.join(0.5)  # in time to notice its death
            os.kill(os.getpid(), self.signal)


class Killed(BaseException):
    """No ``Exception``, and so nothing is saved."""


class Kill(pl.Callback):
    """Ends the process at a moment of an epoch, without a word."""

    def __init__(self, moment: str, epoch: int, batch: int = -1) -> None:
        self.moment, self.at = moment, (epoch, batch)

    def _at(self, moment: str, trainer: pl.Trainer, batch: int = -1) -> None:
        trains = trainer.global_step > 0 or moment == "batch"  # and does not measure before
        if moment == self.moment and trains and (trainer.current_epoch, batch) == self.at:
            raise Killed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._at("epoch", trainer)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self._at("batch", trainer, trainer.fit_loop.batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._at("validation", trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._at("end", trainer)


class FailsOnAFullDisk(pl.Callback):
    """Fails after an update when nothing can be saved any more."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, idx: int
    ) -> None:
        if idx == 2:
            (Path(trainer.default_root_dir) / "checkpoints").touch()
            raise RuntimeError("what failed first")


class _Killer:
    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class DieWhileSaving(pl.Callback):
    """Kills this process while a checkpoint is being written, at the nth time."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def state_dict(self) -> dict[str, Any]:
        self.left -= 1
        return {"zz": _Killer()} if self.left == 0 else {}


def callback(kind: str, **arguments: Any) -> list[str]:
    """Flags that add a callback of this file."""
    inits = [f"--trainer.callbacks.{k}={v}" for k, v in arguments.items()]
    return [f"--trainer.callbacks+=tests.training.{kind}", *inits]


def save_dense(folder: Path, classes: int) -> str:
    """Saves a small dense model; returns the name that loads it."""
    model = timm.create_model("test_convnext", num_classes=classes)
    save_for_hf(model, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def in_child(function: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    """Starts a function in a process of its own, forked from one that has imported what it needs.

    Not from this one: what earlier tests have computed in threads does not survive a fork.
    """
    if sys.platform == "win32":
        pytest.skip("needs fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training"])
    child = context.Process(target=_quietly, args=(function, *args))
    child.start()
    return child


def _quietly(function: Callable[..., None], *args: Any) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    function(*args)


class CountValidations(pl.Callback):
    """Writes how many validations there were, each after some updates."""

    def __init__(self) -> None:
        self.count = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.count += trainer.global_step > 0
        (Path(trainer.default_root_dir) / "validations.txt").write_text(str(self.count))


class MyBar(TQDMProgressBar):
    """A progress bar of somebody's own."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        (Path(trainer.default_root_dir) / "bar.txt").write_text("mine")
