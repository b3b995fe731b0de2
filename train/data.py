"""The DataModule: images read and transformed by timm, the same samples whatever interrupts the training."""

import logging
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from dcls_models.files import one_line, some
from dcls_models.folders import holds_folders
from dcls_models.loading import config_of
from train.augment import Splits, create_transform
from train.loaders import ShardLoader, TaskData
from train.ranges import (
    Count,
    CountOrNone,
    NotNegative,
    Number,
    Positive,
    Share,
    ShareAboveZero,
    ShareInside,
    check_ranges,
)
from train.readers import Samples, Shards, open_classes, open_folders, open_hub, open_images
from train.samplers import EvalSampler, Keyed
from train.seeding import run_seed

_logger = logging.getLogger(__name__)
PREPROCESSING = {
    "img_size": 224,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}


class Images(TaskData):
    """Images with one label each.

    Args:
        root: A folder with ``train/<class>/`` and ``val/<class>/``, or with one folder per class, of which
            every class is then split, always in the same way. For ``hfds/`` the cache, for ``wds/`` the
            folder of the shards.
        dataset: Nothing for folders, ``hfds/NAME`` for Hugging Face data sets, ``wds/`` for shards.
        train_split: Name of the split to train on (``hfds/``), or pattern of its shards (``wds/``).
        val_split: Likewise to validate on.
        classes: Text file with the names of the classes, one per line; for shards, which have none.
        like: Name of the timm model whose size, mean, std, interpolation and crop are taken where they are
            not given; the command line gives ``model.name``.
        batch_size: Images per step and device.
        total_batch_size: Images per update over all devices, reached by accumulating gradients; the recipe is
            then the same on any number of devices.
        num_workers: Processes that read images, per device.
        img_size: Side of the square that the model sees, in pixels.
        val_share: Share of the images to validate on, where ``root`` has no ``val``.
        scale: Range of the share of the image that a random training crop covers.
        ratio: Range of the aspect ratio of that crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        auto_augment: Policy in timm's notation: ``rand-m9-mstd0.5-inc1``, ``augmix-m5-w4-d2``, ``3a``, ...
        color_jitter: Strength of the colour jitter, without a policy or with ``3a``.
        re_prob: Probability of random erasing.
        re_mode: What is put there: ``const``, ``rand`` or ``pixel``.
        augment_splits: How many versions of a training image are in a batch, the first one only cropped,
            flipped and erased (for ``model.loss jsd``); 0 is one, augmented. ``batch_size`` counts images,
            not their versions.
        repeats: Repeated augmentation: how often a sample is seen, on different devices; 1 is none.
        train_interpolation: Of resizing in training, or ``random``; as ``interpolation`` if not given.
        interpolation: Of resizing.
        crop_pct: Share of the resized image that is kept for validation.
        mean: Mean of each channel, subtracted after scaling to 0..1.
        std: Standard deviation of each channel.
        predict_root: Folder with images for ``predict``.
        names: Names of the classes instead of ``root``; ``predict`` takes the checkpoint's.
        exif: Whether images are turned as their EXIF data say, as by ``eval accuracy --exif``; timm does not.
        image_column: Column of the images (``hfds/``).
        label_column: Column of the labels (``hfds/``).

    Raises:
        FileNotFoundError: If a folder or the images are missing.
        ValueError: If the classes do not fit, or there are fewer than two.
        DataError: If a data set of ``hfds/`` or ``wds/`` cannot be read.
    """

    def __init__(
        self,
        root: str | None = None,
        dataset: str = "",
        train_split: str = "train",
        val_split: str = "validation",
        classes: str | None = None,
        like: str | None = None,
        batch_size: Count = 64,
        total_batch_size: Count | None = None,
        num_workers: CountOrNone = 2,
        img_size: Count | None = None,
        val_share: ShareInside = 0.2,
        scale: tuple[ShareAboveZero, ShareAboveZero] = (0.08, 1.0),
        ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3),
        hflip: Share = 0.5,
        vflip: Share = 0.0,
        auto_augment: str | None = None,
        color_jitter: NotNegative = 0.4,
        re_prob: Share = 0.0,
        re_mode: str = "pixel",
        augment_splits: CountOrNone = 0,
        repeats: Count = 1,
        train_interpolation: str | None = None,
        interpolation: str | None = None,
        crop_pct: ShareAboveZero | None = None,
        mean: tuple[Number, Number, Number] | None = None,
        std: tuple[Positive, Positive, Positive] | None = None,
        predict_root: str | None = None,
        names: list[str] | None = None,
        exif: bool = False,
        image_column: str = "image",
        label_column: str = "label",
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.save_hyperparameters()
        check_ranges("data", self, self.hparams)
        if scale[0] > scale[1] or ratio[0] > ratio[1]:
            raise ValueError(f"a range begins with its lower end, got data.scale {scale}, data.ratio {ratio}")
        self._fill_in_preprocessing(like)
        if names is not None:
            self.class_names = names
        elif dataset.startswith("wds/"):
            if not (root and classes):
                raise ValueError(
                    "shards need data.root, their folder, and data.classes, a file of class names"
                )
            self.class_names = Path(classes).read_text(encoding="utf-8").split("\n")
            self.class_names = [name.strip() for name in self.class_names if name.strip()]
        else:
            self._open(root, dataset)
        if len(self.class_names) < 2:
            names = ", ".join(self.class_names) or "none"
            raise ValueError(
                f"{root or dataset} has fewer than two classes ({names}): expected a folder for each"
            )

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def setup(self, stage: str) -> None:
        """Says what there is."""
        super().setup(stage)
        if stage == "fit" and self.train_set is not None and self.val_set is not None:
            sizes = (len(self.train_set), len(self.val_set), self.num_classes)
            classes = some(self.class_names, 10)
            _logger.info("%d images to train on, %d to validate on; %d classes: %s", *sizes, classes)

    def train_batches(self, devices: int = 1) -> int:
        """Batches of one epoch on each of so many devices."""
        if self.train_set is None:
            hp = self.hparams
            return self._shards(training=True).batches(hp["batch_size"], hp["num_workers"])
        return super().train_batches(devices)

    def train_dataloader(self) -> DataLoader:
        """Shuffled, without the last incomplete batch."""
        if self.train_set is not None:
            return super().train_dataloader()
        if self.trainer and self.trainer.overfit_batches:
            raise ValueError("trainer.overfit_batches needs images with random access, not shards")
        return ShardLoader(self._shards(training=True), self.at, self.train_batches(), **self.loader_kwargs())

    def val_dataloader(self) -> DataLoader:
        """In order and complete."""
        return self._in_order(self.val_set if self.val_set is not None else self._shards(training=False))

    def test_dataloader(self) -> DataLoader:
        """The images of ``root/test``, if there are any, otherwise those of validation."""
        if not self.has_test():
            return self.val_dataloader()
        test = Path(self.hparams["root"]) / "test"
        images = open_classes(test, self.class_names)
        return self._in_order(Samples(images, self._transform(training=False), exif=self.hparams["exif"]))

    def has_test(self) -> bool:
        """Whether there are images of their own to test on."""
        root = self.hparams["root"]
        return not self.hparams["dataset"] and root is not None and holds_folders(Path(root) / "test")

    def predict_dataloader(self) -> DataLoader:
        """The images below ``predict_root``, in order."""
        if self.hparams["predict_root"] is None:
            raise ValueError("say where the images to predict are: --data.predict_root FOLDER")
        root = Path(self.hparams["predict_root"])
        if not root.is_dir():
            raise FileNotFoundError(f"data.predict_root is not a folder: {root}")
        reader = open_images(root)
        self.predict_set = Samples(reader, self._transform(training=False), exif=self.hparams["exif"])
        return self._in_order(self.predict_set)

    def unreadable(self) -> list[str]:
        """What is to be said about images that could not be read."""
        sets = {"training": self.train_set, "validation": self.val_set}
        return [f"{name}: {s.report()}" for name, s in sets.items() if s is not None and s.report()]

    def _open(self, root: str | None, dataset: str) -> None:
        if dataset.startswith("hfds/"):
            splits = (self.hparams["train_split"], self.hparams["val_split"])
            columns = (self.hparams["image_column"], self.hparams["label_column"])
            train, val = open_hub(dataset, root, splits, *columns)
            train_indices = val_indices = None
        elif dataset:
            raise ValueError(f"data.dataset is empty, hfds/NAME or wds/, got {dataset!r}")
        elif root is None:
            raise ValueError("say where the images are: --data.root FOLDER")
        else:
            train, val, train_indices, val_indices = open_folders(Path(root), self.hparams["val_share"])
            # for eval accuracy --held-out, which asks which images were trained on
            self.hparams.update(files_sha256=train.fingerprint(), held_out=len(val_indices or ()))
        self.class_names = [str(name) for name in train.class_to_idx]
        exif = self.hparams["exif"]
        self.train_set = Samples(train, self._transform(training=True), train_indices, True, exif)
        self.val_set = Samples(val, self._transform(training=False), val_indices, exif=exif)
        self.collate = self.train_set.collate

    def _fill_in_preprocessing(self, like: str | None) -> None:
        """Resolves what is not given: from the model, or else as usual for ImageNet; loading needs it."""
        known = dict(PREPROCESSING)
        if like:
            cfg = config_of(like)
            known |= {k: cfg[k] for k in known if k != "img_size"}
            known["img_size"] = cfg["input_size"][-1]
        self.hparams.update({k: v for k, v in known.items() if self.hparams[k] is None})

    def _transform(self, training: bool) -> Any:
        hp = self.hparams
        shared = {k: hp[k] for k in ("mean", "std")}
        if not training:
            sizes = {k: hp[k] for k in ("img_size", "crop_pct")}
            transform = create_transform(**sizes, interpolation=hp["interpolation"], **shared)
            try:  # now, and not after an epoch
                transform(Image.new("RGB", (8, 8)))
            except Exception as error:  # Pillow and timm raise anything
                asked = " and ".join(f"data.{k} {v}" for k, v in sizes.items())
                raise ValueError(f"{asked} do not fit ({one_line(error)})") from error
            return transform
        augmentation = (
            "scale",
            "ratio",
            "hflip",
            "vflip",
            "auto_augment",
            "color_jitter",
            "re_prob",
            "re_mode",
        )
        splits = hp["augment_splits"]
        transform = create_transform(
            hp["img_size"],
            is_training=True,
            interpolation=hp["train_interpolation"] or hp["interpolation"],
            separate=splits > 0,
            **shared,
            **{k: hp[k] for k in augmentation},
        )
        return Splits(transform, splits) if splits else transform

    def _in_order(self, dataset: Samples | Shards) -> DataLoader:
        if isinstance(dataset, Shards):
            return DataLoader(dataset, **self.loader_kwargs())
        if self.trainer and self.trainer.overfit_batches:  # Lightning chooses the samples
            return DataLoader(dataset, **self.loader_kwargs())
        sampler = EvalSampler(dataset, *self.rank_and_world())
        return DataLoader(Keyed(dataset), sampler=sampler, **self.loader_kwargs())

    def _shards(self, training: bool) -> Shards:
        hp = self.hparams
        if not hp["dataset"].startswith("wds/"):
            raise ValueError("data.names is for predict: give data.root, whose folders are the classes")
        split = hp["train_split"] if training else hp["val_split"]
        transform = self._transform(training)
        return Shards(hp["dataset"], hp["root"], split, transform, hp["batch_size"], run_seed(), training)
