"""What segmentation and detection share: optimizer groups, loaders, command line, the result."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pytorch_lightning.cli import LightningArgumentParser
from torch import nn
from torch.utils.data import Dataset

from dcls_models.files import one_line, printable, write_json
from dcls_models.optim import ParamGroup, param_groups
from train.cli import TrainCLI
from train.errors import DataError
from train.loaders import TaskData
from train.ranges import Count, CountOrNone, NotNegative, Range, ShareAboveZero, check_ranges
from train.task import Task

STAGE = re.compile(r"(?:stages_|layer)(\d+)(?:\.(?:blocks\.)?(\d+))?")
Samples = tuple[tuple[torch.Tensor, ...], tuple[Any, ...]]


@contextmanager
def names(file: Path) -> Iterator[None]:
    """Says which file it is that cannot be read: decoders do not, and raise anything.

    Raises:
        DataError: If reading it fails.
    """
    try:
        yield
    except Exception as error:
        raise DataError(
            f"{file} cannot be read ({one_line(error)}): replace it, or take it and what belongs to it out"
        ) from error


class Dense(Task):
    """A model with a backbone of timm; a subclass makes ``model`` and names its parts and its task.

    Args:
        opt: Optimizer, by its timm name.
        opt_kwargs: More arguments of the optimizer (``betas``, ``eps``, ...).
        lr: Learning rate for the batch size that is used.
        weight_decay: Weight decay of the parameters that decay.
        positions_lr_scale: Factor on the learning rate of positions and sigma.
        backbone_lr_scale: Factor on the learning rate of the backbone.
        layer_decay: Factor on the learning rate per layer of the backbone, counted from its last.
        blocks_per_layer: Blocks that count as one layer there; a whole stage by default.
        sched: Schedule, by its timm name, stepped per update.
        sched_kwargs: More arguments of the schedule (``decay_milestones``, ``decay_rate``, ...).
        warmup_updates: Updates of linear warm-up, part of the schedule.
        warmup_lr: Where the warm-up starts.
        min_lr: Where the schedule ends.
        channels_last: Memory layout of images; by far the faster one for large depthwise kernels on a CPU
            (and not taken there where it is not safe: FastViT).
    """

    def __init__(
        self,
        opt: str = "adamw",
        opt_kwargs: dict[str, Any] | None = None,
        lr: NotNegative = 1e-4,
        weight_decay: NotNegative = 0.05,
        positions_lr_scale: NotNegative = 5.0,
        backbone_lr_scale: NotNegative = 1.0,
        layer_decay: ShareAboveZero | None = None,
        blocks_per_layer: Count | None = None,
        sched: str = "cosine",
        sched_kwargs: dict[str, Any] | None = None,
        warmup_updates: CountOrNone = 0,
        warmup_lr: NotNegative = 0.0,
        min_lr: NotNegative = 0.0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_ranges("model", self, self.hparams)

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The backbone (timm's ``features_only``), and everything else."""
        raise NotImplementedError

    def groups(self) -> list[ParamGroup]:
        """Those of the backbone, which may learn more slowly, and of everything else."""
        hp = self.hparams
        backbone, heads = self.parts()
        # where timm's layer decay looks, which features_only has not
        backbone.group_matcher = lambda coarse: partial(layer_of, blocks_per_layer=hp["blocks_per_layer"])  # type: ignore
        scales = {k: hp[k] for k in ("weight_decay", "positions_lr_scale")}
        slower = hp["lr"] * hp["backbone_lr_scale"]
        groups = param_groups(backbone, slower, layer_decay=hp["layer_decay"], **scales)
        return groups + param_groups(heads, hp["lr"], **scales)

    def warmup_epochs(self, updates_per_epoch: int) -> float:
        """The warm-up is given in updates."""
        return self.hparams["warmup_updates"] / updates_per_epoch


def layer_of(name: str, blocks_per_layer: int | None) -> tuple[int, ...]:
    """The layer of a parameter of timm's ``features_only``, for layer decay: the stem, then the stages.

    With three blocks per layer that is how ConvNeXt's authors count for COCO.
    """
    match = STAGE.match(name)
    if not match:
        return (-1, 0)
    stage, block = int(match[1]), int(match[2] or 0)
    return (stage, block // blocks_per_layer if blocks_per_layer else 0)


def unzipped(samples: list[tuple[torch.Tensor, Any]]) -> Samples:
    """A batch of images that may differ in size: a tuple of them, and one of their targets."""
    images, targets = zip(*samples, strict=True)
    return images, targets


class DenseData(TaskData):
    """Images and what is to be found in them; a subclass says which data sets.

    Args:
        root: Folder of the data; without one, scenes of handwritten digits that are made as they are needed.
        batch_size: Images per device and update.
        num_workers: Processes that read images.
        scenes: How many scenes of digits there are to train on.
        val_scenes: How many, of other digits, to validate on.
        scene_side: Their height and width in pixels.
    """

    collate = staticmethod(unzipped)

    def __init__(
        self,
        root: str | None = None,
        batch_size: Count = 16,
        num_workers: CountOrNone = 2,
        scenes: Count = 2000,
        val_scenes: Count = 200,
        scene_side: Annotated[int, Range(48)] = 96,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.save_hyperparameters()
        check_ranges("data", self, self.hparams)

    def dataset(self, training: bool) -> Dataset[Any]:
        """Pairs of an image ``(3, H, W)`` in [0, 1] and its target."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Opens the data sets.

        Raises:
            ValueError: If there is too little to train on.
        """
        if self.train_set is None:
            self.train_set, self.val_set = self.dataset(True), self.dataset(False)
        super().setup(stage or "")
        if len(self.train_set) < self.hparams["batch_size"]:
            raise ValueError(
                f"{len(self.train_set)} images to train on are fewer than data.batch_size "
                f"{self.hparams['batch_size']}"
            )


class DenseCLI(TrainCLI):
    """Measures before and after the training, and writes both to ``results.json`` in the run's folder."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those that segmentation and detection have."""
        return {k: v for k, v in TrainCLI.subcommands().items() if k in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what every run has."""
        super().add_arguments_to_parser(parser)
        # metrics that were reset in inference mode could not be updated outside of it
        parser.set_defaults({"trainer.inference_mode": False})

    def before_fit(self) -> None:
        """Measures where the training starts."""
        super().before_fit()
        if not self.trainer.fast_dev_run:
            self.before = self._measured(self.config["fit"]["ckpt_path"])

    def after_fit(self) -> None:
        """Measures where it has ended, and writes the result."""
        if self.trainer.fast_dev_run or not self.trainer.global_step:
            return
        updates, scores = self.trainer.global_step, self._measured()
        if not self.trainer.is_global_zero:
            return
        hp = self.model.hparams
        model = {"model": hp["name"], "model_kwargs": hp["model_kwargs"] or {}}
        size = {"n": len(self.datamodule.val_set), "updates": updates}
        path = Path(self.trainer.default_root_dir) / "results.json"
        write_json(path, {**self.result(scores), **model, "before": self.before, **size})
        print(
            ", ".join(f"{k} {self.before[k]} -> {scores[k]}" for k in self.before),
            f"({printable(str(path))})",
        )

    def _measured(self, ckpt_path: str | None = None) -> dict[str, float]:
        (scores,) = self.trainer.validate(
            self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, verbose=False
        )
        return {k.removeprefix("val/"): round(v, 2) for k, v in scores.items() if k.startswith("val/")}
