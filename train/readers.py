"""Images from timm's readers: folders, Hugging Face data sets (``hfds/``), webdataset shards (``wds/``)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import create_reader
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from dcls_models.files import one_line, some
from dcls_models.folders import ClassFolders, class_folders, files_below, holds_folders
from dcls_models.images import EXTENSIONS, read_image
from train.errors import DataError
from train.samplers import PADDING
from train.seeding import mixed, seed_from

_logger = logging.getLogger(__name__)

IGNORED = -1  # label of what counts nowhere
IN_A_ROW = 10  # this many unreadable images in a row mean a broken data set
VAL_NAMES = ("val", "validation", "valid")
Sample = tuple[torch.Tensor, int]
Transform = Callable[[Image.Image], torch.Tensor]


class Samples(Dataset[Sample]):
    """Some or all images of a reader with random access.

    An image that cannot be read is remembered in ``unreadable`` and logged. In training its batch is smaller
    by one (see ``collate``); in evaluation its label is ``IGNORED``.

    Args:
        reader: One of timm's readers.
        transform: From a PIL image to a tensor ``(3, img_size, img_size)``.
        indices: Which images of the reader; all by default.
        training: Whether unreadable images are left out.
        exif: Whether images are turned as their EXIF data say.
    """

    def __init__(
        self,
        reader: Any,
        transform: Transform,
        indices: Sequence[int] | None = None,
        training: bool = False,
        exif: bool = False,
    ) -> None:
        self.reader = reader
        self.transform = transform
        self.indices = range(len(reader)) if indices is None else indices
        self.training, self.exif = training, exif
        self.unreadable = torch.zeros(len(self.indices), dtype=torch.bool).share_memory_()  # by all workers

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample | None:
        """An image and its label; None in training if it cannot be read."""
        if index == PADDING[0]:
            return self._nothing()
        try:
            image, label = self._read(index)
        except Exception as error:  # decoders raise anything
            self._note(index, error)
            return None if self.training else self._nothing()
        return self.transform(image), label

    def collate(self, samples: list[Sample | None]) -> Any:
        """A batch of the images that could be read; if none could, of another one.

        Raises:
            DataError: If images drawn at random cannot be read either.
        """
        readable = [sample for sample in samples if sample is not None]
        for _ in range(0 if readable else IN_A_ROW):
            index = int(torch.randint(len(self), ()))
            if (sample := self[index]) is not None:
                return default_collate([sample])
        if not readable:
            last = self.filename(index)
            raise DataError(f"{IN_A_ROW} images in a row cannot be read, the last one {last}")
        return default_collate(readable)

    def filename(self, index: int) -> str:
        """Where an image comes from."""
        try:
            return str(self.reader.filename(self.indices[index], absolute=True))
        except (AssertionError, KeyError, TypeError):
            return f"sample {self.indices[index]}"

    def report(self) -> str:
        """Says which images could not be read, if any."""
        bad = self.unreadable.nonzero().flatten().tolist()
        names = [self.filename(i) for i in bad[:4]]  # one more than are named
        said = f"{len(bad)} of {len(self)} images could not be read and were left out: {some(names)}"
        return said if bad else ""

    def _read(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[self.indices[index]]
        with file:
            return read_image(file, self.exif), int(label)

    def _note(self, index: int, error: Exception) -> None:
        if not self.unreadable[index]:
            self.unreadable[index] = True
            _logger.warning("skipped %s: %s", self.filename(index), one_line(error))

    def _nothing(self) -> Sample:
        return self.transform(Image.new("RGB", (8, 8))), IGNORED


class Shards(IterableDataset[Sample]):
    """A split of a webdataset, divided over processes and workers by timm's reader.

    For evaluation every process reads all shards and keeps its turn of each worker's samples, so that each
    sample counts once and all processes have as many batches.
    """

    def __init__(
        self,
        name: str,
        root: str,
        split: str,
        transform: Transform,
        batch_size: int,
        seed: int,
        training: bool,
    ) -> None:
        read = {"root": root, "split": split, "batch_size": batch_size, "seed": seed}
        try:
            self.reader = create_dataset(name, is_training=training, **read).reader
        except (RuntimeError, KeyError) as error:
            raise DataError(f"cannot read the split {split!r} of the shards in {root}: {error}") from error
        self.rank, self.world_size = self.reader.dist_rank, self.reader.dist_num_replicas
        self.transform = transform
        self.training = training
        if not training:
            self.reader.dist_rank, self.reader.dist_num_replicas = 0, 1

    def set_epoch(self, epoch: int) -> None:
        """The order of the shards and of their samples depends on it."""
        self.reader.set_epoch(epoch)

    def batches(self, batch_size: int, num_workers: int) -> int:
        """Full training batches per epoch on this process."""
        self.reader.set_loader_cfg(num_workers)
        return len(self.reader) // batch_size

    def __iter__(self) -> Iterator[Sample]:
        """Images and labels."""
        seeds, seen = self._start_epoch(), 0
        for image, label in self.reader:
            if self.training or seen % self.world_size == self.rank:
                if self.training:
                    seed_from(*seeds, seen)
                yield self.transform(image), label
            seen += 1
        if self.training and not seen:
            worker = get_worker_info()
            shards = f"worker {worker.id}" if worker else "the loader"
            raise DataError(f"{shards} found no sample in its shards of {self.reader.root}")
        if not self.training and 0 < seen % self.world_size <= self.rank:
            yield self.transform(Image.new("RGB", (8, 8))), IGNORED

    def _start_epoch(self) -> tuple[int, ...]:
        """Makes the reader forget earlier epochs, whose random numbers it would go on with.

        Returns:
            What the samples of this epoch and worker are seeded from.
        """
        worker, reader = get_worker_info(), self.reader
        number = worker.id if worker else 0
        seeds = (reader.common_seed, reader.epoch_count.value, self.rank, number)
        if worker:  # as the reader would, with its own seed, which depends on when the worker was started
            reader.worker_info, reader.worker_id, reader.num_workers = worker, number, worker.num_workers
            reader.global_num_workers = reader.dist_num_replicas * worker.num_workers
            reader.global_worker_id = reader.dist_rank * worker.num_workers + number
        reader.worker_seed = mixed(*seeds)
        reader.ds = None  # it is made again, with that seed
        return seeds


def open_images(root: Path) -> ClassFolders:
    """All images below a folder, at any depth and without labels.

    Raises:
        FileNotFoundError: If there is no image in it.
    """
    files = files_below(root, EXTENSIONS)
    if not files:
        raise FileNotFoundError(f"no images in {root} ({' '.join(EXTENSIONS)})")
    return ClassFolders(str(root), files, [0] * len(files), [""])


def open_classes(root: Path, names: Sequence[str] | None = None) -> ClassFolders:
    """The images of ``root/<class>/``; see ``class_folders``."""
    try:
        return class_folders(root, EXTENSIONS, names)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no images in {root}: expected one folder per class, with files of {' '.join(EXTENSIONS)}"
        ) from error


def open_folders(
    root: Path, val_share: float
) -> tuple[ClassFolders, ClassFolders, Sequence[int] | None, Sequence[int] | None]:
    """The training and the validation images of a folder, and which of them.

    Args:
        root: A folder with ``train`` and ``val``, or of classes, which are split, always in the same way.
        val_share: Share of the images to validate on, where there is no ``val``.

    Raises:
        FileNotFoundError: If a folder or the images are missing.
        ValueError: If the classes of the two do not fit, or a class cannot be split.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root is not a folder: {root}")
    val = next((root / name for name in VAL_NAMES if holds_folders(root / name)), root / "val")
    halves = [root / "train", val]
    if not any(holds_folders(half) for half in halves):
        folders = open_classes(root)
        return folders, folders, *folders.hold_out(val_share)
    for half in halves:
        if not half.is_dir():
            raise FileNotFoundError(f"{root} has no folder {half.name}: expected both train and val")
    train = open_classes(halves[0])
    return train, open_classes(val, train.names), None, None


