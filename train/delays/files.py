"""Files of spikes: what is read, and the spoken digits that are made where nothing is given."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from dcls_models.files import locked

_logger = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")


def made_speech(root: Path) -> Path:
    """The folder of spoken digits; they are made by a process of their own if they are not there.

    Raises:
        ValueError: If they cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not all((root / f"{split}.npz").is_file() for split in SPLITS):
        with locked(root / ".lock", f"another process makes the spoken digits in {root}: wait for its end"):
            _logger.info("making spoken digits in %s", root)
            command = [sys.executable, "-m", "train.speech", str(root), "--spikes"]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip().removeprefix("error: ").splitlines()[-1])
    return root


def read_npz(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes ``(N, channels, frames)`` and labels ``(N,)``."""
    with np.load(path) as data:
        return torch.from_numpy(data["spikes"]), torch.from_numpy(data["labels"]).long()
