"""What the ``config.json`` of a folder or repository says, and whether a model can be built and fed by it."""

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm

from .files import one_line

CONFIG = "config.json"
LOADING = {*inspect.signature(timm.create_model).parameters, "features_only", "pretrained_strict"}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
CROPS = ("center", "squash", "border")


def read_config(path: Path) -> dict[str, Any]:
    """A ``config.json`` as timm and ``python -m hub export`` write it.

    Raises:
        ValueError: If there is none, it lacks what every reader needs, or says what none can use.
    """
    if not path.is_file():
        raise ValueError(
            f"{path.parent} has no {path.name}: python -m hub export makes such a folder of a checkpoint"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({one_line(error)}): export or download it again") from error
    wanted = {"architecture": str, "pretrained_cfg": dict}
    whole = isinstance(config, dict) and all(isinstance(config.get(k), t) for k, t in wanted.items())
    if not whole or not isinstance(config.get("model_args", {}), dict):
        raise ValueError(
            f"{path} is not the config of a model: expected a dictionary with architecture (a name), "
            "pretrained_cfg and model_args (dictionaries), as python -m hub export writes it"
        )
    if not timm.is_model(config["architecture"]):
        raise ValueError(
            f"{path} names the architecture {config['architecture']!r}, which timm and dcls_models lack"
        )
    if taken := sorted(config.get("model_args", {}).keys() & LOADING):
        raise ValueError(f"model_args in {path} would tell timm how to load, not what: {', '.join(taken)}")
    values = {**config["pretrained_cfg"], **config}
    for key, (fits, expected) in _CHECKS.items():
        if values.get(key) is not None and not fits(values[key]):
            raise ValueError(f"{path}: {key} must be {expected}, got {str(values[key])[:60]}")
    names, classes = values.get("label_names"), values.get("num_classes")
    if names and classes is not None and len(names) != classes:
        raise ValueError(f"{path} has {len(names)} label_names for {classes} classes: export it again")
    return config


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) is int and n > 0 for n in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {  # what timm takes until the first image comes
    "num_classes": (lambda n: type(n) is int and n >= 0, "a whole number"),
    "label_names": (_are_names, "a list of names"),
    "input_size": (_is_size, "three whole numbers"),
    "test_input_size": (_is_size, "three whole numbers"),
    "mean": (_are_numbers, "numbers"),
    "std": (lambda value: _are_numbers(value) and min(value) > 0, "numbers above 0"),
    "crop_pct": (lambda n: _is_number(n) and n > 0, "a number above 0"),
    "interpolation": (INTERPOLATIONS.__contains__, f"one of {', '.join(INTERPOLATIONS)}"),
    "crop_mode": (CROPS.__contains__, f"one of {', '.join(CROPS)}"),
}
