"""Folders of samples as people have them: one folder per class, read alike in training and in evaluation."""

import hashlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from .files import some

_logger = logging.getLogger(__name__)

# What systems and archives leave behind, besides names that start with a dot; compared in lower case.
_LEFTOVERS = {
    "__macosx",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


@dataclass(frozen=True)
class ClassFolders:
    """The files of ``root/<class>/`` with their labels; it reads like timm's readers.

    ``files`` are in the order of their classes, then of their names; a label is an index of ``names``.
    """

    root: str
    files: list[str]
    labels: list[int]
    names: list[str]

    @cached_property
    def samples(self) -> list[tuple[str, int]]:
        """Pairs of file and label."""
        return list(zip(self.files, self.labels, strict=True))

    @cached_property
    def class_to_idx(self) -> dict[str, int]:
        """The label of each name."""
        return {name: label for label, name in enumerate(self.names)}

    def __len__(self) -> int:
        """How many files there are."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        """A file, open for reading, and its label."""
        return open(self.files[index], "rb"), self.labels[index]

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """The path of a file, relative to ``root`` unless ``absolute``; or its name only."""
        path = self.files[index]
        return os.path.basename(path) if basename else path if absolute else os.path.relpath(path, self.root)

    def fingerprint(self) -> str:
        """A hash of which files these are, by their paths below ``root``: the same wherever ``root`` is."""
        below = "\0".join(path.removeprefix(self.root).lstrip(os.sep) for path in self.files)
        return hashlib.sha256(below.replace(os.sep, "/").encode("utf-8", "surrogateescape")).hexdigest()

    def hold_out(self, share: float) -> tuple[list[int], list[int]]:
        """Splits the files of every class into those to train on and those held out, always in the same way.

        It is the split of scikit-learn's ``train_test_split(stratify=labels, random_state=0)``, written out
        so that a later release cannot change which images an old checkpoint has seen.

        Args:
            share: Of the files to hold out, between 0 and 1; on average one per class at least.

        Returns:
            Numbers of the files to train on, and of those held out.

        Raises:
            ValueError: If ``share`` is out of range, or a class has one file only.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share to hold out must lie between 0 and 1, got {share}")
        labels, counts = np.unique(self.labels, return_counts=True)
        if rare := [self.names[label] for label in labels[counts < 2]]:
            raise ValueError(f"a class needs two files or more to be split, these have one: {some(rare)}")
        n, classes = len(self), len(labels)
        held = min(max(math.ceil(max(share, classes / n) * n), classes), n - classes)
        random = np.random.RandomState(0)  # numpy guarantees its numbers
        of_class = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(counts)[:-1])
        kept_counts = _drawn(counts, n - held, random)
        held_counts = _drawn(counts - kept_counts, held, random)
        kept_files, held_files = [], []
        for files, keep, hold in zip(of_class, kept_counts, held_counts, strict=True):
            shuffled = files[random.permutation(len(files))]
            kept_files.append(shuffled[:keep])
            held_files.append(shuffled[keep : keep + hold])
        halves = [random.permutation(np.concatenate(half)).tolist() for half in (kept_files, held_files)]
        return halves[0], halves[1]


