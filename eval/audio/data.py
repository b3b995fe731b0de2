"""The sounds of an evaluation, with the classes in the order of the model's outputs."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from dcls_models.files import some
from dcls_models.folders import holds_folders
from dcls_models.loading import read_run
from dcls_models.sounds import FolderSounds, HubSounds, SoundSet, open_folder, open_listed, read_ontology

FILES = (".csv", ".h5", ".hdf5")
SPLIT = "val"  # by default, and a folder of classes may be without it


def class_names(model: nn.Module, labels: Path | None) -> list[str] | None:
    """The names of a model's classes: those of AudioSet's ontology, where it is given, or those it knows.

    Raises:
        ValueError: If the ontology has another number of classes.
    """
    cfg: Any = model.pretrained_cfg
    if labels is None:
        return list(cfg["label_names"]) if cfg.get("label_names") else None
    names = list(read_ontology(labels).values())
    if len(names) != model.num_classes:
        raise ValueError(f"{labels} names {len(names)} classes, the model has {model.num_classes}")
    return names


def open_sounds(arguments: argparse.Namespace, model: nn.Module) -> SoundSet:
    """Opens what the command line names.

    Raises:
        OSError: If a file or folder is missing.
        ValueError: If it does not fit the model.
    """
    names = class_names(model, arguments.labels)
    if arguments.dataset:
        if not arguments.dataset.startswith("hfds/"):
            raise ValueError(f"--dataset is hfds/NAME, got {arguments.dataset!r}")
        columns = (arguments.audio_column, arguments.label_column)
        name, cache = arguments.dataset.removeprefix("hfds/"), arguments.data and str(arguments.data)
        sounds: SoundSet = HubSounds(name, arguments.split, cache, *columns, names=names)
    elif arguments.data is None:
        raise ValueError("say where the sounds are: --data FOLDER, or a .csv of AudioSet or .h5 of PANNs")
    elif arguments.data.suffix.lower() in FILES:
        sounds = open_listed(arguments.data, arguments.sounds, arguments.labels)
    else:
        sounds = _open_folder(arguments.data, arguments.split, names)
    if names is None and isinstance(sounds, FolderSounds | HubSounds):
        raise ValueError(
            "the model does not say what its classes are: give --labels, AudioSet's class_labels_indices.csv"
        )
    if len(sounds.names) != model.num_classes or (names and _differ(sounds, names)):
        raise ValueError(
            f"the model has {model.num_classes} classes ({some(names or ['unnamed'])}), the data have "
            f"{len(sounds.names)} ({some(sounds.names)}): they must be the same, in the same order"
        )
    return sounds


def held_out(sounds: SoundSet, checkpoint: Path | None) -> list[int]:
    """The sounds of a folder of classes that a training has held out to validate on.

    Raises:
        ValueError: If the checkpoint was not trained on a part of these sounds.
    """
    if checkpoint is None:
        raise ValueError("--held-out needs --checkpoint, which knows what was held out")
    data = read_run(checkpoint).data
    if not data.get("held_out"):
        raise ValueError(f"{checkpoint} has held out nothing: its training had sounds to validate on")
    if not isinstance(sounds, FolderSounds) or sounds.fingerprint() != data.get("files_sha256"):
        raise ValueError(f"{checkpoint} was trained on another folder of sounds: give that as --data")
    return sounds.hold_out(data["val_share"])[1]


def fingerprint(sounds: SoundSet) -> str:
    """A hash of which sounds these are."""
    names = "\0".join(sounds.filename(i) for i in range(len(sounds)))
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def _open_folder(root: Path, split: str, names: list[str] | None) -> FolderSounds:
    if not root.is_dir():
        raise FileNotFoundError(f"--data is neither a folder nor a .csv or .h5 file: {root}")
    below = root / split
    if not holds_folders(below) and split != SPLIT:
        raise FileNotFoundError(f"--split {split}: there is no folder {below} with folders of classes")
    return open_folder(below if holds_folders(below) else root, names)


def _differ(sounds: SoundSet, names: list[str]) -> bool:
    return not all(name.isdecimal() for name in sounds.names) and sounds.names != names  # PANNs': numbers
