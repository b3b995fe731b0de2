"""One way to a model: a timm name, a folder, a Hub id, or a checkpoint of this project's trainer."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from .checkpoint import CheckpointError

WEIGHTS_FROM = ("pretrained_cfg", "pretrained_cfg_overlay")  # where a training started from


def load_model(
    name: str | None = None,
    checkpoint: str | Path | None = None,
    ema: bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Creates a model with its weights, in eval mode.

    Args:
        name: A timm name (``convnext_dcls_tiny``), a folder (``local-dir:FOLDER``) or a Hub id
            (``hf-hub:USER/NAME``), all with their pretrained weights; not needed with a checkpoint.
        checkpoint: A checkpoint of ``python -m train``, which knows its model.
        ema: Which weights of a checkpoint: the averaged ones (EMA) or the raw ones; by default the averaged
            ones where it has both, as for the authors' files.
        **kwargs: More arguments for ``timm.create_model``.

    Returns:
        The model. ``pretrained_cfg`` holds what its preprocessing needs, and ``label_names`` if they are
        known.

    Raises:
        CheckpointError: If the checkpoint is not one of the trainer's, is for another model than ``name``, or
            has no averaged weights.
        ValueError: If neither is given, or ``name`` is not one.
    """
    if checkpoint is not None:
        return _from_trainer(Path(checkpoint), name, ema, **kwargs).eval()
    if name is None:
        raise ValueError("give the name of a model, or a checkpoint")
    folder = Path(name.removeprefix("local-dir:"))
    if folder.is_file():
        raise ValueError(f"{name} is a file, not a name: give it as the checkpoint (eval: --checkpoint)")
    if name.startswith("local-dir:") and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: python -m hub export makes such a folder of a checkpoint"
        )
    check_known(name)
    return timm.create_model(name, pretrained=True, **kwargs).eval()


def check_known(name: str) -> None:
    """Makes sure that timm knows a name; what a folder or the Hub holds is seen when it is read.

    Raises:
        ValueError: If it does not.
    """
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm knows no model {name!r}; timm.list_models('*dcls*') lists those of the zoo")


def _from_trainer(path: Path, name: str | None, ema: bool | None, **kwargs: Any) -> nn.Module:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        run, data = checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
        raw, averaged = (_below(prefix, checkpoint["state_dict"]) for prefix in ("model.", "ema.module."))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of python -m train ({type(error).__name__}). A file of the "
            "authors or of timm's train.py loads with timm.create_model(NAME, pretrained=True, "
            'pretrained_cfg_overlay={"file": PATH}), an exported folder as local-dir:FOLDER'
        ) from error
    if name is not None and name != run["name"]:
        raise CheckpointError(f"{path} holds a {run['name']}, not a {name}")
    if ema and not averaged:
        raise CheckpointError(
            f"{path} has no averaged weights; train with model.ema_decay, or load the raw ones"
        )
    preprocessing = {k: data[k] for k in ("mean", "std", "interpolation", "crop_pct")}
    side = data["img_size"]
    cfg = {**preprocessing, "input_size": (3, side, side), "num_classes": run["num_classes"]}
    cfg |= {"label_names": run["class_names"], "pool_size": None}
    model = timm.create_model(
        run["name"],
        pretrained_cfg_overlay=cfg,
        num_classes=run["num_classes"],
        **{k: v for k, v in {**(run["model_kwargs"] or {}), **kwargs}.items() if k not in WEIGHTS_FROM},
    )
    model.load_state_dict(averaged if averaged and ema is not False else raw)
    return model


def _below(prefix: str, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
