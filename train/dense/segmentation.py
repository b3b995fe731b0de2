"""Semantic segmentation: UPerNet of segmentation_models_pytorch on a backbone of timm."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from PIL import Image
from pytorch_lightning.cli import ArgsType
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchvision import tv_tensors
from torchvision.transforms import v2

from dcls_models.files import some
from dcls_models.folders import files_below
from dcls_models.images import EXTENSIONS, read_image
from dcls_models.strided import slice_strided
from train.dense.base import Dense, DenseCLI, DenseData, Samples, names
from train.dense.scenes import Scenes
from train.launch import launch
from train.models import build_checked, downloading, starts_pretrained, to_memory_layout
from train.ranges import Count

IGNORED = 255  # pixels that are of no class


class Segmenter(Dense):
    """UPerNet (arXiv:1807.10221) on a timm model, trained with the cross-entropy of every pixel.

    Args:
        name: Name of a timm model, one of the zoo's for instance; ``local-dir:FOLDER``, ``hf-hub:USER/NAME``.
        pretrained: Whether the backbone starts from published weights.
        num_classes: Number of classes; the command line takes it from the data.
        model_kwargs: More arguments of the backbone (``drop_path_rate``, ``kernel_count``, ...).
        decoder_channels: Channels of UPerNet.
        **kwargs: Of the optimizer and the schedule.

    Raises:
        ValueError: If timm knows no such model, or an argument does not fit it.
    """

    def __init__(
        self,
        name: str = "convnext_dcls_tiny",
        pretrained: bool = False,
        num_classes: Count = 150,
        model_kwargs: dict[str, Any] | None = None,
        decoder_channels: Count = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        model_kwargs = model_kwargs or {}
        pretrained = starts_pretrained(name, pretrained, model_kwargs)
        parts = {"decoder_channels": decoder_channels, "classes": num_classes, **model_kwargs}
        encoder = {"encoder_name": f"tu-{name}", "encoder_weights": True if pretrained else None}
        with downloading(name):
            self.model = build_checked(smp.UPerNet, "model.model_kwargs", **encoder, **parts)
        slice_strided(self.model)
        cfg = self.model.encoder.model.pretrained_cfg
        self.normalize = v2.Normalize(cfg["mean"], cfg["std"])
        self.iou = MulticlassJaccardIndex(num_classes, ignore_index=IGNORED)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED)

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The backbone, and everything else."""
        return self.model.encoder.model, nn.ModuleList([self.model.decoder, self.model.segmentation_head])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, num_classes, H, W)`` of images ``(N, 3, H, W)`` in [0, 1], of any size."""
        height, width = images.shape[-2:]
        padded = F.pad(self.normalize(images), (0, -width % 32, 0, -height % 32))
        padded = to_memory_layout(padded, self.hparams["channels_last"])
        return self.model(padded)[..., :height, :width]

    def training_step(self, batch: Samples, batch_idx: int) -> torch.Tensor:
        """The mean cross-entropy of all pixels that have a class."""
        images, masks = (torch.stack(part) for part in batch)
        loss = F.cross_entropy(self(images), masks, ignore_index=IGNORED)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Samples, batch_idx: int) -> None:
        """Counts pixels at the size of the mask, which may be another than that of the image."""
        for image, mask in zip(*batch, strict=True):
            logits = F.interpolate(self(image[None]).float(), mask.shape, mode="bilinear")
            self.iou.update(logits, mask[None])
            self.accuracy.update(logits, mask[None])

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over classes of intersection over union, and the share of pixels, in percent."""
        self.log_dict({"val/miou": 100 * self.iou.compute(), "val/pixels": 100 * self.accuracy.compute()})
        self.iou.reset()
        self.accuracy.reset()


