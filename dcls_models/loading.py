"""One way to a model: a timm name, a folder, a Hub id, or a checkpoint of this project's trainer."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
from torch import nn

from ._timm import download_from_hf, load_model_config_from_hf, load_model_config_from_path
from .checkpoint import CheckpointError, StateDict, check_values, check_whole
from .config import CONFIG, read_config
from .files import one_line
from .spectrogram import LogMel

WEIGHTS_FROM = ("pretrained_cfg", "pretrained_cfg_overlay")  # where a training started from
_BUILDING = (AttributeError, LookupError, TypeError, ArithmeticError)  # for arguments that nobody has checked
_CLIENTS = {
    "huggingface_hub",
    "httpx",
    "httpx2",
    "httpcore",
    "requests",
    "urllib3",
}  # raise errors of their own


@dataclass(frozen=True)
class Run:
    """A checkpoint of ``python -m train``, taken apart; tensors are read from the file when they are used.

    Attributes:
        path: The file.
        model: The arguments of the LightningModule.
        data: The arguments of the LightningDataModule; none in a checkpoint of a task without one.
        raw: The weights of the model.
        averaged: Their running average (EMA); none if it was not kept.
        epoch: Epochs that were finished.
        global_step: Updates that were made.
    """

    path: Path
    model: dict[str, Any]
    data: dict[str, Any]
    raw: StateDict
    averaged: StateDict
    epoch: int
    global_step: int

    def weights(self, ema: bool | None = None) -> StateDict:
        """The averaged weights, or the raw ones; by default the averaged ones where there are any.

        Raises:
            CheckpointError: If averaged weights are asked for and there are none, or weights are no numbers.
        """
        if ema and not self.averaged:
            raise CheckpointError(
                f"{self.path} has no averaged weights; train with model.ema_decay, or load the raw ones"
            )
        weights = self.averaged if self.averaged and ema is not False else self.raw
        check_values(weights, str(self.path))
        return weights

    def load_into(self, model: nn.Module, ema: bool | None = None) -> None:
        """Loads ``weights`` into the model that they are of.

        Raises:
            CheckpointError: As ``weights``, or if they are not of this model.
        """
        weights = self.weights(ema)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            said = " ".join(str(error).partition(":")[2].split())
            raise CheckpointError(
                f"{self.path} has other weights than its own options say: {said}"
            ) from error


def load_model(
    name: str | None = None,
    checkpoint: str | Path | Run | None = None,
    ema: bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Creates a model with its weights, in eval mode.

    Args:
        name: A timm name (``convnext_dcls_tiny``), a folder (``local-dir:FOLDER``) or a Hub id
            (``hf-hub:USER/NAME``), all with their pretrained weights; not needed with a checkpoint.
        checkpoint: A checkpoint of ``python -m train``, which knows its model; or a ``Run``.
        ema: Which weights of a checkpoint: the averaged ones (EMA) or the raw ones; by default the averaged
            ones where it has both, as for the authors' files.
        **kwargs: More arguments for ``timm.create_model``.

    Returns:
        The model. ``pretrained_cfg`` holds what its preprocessing needs, and ``label_names`` if they are
        known. A model of sounds has its ``front_end``, a ``LogMel``.

    Raises:
        CheckpointError: If the checkpoint is not one of the trainer's, is damaged, is for another model than
            ``name``, or has no averaged weights; if weights are complex, NaN or infinite.
        ValueError: If neither is given, or ``name`` is not one.
    """
    if checkpoint is not None:
        run = checkpoint if isinstance(checkpoint, Run) else read_run(checkpoint)
        return _from_run(run, name, ema, **kwargs).eval()
    if name is None:
        raise ValueError("give the name of a model, or a checkpoint")
    config_of(name)
    try:
        model = timm.create_model(name, pretrained=True, **kwargs).eval()
    except _BUILDING as error:
        raise ValueError(f"timm cannot build {name} ({type(error).__name__}: {one_line(error)})") from error
    except RuntimeError as error:
        if not str(error).startswith("No pretrained weights exist"):
            raise
        raise ValueError(
            f"{name} has no published weights: give a checkpoint, or a folder of python -m hub export"
        ) from error
    check_values(model.state_dict(), name)
    if _stored_front_end(name):
        model.front_end = LogMel(**front_end_settings(name))
    return model


