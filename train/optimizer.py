"""Optimizer and schedule from timm, with the groups of ``dcls_models.optim``."""

import logging
from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from dcls_models.optim import param_groups

_logger = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module,
    opt: str,
    lr: float,
    weight_decay: float,
    positions_lr_scale: float,
    layer_decay: float | None,
    opt_kwargs: dict[str, Any] | None,
) -> Optimizer:
    """An optimizer of timm, whose groups are logged.

    Raises:
        ValueError: If timm knows no such optimizer, or the optimizer no such argument.
    """
    groups = param_groups(model, lr, weight_decay, positions_lr_scale, layer_decay)
    for group in groups:
        count = sum(p.numel() for p in group["params"])
        _logger.info(
            "optimizer group %-9s lr %-9.3g weight decay %-5g %4d tensors %11d numbers",
            group["name"],
            group["lr"],
            group["weight_decay"],
            len(group["params"]),
            count,
        )
    try:
        return create_optimizer_v2(groups, opt=opt, lr=lr, weight_decay=weight_decay, **(opt_kwargs or {}))
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"model.opt {opt!r} with {opt_kwargs or {}}: {error}") from error


def build_schedule(
    optimizer: Optimizer,
    sched: str,
    updates: int,
    updates_per_epoch: int,
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
    scheduler.updates = updates
    return scheduler
