"""Detection and instance segmentation: Mask R-CNN of torchvision on a backbone of timm."""

import contextlib
import inspect
from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
from pytorch_lightning.cli import ArgsType
from torch import nn
from torch.utils.data import Dataset
from torchmetrics.detection import MeanAveragePrecision
from torchvision import ops
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.transforms import v2

from dcls_models.files import one_line
from dcls_models.strided import slice_strided
from train.dense.base import Dense, DenseCLI, DenseData, Samples, names
from train.dense.scenes import Scenes
from train.launch import launch
from train.models import build_checked, downloading, starts_pretrained, to_memory_layout
from train.ranges import Count

MEASURED = {
    "box_ap": "bbox_map",
    "box_ap50": "bbox_map_50",
    "mask_ap": "segm_map",
    "mask_ap50": "segm_map_50",
}


class Pyramid(nn.Module):
    """A feature pyramid (arXiv:1612.03144) on a timm model's features at strides 4, 8, 16 and 32.

    Args:
        name: Name of a timm model.
        pretrained: Whether it starts from published weights.
        channels: Of every level.
        channels_last: Memory layout of the images.
        **model_kwargs: More arguments of the model.
    """

    def __init__(
        self, name: str, pretrained: bool, channels: int, channels_last: bool, **model_kwargs: Any
    ) -> None:
        super().__init__()
        self.channels_last = channels_last
        body = timm.create_model(name, pretrained=pretrained, features_only=True, **model_kwargs)
        self.body = slice_strided(body)
        widths = self.body.feature_info.channels()[-4:]
        self.fpn = ops.FeaturePyramidNetwork(
            widths, channels, extra_blocks=ops.feature_pyramid_network.LastLevelMaxPool()
        )
        self.out_channels = channels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Levels ``"0"`` to ``"3"``, and ``"pool"`` at stride 64, of images ``(N, 3, H, W)``."""
        features = self.body(to_memory_layout(images, self.channels_last))[-4:]
        return self.fpn(OrderedDict((str(i), f) for i, f in enumerate(features)))


class Detector(Dense):
    """Mask R-CNN (arXiv:1703.06870) on a timm model.

    With 256 channels its heads are those of torchvision.

    Args:
        name: Name of a timm model, one of the zoo's for instance; ``local-dir:FOLDER``, ``hf-hub:USER/NAME``.
        pretrained: Whether the backbone starts from published weights.
        num_classes: Number of classes and the background, which is 0; the command line takes it from the
            data.
        model_kwargs: More arguments of the backbone (``drop_path_rate``, ``kernel_count``, ...).
        channels: Channels of the feature pyramid and the heads.
        anchor_sides: Sides of the anchors in pixels, one for each of the five levels of the pyramid.
        min_size: Shorter sides to which images are resized for training; in validation the last.
        max_size: What the longer side may be at most.
        rcnn_kwargs: More arguments of torchvision's ``MaskRCNN`` (``box_batch_size_per_image``, ...).
        **kwargs: Of the optimizer and the schedule.

    Raises:
        ValueError: If timm knows no such model, or an argument does not fit it.
    """

    def __init__(
        self,
        name: str = "convnext_dcls_tiny",
        pretrained: bool = False,
        num_classes: Count = 91,
        model_kwargs: dict[str, Any] | None = None,
        channels: Count = 256,
        anchor_sides: tuple[Count, Count, Count, Count, Count] = (32, 64, 128, 256, 512),
        min_size: tuple[Count, ...] = (800,),
        max_size: Count = 1333,
        rcnn_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        model_kwargs, rcnn_kwargs = model_kwargs or {}, rcnn_kwargs or {}
        if unknown := rcnn_kwargs.keys() - inspect.signature(MaskRCNN).parameters:  # which it would swallow
            raise ValueError(f"model.rcnn_kwargs do not fit: MaskRCNN takes no {', '.join(unknown)}")
        pretrained = starts_pretrained(name, pretrained, model_kwargs)
        options = {
            "pretrained": pretrained,
            "channels": channels,
            "channels_last": self.hparams["channels_last"],
            **model_kwargs,
        }
        with downloading(name):
            backbone = build_checked(Pyramid, "model.model_kwargs", name=name, **options)
        cfg = backbone.body.pretrained_cfg
        anchors = AnchorGenerator(tuple((s,) for s in anchor_sides), ((0.5, 1.0, 2.0),) * len(anchor_sides))
        self.model = build_checked(
            MaskRCNN,
            "model.rcnn_kwargs",
            backbone=backbone,
            min_size=min_size,
            max_size=max_size,
            image_mean=cfg["mean"],
            image_std=cfg["std"],
            rpn_anchor_generator=anchors,
            box_head=TwoMLPHead(channels * 7**2, 4 * channels),
            box_predictor=FastRCNNPredictor(4 * channels, num_classes),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
            **rcnn_kwargs,
        )
        self.average_precision = MeanAveragePrecision(iou_type=("bbox", "segm"))

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The backbone, and everything else."""
        backbone = self.model.backbone
        return backbone.body, nn.ModuleList([backbone.fpn, self.model.rpn, self.model.roi_heads])

    def training_step(self, batch: Samples, batch_idx: int) -> torch.Tensor:
        """The sum of the five losses of Mask R-CNN."""
        images, targets = batch
        losses = self.model(list(images), list(targets))
        loss = sum(losses.values())
        self.log_dict({f"train/{k}": v for k, v in losses.items()}, batch_size=len(images))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Samples, batch_idx: int) -> None:
        """Compares what is found, at the size of the image, with what is there."""
        images, targets = batch
        predictions = self.model(list(images))
        for prediction in predictions:
            prediction["masks"] = prediction["masks"][:, 0] > 0.5
        self.average_precision.update(predictions, list(targets))

    def on_validation_epoch_end(self) -> None:
        """Logs COCO's average precision of boxes and masks, in percent."""
        scores = self.average_precision.compute()
        self.log_dict({f"val/{k}": 100 * scores[of].clamp(min=0) for k, of in MEASURED.items()})
        self.average_precision.reset()


