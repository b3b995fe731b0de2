"""Folders of images as a model wants them: its preprocessing, its classes."""

from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_transform, resolve_data_config
from torch import nn


def transform_of(model: nn.Module) -> Any:
    """The preprocessing that the model was trained for."""
    return create_transform(**resolve_data_config({}, model=model))


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
