"""Where the images of an evaluation come from: folders of classes, Hugging Face data sets, shards."""

from pathlib import Path
from typing import Any

from timm.data import create_dataset

from dcls_models.files import one_line
from dcls_models.folders import class_folders, holds_folders
from dcls_models.images import EXTENSIONS
from eval.classification.shards import Shards

SPLITS = (("val", "validation", "valid", "eval", "evaluation"), ("train", "training"))  # as timm names them


def folder_of(root: Path, split: str) -> Path:
    """The folder of a split below ``root``; for that of validation, where there is none, ``root`` itself.

    Raises:
        FileNotFoundError: If there is no such split.
    """
    names = [split, *next((synonyms for synonyms in SPLITS if split in synonyms), ())]
    below = next((root / name for name in names if holds_folders(root / name)), None)
    if below is None and split not in SPLITS[0]:
        raise FileNotFoundError(f"--split {split}: there is no folder {root / split} with folders of classes")
    return below or root


def open_reader(root: str | None, dataset: str, split: str, class_map: str | None) -> Any:
    """A reader with random access, such as ``ClassFolders``; see ``open_samples`` for what it takes."""
    if dataset and not dataset.lower().startswith(("hfds/", "wds/")):
        raise ValueError(f"--dataset {dataset}: expected hfds/NAME or wds/, or a folder without --dataset")
    if root is None and not dataset.lower().startswith("hfds/"):
        raise ValueError("give --data: a folder of class folders, or one with val/; of shards for wds/")
    names = _class_names(Path(class_map)) if class_map else None
    if not dataset and Path(str(root)).is_dir():
        return _open_folder(folder_of(Path(str(root)), split), names)
    if not dataset and not Path(str(root)).is_file():
        raise FileNotFoundError(f"there is no folder {root}")
    try:
        reader = create_dataset(dataset, root=root, split=split, class_map=class_map or "").reader
    except ImportError as error:
        raise ValueError(
            f"--dataset {dataset} needs a package: pip install datasets or webdataset"
        ) from error
    except Exception as error:
        what = f"the split {split!r} of {dataset}" if dataset else "images"
        raise ValueError(f"cannot read {what} in {root}: {one_line(error)}") from error
    if dataset.lower().startswith("wds/"):
        reader = Shards(reader)
    if not len(reader):
        raise FileNotFoundError(f"no images in the split {split!r} of {dataset} in {root}")
    return reader


def _open_folder(folder: Path, names: list[str] | None) -> Any:
    try:
        return class_folders(folder, EXTENSIONS, names)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no images in {folder}: expected one folder per class, with files of {' '.join(EXTENSIONS)}"
        ) from error


def _class_names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no class map {file}")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must hold the name of one class a line, in UTF-8") from error
    return [line.strip() for line in lines if line.strip()]
