"""Where a training is, as a function of the trainer's progress, and how a checkpoint says it.

Lightning writes a checkpoint in the middle of its bookkeeping: what a counter means depends on the hook in
which it was saved, and resuming from some of these states repeats or skips an epoch (2.6). Here a checkpoint
always says that the training is between two updates of an epoch or between two epochs.
"""

from typing import Any, NamedTuple

import pytorch_lightning as pl


class Place(NamedTuple):
    """The next batch: its epoch, and how many batches of that epoch come before it."""

    epoch: int
    batch: int


def place(trainer: pl.Trainer) -> Place:
    """Where a training is, in any hook of it."""
    loop = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    epoch, batch = epochs.processed, batches.current.processed
    if epochs.processed == epochs.started:  # between two epochs
        stopped = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        cut_short = stopped and batch and not batches.is_last_batch
        return Place(epoch - 1, batch) if cut_short else Place(epoch, 0)
    if batches.is_last_batch and batch == batches.current.ready:  # before or in the validation at its end
        return Place(epoch + 1, 0)
    return Place(epoch, batch)


def count_epochs(trainer: pl.Trainer) -> None:
    """Makes a training that ends by ``max_steps`` go on after the end of an epoch as any other does.

    Lightning takes the epoch for one that was interrupted, and runs it again, without a batch (2.6).
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def settle(progress: dict[str, Any], at: Place, updates: int) -> None:
    """Writes a place into the state of Lightning's ``fit_loop``, so that it resumes exactly there.

    Args:
        progress: The state, as it is in a checkpoint.
        at: The place.
        updates: How many updates there were.
    """
    inside = at.batch > 0
    for kind in ("total", "current"):
        _set(progress["epoch_progress"][kind], at.epoch + inside, at.epoch, at.epoch)
    batches = progress["epoch_loop.batch_progress"]
    total = batches["total"]["processed"]
    # inside an epoch as if saved in ``on_train_batch_end``, which Lightning goes on from without a detour
    _set(batches["total"], total, total, total - inside)
    _set(batches["current"], at.batch, at.batch, at.batch - inside)
    batches["is_last_batch"] = False
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] = updates - inside


def _set(tracker: dict[str, int], started: int, processed: int, completed: int) -> None:
    tracker.update(ready=started, started=started, processed=processed, completed=completed)
