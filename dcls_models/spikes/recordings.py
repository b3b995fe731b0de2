"""One reader for all recordings: arrays, events, sounds; what cannot be read is skipped and named."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from dcls_models.files import one_line, some
from dcls_models.folders import class_folders
from dcls_models.sounds import EXTENSIONS, fitted, read_sound
from dcls_models.spectrogram import LogMel

from .binning import Binning
from .cochlea import CHANNELS, HOP, RATE, to_spikes
from .hdf5 import EventFile

_logger = logging.getLogger(__name__)
Batch = tuple[torch.Tensor, torch.Tensor]
NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}  # of Speech Commands
HOPELESS = 10  # so many recordings, and none that can be read, are not an accident
MELS = {"sample_rate": 8000, "n_fft": 256, "hop": 80, "mels": 80, "low": 50.0, "high": 4000.0}


class Source(Protocol):
    """Where recordings come from: their labels, the number of channels, and ``read``."""

    labels: np.ndarray
    class_names: list[str]
    channels: int

    def read(self, index: int) -> torch.Tensor:
        """A recording ``(channels, frames)``."""

    def name(self, index: int) -> str:
        """Where it is."""


class Arrays:
    """A ``.npz`` with ``spikes`` ``(N, channels, frames)``, ``labels`` and perhaps ``class_names``.

    Args:
        path: The file.
        longest: Frames that recordings may have.

    Raises:
        ValueError: If it is something else.
    """

    def __init__(self, path: Path, longest: int = 1000) -> None:
        self.path = path
        try:
            with np.load(path) as data:
                self.spikes, self.labels = data["spikes"], data["labels"]
                self.class_names = [str(name) for name in data.get("class_names", [])]
        except MemoryError as error:
            raise ValueError(
                f"{path} does not fit into memory ({one_line(error)}): HDF5 is read one recording at a time"
            ) from error
        except Exception as error:  # zipfile, numpy and zlib raise anything
            raise ValueError(f"{path} is no .npz with spikes and labels ({one_line(error)})") from error
        if self.spikes.ndim != 3 or self.labels.shape != self.spikes.shape[:1]:
            raise ValueError(
                f"{path} must have spikes (N, channels, frames) and labels (N,), it has "
                f"{self.spikes.shape} and {self.labels.shape}"
            )
        if self.spikes.dtype.kind not in "buif":
            raise ValueError(f"{path} must have counts of spikes, it has {self.spikes.dtype}")
        if self.spikes.shape[2] > longest:
            raise ValueError(
                f"{path} has recordings of {self.spikes.shape[2]} frames, more than data.longest {longest}: "
                "raise that if memory allows"
            )
        self.channels = int(self.spikes.shape[1])

    def read(self, index: int) -> torch.Tensor:
        """A recording."""
        with np.errstate(over="ignore"):  # it becomes infinite, and is refused
            spikes = self.spikes[index].astype(np.float32)
        if not np.isfinite(spikes).all() or (spikes < 0).any():
            channel, frame = np.argwhere(~np.isfinite(spikes) | (spikes < 0))[0]
            raise ValueError(
                f"channel {channel}, frame {frame} is {spikes[channel, frame]}, expected a count"
            )
        if not spikes.any():
            raise ValueError("it has no spikes")
        return torch.from_numpy(spikes)

    def name(self, index: int) -> str:
        """Where it is."""
        return f"{self.path} [{index}]"


class Sounds:
    """Files of sound in ``<class>/``, as spikes (``to_spikes``) or as log-mel spectrograms of one second.

    Args:
        files: Their paths.
        labels: Their classes.
        class_names: The names of these.
        front_end: ``spikes`` or ``logmel``.
        longest: Frames that a recording may have.
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: Sequence[int],
        class_names: list[str],
        front_end: str,
        longest: int,
    ) -> None:
        self.files, self.labels, self.class_names = list(files), np.asarray(labels), class_names
        self.front_end, self.longest = front_end, longest
        self.mel = LogMel(**MELS, mean=0.0, std=1.0) if front_end == "logmel" else None  # type: ignore[arg-type]
        self.channels = CHANNELS if self.mel is None else int(MELS["mels"])

    def read(self, index: int) -> torch.Tensor:
        """A recording."""
        if self.mel is not None:
            rate = int(MELS["sample_rate"])
            return self.mel(fitted(read_sound(self.files[index], rate, 1.0), rate)[None])[0, 0]
        waveform = read_sound(self.files[index], RATE, self.longest / 100 + 1)
        frames = len(waveform) // HOP
        if not 1 <= frames <= self.longest:
            raise ValueError(f"it has {frames} frames or more, expected 1 to {self.longest} (data.longest)")
        spikes = to_spikes(waveform[None])[0]
        if not spikes.any():
            raise ValueError("it has no spikes: is it silent?")
        return spikes

    def name(self, index: int) -> str:
        """Its path."""
        return self.files[index]


