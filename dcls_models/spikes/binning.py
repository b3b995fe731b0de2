"""From spike times to frames of counts."""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Binning:
    """How events become frames.

    Attributes:
        frame: Length of a frame in seconds.
        units: Units of a recording, numbered from 0.
        group: Neighbouring units that are added up to one channel.
        rule: ``grid``: frames follow each other from the first event on, silent ones too, and the last one
            takes the rest (SpikingJelly 2.0). ``events``: a frame begins at the next event and takes all up
            to ``frame`` later, so that silences vanish (the published results of arXiv:2306.17670).
        longest: Recordings of more frames are taken for damaged (times in milliseconds, for instance).
    """

    frame: float = 0.01
    units: int = 700
    group: int = 5
    rule: str = "grid"
    longest: int = 1000

    def __post_init__(self) -> None:
        if not self.frame > 0 or self.units < 1 or self.longest < 1:
            raise ValueError(f"frame, units and longest must be positive, got {self}")
        if self.group < 1 or self.units % self.group:
            raise ValueError(f"group must divide the number of units, got {self.group} of {self.units}")
        if self.rule not in ("grid", "events"):
            raise ValueError(f"the rule of binning is grid or events, got {self.rule!r}")

    @property
    def channels(self) -> int:
        """Channels of the frames."""
        return self.units // self.group


def binned(times: np.ndarray, units: np.ndarray, binning: Binning) -> torch.Tensor:
    """Counts ``(channels, frames)`` of events.

    Args:
        times: Seconds, in order.
        units: The unit of each event.
        binning: How.

    Raises:
        ValueError: If the events are not those of a recording: which, and what was expected.
    """
    times, units = np.asarray(times, dtype=np.float64), np.asarray(units)
    _check(times, units, binning)
    if binning.rule == "grid":
        since = times - times[0]
        count = max(1, math.ceil(since[-1] / binning.frame))
        frames = np.minimum((since / binning.frame).astype(np.int64), count - 1)
    else:
        frames = _drifting(times, binning.frame)
        count = int(frames[-1]) + 1
    if count > binning.longest:
        raise ValueError(
            f"it has {count} frames of {binning.frame} s, more than {binning.longest}: are times in seconds?"
        )
    cells = units.astype(np.int64) // binning.group * count + frames
    counts = np.bincount(cells, minlength=binning.channels * count)
    return torch.from_numpy(counts.reshape(binning.channels, count))


def _check(times: np.ndarray, units: np.ndarray, binning: Binning) -> None:
    if len(times) != len(units):
        raise ValueError(f"it has {len(times)} times, but {len(units)} units")
    if not len(times):
        raise ValueError("it has no spikes")
    if (bad := np.flatnonzero(~np.isfinite(times))).size:
        raise ValueError(f"the time of spike {bad[0]} is {times[bad[0]]}")
    if times[0] < 0 or times.min() < 0:
        raise ValueError(f"spike {times.argmin()} is before the start, at {times.min():g} s")
    if (bad := np.flatnonzero(np.diff(times) < 0)).size:
        raise ValueError(f"spike {bad[0] + 1} comes before the one that it follows: sort by time")
    if (bad := np.flatnonzero((units < 0) | (units >= binning.units) | (units != np.floor(units)))).size:
        raise ValueError(
            f"spike {bad[0]} is of unit {units[bad[0]]}, expected whole numbers from 0 to {binning.units - 1}"
        )


def _drifting(times: np.ndarray, frame: float) -> np.ndarray:
    frames = np.empty(len(times), dtype=np.int64)
    start, number = 0, 0
    while start < len(times):
        end = int(np.searchsorted(times, times[start] + frame, side="right"))
        frames[start:end] = number
        start, number = max(end, start + 1), number + 1
    return frames