class DetectionData(DenseData):
    """Scenes of digits, or a folder as COCO's.

    There, ``annotations/instances_<split>.json`` goes with the images in ``<split>/``.

    Args:
        train_split: Name of the images to train on.
        val_split: Name of the images to validate on.
        **kwargs: Of the loaders.
    """

    def __init__(self, train_split: str = "train2017", val_split: str = "val2017", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = 11
        if self.hparams["root"] is not None:
            self.setup()
            self.num_classes = max(self.train_set.coco.getCatIds()) + 1

    def dataset(self, training: bool) -> Dataset[Any]:
        """Pairs of an image ``(3, H, W)`` in [0, 1] and its ``boxes``, ``masks`` and ``labels``."""
        hp = self.hparams
        if hp["root"] is None:
            return DigitBoxes(hp["scenes" if training else "val_scenes"], training, hp["scene_side"])
        return Coco(Path(hp["root"]), hp["train_split" if training else "val_split"], training)


class DigitBoxes(Scenes):
    """Scenes with a box and a mask for every digit, whose label is its number and 1."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # type: ignore[override]
        """An image and its digits."""
        image, masks, labels = super().__getitem__(index)
        return image, {"boxes": _boxes(masks), "masks": masks.byte(), "labels": labels + 1}


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """Boxes ``(k, 4)`` around masks, as x, y, x, y with ends that are outside (torchvision's are inside)."""
    return ops.masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])


class Coco(Dataset):
    """Images of COCO, or in its format; without crowds, to train on, and without images that are empty then.

    Raises:
        FileNotFoundError: If there are no annotations.
        ValueError: If they are none, have no masks, or a class 0.
    """

    def __init__(self, root: Path, split: str, training: bool) -> None:
        file = root / "annotations" / f"instances_{split}.json"
        if not file.is_file():
            raise FileNotFoundError(f"there are no annotations {file}")
        try:
            with contextlib.redirect_stdout(None):  # pycocotools reports on itself
                images = CocoDetection(root / split, str(file))
            categories = images.coco.getCatIds()
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} is no file of COCO's ({type(error).__name__}: {one_line(error)}): expected JSON "
                "with images, annotations and categories"
            ) from error
        if not categories or not len(images):
            raise ValueError(f"{file} has {len(images)} images and {len(categories)} categories")
        self.coco, self.training = images.coco, training
        if not all(a.get("segmentation") for a in self.coco.anns.values()):
            raise ValueError(f"{file} has annotations without a segmentation, which Mask R-CNN needs")
        if min(categories) < 1:
            raise ValueError(f"{file} has a category 0, which is the background: count from 1")
        if training:
            images.ids = [i for i in images.ids if self.coco.getAnnIds(i, iscrowd=False)]
        self.files = [root / split / image["file_name"] for image in self.coco.loadImgs(images.ids)]
        keys = ["boxes", "masks", "labels", "iscrowd"]
        self.images = wrap_dataset_for_transforms_v2(images, target_keys=keys)
        self.flip = v2.RandomHorizontalFlip()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """An image and what is in it."""
        with names(self.files[index]):
            image, target = self.images[index]
        image = v2.functional.to_image(image)
        if "boxes" not in target:
            nothing = torch.zeros(0, dtype=torch.long)
            masks = torch.zeros(0, *image.shape[1:], dtype=torch.uint8)
            target = {"boxes": torch.zeros(0, 4), "masks": masks, "labels": nothing, "iscrowd": nothing}
        elif self.training:
            image, target = self.flip(image, target)
        boxes, crowd = target["boxes"].float(), torch.as_tensor(target["iscrowd"])
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1) & ~(crowd.bool() & self.training)
        objects = {"boxes": boxes, "masks": target["masks"], "labels": target["labels"], "iscrowd": crowd}
        return v2.functional.to_dtype(image, scale=True), {k: v[keep] for k, v in objects.items()}


class DetectionCLI(DenseCLI):
    """The best checkpoint is that of the highest AP of boxes."""

    task, monitor, own = "detection", "val/box_ap", "anchor_sides"


def main(args: ArgsType = None) -> None:
    """Runs ``fit`` or ``validate``."""
    parser = {"prog": "python -m train.detection", "description": "Trains detection with masks."}
    launch(DetectionCLI, Detector, DetectionData, parser, args)
