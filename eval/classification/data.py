"""The images of an evaluation, with the labels that the model knows them by."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from dcls_models.files import one_line, some
from dcls_models.images import label_names, read_image
from eval.classification.classes import match_classes
from eval.classification.readers import open_reader
from eval.classification.store import UNREADABLE


class Samples(Dataset[tuple[torch.Tensor, int]]):
    """Images of a reader as bytes, with labels that count the evaluated classes.

    Args:
        reader: With random access: ``ClassFolders``, one of timm's, or ``Shards``.
        labels: From the reader's labels to those of ``names``.
        names: Of the evaluated classes.
        mode: Of the images, ``RGB`` or ``L``.
        exif: Whether images are turned as their EXIF data say.
    """

    transform: Callable[[Image.Image], torch.Tensor]  # set with the model's preprocessing

    def __init__(
        self, reader: Any, labels: Mapping[int, int], names: Sequence[str], mode: str, exif: bool = False
    ) -> None:
        self.reader, self.labels, self.names, self.mode, self.exif = reader, labels, names, mode, exif
        self.indices: Sequence[int] = range(len(reader))

    def keep(self, indices: Sequence[int]) -> None:
        """Evaluates some of the reader's images only."""
        self.indices = indices

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.indices)

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
        index = self.indices[index]
        try:
            return str(self.reader.filename(index, basename=basename, absolute=not basename))
        except (AssertionError, KeyError, TypeError):
            return f"sample {index}"

    def fingerprint(self) -> str:
        """A hash of which images these are."""
        listed = getattr(self.reader, "samples", [])
        chosen = [str(listed[i]) for i in self.indices] if listed else list(self.indices)
        return hashlib.sha256(repr((len(self), dict(self.labels), chosen)).encode()).hexdigest()

    def _read(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[self.indices[index]]
        with file:
            return read_image(file, self.exif).convert(self.mode), label


def open_samples(
    root: str | None,
    model: nn.Module,
    dataset: str = "",
    split: str = "validation",
    class_map: str | None = None,
    outputs: Sequence[int] | None = None,
    mode: str = "RGB",
    exif: bool = False,
) -> Samples:
    """Opens a data set.

    Args:
        root: A folder of class folders, or one that holds ``val``; of the shards; of the cache.
        model: Its classes are those of the data set, by name or else by order.
        dataset: As timm names it: ``hfds/NAME``, ``wds/``; a folder (or tar) without a name.
        split: Which part of it.
        class_map: File with the names of all classes in the order of the model's, one a line.
        outputs: The outputs of the model that are evaluated; all by default.
        mode: Of the images, ``RGB`` or ``L``.
        exif: Whether images are turned as their EXIF data say.

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
            raise ValueError(f"{root or dataset} has classes that are not evaluated: {some(strangers, 5)}")
    return Samples(reader, labels, [of_all[output] for output in chosen], mode, exif)
