"""What a training is, said once before its first update; what an epoch gave, said where there is no bar."""

import copy
import logging
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from timm.utils.model import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_logger = logging.getLogger(__name__)


class Summary(pl.Callback):
    """Says what is trained: model, parameters, multiplications, classes, device, updates."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says it."""
        if not trainer.is_global_zero:
            return
        model, hp = pl_module.model, pl_module.hparams
        sizes = [p.numel() for p in model.parameters()]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        words = [f"{sum(sizes):,} parameters" + (f" ({trained:,} trained)" if trained < sum(sizes) else "")]
        example = getattr(pl_module, "example_input", lambda: None)()
        if example is not None and (giga := gmacs(model, example)):
            side = " x ".join(str(n) for n in example.shape[2:])
            words.append(f"{giga:.3g} GMACs at {side}")
        words.append(f"{hp.get('num_classes')} classes")
        _logger.info("%s: %s", hp.get("name", type(model).__name__), ", ".join(words))
        _logger.info("training on %s, in %s: %s", device(trainer), trainer.default_root_dir, length(trainer))


class EpochLines(pl.Callback):
    """Says in one line what an epoch gave; for logs, where a bar would be hundreds of lines."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says it."""
        start = getattr(self, "_start", time.monotonic())
        metrics = of_this_epoch(trainer)  # processes average together
        metrics = {k: v for k, v in metrics.items() if k.startswith(("val/", "train/loss"))}
        if trainer.is_global_zero:
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            seconds = time.monotonic() - start
            said = in_words(metrics, pl_module.hparams.get("num_classes"))
            _logger.info("epoch %d%s: %s (%.0f s)", trainer.current_epoch + 1, of, said, seconds)


def nothing_done(trainer: pl.Trainer) -> bool:
    """Whether there was no update at all, so that nothing is left either; says so."""
    if not trainer.global_step:
        _logger.warning("nothing was trained: no update was asked for")
    return not trainer.global_step


def of_this_epoch(trainer: pl.Trainer) -> dict[str, float]:
    """What was measured in the epoch that ends; Lightning keeps a validation of an earlier one."""
    fresh = getattr(trainer.lightning_module, "validated", (None,))[0] == trainer.current_epoch
    measured = trainer.callback_metrics.items()
    return {k: float(v) for k, v in measured if fresh or not k.startswith("val/")}


def last_scores(trainer: pl.Trainer, headline: str) -> str:
    """What a training gave at its end, or before it where it was not validated there."""
    scores = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(f"val/{headline}")}
    epoch, updates = trainer.lightning_module.validated  # type: ignore[union-attr]
    later = trainer.global_step - int(updates)
    when = f" (in epoch {epoch + 1}, {later} update{'s' * (later > 1)} before the end)" if later else ""
    return in_words(scores, None) + when if scores else "nothing was validated (was there an epoch left?)"


def in_words(metrics: Mapping[str, Any], classes: int | None) -> str:
    """Metrics in one line, in percent where they are shares; no top-5 of five classes or fewer."""
    said = []
    for name, value in metrics.items():
        if name.endswith("_step") or ("top5" in name and classes is not None and classes <= 5):
            continue
        said.append(f"{name} {float(value):.4f}" if "loss" in name else f"{name} {float(value):.2f} %")
    return ", ".join(said) or "nothing was measured"


def gmacs(model: nn.Module, example: torch.Tensor) -> float | None:
    """Billions of multiplications of one forward pass of the deployed form (plain convolutions).

    Args:
        model: Any model; None is returned for one that is spread over processes.
        example: One input.
    """
    if any(hasattr(p, "placements") for p in model.parameters()):
        return None
    try:
        plain = reparameterize_model(copy.deepcopy(model).eval()).to("meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            plain(example.to("meta"))
    except (RuntimeError, NotImplementedError):  # an operator without a meta kernel
        return None
    return counter.get_total_flops() / 2e9


def device(trainer: pl.Trainer) -> str:
    """How many of which devices."""
    root = trainer.strategy.root_device
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else root.type
    return f"{trainer.world_size} x {name}"


def length(trainer: pl.Trainer) -> str:
    """How many updates, and how many of them are made."""
    schedules: list[Any] = trainer.lr_scheduler_configs
    schedule = schedules[0].scheduler if schedules else None
    total, per_epoch = (getattr(schedule, k, None) for k in ("updates", "updates_per_epoch"))
    if not total:
        return "until it is stopped"
    done = f", {trainer.global_step:,} are made" if trainer.global_step else ""
    return f"{total:,} updates, {per_epoch:,} an epoch{done}"