class SegmentationData(DenseData):
    """Scenes of digits, or a folder as ADE20K's.

    There, ``images/<split>/NAME.jpg`` (or another format) goes with ``annotations/<split>/NAME.png``, whose
    pixels are numbers of classes; 255 is no class.

    Args:
        classes: Number of classes in ``root``.
        size: Height and width of what is trained on, and the shorter side in validation, in pixels.
        zero_is_no_class: Whether masks count classes from 1, and 0 is no class (ADE20K).
        train_split: Name of the folders to train on.
        val_split: Name of the folders to validate on.
        **kwargs: Of the loaders.
    """

    def __init__(
        self,
        classes: Count | None = None,
        size: Count = 512,
        zero_is_no_class: bool = False,
        train_split: str = "training",
        val_split: str = "validation",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.hparams["batch_size"] < 2:
            raise ValueError("data.batch_size must be at least 2: UPerNet normalises over the images")
        if (classes is None) != (self.hparams["root"] is None):
            raise ValueError("give data.root and data.classes, or (for scenes of digits) neither")
        self.num_classes = classes or 11

    def dataset(self, training: bool) -> Dataset[Any]:
        """Pairs of an image ``(3, H, W)`` in [0, 1] and a mask ``(H, W)`` of class numbers."""
        hp = self.hparams
        if hp["root"] is None:
            return DigitMasks(hp["scenes" if training else "val_scenes"], training, hp["scene_side"])
        split = hp["train_split" if training else "val_split"]
        transform = augmentation(hp["size"]) if training else None
        return Masks(Path(hp["root"]), split, self.num_classes, hp["size"], hp["zero_is_no_class"], transform)


class DigitMasks(Scenes):
    """Scenes with one mask: 0 is the background, a digit is its number and 1."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """An image and its mask."""
        image, masks, labels = super().__getitem__(index)
        return image, (masks * (labels + 1)[:, None, None]).sum(0)


class Masks(Dataset):
    """Images and masks of a folder.

    Raises:
        FileNotFoundError: If there is no image, or an image has no mask.
        ValueError: If two images have the same mask.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        num_classes: int,
        size: int,
        zero_is_no_class: bool,
        transform: v2.Transform | None,
    ) -> None:
        folder, masks = root / "images" / split, root / "annotations" / split
        self.images = [Path(file) for file in files_below(folder, EXTENSIONS)] if folder.is_dir() else []
        self.masks = [(masks / os.path.relpath(p, folder)).with_suffix(".png") for p in self.images]
        if not self.images:
            raise FileNotFoundError(f"there are no images in {folder} ({' '.join(EXTENSIONS)})")
        for image, mask in zip(self.images, self.masks, strict=True):
            if not mask.is_file():
                raise FileNotFoundError(f"{image} has no mask {mask}")
        if shared := {m for m, count in Counter(self.masks).items() if count > 1}:
            both = [str(i) for i, m in zip(self.images, self.masks, strict=True) if m in shared]
            raise ValueError(
                f"images that differ in their extension only share a mask, rename them: {some(both)}"
            )
        self.num_classes, self.zero_is_no_class, self.transform = num_classes, zero_is_no_class, transform
        self.resize = v2.Resize(size, max_size=4 * size, antialias=True)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """An image and its mask; in validation the mask keeps its size.

        Raises:
            DataError: If a file cannot be read.
            ValueError: If the mask does not fit the image or the classes.
        """
        with names(self.images[index]):
            image = v2.functional.pil_to_tensor(read_image(self.images[index]))
        with names(self.masks[index]):
            mask = v2.functional.pil_to_tensor(Image.open(self.masks[index])).long()
        if len(mask) > 1 or mask.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"{self.masks[index]} must have one channel and the size of its image, "
                f"{tuple(image.shape[1:])}, got {tuple(mask.shape)}"
            )
        if self.zero_is_no_class:
            mask = torch.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1)
        highest = int(mask[mask != IGNORED].max()) if (mask != IGNORED).any() else 0
        if highest >= self.num_classes:
            raise ValueError(
                f"{self.masks[index]} has class {highest}, but data.classes is {self.num_classes}"
            )
        if self.transform is None:
            image = self.resize(image)
        else:
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        image, mask = (t.as_subclass(torch.Tensor) for t in (image, mask))
        return v2.functional.to_dtype(image, torch.float32, scale=True), mask[0]


def augmentation(size: int) -> v2.Transform:
    """Half to twice the size, a crop, a flip and other colours, as the authors of ConvNeXt for ADE20K."""
    nothing = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
    sides = list(range(size // 2, 2 * size + 1, 16))
    return v2.Compose(
        [
            v2.RandomShortestSize(sides, max_size=8 * size),
            v2.RandomCrop(size, pad_if_needed=True, fill=nothing),
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(),
        ]
    )


class SegmentationCLI(DenseCLI):
    """The best checkpoint is that of the highest mIoU."""

    task, monitor, own = "segmentation", "val/miou", "decoder_channels"


def main(args: ArgsType = None) -> None:
    """Runs ``fit`` or ``validate``."""
    parser = {"prog": "python -m train.segmentation", "description": "Trains semantic segmentation."}
    launch(SegmentationCLI, Segmenter, SegmentationData, parser, args)
