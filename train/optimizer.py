"""Optimizer and schedule from timm, with the groups of ``dcls_models.optim``."""

import inspect
import logging
import math
from collections import Counter
from typing import Any

import pytorch_lightning as pl
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.optim import Optimizer

from dcls_models.optim import ParamGroup

_logger = logging.getLogger(__name__)
GROUPS = {"decay": "weights", "no_decay": "biases, norms, scales", "positions": "where kernel elements are"}


def build_optimizer(
    groups: list[ParamGroup], opt: str, lr: float, weight_decay: float, opt_kwargs: dict[str, Any] | None
) -> Optimizer:
    """An optimizer of timm for the groups of ``dcls_models.optim.param_groups``, which are logged.

    Raises:
        ValueError: If timm knows no such optimizer, or the optimizer no such argument.
    """
    for name in dict.fromkeys(group["name"] for group in groups):  # with layer decay a name has many
        same = [group for group in groups if group["name"] == name]
        rates = sorted({group["lr"] for group in same})
        params = [p for group in same for p in group["params"]]
        _logger.info(
            "optimizer group %s (%s): lr %s with weight decay %g, %d tensors, %d numbers",
            name,
            GROUPS.get(name, "others"),
            " to ".join(f"{rate:.3g}" for rate in dict.fromkeys((rates[0], rates[-1]))),
            same[0]["weight_decay"],
            len(params),
            sum(p.numel() for p in params),
        )
    counts: Counter[str] = Counter()
    named = []
    for group in groups:  # LearningRateMonitor needs names that differ
        kind = group["name"]
        counts[kind] += 1
        named.append({**group, "name": kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"})
    options = {"lr": lr, "weight_decay": weight_decay}
    if taken := options.keys() & (opt_kwargs or {}):  # which the groups have
        raise ValueError(f"give model.{min(taken)}, not model.opt_kwargs.{min(taken)}")
    options |= opt_kwargs or {}
    try:
        optimizer = create_optimizer_v2(named, opt=opt, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"model.opt {opt!r} with {opt_kwargs or {}}: {error}") from error
    getattr(optimizer, "base_optimizer", optimizer).register_load_state_dict_pre_hook(_keep_options)
    return optimizer


def _keep_options(optimizer: Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """Takes the state of a checkpoint with the options of now, which torch would replace by the stored ones.

    What an optimizer keeps in its groups besides its options (a step, an estimate) stays the stored one.
    """
    options = {"initial_lr", "name", *inspect.signature(type(optimizer)).parameters} - {"params"}
    pairs = zip(stored["param_groups"], optimizer.param_groups, strict=False)
    groups = [{**old, **{k: v for k, v in new.items() if k in options}} for old, new in pairs]
    return {**stored, "param_groups": groups}


def build_schedule(
    optimizer: Optimizer,
    updates: int,
    updates_per_epoch: int,
    sched: str,
    warmup_epochs: float,
    warmup_lr: float,
    min_lr: float,
    sched_kwargs: dict[str, Any] | None,
) -> Any:
    """A schedule of timm that is stepped per update and ends after ``updates``.

    Raises:
        ValueError: If timm knows no such schedule or argument, or it cannot be stepped per update.
    """
    if sched in ("plateau", "none"):
        raise ValueError(
            f"model.sched {sched!r} cannot be stepped per update; choose cosine, step, constant, ..."
        )
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=sched,
            num_epochs=updates / updates_per_epoch,  # type: ignore[arg-type]
            warmup_epochs=warmup_epochs,  # type: ignore[arg-type]
            warmup_lr=warmup_lr,
            min_lr=min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
            **(sched_kwargs or {}),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.sched {sched!r} with {sched_kwargs or {}}: {error}") from error
    scheduler.updates, scheduler.updates_per_epoch = updates, updates_per_epoch
    return scheduler


def schedule_length(trainer: pl.Trainer) -> tuple[int, int]:
    """Updates of the whole training, and of an epoch.

    Not ``trainer.estimated_stepping_batches``, which spoils resuming (2.6).

    Raises:
        ValueError: If the training has no end.
    """
    data, limit = trainer.datamodule, trainer.limit_train_batches
    if hasattr(data, "train_batches"):
        batches = data.train_batches(trainer.world_size)
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * (limit or 1.0))
    else:  # somebody else's loader
        trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches
    per_epoch = math.ceil(max(batches, 1) / trainer.accumulate_grad_batches)
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    if 0 in (trainer.max_epochs, steps):
        return 1, per_epoch  # nothing is trained
    limits = [n for n in (epochs * per_epoch, steps) if n > 0]  # -1: no such limit
    if not limits:
        raise ValueError("set trainer.max_epochs or trainer.max_steps: the schedule needs an end")
    return min(limits), per_epoch
