"""The DataModule: folders of images, read and transformed by timm."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from sklearn.model_selection import train_test_split
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageDataset, create_transform
from torch.utils.data import DataLoader, Dataset, Subset


class ImageFolders(pl.LightningDataModule):
    """Images in one folder per class.

    Args:
        root: A folder with ``train/<class>/`` and ``val/<class>/``, or with one folder per class, of which
            every class is then split, always in the same way.
        batch_size: Images per step and device.
        num_workers: Processes that read images.
        img_size: Side of the square that the model sees, in pixels.
        val_share: Share of the images to validate on, where ``root`` has no ``val``.
        scale: Range of the share of the image that a random training crop covers.
        ratio: Range of the aspect ratio of that crop.
        hflip: Probability of a horizontal flip.
        auto_augment: Policy in timm's notation, such as ``rand-m9-mstd0.5-inc1``.
        color_jitter: Strength of the colour jitter, without a policy.
        re_prob: Probability of random erasing.
        interpolation: Of resizing.
        crop_pct: Share of the resized image that is kept for validation.
        mean: Mean of each channel, subtracted after scaling to 0..1.
        std: Standard deviation of each channel.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        num_workers: int = 2,
        img_size: int = 224,
        val_share: float = 0.2,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        auto_augment: str | None = None,
        color_jitter: float = 0.4,
        re_prob: float = 0.0,
        interpolation: str = "bicubic",
        crop_pct: float = 0.875,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.train_set, self.val_set = self._read(Path(root))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their labels."""
        return list(self._class_to_idx)

    def train_batches(self, devices: int = 1) -> int:
        """Batches of one epoch on each of so many devices."""
        batches = math.ceil(len(self.train_set) / devices) // self.hparams["batch_size"]
        if not batches:
            raise ValueError(
                f"{len(self.train_set)} training images are less than one batch of "
                f"{self.hparams['batch_size']} on {devices} device(s); choose a smaller data.batch_size"
            )
        return batches

    def train_dataloader(self) -> DataLoader:
        """Shuffled, without the last incomplete batch."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """In order and complete."""
        return self._loader(self.val_set)

    def _loader(self, dataset: Dataset, **kwargs: Any) -> DataLoader:
        workers = self.hparams["num_workers"]
        sizes = {"batch_size": self.hparams["batch_size"], "num_workers": workers}
        return DataLoader(dataset, persistent_workers=workers > 0, **sizes, **kwargs)

    def _read(self, root: Path) -> tuple[Dataset, Dataset]:
        if not root.is_dir():
            raise FileNotFoundError(f"data.root is not a folder: {root}")
        halves = [root / "train", root / "val"]
        if not any(half.is_dir() for half in halves):
            train, val = self._folder(root, training=True), self._folder(root, training=False)
            self._class_to_idx = train.reader.class_to_idx
            return self._split(train, val)
        for half in halves:
            if not half.is_dir():
                raise FileNotFoundError(f"{root} has no folder {half.name}: expected both train and val")
        train = self._folder(halves[0], training=True)
        self._class_to_idx = train.reader.class_to_idx
        unknown = sorted(
            p.name for p in halves[1].iterdir() if p.is_dir() and p.name not in self._class_to_idx
        )
        if unknown:
            raise ValueError(f"{halves[1]} has classes that {halves[0]} does not have: {', '.join(unknown)}")
        return train, self._folder(halves[1], training=False, class_map=self._class_to_idx)

    def _folder(self, root: Path, training: bool, **kwargs: Any) -> ImageDataset:
        try:
            return ImageDataset(str(root), transform=self._transform(training), **kwargs)
        except RuntimeError as error:
            raise FileNotFoundError(f"no images in {root}: expected one folder per class") from error

    def _transform(self, training: bool) -> Any:
        hp = self.hparams
        shared = {k: hp[k] for k in ("interpolation", "mean", "std")}
        if not training:
            return create_transform(hp["img_size"], crop_pct=hp["crop_pct"], **shared)
        augmentation = ("scale", "ratio", "hflip", "auto_augment", "color_jitter", "re_prob")
        return create_transform(
            hp["img_size"], is_training=True, **shared, **{k: hp[k] for k in augmentation}
        )

    def _split(self, train: ImageDataset, val: ImageDataset) -> tuple[Dataset, Dataset]:
        labels = [label for _, label in train.reader.samples]
        rare = [name for name, i in self._class_to_idx.items() if labels.count(i) < 2]
        if rare:
            raise ValueError(
                f"a class needs two images or more to be split, these have one: {', '.join(rare)}"
            )
        share: float | int = max(self.hparams["val_share"], len(self._class_to_idx) / len(labels))
        indices: Sequence[Sequence[int]] = train_test_split(
            range(len(labels)), test_size=share, stratify=labels, random_state=0
        )
        return Subset(train, indices[0]), Subset(val, indices[1])
