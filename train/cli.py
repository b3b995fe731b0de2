"""The command line: Lightning's, with the data's classes linked to the model and one folder per run."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.callbacks import BatchSizeFinder, Checkpoint, LearningRateFinder, ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from dcls_models import CheckpointError
from dcls_models.files import check_writable, expand_home, locked, printable, replaced, write_json
from dcls_models.loading import Run
from dcls_models.provenance import provenance
from train.checkpoints import AtomicCheckpointIO, KeepLast
from train.configs import check_configs
from train.errors import first_cause, reason
from train.loggers import Waiting, loggers
from train.models import SyncBatchNorm
from train.positions import PositionsPicture
from train.progress import Progress
from train.ranges import Range
from train.run_folder import (
    LEFT,
    check_checkpoint,
    check_folder,
    compare,
    goes_on_in,
    keep_metrics,
    last_checkpoint,
    put_aside,
    sweep,
)
from train.summary import EpochLines, Summary, in_words

INSTEAD: dict[type, str] = {
    LearningRateFinder: "each group of the optimizer has its own rate and schedule; give model.lr",
    BatchSizeFinder: "the schedule depends on the number of batches; give data.batch_size",
}
TRAINER = {  # what Lightning itself lets pass: a negative clipping turns gradients round
    "gradient_clip_val": Range(0),
    "accumulate_grad_batches": Range(1),
    "val_check_interval": Range(0, above=True),
    "check_val_every_n_epoch": Range(1),
}
LACKING = re.compile(r"trainer\.callbacks.*the following arguments are required: (\w+)", re.DOTALL)
PACKAGES = ("torchvision", "pytorch-lightning", "torchmetrics")  # their versions are in a results file


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
        if lacking := LACKING.search(message):
            hint = f"; add --trainer.callbacks.{lacking[1]}=VALUE after it"
        said = " ".join(first_cause(message).split())
        self.exit(
            2, f"error: {said}{hint}; {parser.prog.replace(' [options]', '')} --help explains every option\n"
        )


class Begin(SaveConfigCallback):
    """Makes the folder the run's own with its first update; a run that fails before leaves it as it was.

    What another run has left is put aside, the loggers write, and the config is saved as one to start
    from, without the checkpoint that this run goes on from.
    """

    leaves_files = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Waits."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Begins, once."""
        if self.already_saved:
            return
        self.already_saved = True
        folder, config = trainer.log_dir, self.config.clone()
        if trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            if goes_on_in(root, config["ckpt_path"]):
                if trainer.loggers:
                    keep_metrics(root)
            else:
                put_aside(root, LEFT if trainer.loggers else (*LEFT, self.config_filename))
        for logger in trainer.loggers:
            if isinstance(logger, Waiting):
                logger.begin()
        if trainer.is_global_zero and folder is not None:
            config["ckpt_path"] = None
            Path(folder).mkdir(parents=True, exist_ok=True)
            with replaced(Path(folder) / self.config_filename) as part:  # in UTF-8 whatever the locale
                part.write_text(self.parser.dump(config, skip_none=False), encoding="utf-8")


