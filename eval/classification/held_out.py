"""Which images a training has seen: those of its own folder, without the share that it held out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcls_models.folders import ClassFolders
from dcls_models.loading import read_run

RECORD = "training.json"  # which python -m hub export writes beside the weights


@dataclass(frozen=True)
class Training:
    """What a checkpoint, or the record beside exported weights, says about the images of the training.

    Attributes:
        root: The folder; None in a record that was exported.
        val_share: The share that was held out.
        files_sha256: The fingerprint of the folder of the images; None in older checkpoints.
        held_out: How many images were held out, 0 where they had a folder of their own; None likewise.
    """

    root: str | None
    val_share: float | None
    files_sha256: str | None
    held_out: int | None

    def was_on(self, reader: Any) -> bool:
        """Whether these are the images of the training, and of its validation if it held some out."""
        if not isinstance(reader, ClassFolders):
            return False
        if self.files_sha256:
            return reader.fingerprint() == self.files_sha256
        return self.root is not None and Path(self.root).resolve() == Path(reader.root).resolve()


def training_of(name: str | None, checkpoint: Path | None) -> Training | None:
    """What is known about the training of a model; None if nothing is."""
    if checkpoint:
        data = read_run(checkpoint).data
    else:
        file = Path(str(name).removeprefix("local-dir:"), RECORD)
        if not str(name).startswith("local-dir:") or not file.is_file():
            return None
        try:
            data = json.loads(file.read_text(encoding="utf-8"))["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no record of a training: export the model again") from error
    return Training(*(data.get(key) for key in ("root", "val_share", "files_sha256", "held_out")))


def held_out(reader: Any, training: Training | None, root: str | None) -> list[int]:
    """The images of a folder that a training held out, in their order.

    Raises:
        ValueError: If they cannot be known.
    """
    if training is None or training.val_share is None:
        raise ValueError(
            "--held-out needs a record of the training: give --checkpoint, or --model local-dir:FOLDER with "
            f"the {RECORD} that python -m hub export writes"
        )
    if training.held_out == 0:
        raise ValueError(
            "--held-out: the training held out no images of its folder, because it had a folder for "
            "validation: give that one without --held-out"
        )
    if not training.was_on(reader):
        raise ValueError(
            f"--held-out: {root} does not hold the images of the training, or some were added, renamed or "
            "removed since, so which of them were held out is not known"
        )
    return sorted(reader.hold_out(training.val_share)[1])
