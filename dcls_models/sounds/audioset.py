"""AudioSet as people have it: its CSV files with a folder of sounds, and PANNs' HDF5 files."""

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dcls_models.files import one_line, some
from dcls_models.folders import files_below

from .files import FileSounds
from .reading import EXTENSIONS, resampled

_logger = logging.getLogger(__name__)
PACKED = (".h5", ".hdf5")


class PackedSounds:
    """AudioSet as PANNs packs it, in one HDF5 file, opened anew in every process that reads it.

    It holds ``audio_name`` ``(N,)``, ``waveform`` int16 ``(N, samples)`` and ``target`` ``(N, classes)``.

    Args:
        path: The HDF5 file.
        names: The classes; their numbers by default.

    Raises:
        ValueError: If it cannot be read, is another kind of file, or has another number of classes.
    """

    one_label = False

    def __init__(self, path: Path, names: Sequence[str] | None = None) -> None:
        self.path = path
        self._opened: tuple[int, Any] = (-1, None)  # the process, and its file
        try:
            self.rate = int(self._file.attrs.get("sample_rate", 32000))
            self.samples = self._file["waveform"].shape[1]
            count, classes = self._file["target"].shape
            self.ids = [name.decode() for name in self._file["audio_name"][:]]
        except (OSError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is not packed as PANNs does: expected audio_name (N,), waveform (N, samples) and "
                f"target (N, classes) ({one_line(error)})"
            ) from error
        self.names = list(names or map(str, range(classes)))
        if len(self.names) != classes or len(self.ids) != count:
            raise ValueError(f"{path} has {classes} classes, {len(self.names)} are named")

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (-1, None)}

    def classes(self, index: int) -> tuple[int, ...]:
        """The classes of a sound."""
        return tuple(self._file["target"][index].nonzero()[0].tolist())

    def seconds(self, index: int) -> float:
        """How long a sound is."""
        return float(self.samples / self.rate)

    def read(self, index: int, sample_rate: int, seconds: float | None, start: float = 0.0) -> torch.Tensor:
        """A part of a sound, full scale being 1."""
        first = round(start * self.rate)
        last = None if seconds is None else first + round(seconds * self.rate)
        waveform = torch.from_numpy(self._file["waveform"][index, first:last]).float() / 32768
        return resampled(waveform, self.rate, sample_rate)

    def filename(self, index: int) -> str:
        """The file and the sound's name in it."""
        return f"{self.path}:{self.ids[index]}"

    @property
    def _file(self) -> Any:
        if self._opened[0] != os.getpid():
            try:
                import h5py
            except ImportError as error:
                raise ValueError(f"{self.path} needs a package: pip install h5py") from error
            self._opened = os.getpid(), h5py.File(self.path, "r")
        return self._opened[1]


def open_listed(path: Path, root: Path | None = None, names: Path | None = None) -> FileSounds | PackedSounds:
    """The sounds of a CSV file of AudioSet, or of an HDF5 file of PANNs.

    Args:
        path: The file.
        root: Folder of the sounds that a CSV names, at any depth, ``YTID.wav`` or the like.
        names: ``class_labels_indices.csv``; by default that beside ``path``.

    Raises:
        OSError: If a file or folder is missing.
        ValueError: If they do not fit together.
    """
    names = names or path.with_name("class_labels_indices.csv")
    if path.suffix.lower() in PACKED:
        return PackedSounds(path, list(read_ontology(names).values()) if names.is_file() else None)
    if root is None:
        raise ValueError(f"say in which folder the sounds of {path} are (data.root, or eval's --sounds)")
    if not names.is_file():
        raise FileNotFoundError(
            f"there is no {names}, which names the classes of {path}: give data.labels (--labels)"
        )
    return _open_csv(path, root, read_ontology(names))


def read_ontology(path: Path) -> dict[str, str]:
    """AudioSet's ``class_labels_indices.csv``: names by id (``/m/09x0r``), in the order of the outputs.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is another table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        rows.sort(key=lambda row: int(row["index"]))
        return {row["mid"]: row["display_name"] for row in rows}
    except (csv.Error, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no table with the columns index,mid,display_name") from error


def _open_csv(path: Path, root: Path, ontology: dict[str, str]) -> FileSounds:
    """The rows whose files are there; what is left out is counted and named in one line each."""
    number = {mid: i for i, mid in enumerate(ontology)}
    files_of, rows = _files_by_id(root), _rows_of(path)
    missing = [row for row in rows if row not in files_of]
    strangers = sorted({mid for mids in rows.values() for mid in mids if mid not in number})
    labels = {row: tuple(number[mid] for mid in mids if mid in number) for row, mids in rows.items()}
    kept = [row for row in rows if row in files_of and labels[row]]
    if missing:
        _logger.warning(
            "%d of the %d rows of %s have no file in %s: %s",
            len(missing),
            len(rows),
            path,
            root,
            some(missing),
        )
    if strangers:
        _logger.warning("%d labels in %s are of no known class: %s", len(strangers), path, some(strangers))
    if not kept:
        raise FileNotFoundError(f"no row of {path} has a file in {root} (YTID.wav) and a known class")
    files = [files_of[row] for row in kept]
    return FileSounds(files, [labels[row] for row in kept], list(ontology.values()), one_label=False)


def _files_by_id(root: Path) -> dict[str, str]:
    """Sounds by what may be their id: ``YTID.wav``, ``YYTID.wav`` (PANNs), ``YTID_START_END.wav``."""
    by_id: dict[str, str] = {}
    for file in files_below(root, EXTENSIONS):
        stem = Path(file).stem
        by_id[stem] = file
        if len(stem) == 12 and stem[0] == "Y":
            by_id.setdefault(stem[1:], file)
        elif stem[11:12] == "_":
            by_id.setdefault(stem[:11], file)
    return by_id


def _rows_of(path: Path) -> dict[str, list[str]]:
    """The ids of the classes of each row, by the id of its sound."""
    expected = f"{path} is no CSV of AudioSet: expected rows YTID, start, end, ids"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = (line for line in file if line.strip() and not line.startswith("#"))
            rows = list(csv.reader(lines, skipinitialspace=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{expected} ({one_line(error)})") from error
    wrong = next((row for row in rows if len(row) < 4), None)
    if wrong or not rows:
        raise ValueError(f"{expected}, got {str(wrong or 'none')[:100]}")
    return {row[0]: [mid.strip() for mid in row[3].split(",") if mid.strip()] for row in rows}
