"""Sounds of a data set as batches take them: of one length, with their targets."""

import logging
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.utils.data import Dataset

from dcls_models.files import one_line, some

from .reading import fitted

_logger = logging.getLogger(__name__)
Clip = tuple[torch.Tensor, torch.Tensor, bool]  # waveform (samples,), target (classes,), whether it was read
NOTHING = -1  # index of a clip that counts nowhere, so that all processes have as many
HOPELESS = 10  # so many sounds, and none that can be read, are not an accident


class SoundSet(Protocol):
    """A data set of sounds, each with any number of classes.

    Attributes:
        names: The classes.
        one_label: Whether each sound has exactly one.
    """

    names: list[str]
    one_label: bool

    def __len__(self) -> int: ...

    def classes(self, index: int) -> tuple[int, ...]:
        """The classes of a sound, as indices of ``names``."""

    def seconds(self, index: int) -> float:
        """How long a sound is."""

    def read(self, index: int, sample_rate: int, seconds: float | None, start: float = 0.0) -> torch.Tensor:
        """A part of a sound, as ``read_sound`` gives it."""

    def filename(self, index: int) -> str:
        """Where a sound comes from."""


class Clips(Dataset[Clip]):
    """Sounds cut or padded to one length, with their targets.

    A sound that cannot be read is silence that was not read; it is named in the log once.

    Args:
        sounds: The data set.
        sample_rate: Samples per second.
        seconds: Length of a clip.
        indices: Which sounds; all by default.
        augment: What is done to a waveform, which then is a random part of a longer sound, not its beginning.
    """

    def __init__(
        self,
        sounds: SoundSet,
        sample_rate: int,
        seconds: float,
        indices: Sequence[int] | None = None,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.sounds = sounds
        self.sample_rate, self.seconds = sample_rate, seconds
        self.samples = round(seconds * sample_rate)
        self.indices = range(len(sounds)) if indices is None else indices
        self.augment = augment
        shared = torch.zeros(2, len(self.indices), dtype=torch.bool).share_memory_()  # by all workers
        self.tried, self.unreadable = shared

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Clip:
        """A clip.

        Raises:
            ValueError: If many were tried and none can be read.
        """
        target = torch.zeros(len(self.sounds.names))
        if index == NOTHING:
            return torch.zeros(self.samples), target, False
        self.tried[index] = True
        try:
            waveform = self.waveform(index)
        except (OSError, ValueError) as error:
            self._note(index, error)
            return torch.zeros(self.samples), target, False
        target[list(self.sounds.classes(self.indices[index]))] = 1.0
        return waveform, target, True

    def waveform(self, index: int) -> torch.Tensor:
        """A clip's waveform, ``(samples,)``.

        Raises:
            OSError: If its file cannot be read.
            ValueError: If it is no sound.
        """
        number, start = self.indices[index], 0.0
        if self.augment is not None:
            start = random.uniform(0.0, max(0.0, self.sounds.seconds(number) - self.seconds))
        waveform = fitted(self.sounds.read(number, self.sample_rate, self.seconds, start), self.samples)
        return waveform if self.augment is None else self.augment(waveform)

    def filename(self, index: int) -> str:
        """Where a clip comes from."""
        return self.sounds.filename(self.indices[index])

    def report(self) -> str:
        """Says which sounds could not be read, if any."""
        bad = self.unreadable.nonzero().flatten().tolist()
        names = [self.filename(i) for i in bad[:4]]
        return f"{len(bad)} of {len(self)} sounds could not be read: {some(names)}" if bad else ""

    def _note(self, index: int, error: Exception) -> None:
        if not self.unreadable[index]:
            self.unreadable[index] = True
            _logger.warning("skipped %s: %s", self.filename(index), one_line(error))
        bad = int(self.unreadable.sum())
        if bad >= HOPELESS and bad == int(self.tried.sum()):
            raise ValueError(
                f"none of the first {bad} sounds can be read, the last one {self.filename(index)}: "
                f"{one_line(error)}"
            ) from error