class Recordings(Dataset[tuple[torch.Tensor, int] | None]):
    """Labelled recordings; None stands for one that cannot be read, which the log names once.

    Args:
        source: Where they come from.
        indices: Which; all by default.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, source: Source, indices: Sequence[int] | None = None) -> None:
        self.source = source
        self.indices = range(len(source.labels)) if indices is None else indices
        if not len(self.indices):
            raise ValueError(f"there is no recording in {getattr(source, 'path', 'the folder')}")
        self.tried, self.unreadable = torch.zeros(2, len(self.indices), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int] | None:
        """Counts (or levels) ``(channels, frames)``, and the label.

        Raises:
            ValueError: If many were tried and none can be read.
        """
        number = self.indices[index]
        self.tried[index] = True
        try:
            return self.source.read(number), int(self.source.labels[number])
        except (OSError, ValueError) as error:
            self._note(index, error)
            return None

    def _note(self, index: int, error: Exception) -> None:
        name = self.source.name(self.indices[index])
        if not self.unreadable[index]:
            self.unreadable[index] = True
            _logger.warning("skipped %s: %s", name, one_line(error))
        bad = int(self.unreadable.sum())
        if bad >= min(HOPELESS, len(self)) and bad == int(self.tried.sum()):
            raise ValueError(
                f"none of {bad} recordings can be read, the last one {name}: {one_line(error)}"
            ) from error

    def report(self) -> str:
        """Says which could not be read, if any."""
        bad = self.unreadable.nonzero().flatten().tolist()
        names = [self.source.name(self.indices[i]) for i in bad]
        return f"{len(bad)} of {len(self)} recordings could not be read: {some(names)}" if bad else ""


def padded(samples: Sequence[tuple[torch.Tensor, int] | None], frames: int | None = None) -> Batch:
    """A batch, with silence after the end of shorter recordings.

    Args:
        samples: Of ``Recordings``.
        frames: The length; by default that of the longest one.

    Raises:
        ValueError: If there is nothing, or a recording is longer than ``frames``.
    """
    read = [sample for sample in samples if sample is not None]
    if not read:
        raise ValueError(f"none of the {len(samples)} recordings of a batch can be read (the log names them)")
    longest = max(spikes.shape[1] for spikes, _ in read)
    if frames is not None and longest > frames:
        raise ValueError(f"a recording has {longest} frames, more than data.frames {frames}: raise that")
    batch = torch.zeros(len(read), len(read[0][0]), frames or longest)
    for row, (spikes, _) in zip(batch, read, strict=True):
        row[:, : spikes.shape[1]] = spikes
    return batch, torch.tensor([label for _, label in read])


def open_recordings(
    root: str | Path, split: str, binning: Binning | None = None, front_end: str = "spikes"
) -> Source | None:
    """The recordings of a split: ``<split>.npz``, ``<split>.h5``, ``<split>/<class>/*.wav``, or None.

    Files may be named as those of the Heidelberg sets (``shd_train.h5``, ``ssc_valid.h5``). A folder with the
    lists of Speech Commands is split by them.

    Args:
        root: The folder.
        split: ``train``, ``val`` or ``test``.
        binning: Of events.
        front_end: Of sounds: ``spikes`` or ``logmel``.

    Raises:
        OSError: If there is no such folder.
        ValueError: If the files are not what they seem.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    source = _opened(root, split, binning or Binning(), front_end)
    if source is not None:
        count = len(source.class_names) or math.inf
        for at, label in enumerate(source.labels.tolist()):
            if not (isinstance(label, int) and 0 <= label < count):
                limit = f" to {count - 1}" if source.class_names else ""
                raise ValueError(
                    f"{source.name(at)} has label {label!r}, expected whole numbers from 0{limit}"
                )
    return source


def _opened(root: Path, split: str, binning: Binning, front_end: str) -> Source | None:
    for name in NAMES[split]:
        for path in sorted(p for p in root.iterdir() if p.stem == name or p.stem.endswith(f"_{name}")):
            if path.suffix == ".npz":
                return Arrays(path, binning.longest)
            if path.suffix in (".h5", ".hdf5"):
                return EventFile(path, binning)
        if (root / name).is_dir():
            folders = class_folders(root / name, EXTENSIONS)
            return Sounds(folders.files, folders.labels, folders.names, front_end, binning.longest)
    if (root / LISTS["test"]).is_file():
        return _by_lists(root, split, front_end, binning.longest)
    return None


def _by_lists(root: Path, split: str, front_end: str, longest: int) -> Sounds:
    """Speech Commands: what no list names is to be trained on."""
    listed = {name: set((root / file).read_text("utf-8").split()) for name, file in LISTS.items()}
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    files = [f"{name}/{path.name}" for name in names for path in sorted((root / name).glob("*.wav"))]
    if split == "train":
        chosen = [file for file in files if file not in listed["val"] | listed["test"]]
    else:
        chosen = [file for file in files if file in listed[split]]
    labels = [names.index(file.partition("/")[0]) for file in chosen]
    return Sounds([str(root / file) for file in chosen], labels, names, front_end, longest)
