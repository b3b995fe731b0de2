"""Runs a command line: quietly, and with one line where something is wrong."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

# OpenMP's threads spin while they wait: with another busy process that costs a small machine a factor of ten
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import ArgsType
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from dcls_models import CheckpointError
from train.checkpoints import NotFiniteError
from train.cli import Begin, Parser, TrainCLI
from train.errors import DataError, reason

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
    r".*functional.all_gather is deprecated.*",
    r".*dirpath has changed.*",  # the best of another folder stays there
    r".*It is recommended to use `self.log\('(val|test|positions)/.*",  # the same on every process
)
EXPECTED = (
    *(OSError, ValueError, ModuleNotFoundError),
    *(MisconfigurationException, CheckpointError, DataError, NotFiniteError),
)
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
LOST = re.compile("remote worker|remote process|by peer")  # gloo's and NCCL's words
TALKATIVE = {
    "pytorch_lightning.utilities.rank_zero": logging.WARNING,  # tips, and which devices are not used
    "pytorch_lightning.trainer.connectors.checkpoint_connector": logging.WARNING,
    "huggingface_hub": logging.ERROR,  # each time that it tries again
}


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
    for name, quietest in TALKATIVE.items():
        logging.getLogger(name).setLevel(quietest)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        cli(
            model,
            data,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # model.opt: the positions need their own group
            save_config_callback=Begin,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs=parser,
        )


def run(args: ArgsType = None, *, command: Callable[[ArgsType], None]) -> None:
    """Runs a command line, with one line that says what is wrong instead of a traceback."""
    try:
        command(args)
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code)  # of the processes that ddp_fork and ddp_spawn have started
    except Exception as error:  # of callbacks, plugins and data sets that anybody brings
        if os.environ.get("TRAIN_TRACEBACK"):
            raise
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY in str(error):
            sys.exit(
                "error: too little memory; choose a smaller data.batch_size, or model.grad_checkpointing true"
            )
        if isinstance(error, EXPECTED):
            sys.exit(f"error: {reason(error)}")
        if isinstance(error, RuntimeError) and LOST.search(str(error)):
            sys.exit(
                "error: another process of this training has ended, and said why if it could; go on with "
                "--ckpt_path last"
            )
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        sys.exit(f"error: {kind}{reason(error)} (TRAIN_TRACEBACK=1 shows where)")
