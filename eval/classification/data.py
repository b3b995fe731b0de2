"""The images of an evaluation, by timm's readers, with the labels that the model knows them by."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_dataset, infer_imagenet_subset
from timm.data.readers import add_img_extensions
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from dcls_models.files import one_line
from dcls_models.images import label_names, read_image
from eval.classification.shards import Shards

add_img_extensions(IMG_EXTENSIONS)  # timm by itself reads JPEG and PNG only
UNREADABLE = -1  # label of an image that could not be read


class Samples(Dataset[tuple[torch.Tensor, int]]):
    """Images of a reader as bytes, with labels that count the evaluated classes.

    Args:
        reader: One of timm's with random access, or ``Shards``.
        labels: From the reader's labels to those of ``names``.
        names: Of the evaluated classes.
        mode: Of the images, ``RGB`` or ``L``.
    """

    transform: Callable[[Image.Image], torch.Tensor]  # set with the model's preprocessing

    def __init__(self, reader: Any, labels: Mapping[int, int], names: Sequence[str], mode: str) -> None:
        self.reader, self.labels, self.names, self.mode = reader, labels, names, mode

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """An image as bytes ``(channels, height, width)`` and its label, or ``UNREADABLE``."""
        try:
            image, label = self._read(index)
        except Exception:  # decoders raise anything; ``why`` says what
            return self.transform(Image.new(self.mode, (8, 8))), UNREADABLE
        if label not in self.labels:
            raise ValueError(
                f"{self.filename(index)} has the label {label}, which is none of the {len(self.names)} "
                "classes that are evaluated"
            )
        return self.transform(image), self.labels[label]

    def why(self, index: int) -> str:
        """The name of an unreadable image, and what is wrong with it."""
        try:
            self._read(index)
        except Exception as error:
            return f"{self.filename(index)}: {one_line(error)}"
        return f"{self.filename(index)}: could not be read then, but can be now"

    def filename(self, index: int, basename: bool = False) -> str:
        """Where an image comes from, as the reader names it."""
        try:
            return str(self.reader.filename(index, basename=basename, absolute=not basename))
        except (AssertionError, KeyError, TypeError):
            return f"sample {index}"

    def fingerprint(self) -> str:
        """A hash of which images these are."""
        listed = [str(sample) for sample in getattr(self.reader, "samples", [])]
        return hashlib.sha256(repr((len(self), dict(self.labels), listed)).encode()).hexdigest()

    def _read(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[index]
        with file:
            return read_image(file).convert(self.mode), label


def open_samples(
    root: str | None,
    model: nn.Module,
    dataset: str = "",
    split: str = "validation",
    class_map: str | None = None,
    outputs: Sequence[int] | None = None,
    mode: str = "RGB",
) -> Samples:
    """Opens a data set.

    Args:
        root: A folder of class folders, or one that holds ``val``; of the shards; of the cache.
        model: Its classes are those of the data set, by name or else by order.
        dataset: As timm names it: ``hfds/NAME``, ``wds/``; a folder (or tar) without a name.
        split: Which part of it.
        class_map: File with the names of all classes in the order of the model's, as timm takes it.
        outputs: The outputs of the model that are evaluated; all by default.
        mode: Of the images, ``RGB`` or ``L``.

    Returns:
        The images. Their labels count ``outputs``.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If the classes are not the model's, or the data set cannot be opened.
    """
    reader = open_reader(root, dataset, split, class_map)
    chosen = list(range(model.num_classes) if outputs is None else outputs)
    if chosen and max(chosen) >= model.num_classes:
        raise ValueError(f"output {max(chosen)} was asked for, the model has {model.num_classes}")
    position = {output: i for i, output in enumerate(chosen)}
    known = reader.class_to_idx
    names = sorted(known, key=known.__getitem__)
    if not names or class_map:  # then the labels are the model's
        labels, of_all = position, label_names(model)
    else:
        output_of, of_all = match_classes(names, model, chosen, str(root or dataset))
        labels = {known[name]: position[output] for name, output in output_of.items() if output in position}
        if strangers := [name for name, output in output_of.items() if output not in position]:
            raise ValueError(
                f"{root or dataset} has classes that are not evaluated: {', '.join(strangers[:5])}"
                f"{', ...' * (len(strangers) > 5)}"
            )
    return Samples(reader, labels, [of_all[output] for output in chosen], mode)


def open_reader(root: str | None, dataset: str, split: str, class_map: str | None) -> Any:
    """The reader of timm, with random access; see ``open_samples``."""
    if dataset and not dataset.lower().startswith(("hfds/", "wds/")):
        raise ValueError(f"--dataset {dataset}: expected hfds/NAME or wds/, or a folder without --dataset")
    if root is None and not dataset.lower().startswith("hfds/"):
        raise ValueError("give --data: a folder of class folders, or one with val/; of shards for wds/")
    if not dataset and not Path(str(root)).exists():
        raise FileNotFoundError(f"there is no folder {root}")
    if class_map and not Path(class_map).is_file():
        raise FileNotFoundError(f"there is no class map {class_map}")
    try:
        reader = create_dataset(dataset, root=root, split=split, class_map=class_map or "").reader
    except ImportError as error:
        raise ValueError(
            f"--dataset {dataset} needs a package: pip install datasets or webdataset"
        ) from error
    except Exception as error:
        if not dataset and isinstance(error, RuntimeError):
            raise FileNotFoundError(f"no images in {root}: expected one folder per class") from error
        raise ValueError(
            f"cannot read the split {split!r} of {dataset or 'images'} in {root}: {one_line(error)}"
        ) from error
    if dataset.lower().startswith("wds/"):
        reader = Shards(reader)
    if not len(reader):
        raise FileNotFoundError(f"no images in the split {split!r} of {dataset} in {root}")
    return reader


def read_indices(path: Path) -> list[int]:
    """Predictions of a model, one number a line, as timm's ``imagenet_a_indices.txt``.

    Raises:
        ValueError: If there is anything else in the file.
    """
    try:
        return [int(line) for line in path.read_text().split()]
    except ValueError as error:
        raise ValueError(f"{path} must hold one output of the model a line: {error}") from error


def match_classes(
    names: Sequence[str], model: nn.Module, outputs: Sequence[int], where: str
) -> tuple[dict[str, int], Sequence[str]]:
    """Which output of a model is which class of a data set.

    By name, if the model has names; by WordNet id, if the classes are ImageNet's and so many as the model has
    are; by number, if they are numbers; else by order, if they are as many as the outputs.

    Args:
        names: Of the classes, in timm's order.
        model: The model.
        outputs: Which of its outputs are evaluated.
        where: What to call the data set in an error.

    Returns:
        The output of each name, and the names of all outputs.

    Raises:
        ValueError: If they do not fit.
    """
    of_all = label_names(model)
    synsets = _synsets(infer_imagenet_subset(model))
    if model.pretrained_cfg.get("label_names"):
        unknown = sorted(set(names) - set(of_all))
        if unknown:
            raise ValueError(f"{where} has classes that the model does not have: {', '.join(unknown[:5])}")
    elif set(names) <= set(synsets):
        of_all = synsets
    elif not all(name.isdecimal() and int(name) < model.num_classes for name in names):
        if len(names) != len(outputs):
            raise ValueError(f"{where} has {len(names)} classes, the model {len(outputs)}")
        named = dict(zip(outputs, names, strict=True))
        of_all = [named.get(i, name) for i, name in enumerate(of_all)]
    number = {name: i for i, name in enumerate(of_all)}
    return {name: number[name] if name in number else int(name) for name in names}, of_all


@cache
def _synsets(subset: str | None) -> list[str]:
    return list(ImageNetInfo(subset).label_names()) if subset else []
