"""The command line: Lightning's, with the data's classes linked to the model and one folder per run."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

# OpenMP's threads spin while they wait: with another busy process that costs a small machine a factor of ten
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dcls_models import CheckpointError
from train.checkpoints import AtomicCheckpointIO, KeepLast, check_checkpoint, last_checkpoint
from train.data import Images
from train.models import SyncBatchNorm
from train.module import Classifier
from train.positions import PositionsPicture
from train.progress import Progress
from train.report import PredictionWriter, Report

_logger = logging.getLogger(__name__)
QUIET = (
    r".*does not have many workers which may be a bottleneck.*",
    r".*smaller than the logging interval.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*LightningCLI's args parameter is intended to run from within Python.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*`self.trainer` reference is not registered.*",
    r".*exists and is not empty.*",
    r".*GPU available but not used.*",
    r"Glyph .* missing from font.*",  # class names in a script that matplotlib's font lacks
    r".*It is recommended to use `self.log\('(val|test|positions)/.*",  # the same on every process
)
TALKATIVE = (
    "pytorch_lightning.utilities.rank_zero",  # tips, and which devices are not used
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)


class TrainCLI(LightningCLI):
    """LightningCLI whose run lives in ``trainer.default_root_dir``: checkpoints, logs, config, pictures."""

    monitor = "val/top1"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks, and links what one part knows to what another needs."""
        self.add_run(parser)
        parser.add_lightning_class_args(Report, "report")
        parser.link_arguments("model.name", "data.like")
        parser.link_arguments("data.augment_splits", "model.augment_splits")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def add_run(self, parser: LightningArgumentParser) -> None:
        """Adds what every run has, whatever it trains."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        best = {"monitor": self.monitor, "mode": "max", "filename": "best", "enable_version_counter": False}
        best["save_on_train_epoch_end"] = False
        parser.set_defaults({f"checkpoint.{k}": v for k, v in best.items()})
        parser.add_lightning_class_args(KeepLast, "keep_last")
        parser.add_lightning_class_args(PositionsPicture, "positions")
        parser.set_defaults({"trainer.default_root_dir": "runs/default", "trainer.num_sanity_val_steps": 0})
        parser.link_arguments(
            "trainer.default_root_dir", "checkpoint.dirpath", lambda root: str(Path(root) / "checkpoints")
        )
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and finds the checkpoint that ``last`` means."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        if config["ckpt_path"] == "last":
            config["ckpt_path"] = str(last_checkpoint(Path(config["trainer"]["default_root_dir"])))
        if config["ckpt_path"]:
            stored = check_checkpoint(Path(config["ckpt_path"]), config["model"]["name"])
            if self.config["subcommand"] == "predict":  # needs no training images
                config["data"]["names"] = stored["class_names"]

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs, alone in the run's folder, and says which checkpoint it is that does not fit."""
        try:
            with self._alone() if subcommand == "fit" else nullcontext():
                super()._run_subcommand(subcommand)
        except Timeout as error:
            raise ValueError(
                f"another training is running in {self.trainer.default_root_dir}: choose another "
                "--trainer.default_root_dir, or wait for its end"
            ) from error
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            path = self.config[subcommand]["ckpt_path"]
            raise CheckpointError(
                f"{path} does not fit the model that is configured: {reason(error)}"
            ) from error

    def _alone(self) -> AbstractContextManager[Any]:
        """The lock of the run's folder; it goes with the process, however that ends."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return nullcontext()
        folder = Path(self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock", timeout=0)

    def _parse_ckpt_path(self) -> None:
        """Leaves the model as the config and the flags say: it is compared with the checkpoint instead."""

    def before_instantiate_classes(self) -> None:
        """Logs ``fit`` as CSV and for TensorBoard, unless the user has chosen a logger; the rest prints."""
        config = self.config[self.subcommand]
        trainer = config["trainer"]
        if self.subcommand != "fit":
            self.save_config_callback = None
            trainer["logger"] = False
        elif trainer["logger"] in (None, True) and not trainer["fast_dev_run"]:
            trainer["logger"] = _loggers(Path(trainer["default_root_dir"]), resumed=bool(config["ckpt_path"]))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Adds what has no options."""
        config = self.config_init[self.subcommand]["trainer"]
        plugins = config["plugins"] or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        if config["sync_batchnorm"]:
            kwargs["plugins"].append(SyncBatchNorm())
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.progress_bar_callback is not None:
            trainer.callbacks.remove(trainer.progress_bar_callback)
            trainer.callbacks.insert(0, Progress())
        if trainer.fast_dev_run:  # leaves nothing, and an earlier run as it is
            writers = KeepLast | Report | PositionsPicture
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, writers)]
        if self.subcommand == "predict":
            trainer.callbacks.append(PredictionWriter())
        return trainer

    def before_validate(self) -> None:
        """Makes sure that there is something to measure.

        Raises:
            ValueError: If the weights, or those of the head, are random.
        """
        if self.config[self.subcommand]["ckpt_path"]:
            return
        if not self.model.hparams["pretrained"]:
            raise ValueError("random weights are not worth it: give --ckpt_path (last, or a file)")
        published = self.model.model.pretrained_cfg.get("num_classes")
        classes = self.model.hparams["num_classes"]
        if published != classes:
            raise ValueError(
                f"the published weights are for {published} classes, the data have {classes}: the "
                "head would be random; give --ckpt_path (last, or a file)"
            )

    before_test = before_predict = before_validate