def check_takes(model: nn.Module, example: torch.Tensor, otherwise: str) -> None:
    """Makes sure that a model takes such an input; where shapes alone pass, nothing is computed.

    Raises:
        ValueError: With the message ``otherwise`` and the reason.
    """
    with torch.no_grad():
        try:
            copy.deepcopy(model).eval().to("meta")(example.to("meta"))
        except (NotImplementedError, AssertionError, RuntimeError):  # also of what needs values
            try:
                copy.deepcopy(model).eval()(example)
            except (AssertionError, RuntimeError) as error:
                raise ValueError(f"{otherwise} ({one_line(error)})") from error


def why_no_download(error: Exception) -> str | None:
    """Why timm, huggingface_hub or the authors' server gave no file; None for an error of another kind."""
    package = type(error).__module__.partition(".")[0]
    if package in _CLIENTS or isinstance(error, URLError) or str(error).startswith("cannot download"):
        return one_line(error).partition("; try again")[0]
    return why_no_download(error.__cause__) if isinstance(error.__cause__, Exception) else None


def config_of(name: str) -> dict[str, Any]:
    """What is known about a model by its name alone: timm's ``pretrained_cfg``, with ``label_names`` if any.

    Args:
        name: What ``--model`` takes: a timm name, ``local-dir:FOLDER`` or ``hf-hub:USER/NAME``.

    Raises:
        ValueError: If timm knows no such name or tag, or the folder or repository has no config or one that
            timm cannot read; in one line.
    """
    source, colon, place = name.partition(":")
    if not colon:
        return _registered(name)
    if source == "local-dir":
        read_config(Path(place) / CONFIG)
        return dict(load_model_config_from_path(place)[0])
    if source != "hf-hub":
        raise ValueError(f"{name!r} is no model: expected a timm name, local-dir:FOLDER or hf-hub:USER/NAME")
    try:
        file = download_from_hf(place, CONFIG)
    except (OSError, ValueError) as error:  # huggingface_hub's errors are of both kinds
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"cannot get the config of {name} ({reason})") from error
    read_config(Path(file))
    return dict(load_model_config_from_hf(place)[0])


