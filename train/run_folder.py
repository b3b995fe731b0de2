"""The folder of a run: the checkpoint to go on from, its loggers, what an earlier run has left."""

import logging
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from dcls_models import CheckpointError
from dcls_models.loading import Run, read_run

_logger = logging.getLogger(__name__)
LAST = "last.ckpt"
METRICS = "metrics.csv"
PICTURES = ("curves", "confusion", "predictions_val", "positions", "delays", "raster")
EXPORTED = ("model.safetensors", "config.json", "training.json", "README.md", ".eval_results", "results.json")
LOGGED = ("logs", "tensorboard", "summary.csv", "predictions.csv")
PICTURED = (*(f"{name}.png" for name in PICTURES), "positions.gif")
LEFT = (*LOGGED, *PICTURED, *EXPORTED, "checkpoints")  # by a run
FOLDERS = ("logs", "tensorboard", ".eval_results", "checkpoints")  # of these; the others are files
WITHIN = (f"logs/{METRICS}", "logs/config.yaml", f"checkpoints/{LAST}", "checkpoints/best.ckpt")


def check_folder(root: Path) -> None:
    """Makes sure that nothing is in the way of what a run writes into a folder, before anything is done.

    Raises:
        ValueError: If a folder stands where a file is to be, or the other way round.
    """
    for path in (root, *(root / name for name in (*LEFT, *WITHIN))):
        wanted = "folder" if path == root or path.name in FOLDERS else "file"
        found = "folder" if path.is_dir() else "file" if path.exists() else "link to nothing"
        if found != wanted and (path.exists() or path.is_symlink()):
            raise ValueError(
                f"{path} is a {found}, but a training has a {wanted} there: move it away, or choose another "
                "--trainer.default_root_dir"
            )


def goes_on_in(root: Path, checkpoint: str | None) -> bool:
    """Whether a training goes on from a checkpoint of the run that is in the folder."""
    return checkpoint is not None and Path(checkpoint).resolve().parent == (root / "checkpoints").resolve()


def keep_metrics(root: Path) -> None:
    """Renames what Lightning's logger has written for the training that goes on; it would delete that."""
    metrics = root / "logs" / METRICS
    if metrics.is_file():
        number = next(i for i in count(1) if not metrics.with_name(_until(i)).exists())
        metrics.rename(metrics.with_name(_until(number)))


def _until(number: int) -> str:
    return f"metrics.until_resumed_{number}.csv"


def put_aside(root: Path, names: tuple[str, ...] = LEFT) -> None:
    """Moves what an earlier run has left in a folder into ``earlier_1``, ``earlier_2``, ... in it.

    Checkpoints come last. A process that was killed before has left a folder that lacks what is still to
    move, and the next one goes on with it: an earlier run stays in one place.
    """
    if any((root / "checkpoints").glob("*.ckpt")):
        left = [name for name in names if (root / name).exists()]
        folders = (root / f"earlier_{i}" for i in count(1))
        aside = next(p for p in folders if not p.exists() or (_holds(p, LEFT) and not _holds(p, left)))
        aside.mkdir(exist_ok=True)
        for name in left:
            (root / name).rename(aside / name)
        _logger.warning("what an earlier run has left is now in %s", aside)


def _holds(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).exists() for name in names)


def sweep(root: Path) -> None:
    """Removes what a process that was killed was writing beside the files of a run."""
    for path in (root / name for name in (*LEFT, *WITHIN, "checkpoints/*")):
        for part in path.parent.glob(f".{path.name}.*.part*"):
            part.unlink(missing_ok=True)


def last_checkpoint(root: Path) -> Path:
    """The checkpoint that ``--ckpt_path last`` means.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = root / "checkpoints" / LAST
    if not path.is_file():
        others = [*root.glob("checkpoints/*.ckpt"), *sorted(root.glob(f"earlier_*/checkpoints/{LAST}"))]
        hint = f" (there are {', '.join(map(str, others))})" if others else ""
        raise FileNotFoundError(
            f"there is no checkpoint {path}{hint}; without --ckpt_path the training starts at its beginning"
        )
    return path


def check_checkpoint(path: Path, name: str) -> Run:
    """Makes sure that a checkpoint is whole, of this trainer and of this model, before anything else is done.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it cannot be used.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    run = read_run(path)
    if run.model.get("name") != name:
        raise CheckpointError(
            f"{path} is of a {run.model.get('name')}, not of a {name}; choose the same model.name"
        )
    return run


SPLIT = "cannot go on with another split: it would validate on images that it has learned"
# Options with which a training cannot go on if they are others than in its checkpoint, and why.
FIXED = {
    "model.opt": "cannot go on with another optimizer",
    "model.head_only": "cannot go on with other parameters in the optimizer",
    "model.layer_decay": "cannot go on with other groups in the optimizer",
    "model.blocks_per_layer": "cannot go on with other groups in the optimizer",
    "data.val_share": SPLIT,
    "data.files_sha256": SPLIT,
}
# Options that decide only on how a training starts, or that the model's and the data's checks compare.
STARTING = {"pretrained", "warm_start", "num_classes", "class_names", "names", "predict_root", "held_out"}


def compare(part: str, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Says which options have changed since a checkpoint was written.

    Args:
        part: ``model`` or ``data``.
        stored: Its options in the checkpoint.
        now: Its options of now.

    Raises:
        ValueError: If a training cannot go on with one of them.
    """
    for key in sorted((stored.keys() & now.keys()) - STARTING):
        if _plain(stored[key]) == _plain(now[key]):
            continue
        if key == "files_sha256":  # of the images that were trained on
            _logger.warning("the files to train on are others than those of the checkpoint")
            if not stored.get("held_out"):
                continue
        changed = f"{part}.{key} was {stored[key]!r}, now it is {now[key]!r}"
        reason = FIXED.get(f"{part}.{key}")
        if key == "ema_decay" and None in (stored[key], now[key]):
            reason = "cannot begin or stop averaging"
        if reason:
            raise ValueError(f"a training {reason}: {changed}; start afresh, or give the option as it was")
        _logger.warning("changed since the checkpoint: %s", changed)


def _plain(value: Any) -> Any:
    """A value as YAML would give it back."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
