"""Folders of images as a model wants them: its preprocessing, its classes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader

WHOLE = {"crop_pct": 1.0, "crop_mode": "squash"}  # for ``transform_of``: resized, nothing cut off


def transform_of(model: nn.Module, **changes: Any) -> Any:
    """The preprocessing that the model was trained for, with changes to timm's data config.

    Raises:
        ValueError: If the model is not for colour images.
    """
    config = resolve_data_config({}, model=model) | changes
    if (channels := config["input_size"][0]) != 3:
        raise ValueError(f"{type(model).__name__} takes inputs of {channels} channels, images have 3")
    return create_transform(**config)


def label_names(model: nn.Module) -> list[str]:
    """Names of the model's classes; their numbers where nobody has named them."""
    names = model.pretrained_cfg.get("label_names")
    return list(names or map(str, range(model.num_classes)))


def image_folder(root: Path, model: nn.Module) -> ImageDataset:
    """The images of ``root``, or of ``root/val`` if there is one, with the model's labels.

    Args:
        root: A folder with one folder per class.
        model: The model, whose class names the folders must have, if it has names; otherwise the folders,
            sorted, must be as many as its classes.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If the classes are not the model's.
    """
    root = root / "val" if (root / "val").is_dir() else root
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = model.pretrained_cfg.get("label_names")
    unknown = sorted(set(folders) - set(names)) if names else []
    if unknown:
        raise ValueError(f"{root} has classes that the model does not have: {', '.join(unknown[:5])}")
    if not names and len(folders) != model.num_classes:
        raise ValueError(f"{root} has {len(folders)} classes, the model {model.num_classes}")
    class_map = {name: i for i, name in enumerate(names)} if names else ""
    try:
        return ImageDataset(str(root), class_map=class_map, transform=transform_of(model))
    except RuntimeError as error:
        raise FileNotFoundError(f"no images in {root}: expected one folder per class") from error


def batches(dataset: ImageDataset, batch_size: int, workers: int) -> DataLoader:
    """The images in order."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)


def read(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader; what is wrong with a file is said without the traceback of a worker."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from error
