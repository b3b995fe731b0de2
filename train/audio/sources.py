"""Where the sounds of a training come from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dcls_models.folders import holds_folders
from dcls_models.sounds import HubSounds, SoundSet, open_folder, open_listed

SPLITS = (("train",), ("val", "validation", "valid"))
Opened = tuple[SoundSet, SoundSet, Sequence[int] | None, Sequence[int] | None]


class JoinedSounds:
    """Several data sets of the same classes as one.

    Raises:
        ValueError: If their classes differ.
    """

    def __init__(self, parts: Sequence[SoundSet]) -> None:
        self.parts = parts
        self.names, self.one_label = parts[0].names, all(part.one_label for part in parts)
        if any(part.names != self.names for part in parts):
            raise ValueError("the files of data.train and data.val are of other classes: give data.labels")
        self.where = [(part, i) for part in parts for i in range(len(part))]

    def __len__(self) -> int:
        return len(self.where)

    def classes(self, index: int) -> tuple[int, ...]:
        """The classes of a sound."""
        part, i = self.where[index]
        return part.classes(i)

    def seconds(self, index: int) -> float:
        """How long a sound is."""
        part, i = self.where[index]
        return part.seconds(i)

    def read(self, index: int, sample_rate: int, seconds: float | None, start: float = 0.0) -> torch.Tensor:
        """A part of a sound, as ``read_sound`` gives it."""
        part, i = self.where[index]
        return part.read(i, sample_rate, seconds, start)

    def filename(self, index: int) -> str:
        """Where a sound comes from."""
        part, i = self.where[index]
        return part.filename(i)


def open_sounds(options: Mapping[str, Any]) -> Opened:
    """The sounds to train and to validate on, and which of them (all if None).

    Args:
        options: The arguments of ``Sounds``.

    Raises:
        OSError: If a file or folder is missing.
        ValueError: If they do not fit.
    """
    root = Path(options["root"]).expanduser() if options["root"] else None
    if options["dataset"]:
        return *_open_hub(options), None, None
    if options["train"] or options["val"]:
        return *_open_listed(options, root), None, None
    if root is None:
        raise ValueError("say where the sounds are: --data.root FOLDER, with one folder per class")
    return _open_folders(root, options["val_share"])


def _open_folders(root: Path, val_share: float) -> Opened:
    if not root.is_dir():
        raise FileNotFoundError(f"data.root is not a folder: {root}")
    halves = [next((root / name for name in names if holds_folders(root / name)), None) for names in SPLITS]
    if halves == [None, None]:
        sounds = open_folder(root)
        return sounds, sounds, *sounds.hold_out(val_share)
    if halves[0] is None or halves[1] is None:
        lacking = "train" if halves[0] is None else "val"
        raise FileNotFoundError(f"{root} has no folder {lacking} with classes: expected both train and val")
    train = open_folder(halves[0])
    return train, open_folder(halves[1], train.names), None, None


def _open_hub(options: Mapping[str, Any]) -> tuple[SoundSet, SoundSet]:
    if not options["dataset"].startswith("hfds/"):
        raise ValueError(f"data.dataset is hfds/NAME, got {options['dataset']!r}")
    name, cache = options["dataset"].removeprefix("hfds/"), options["root"]
    columns = options["audio_column"], options["label_column"]
    train = HubSounds(name, options["train_split"], cache, *columns)
    return train, HubSounds(name, options["val_split"], cache, *columns, names=train.names)


def _open_listed(options: Mapping[str, Any], root: Path | None) -> tuple[SoundSet, SoundSet]:
    if not (options["train"] and options["val"]):
        raise ValueError("give both data.train and data.val: files to train and to validate on")
    labels = Path(options["labels"]).expanduser() if options["labels"] else None
    parts: dict[str, list[SoundSet]] = {}
    for key in ("train", "val"):
        paths = [options[key]] if isinstance(options[key], str) else options[key]
        parts[key] = [open_listed(Path(path).expanduser(), root, labels) for path in paths]
    JoinedSounds([*parts["train"], *parts["val"]])  # which are of the same classes
    return JoinedSounds(parts["train"]), JoinedSounds(parts["val"])
