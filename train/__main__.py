"""The command line: Lightning's, with the data's classes linked to the model and one folder per run."""

import logging
import os
import sys
from pathlib import Path

# OpenMP's threads spin while they wait: with another busy process that costs a small machine a factor of ten
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

from dcls_models import CheckpointError
from train.data import ImageFolders
from train.module import Classifier


class TrainCLI(LightningCLI):
    """LightningCLI whose run lives in ``trainer.default_root_dir``: checkpoints, logs and config."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What the module and the data support."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the checkpoints, and links what one part knows to what another needs."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "trainer.default_root_dir": "runs/default"})
        parser.set_defaults({"checkpoint.enable_version_counter": False})  # last.ckpt is of the last run
        parser.link_arguments(
            "trainer.default_root_dir", "checkpoint.dirpath", lambda root: str(Path(root) / "checkpoints")
        )
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Logs to ``logs/`` in the run's folder, as CSV, unless the user has chosen a logger."""
        trainer = self.config[self.subcommand]["trainer"]
        if trainer["logger"] in (None, True):
            root = {"save_dir": trainer["default_root_dir"], "name": "logs", "version": ""}
            trainer["logger"] = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": root}


def main(args: ArgsType = None) -> None:
    """Runs ``fit`` or ``validate``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    TrainCLI(
        Classifier,
        ImageFolders,
        args=args,
        seed_everything_default=0,
        auto_configure_optimizers=False,  # model.opt: the positions need their own group
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "python -m train"},
    )


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError, CheckpointError) as error:
        sys.exit(f"error: {error}")