def front_end_settings(name: str | None, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of ``LogMel`` that a model expects, with changes; the authors' where it does not say.

    Args:
        name: What ``--model`` takes; None for no model.
        changes: Some of the settings.

    Raises:
        ValueError: If there are no such settings, or they are impossible.
    """
    settings = {**(_stored_front_end(name) if name else {}), **(changes or {})}
    try:
        return LogMel(**settings).settings
    except TypeError as error:
        raise ValueError(
            f"no settings of LogMel: {settings}; they are {', '.join(LogMel().settings)} ({one_line(error)})"
        ) from error


def takes_sounds(name: str | None, checkpoint: str | Path | None = None) -> bool:
    """Whether a model, as ``load_model`` loads it, takes spectrograms of sounds: has a ``front_end``.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ValueError: If there is no such model.
    """
    if checkpoint is not None:
        return "front_end" in read_run(checkpoint).model
    if name is None or ":" in name:
        return bool(name and _stored_front_end(name))
    config_of(name)
    with torch.device("meta"):
        return hasattr(timm.create_model(name.partition(".")[0]), "front_end")


def _stored_front_end(name: str) -> dict[str, Any]:
    """What the ``config.json`` of a folder or repository says of the front end; nothing of other models."""
    source, _, place = name.partition(":")
    files = {
        "local-dir": lambda: Path(place) / CONFIG,
        "hf-hub": lambda: Path(download_from_hf(place, CONFIG)),
    }
    settings = read_config(files[source]()).get("front_end", {}) if source in files else {}
    if not isinstance(settings, dict):
        raise ValueError(f"front_end in the {CONFIG} of {name} is no dictionary: export the model again")
    return settings


def _registered(name: str) -> dict[str, Any]:
    if Path(name).is_file():
        raise ValueError(f"{name} is a file, not a name: give it as the checkpoint (eval: --checkpoint)")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        if Path(name).is_dir() and name:
            raise ValueError(f"{name} is a folder, not a name: give local-dir:{name}")
        raise ValueError(f"timm knows no model {name!r}; timm.list_models('*dcls*') lists those of the zoo")
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
        raise ValueError(f"{base} has no weights {tag!r}; published are: {tags}") from error
    return dict(cfg.to_dict()) if cfg else {}


def read_run(path: str | Path) -> Run:
    """Reads a checkpoint of ``python -m train``, once every checksum in it was found right.

    Raises:
        CheckpointError: If there is none, it is damaged, or it is another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        check_whole(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_checkpoint_before(path)}") from error
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        raw, averaged = (_below(prefix, stored["state_dict"]) for prefix in ("model.", "ema.module."))
        data = stored.get("datamodule_hyper_parameters", {})
        epoch, updates = stored["epoch"], stored["global_step"]
        return Run(path, dict(stored["hyper_parameters"]), dict(data), raw, averaged, epoch, updates)
    except Exception as error:  # unpicklers raise anything
        raise CheckpointError(
            f"{path} is not a checkpoint of python -m train ({type(error).__name__}). A file of the "
            "authors or of timm's train.py loads with timm.create_model(NAME, pretrained=True, "
            'pretrained_cfg_overlay={"file": PATH}), an exported folder as local-dir:FOLDER'
        ) from error


def _checkpoint_before(path: Path) -> str:
    """Which checkpoint to go on from when ``path`` is damaged."""
    beside = (other for other in path.parent.glob("*.ckpt") if other != path)
    for other in sorted(beside, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            check_whole(other)
        except CheckpointError:
            continue
        return f"The one before it that is whole is {other}"
    return f"There is no other checkpoint in {path.parent}: start again, or from a copy"


def _from_run(run: Run, name: str | None, ema: bool | None, **kwargs: Any) -> nn.Module:
    if name is not None and name != run.model.get("name"):
        raise CheckpointError(f"{run.path} holds a {run.model.get('name')}, not a {name}")
    front_end = LogMel(**run.model["front_end"]) if "front_end" in run.model else None
    try:
        cfg = _cfg_of_images(run) if front_end is None else _cfg_of_sounds(front_end)
        classes, labels = run.model["num_classes"], run.model["class_names"]
    except KeyError as error:
        raise CheckpointError(f"{run.path} is not of a classifier (it does not say {error})") from error
    cfg |= {"num_classes": classes, "label_names": labels, "pool_size": None}
    arguments = {**(run.model["model_kwargs"] or {}), **kwargs}
    model = timm.create_model(
        run.model["name"],
        pretrained_cfg_overlay=cfg,
        num_classes=classes,
        **{k: v for k, v in arguments.items() if k not in WEIGHTS_FROM},
    )
    run.load_into(model, ema)
    if front_end is not None:
        model.front_end = front_end
    return model


def _cfg_of_images(run: Run) -> dict[str, Any]:
    side = run.data["img_size"]
    return {
        "input_size": (3, side, side),
        "test_input_size": None,  # of the model's published weights, which were trained at another size
        "test_crop_pct": None,
        **{k: run.data[k] for k in ("mean", "std", "interpolation", "crop_pct")},
    }


def _cfg_of_sounds(front_end: LogMel) -> dict[str, Any]:
    level = {k: (front_end.settings[k],) for k in ("mean", "std")}
    return {"input_size": front_end.input_size, "crop_pct": 1.0, **level}


def _below(prefix: str, stored: StateDict) -> StateDict:
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
