"""Loaders that go on exactly where the trainer is, and the DataModule that every task's data is one of."""

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from train.errors import DataError
from train.place import Place, place
from train.ranges import Count, CountOrNone, check_ranges
from train.samplers import Keyed, TrainSampler
from train.seeding import run_seed
from train.signals import end_workers_at_exit, leave_signals_to_the_trainer

_logger = logging.getLogger(__name__)
TRIED = 10  # samples that cannot be read, of a data set that is hopeless


class TrainLoader(DataLoader):
    """Batches of a data set with random access, from where the trainer is.

    The place is asked for with the first batch. Lightning makes iterators earlier, when it is not known yet.

    Args:
        dataset: The data set.
        sampler: The order of its samples.
        at: Says where the trainer is.
        **kwargs: More arguments of ``DataLoader``.
    """

    def __init__(self, dataset: Any, sampler: TrainSampler, at: Callable[[], Place], **kwargs: Any) -> None:
        super().__init__(Keyed(dataset), sampler=sampler, drop_last=True, **kwargs)
        self.at = at
        self._resumed = (Place(-1, 0), 0)  # from there on batches are of today's size; samples before it

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        at = self.at()
        assert isinstance(self.sampler, TrainSampler)
        self.sampler.start(at.epoch, self._seen(at) // self.sampler.num_replicas)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """The place, how many samples of the epoch come before it, and how many are in a batch."""
        at = self.at()
        return {"epoch": at.epoch, "batches": at.batch, "seen": self._seen(at), "at_once": self._at_once}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Notes what only a checkpoint knows: how large the batches were."""
        if not state["batches"]:
            return
        at, at_once = Place(state["epoch"], state["batches"]), state["at_once"]
        self._resumed = (at, state.get("seen", at.batch * at_once))
        if at_once != self._at_once:
            _logger.warning(
                "the checkpoint was written in the middle of an epoch with %d images at once, now it is %d: "
                "the rest of this epoch is not what it would have been",
                at_once,
                self._at_once,
            )

    @property
    def _at_once(self) -> int:
        """Samples of a batch over all processes."""
        assert isinstance(self.sampler, TrainSampler)
        return (self.batch_size or 1) * self.sampler.num_replicas

    def _seen(self, at: Place) -> int:
        start, seen = self._resumed
        if at.epoch != start.epoch:
            start, seen = Place(at.epoch, 0), 0
        return seen + (at.batch - start.batch) * self._at_once


class ShardLoader(DataLoader):
    """Batches of shards; where an epoch is gone on with, they are read from its beginning and dropped.

    Args:
        dataset: The shards; ``set_epoch`` decides on their order.
        at: Says where the trainer is.
        batches: How many batches an epoch has.
        **kwargs: More arguments of ``DataLoader``.
    """

    def __init__(
        self, dataset: IterableDataset, at: Callable[[], Place], batches: int, **kwargs: Any
    ) -> None:
        super().__init__(dataset, drop_last=True, **kwargs)
        self.at = at
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        at = self.at()
        self.dataset.set_epoch(at.epoch)  # type: ignore[attr-defined]
        yield from islice(super().__iter__(), at.batch, None)

    def state_dict(self) -> dict[str, int]:
        """Nothing but the place, which the trainer knows; Lightning asks whether a loader can be resumed."""
        return self.at()._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing is needed."""


class TaskData(pl.LightningDataModule):
    """The data of a task: ``train_set`` and ``val_set``, data sets with random access.

    A subclass fills them in its constructor or in ``setup``. Its samples may be random in any way: before
    one is read, ``random``, numpy and torch are seeded from the run's seed, the epoch and the position, so
    that a resumed training sees what it would have seen.

    Args:
        batch_size: Samples per step and device.
        num_workers: Processes that read samples, per device.
    """

    collate: Callable[[list[Any]], Any] | None = None
    unit = "images"  # what the samples are

    def __init__(self, batch_size: Count = 64, num_workers: CountOrNone = 2) -> None:
        super().__init__()
        self.save_hyperparameters("batch_size", "num_workers")  # a subclass saves its own
        check_ranges("data", self, self.hparams)
        self.train_set: Any = None
        self.val_set: Any = None

    def setup(self, stage: str) -> None:
        """Makes sure that all processes have found the same data, as different disks might not hold.

        Gradients are accumulated so that an update sees ``total_batch_size`` samples, where that is given.

        Raises:
            ValueError: If they have not, or the size is no multiple of what all devices see at once.
        """
        if stage == "fit":
            self._try(self.val_set)
            self._try(self.train_set)
        total, trainer = self.hparams.get("total_batch_size"), self.trainer
        if trainer is not None and trainer.world_size > 1:
            self._agree(trainer.world_size)
        if stage != "fit" or total is None or trainer is None:
            return
        at_once = self.hparams["batch_size"] * trainer.world_size
        if total < 1 or total % at_once:
            raise ValueError(
                f"data.total_batch_size {total} is no multiple of {at_once}, data.batch_size times "
                f"{trainer.world_size} device(s); choose another data.batch_size"
            )
        trainer.accumulate_grad_batches = total // at_once
        _logger.info("gradients of %d batches make an update of %d %s", total // at_once, total, self.unit)

    def _try(self, data: Any) -> None:
        """Reads samples of a data set until one can be read: now, and not after an epoch.

        Raises:
            DataError: If ten cannot.
        """
        if hasattr(data, "unreadable"):
            tried = range(0, len(data), max(1, len(data) // TRIED))[:TRIED]
            for index in tried:
                data[index]
                if not data.unreadable[index]:
                    return
            raise DataError(f"none of {len(tried)} {self.unit} can be read: the log names the files")

    def _agree(self, processes: int) -> None:
        classes = getattr(self, "class_names", None) or list(range(getattr(self, "num_classes", 0)))
        sizes = [None if s is None else len(s) for s in (self.train_set, self.val_set)]
        theirs: list[Any] = [None] * processes
        torch.distributed.all_gather_object(theirs, [classes, self.hparams.get("files_sha256"), *sizes])
        for rank, other in enumerate(theirs):
            if other != theirs[0]:
                counts = [
                    f"{len(names)} classes and {sizes} samples" for names, _, *sizes in (other, theirs[0])
                ]
                raise ValueError(
                    f"process {rank} found {counts[0]} to train and to validate on, process 0 {counts[1]} "
                    "(or other names): give all processes the same data.root"
                )

    def train_batches(self, devices: int = 1) -> int:
        """Batches of one epoch on each of so many devices.

        Raises:
            ValueError: If there is none.
        """
        size, samples = self.hparams["batch_size"], len(self.train_set)
        batches = samples // devices // size
        if not batches:
            raise ValueError(
                f"{samples} training {self.unit} are less than one batch of {size} on {devices} device(s); "
                f"choose a smaller data.batch_size, at most {samples // devices}"
            )
        return batches

    def train_dataloader(self) -> DataLoader:
        """Shuffled, without the last incomplete batch."""
        if self.trainer and self.trainer.overfit_batches:  # a few, always the same
            return DataLoader(self.train_set, drop_last=True, **self.loader_kwargs())
        repeats = self.hparams.get("repeats", 1)
        sampler = TrainSampler(self.train_set, *self.rank_and_world(), run_seed(), repeats)
        return TrainLoader(self.train_set, sampler, self.at, **self.loader_kwargs())

    def val_dataloader(self) -> DataLoader:
        """In order and complete."""
        return DataLoader(self.val_set, **self.loader_kwargs())

    def loader_kwargs(self) -> dict[str, Any]:
        """What all loaders have in common."""
        workers = self.hparams["num_workers"]
        if workers:
            end_workers_at_exit()
        return {
            "batch_size": self.hparams["batch_size"],
            "num_workers": workers,
            "collate_fn": self.collate,
            "worker_init_fn": leave_signals_to_the_trainer,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def rank_and_world(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def at(self) -> Place:
        """The next batch to train on."""
        return place(self.trainer) if self.trainer else Place(0, 0)
