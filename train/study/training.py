"""One training of the study."""

import copy
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from dcls_models import warm_start
from dcls_models.optim import holders
from train.module import Classifier
from train.study.models import PEERS, STANDARD, VARIANTS, Variant, model_kwargs, parameters
from train.study.tasks import BATCH, Task, Tensors, task_data

LR, FINE_LR = 1e-2, 2e-3  # from scratch; of a trained model
SCRATCH, FURTHER = "from scratch", "further"
WARM = Variant({"kernel_size": 13, "version": "v1", "kernel_count": 34, "positions": "authors"})
CONTINUATIONS: dict[str, tuple[Variant, str]] = {  # after a dense model was trained
    "dense 7x7, further": (VARIANTS[STANDARD], FURTHER),
    "DCLS v1, warm start": (WARM, FURTHER),
    "DCLS v1, warm start, frozen": (WARM._replace(model={**WARM.model, "frozen": True}), FURTHER),
    "DCLS v1, spread, from scratch": (VARIANTS["DCLS v1, spread"], SCRATCH),
    "dense 7x7, from scratch": (VARIANTS[STANDARD], SCRATCH),
}
DENSE = "dense 7x7, before"


class Run(NamedTuple):
    """A training, or for ``warm`` all trainings that start from one dense model.

    Attributes:
        experiment: ``rates``, ``variants``, ``curve``, ``warm`` or ``peers``.
        task: Name of the task.
        variant: Name of the variant.
        seed: Of data, initialisation and order.
        rate: Factor on the learning rate of positions.
        length: The task's epochs times this.
        moments: How often accuracy and positions are looked at.
    """

    experiment: str
    task: str
    variant: str
    seed: int
    rate: float
    length: int = 1
    moments: int = 1


class Curve(pl.Callback):
    """Keeps, at every validation, the updates so far, the accuracy, and where the positions are."""

    def __init__(self) -> None:
        self.start: list[torch.Tensor] = []
        self.points: list[dict[str, Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keeps where the positions start."""
        self.start = self.start or [h.positions.detach().clone() for h in holders(pl_module)]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps a point."""
        top1 = round(float(trainer.callback_metrics["val/top1"]), 3)
        point: dict[str, Any] = {"updates": trainer.global_step, "top1": top1}
        if self.start:
            now = torch.cat([h.positions.detach().flatten(1) for h in holders(pl_module)], 1)
            start = torch.cat([p.flatten(1) for p in self.start], 1)
            point["from_centre"] = round(now.norm(dim=0).mean().item(), 3)
            point["moved"] = round((now - start).norm(dim=0).mean().item(), 3)
        self.points.append(point)


def execute(run: Run, task: Task, dim: int) -> list[dict[str, Any]]:
    """Trains what a run asks for, on one thread.

    Args:
        run: The run.
        task: Its task.
        dim: Width of the standard model.

    Returns:
        A row for each training: the run's own columns, ``parameters``, ``trained`` (how many of them are),
        ``points`` (updates, top-1 in percent on held-out images, mean distances of the positions from the
        centre and from their start in cells of the feature map), ``top1`` after the last update, ``seconds``.
    """
    torch.set_num_threads(1)
    with quiet():
        if run.experiment == "warm":
            return _warm(run, task, dim)
        variant = {**VARIANTS, **PEERS}[run.variant]
        kwargs = model_kwargs(variant, dim, task.depth)
        row, _ = fit(run, task, task_data(task, run.seed), kwargs)
        return [row]


def _warm(run: Run, task: Task, dim: int) -> list[dict[str, Any]]:
    """A dense training, and half as many updates again on new images, spent in several ways."""
    kwargs = model_kwargs(VARIANTS[STANDARD], dim, task.depth)
    row, dense = fit(run._replace(variant=DENSE), task, task_data(task, run.seed), kwargs)
    rows, half = [row], task._replace(epochs=task.epochs // 2)
    data = task_data(task, run.seed + 1000)
    for name, (variant, how) in CONTINUATIONS.items():
        rate = run.rate if how == FURTHER else variant.rate
        own = run._replace(variant=name, rate=rate)
        kwargs = model_kwargs(variant, dim, task.depth)
        rows.append(fit(own, half, data, kwargs, dense if how == FURTHER else None)[0])
    return rows


def fit(
    run: Run, task: Task, data: Tensors, kwargs: dict[str, Any], source: Classifier | None = None
) -> tuple[dict[str, Any], Classifier]:
    """One training; of ``source``'s weights if there is one.

    Returns:
        The row of the results, and what was trained.
    """
    begin, epochs = time.monotonic(), task.epochs * run.length
    pl.seed_everything(run.seed, verbose=False)
    module = classifier(kwargs, task.classes, run.rate, epochs, FINE_LR if source else LR)
    curve = Curve()
    updates = epochs * (len(data.train_set) // BATCH)
    trainer = silent_trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=None,
        val_check_interval=max(updates // run.moments, 1),
        num_sanity_val_steps=0,
        callbacks=[curve],
        inference_mode=False,  # what is measured before a training is used on in it
    )
    if source:
        if holders(module.model):
            warm_start(module.model, copy.deepcopy(source.model), example_input=data.val_set[0][0][None])
        else:
            module.model.load_state_dict(source.model.state_dict())
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    row = {**run._asdict(), **parameters(module.model), "points": curve.points}
    return row | {"top1": curve.points[-1]["top1"], "seconds": round(time.monotonic() - begin, 1)}, module


def classifier(kwargs: dict[str, Any], classes: int, rate: float, epochs: int, lr: float = LR) -> Classifier:
    """A model of the study with the optimizer that all have; ``rate`` is the factor on that of positions."""
    return Classifier(
        "study_convmixer",
        num_classes=classes,
        model_kwargs=kwargs,
        lr=lr,
        positions_lr_scale=rate,
        warmup_epochs=0.1 * epochs,
        label_smoothing=0.0,
    )


def silent_trainer(**options: Any) -> pl.Trainer:
    """A trainer on one device that writes and shows nothing."""
    return pl.Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's remarks, and ours, on every one of hundreds of trainings."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "train", "dcls_models")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
