"""Sounds in files, one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dcls_models.folders import ClassFolders, class_folders

from .reading import EXTENSIONS, read_sound, seconds_of


class FileSounds:
    """Sounds in files.

    Args:
        files: Their paths.
        labels: The classes of each, as indices of ``names``.
        names: The classes.
        one_label: Whether each sound has exactly one class.
    """

    def __init__(
        self, files: list[str], labels: list[tuple[int, ...]], names: list[str], one_label: bool
    ) -> None:
        self.files = files
        self.labels = labels
        self.names = names
        self.one_label = one_label

    def __len__(self) -> int:
        return len(self.files)

    def classes(self, index: int) -> tuple[int, ...]:
        """The classes of a sound."""
        return self.labels[index]

    def seconds(self, index: int) -> float:
        """How long a sound is."""
        return seconds_of(self.files[index])

    def read(self, index: int, sample_rate: int, seconds: float | None, start: float = 0.0) -> torch.Tensor:
        """A part of a sound, as ``read_sound`` gives it."""
        return read_sound(self.files[index], sample_rate, seconds, start)

    def filename(self, index: int) -> str:
        """Where a sound comes from."""
        return self.files[index]


class FolderSounds(FileSounds):
    """Sounds in one folder per class."""

    def __init__(self, folders: ClassFolders) -> None:
        super().__init__(folders.files, [(label,) for label in folders.labels], folders.names, one_label=True)
        self.hold_out = folders.hold_out
        self.fingerprint = folders.fingerprint


def open_folder(root: Path, names: Sequence[str] | None = None) -> FolderSounds:
    """Sounds in ``root/<class>/``.

    Raises:
        OSError: If there is no such folder, or no sound in it.
        ValueError: If sounds lie elsewhere, or there is a class that is not in ``names``.
    """
    return FolderSounds(class_folders(root, EXTENSIONS, names))
