"""Which samples a process sees, in which order; what is left of an epoch after a checkpoint.

A key is the index of a sample and what its augmentation is seeded from. Processes take turns, so that the
batches of n processes make up the batch of one that is n times as large, whatever n is.
"""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from train.seeding import seed_from

Key = tuple[int, tuple[int, ...] | None]
PADDING: Key = (-1, None)  # so that all processes have as many batches; it counts nowhere


class Keyed(Dataset[Any]):
    """A data set whose samples are asked for by key: what is random in one depends on its key only.

    So it matters neither which worker reads a sample nor when.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        """A sample, with all generators seeded before it is read."""
        index, seeds = key
        if seeds is not None:
            seed_from(*seeds)
        return self.dataset[index]


class TrainSampler(DistributedSampler[Key]):
    """Every sample once per epoch, in an order that depends on seed and epoch only.

    Args:
        dataset: What is sampled.
        rank: Number of this process.
        world_size: How many processes there are.
        seed: The run's seed.
        repeats: Repeated augmentation: how often in a row, on different processes, a sample is seen; the
            epoch stays as long as it is, with fewer different samples (as timm's ``RepeatAugSampler``).
    """

    def __init__(self, dataset: Sized, rank: int, world_size: int, seed: int, repeats: int = 1) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.repeats = repeats
        self.seen = 0

    def __len__(self) -> int:
        """Samples of a whole epoch on this process, also in one that is gone on with."""
        return len(self.dataset) // self.num_replicas  # type: ignore[arg-type]

    def start(self, epoch: int, seen: int) -> None:
        """Makes the next iterator go on in an epoch of which this process has seen so many samples."""
        self.seen = seen
        super().set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: Lightning tells the epoch too late for workers that read ahead; see ``start``."""

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        order = order.repeat_interleave(self.repeats)[: len(order)]
        for i in range(self.seen, len(self)):
            position = i * self.num_replicas + self.rank
            yield int(order[position]), (self.seed, self.epoch, position)


class EvalSampler(DistributedSampler[Key]):
    """Every sample once over all processes, in order; where they do not come out even, padding."""

    def __init__(self, dataset: Sized, rank: int, world_size: int) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Key]:
        size = len(self.dataset)  # type: ignore[arg-type]
        for i in range(len(self)):
            index = i * self.num_replicas + self.rank
            yield (index, None) if index < size else PADDING
