"""The authors' checkpoints to folders that timm loads, with a report of what was found in them."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import timm
from timm.data import ImageNetInfo

from dcls_models.checkpoint import CheckpointError, read
from dcls_models.config import LOADING
from dcls_models.files import one_line, sha256_of
from dcls_models.loading import config_of
from dcls_models.optim import holders
from hub import HubError
from hub.export import export
from hub.folder import WEIGHTS


def convert(file: Path, name: str, out: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Converts a file of the authors and writes it to a folder, with the report as ``conversion.json``.

    Args:
        file: ``.pth`` or ``.pth.tar``.
        name: The model that it is for, such as ``convnext_dcls_tiny``.
        out: Folder to write to.
        arguments: More arguments of the model, for one of another size than was released.

    Returns:
        The report.

    Raises:
        HubError: If it holds another kind of model, or timm does not know the name.
        CheckpointError: If it cannot be read, or does not fit the model in every tensor.
    """
    if not timm.is_model(name) or "_dcls" not in name:
        raise HubError(f"there is no DCLS model {name!r}; timm.list_models('*dcls*') names them")
    if taken := sorted(arguments.keys() & LOADING):
        raise HubError(f"--model-kwargs are the model's own, not {', '.join(taken)}")
    stored = read(file)
    if all(key.startswith(("model.", "ema.")) for key in stored):
        raise HubError(
            f"{file} is a checkpoint of a training: python -m hub export --checkpoint {quote(str(file))}"
        )
    if any(key.startswith(("backbone.", "decode_head.", "roi_head.")) for key in stored):
        raise HubError(
            f"{file} holds a detector or a segmentation model ({', '.join(list(stored)[:2])}, ...); how the "
            "authors wrapped their backbones in those is not known, so only classifiers are converted"
        )
    cfg = config_of(name)
    classes = arguments.get("num_classes", cfg["num_classes"])
    overlay = {"file": str(file), "num_classes": classes}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()
    except CheckpointError:
        raise
    except Exception as error:  # whatever a model raises for arguments that nobody has checked
        raise HubError(f"{name} cannot be built with {arguments}: {one_line(error)}") from error
    if classes == 1000 and cfg["tag"] == "dcls_in1k":
        info = ImageNetInfo()
        model.pretrained_cfg["label_names"] = info.label_names()
        model.pretrained_cfg["label_descriptions"] = info.label_descriptions(as_dict=True)
    kept = model.state_dict()
    shared = [key for key in stored if key.endswith((".P", ".SIG"))]
    counted = {
        "source": file.name,
        "source_sha256": sha256_of(file),
        "model": name,
        "model_kwargs": arguments,
        "tensors_in_source": len(stored),
        "tensors_mapped": len(kept),
        "copies_of_positions_checked": len(shared),
        "positions_kept": sum(key.endswith(("positions", "sigma")) for key in kept),
        "parameters": sum(p.numel() for p in model.parameters()),
        **_positions(model),
    }
    report = json.dumps(counted, indent=2) + "\n"
    source = {"source": file.name, "source_sha256": counted["source_sha256"]}
    export(model, out, files={"conversion.json": report}, **source)
    return {**counted, "result_sha256": sha256_of(out / WEIGHTS)}


def _positions(model: Any) -> dict[str, int]:
    """How many positions there are, and how many lie outside their kernel (they are kept)."""
    total = outside = 0
    for holder in holders(model):
        for row, size in zip(holder.positions, holder.positions_size, strict=True):
            total += row.numel()
            outside += int((row.abs() > size // 2).sum())
    return {"positions": total, "positions_outside_the_kernel": outside}


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """``["depths=(2, 2, 6, 2)", "conv_mlp=True"]`` as arguments, as timm's scripts read them.

    Raises:
        HubError: If one is not KEY=VALUE.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key.isidentifier() or not equals:
            raise HubError(f"--model-kwargs takes KEY=VALUE, got {pair!r}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return arguments