def open_hub(
    name: str, root: str | None, splits: Sequence[str], image: str = "image", label: str = "label"
) -> list[Any]:
    """The readers of timm for splits of a Hugging Face data set.

    Args:
        name: ``hfds/`` and the name on the Hub, or a folder.
        root: Where the data sets are cached; the default of ``datasets`` if None.
        splits: Names of the splits.
        image: Column of the images.
        label: Column of the labels.

    Raises:
        DataError: If the package is missing, or a split or a column is not there.
    """
    try:
        from datasets import ClassLabel, load_dataset  # optional, and slow to import
    except ImportError as error:
        raise DataError("data.dataset hfds/... needs a package: pip install datasets") from error
    try:
        columns = load_dataset(name.removeprefix("hfds/"), split=splits[0], cache_dir=root).features
        if {image, label} <= columns.keys():
            columns_of = {"input_key": image, "target_key": label}
            readers = [create_reader(name, root=root, split=split, **columns_of) for split in splits]
    except Exception as error:
        raise DataError(f"cannot read {name} ({', '.join(splits)}): {one_line(error)}") from error
    if missing := [column for column in (image, label) if column not in columns]:
        raise DataError(
            f"{name} has no column {' or '.join(missing)}, but {', '.join(columns)}: give data.image_column "
            "and data.label_column"
        )
    if not isinstance(columns[label], ClassLabel):
        labels = [column for column, feature in columns.items() if isinstance(feature, ClassLabel)]
        raise DataError(
            f"the column {label} of {name} has no names of classes; columns that have: "
            f"{', '.join(labels) or 'none'}"
        )
    return readers