def _loggers(root: Path, resumed: bool) -> list[dict[str, Any]]:
    """CSV in ``logs/`` (where Lightning also saves the config) and TensorBoard in ``tensorboard/``."""
    metrics = root / "logs" / "metrics.csv"
    if resumed and metrics.is_file():  # Lightning's logger deletes it
        number = len(list(metrics.parent.glob("metrics.until_resumed_*.csv"))) + 1
        metrics.rename(metrics.with_name(f"metrics.until_resumed_{number}.csv"))
    where = {"save_dir": str(root), "version": ""}
    return [
        {"class_path": f"pytorch_lightning.loggers.{name}", "init_args": {"name": folder, **where}}
        for name, folder in (("CSVLogger", "logs"), ("TensorBoardLogger", "tensorboard"))
    ]


def main(args: ArgsType = None) -> None:
    """Runs ``fit``, ``validate``, ``test`` or ``predict``."""
    parser = {"prog": "python -m train", "description": "Trains and uses image classifiers."}
    launch(TrainCLI, Classifier, Images, parser, args)


def launch(
    cli: type[TrainCLI],
    model: type[pl.LightningModule],
    data: type[pl.LightningDataModule],
    parser: dict[str, Any],
    args: ArgsType = None,
) -> None:
    """Runs a command line, quietly."""
    level = logging.INFO if getattr(rank_zero_only, "rank", 0) in (None, 0) else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        cli(
            model,
            data,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # model.opt: the positions need their own group
            save_config_kwargs={"overwrite": True},
            parser_kwargs=parser,
        )


def reason(error: BaseException) -> str:
    """One line; what a worker raised comes with its traceback, of which the last line says what was wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "Traceback" in str(error):
        return lines[-1].partition(": ")[2] or lines[-1]
    return lines[0] if len(lines) == 1 else " ".join(line.strip() for line in lines[:3])


def run(args: ArgsType = None, command: Callable[[ArgsType], None] = main) -> None:
    """The same, or another command line, with one line that says what is wrong instead of a traceback."""
    try:
        command(args)
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code)  # of the processes that ddp_fork and ddp_spawn have started
    except torch.OutOfMemoryError:
        sys.exit(
            "error: too little memory; choose a smaller data.batch_size, or model.grad_checkpointing true"
        )
    except (OSError, ValueError, RuntimeError, MisconfigurationException) as error:
        if os.environ.get("TRAIN_TRACEBACK"):
            raise
        sys.exit(f"error: {reason(error)} (TRAIN_TRACEBACK=1 shows where)")


if __name__ == "__main__":
    run()