class TrainCLI(LightningCLI):
    """LightningCLI whose run lives in ``trainer.default_root_dir``: checkpoints, logs, config, pictures.

    A task's own command line subclasses it, and says by which metric the best checkpoint is chosen.
    """

    monitor: str
    own: str  # an option of the model that those of other tasks have not
    task = "validation"  # in a results file
    resumed: Run | None = None  # the checkpoint that a training goes on from

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what every run has, whatever it trains."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        best = {"monitor": self.monitor, "mode": "max", "filename": "best", "enable_version_counter": False}
        best["save_on_train_epoch_end"] = False
        parser.set_defaults({f"checkpoint.{k}": v for k, v in best.items()})
        parser.add_lightning_class_args(KeepLast, "keep_last")
        parser.add_lightning_class_args(PositionsPicture, "positions")
        parser.set_defaults({"trainer.default_root_dir": "runs/default", "trainer.num_sanity_val_steps": 0})
        parser.set_defaults({"trainer.enable_model_summary": False})  # train.summary has its own
        parser.link_arguments(
            "trainer.default_root_dir", "checkpoint.dirpath", lambda root: str(Path(root) / "checkpoints")
        )
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, finds the checkpoint that ``last`` means, and tries the file to write."""
        check_configs(sys.argv[1:] if args is None else args)
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        for option in [key for key, value in config.items() if value == "" and key != "data.dataset"]:
            raise ValueError(f"{option} is empty: give a value, or leave the option out")
        for callback in config["trainer.callbacks"] or []:  # their config is written as YAML
            for key, value in vars(callback.get("init_args", Namespace())).items():
                callback.init_args[key] = value.value if isinstance(value, Enum) else value
        for part in ("trainer", "checkpoint", "model", "data"):
            expand_home(config[part])
        if config["ckpt_path"]:
            config["ckpt_path"] = os.path.expanduser(config["ckpt_path"])  # noqa: PTH111
        if config["ckpt_path"] == "last":
            config["ckpt_path"] = str(last_checkpoint(Path(config["trainer"]["default_root_dir"])))
        if config["ckpt_path"]:
            self.read_checkpoint(config, check_checkpoint(Path(config["ckpt_path"]), config["model"]["name"]))
        if output := config.get("output"):
            config["output"] = os.path.expanduser(output)  # noqa: PTH111
            check_writable(Path(config["output"]), "--output")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        """Lets ``validate`` and ``test`` write a results file, and say what they measured in a line."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.add_argument("--output", type=str | None, help="JSON file to write the numbers to")
            parser.set_defaults({"verbose": False})
        return parser

    def read_checkpoint(self, config: Any, run: Run) -> None:
        """Compares the arguments of a checkpoint's model with those of now, before anything is done.

        Raises:
            CheckpointError: If it is of another task.
        """
        if self.own not in run.model:
            raise CheckpointError(
                f"{run.path} is of another task (it has no model.{self.own}): give one of this command's"
            )
        if self.config["subcommand"] == "fit":
            self.resumed = run
            compare("model", run.model, vars(config["model"]))

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs, alone in the run's folder, and says which checkpoint it is that does not fit."""
        path = self.config[subcommand]["ckpt_path"]
        try:
            if subcommand == "fit" and self.trainer.is_global_zero and not self.trainer.fast_dev_run:
                with _locked_folder(Path(self.trainer.default_root_dir)):
                    super()._run_subcommand(subcommand)
            else:
                super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise CheckpointError(
                f"{path} does not fit the model that is configured: {shorten(reason(error), 300)}"
            ) from error

    def _parse_ckpt_path(self) -> None:
        """Leaves the model as the config and the flags say: it is compared with the checkpoint instead."""

    def before_instantiate_classes(self) -> None:
        """Only ``fit`` leaves logs and a config; the rest prints, whatever folder the checkpoint is from."""
        if self.subcommand != "fit":
            self.save_config_callback = None
            self.config[self.subcommand]["trainer"]["logger"] = False

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
        """Adds what has no options, and logs as CSV and for TensorBoard where no logger was chosen."""
        config = self.config_init[self.subcommand]["trainer"]
        if config["logger"] in (None, True) and not (config["fast_dev_run"] or config["barebones"]):
            kwargs["logger"] = loggers(Path(config["default_root_dir"]))
        plugins = config["plugins"] or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        if config["sync_batchnorm"]:
            kwargs["plugins"].append(SyncBatchNorm())
        trainer = super().instantiate_trainer(**kwargs)
        bar = trainer.progress_bar_callback
        if bar is not None and bar not in (config["callbacks"] or []):  # Lightning's own choice
            trainer.callbacks.remove(bar)
            trainer.callbacks.insert(0, Progress() if sys.stderr.isatty() else EpochLines())
        if not trainer.barebones:
            trainer.callbacks.append(Summary())
        if trainer.fast_dev_run or trainer.barebones:  # leaves nothing, and an earlier run as it is
            trainer.callbacks = [c for c in trainer.callbacks if not getattr(c, "leaves_files", False)]
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Makes the trainer, without what its options switch off; what cannot work here is refused.

        Raises:
            ValueError: If a callback would change what the schedule and the optimizer's groups depend on, or
                a number is out of range.
        """
        for option, allowed in TRAINER.items():
            value = config[option]
            if isinstance(value, int | float) and value not in allowed:
                raise ValueError(f"trainer.{option} must be {allowed}, got {value}")
        given = config["callbacks"] or []
        for callback in given if isinstance(given, list) else [given]:
            for kind, instead in INSTEAD.items():
                if isinstance(callback, kind):
                    raise ValueError(f"{kind.__name__} does not work here: {instead}")
        if config["enable_checkpointing"] is False or config["barebones"]:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        try:
            return super()._instantiate_trainer(config, callbacks)
        except TypeError as error:  # of devices that are no number, for instance
            raise ValueError(str(error)) from error

    def before_fit(self) -> None:
        """Compares the data with those that a checkpoint was trained on."""
        if self.resumed is None:
            return
        stored, now = (list(h.get("class_names") or ()) for h in (self.resumed.model, self.model.hparams))
        if stored == now:  # or else the module refuses the checkpoint, and says which classes
            compare("data", self.resumed.data, self.datamodule.hparams)

    def after_validate(self) -> None:
        """Says what was measured, and writes it if a file is asked for."""
        if not self.trainer.is_global_zero:
            return
        metrics = self.trainer.callback_metrics
        output = self.config[self.subcommand]["output"]
        if output:  # first: whoever reads what is printed may have gone
            write_json(Path(output), self.result({k: float(v) for k, v in metrics.items()}))
        print(in_words(metrics, self.model.hparams.get("num_classes")))
        if output:
            print(f"wrote {printable(output)}")

    after_test = after_validate

    def result(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What ``--output`` writes: a results file, as ``dcls_models.provenance`` defines it."""
        spec = sys.modules["__main__"].__spec__
        words = ["python", "-m", (spec.name if spec else "train").removesuffix(".__main__"), *sys.argv[1:]]
        scores = {k.partition("/")[2] or k: round(v, 4) for k, v in metrics.items()}
        model = self.config[self.subcommand]["ckpt_path"] or self.model.hparams["name"]
        record = provenance(self.task, words, self.trainer.strategy.root_device, PACKAGES)
        return {"model": model, **scores, **record}

    def before_validate(self) -> None:
        """Makes sure that there is something to measure.

        Raises:
            ValueError: If the weights are random.
        """
        if not self.config[self.subcommand]["ckpt_path"]:
            raise ValueError("random weights are not worth it: give --ckpt_path (last, or a file)")


@contextmanager
def _locked_folder(root: Path) -> Iterator[None]:
    """Nobody else trains in the run's folder; one that was made for nothing is gone again."""
    way_out = "choose another --trainer.default_root_dir"
    check_folder(root)
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".lock").touch()
    except OSError as error:
        raise OSError(f"cannot write to the run's folder {root} ({error.strerror}): {way_out}") from error
    try:
        with locked(root / ".lock", f"another training is running in {root}: {way_out}, or wait for its end"):
            sweep(root)
            yield
    finally:
        if is_new:
            with suppress(OSError):  # there is something in it
                root.rmdir()