def _drawn(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """How many of ``total`` draws are of which class: rounded shares, the largest remainders rounded up."""
    exact = counts / counts.sum() * total
    draws = np.floor(exact)
    remainders, missing = exact - draws, int(total - draws.sum())
    for remainder in np.unique(remainders)[::-1]:
        if not missing:
            break
        (ties,) = np.nonzero(remainders == remainder)
        chosen = random.choice(ties, min(len(ties), missing), replace=False)
        draws[chosen] += 1
        missing -= len(chosen)
    return draws.astype(int)


def class_folders(
    root: str | Path, extensions: Sequence[str], names: Sequence[str] | None = None
) -> ClassFolders:
    """Reads a folder of classes, in time that grows as the number of files.

    Hidden files and what systems leave behind (``.DS_Store``, ``__MACOSX``, ``Thumbs.db``, ...) and files of
    other extensions are left out, which one line of log counts. Links are followed.

    Args:
        root: Holds one folder per class.
        extensions: Of the files that count, in lower case, with the dot.
        names: The known classes in the order of their labels; by default those found, in natural order.

    Raises:
        OSError: If a folder cannot be read.
        FileNotFoundError: If there is no such folder, or no file of these extensions in it.
        ValueError: If files lie elsewhere than in ``root/<class>/``, or there is a class that is not in
            ``names``.
    """
    root = os.path.normpath(root)
    by_class: dict[str, list[str]] = {}
    elsewhere = []
    for folder, files in _walk(root, extensions):
        if os.path.dirname(folder) == root:
            by_class[os.path.basename(folder)] = files
        elif files:
            elsewhere.append(folder)
    if elsewhere:
        raise ValueError(f"expected files in {root}/<class>/ only, found some in {some(elsewhere)}")
    if empty := [os.path.join(root, name) for name, files in by_class.items() if not files]:
        _logger.warning("no class, because without a file (%s): %s", " ".join(extensions), some(empty))
    present = natural_order(name for name, files in by_class.items() if files)
    if not present:
        raise FileNotFoundError(f"no file in {root}/<class>/ has one of {' '.join(extensions)}")
    labels = {name: label for label, name in enumerate(present if names is None else names)}
    if strangers := [name for name in present if name not in labels]:
        raise ValueError(f"{root} has classes that are not known: {some(strangers)}")
    pairs = [(file, labels[name]) for name in present for file in by_class[name]]
    return ClassFolders(root, [f for f, _ in pairs], [y for _, y in pairs], list(labels))


def files_below(root: str | Path, extensions: Sequence[str]) -> list[str]:
    """All files of a folder at any depth, in natural order; what is left out is as in ``class_folders``.

    Raises:
        OSError: If a folder cannot be read, or does not exist.
    """
    return [file for _, files in _walk(os.path.normpath(root), extensions) for file in files]


def holds_folders(folder: Path) -> bool:
    """Whether there are folders in a folder: ``root/train`` is then a split, and otherwise a class."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not is_leftover(entry.name) for entry in entries)


def is_leftover(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by a system, an editor or an archive."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def natural_order(names: Iterator[str] | Sequence[str]) -> list[str]:
    """Sorted as people count (2 before 10, upper and lower case alike), equal ones by the name itself.

    It is timm's order where that is defined; timm leaves ``Cat`` and ``cat`` to the hash seed.
    """
    return sorted(names, key=_natural_key)


def _natural_key(name: str) -> tuple[list[str | int], str]:
    parts: list[str | int] = list(_DIGITS.split(name.lower()))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


_DIGITS = re.compile(r"(\d+)")  # decimal digits of any script; "²" is none


def _walk(root: str, extensions: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder with its files, both in natural order, and one line about what is left out."""
    leftovers: list[str] = []
    others: Counter[str] = Counter()
    wanted = set(extensions)

    def visit(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
        status = os.stat(folder)
        if (here := (status.st_dev, status.st_ino)) in above:  # a link to a folder around it
            return
        folders, files = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                extension = os.path.splitext(entry.name)[1].lower()
                is_pipe = not (entry.is_dir() or entry.is_file() or entry.is_symlink())  # or the like
                if is_leftover(entry.name) or is_pipe:
                    leftovers.append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
                elif extension in wanted:
                    files.append(entry.name)
                else:
                    others[extension or "none"] += 1
        yield folder, [os.path.join(folder, name) for name in natural_order(files)]
        for path in (os.path.join(folder, name) for name in sorted(folders, key=_path_key)):
            yield from visit(path, above | {here})

    yield from visit(root, frozenset())
    if leftovers or others:
        _logger.warning("left out of %s: %s", root, _left_out(leftovers, others))


def _path_key(name: str) -> tuple[list[str | int], str]:
    return _natural_key(f"{name}{os.sep}")  # as timm, which sorts whole paths


def _left_out(leftovers: list[str], others: Counter[str]) -> str:
    parts = []
    if leftovers:
        parts.append(f"{len(leftovers)} hidden or of the system ({some(sorted(set(leftovers)))})")
    if others:
        in_order = sorted(others.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{count} {extension}" for extension, count in in_order]
        parts.append(f"{others.total()} by their extension ({some(counts, 8)})")
    return ", ".join(parts)
