"""The command line: Lightning's, with the data's classes linked to the model and one folder per run."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn

# OpenMP's threads spin while they wait: with another busy process that costs a small machine a factor of ten
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dcls_models import CheckpointError
from train.checkpoints import AtomicCheckpointIO, KeepLast, check_checkpoint, last_checkpoint, put_aside
from train.data import Images
from train.models import SyncBatchNorm, has_weights
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


class Parser(LightningArgumentParser):
    """Says in one line what is wrong with the options; their usage would be hundreds."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        wrong = next((word.partition("=")[0] for word in message.split() if word.startswith("--")), "")
        near = get_close_matches(wrong, parser._option_string_actions, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        said = " ".join(message.split())
        self.exit(
            2, f"error: {said}{hint}; {parser.prog.replace(' [options]', '')} --help explains every option\n"
        )


class SaveConfig(SaveConfigCallback):
    """Saves the config as one to start from, without the checkpoint that this run goes on from."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Waits: a run that fails before its first update leaves the config of an earlier one."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Writes it."""
        if not self.already_saved:
            self.config = self.config.clone()
            self.config["ckpt_path"] = None
            super().setup(trainer, pl_module, "fit")


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
            if self.config["subcommand"] == "fit":
                _compare(stored, vars(config["model"]))
            if self.config["subcommand"] == "predict":  # needs no training images
                config["data"]["names"] = stored["class_names"]

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs, alone in the run's folder, and says which checkpoint it is that does not fit."""
        root = Path(self.trainer.default_root_dir)
        writes = subcommand == "fit" and self.trainer.is_global_zero and not self.trainer.fast_dev_run
        try:
            with _alone(root) if writes else nullcontext():
                if writes and not self.config[subcommand]["ckpt_path"]:
                    put_aside(root)
                super()._run_subcommand(subcommand)
        except Timeout as error:
            raise ValueError(
                f"another training is running in {root}: choose another "
                "--trainer.default_root_dir, or wait for its end"
            ) from error
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            path = self.config[subcommand]["ckpt_path"]
            raise CheckpointError(
                f"{path} does not fit the model that is configured: {shorten(reason(error), 300)}"
            ) from error

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

    def instantiate_classes(self) -> None:
        """Makes the parts; a model whose weights come from a checkpoint needs no others before."""
        config = self.config[self.subcommand]
        given = {k: config["model"][k] for k in ("pretrained", "warm_start") if k in config["model"]}
        if config["ckpt_path"]:
            for key in given:
                config["model"][key] = None
        super().instantiate_classes()
        for key, value in given.items():  # as they are saved with the run
            config["model"][key] = self.model.hparams[key] = value

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
        hp = self.model.hparams
        if not (hp["pretrained"] and has_weights(hp["name"], hp["model_kwargs"] or {})):
            raise ValueError("random weights are not worth it: give --ckpt_path (last, or a file)")
        published = self.model.model.pretrained_cfg.get("num_classes")
        classes = hp["num_classes"]
        if published != classes:
            raise ValueError(
                f"the published weights are for {published} classes, the data have {classes}: the "
                "head would be random; give --ckpt_path (last, or a file)"
            )

    before_test = before_predict = before_validate


def _alone(root: Path) -> AbstractContextManager[Any]:
    """The lock of the run's folder; it goes with the process, however that ends."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".lock", timeout=0)


def _compare(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Says what has changed since a checkpoint was written.

    Raises:
        ValueError: If that is the optimizer, whose state does not fit another.
    """
    for key in sorted(k for k in stored.keys() & now.keys() if stored[k] != now[k]):
        changed = f"model.{key} was {stored[key]!r}, now it is {now[key]!r}"
        if key == "opt":
            raise ValueError(f"a training cannot go on with another optimizer: {changed}")
        _logger.warning("changed since the checkpoint: %s", changed)


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
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
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
