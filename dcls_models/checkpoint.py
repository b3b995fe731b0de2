"""The authors' checkpoints: reading, checking and converting them, never running code from them.

A file of theirs wraps its weights (under ``model``, or ``state_dict_ema`` beside an
``argparse.Namespace`` and another set of weights), names them as the original repositories do, and
stores the positions that a stage shares once per layer, with the rows in their order.
"""

import argparse
import errno
import logging
import zipfile
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict
from torch import nn

from ._timm import clean_state_dict, download_cached_file
from .files import one_line, replaced, sha256_of, some
from .layers.positions import translate_reference_keys

_logger = logging.getLogger(__name__)

StateDict = dict[str, Any]
Rename = Callable[[StateDict, nn.Module], StateDict]

_HINT = (
    "Create the model that it was made from, with its num_classes, depths, dims, kernel_count, "
    "dilated_kernel_size and version"
)

_LOCAL_NAMES = ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "ENOTDIR", "ENOENT", "EEXIST")
_LOCAL = {getattr(errno, name) for name in _LOCAL_NAMES if hasattr(errno, name)}  # Windows lacks some
_BY_HAND = (
    'pretrained_cfg_overlay={"file": PATH} (python -m train: '
    '--model.model_kwargs.pretrained_cfg_overlay \'{"file": "PATH"}\')'
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used: what was found, what was expected, and what to do."""


def fetch(url: str, cache_dir: str | Path | None = None) -> Path:
    """Downloads a checkpoint into timm's cache, or finds it there, and makes sure that it is still the same.

    The authors publish no hashes. The sha256 of the first download that could be read is therefore kept
    beside the file, and every later use is checked against it.

    Args:
        url: Address of the checkpoint.
        cache_dir: Where timm keeps it; by default torch's hub folder.

    Returns:
        The cached file.

    Raises:
        CheckpointError: If it cannot be downloaded, kept or read, or has changed since the first download.
    """
    try:
        path = Path(download_cached_file(url, check_hash=False, cache_dir=cache_dir))
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        local = isinstance(error, OSError) and error.errno in _LOCAL
        remedy = "set TORCH_HOME to a folder with room" if local else "try again later"
        raise CheckpointError(
            f"cannot download {url} ({one_line(error)}); {remedy}, or download it by hand and give {_BY_HAND}"
        ) from error
    record, digest = path.with_name(path.name + ".sha256"), sha256_of(path)
    try:
        known = record.read_text(encoding="utf-8").strip() if record.exists() else None
    except OSError as error:
        _logger.warning("%s is not checked against %s: %s", path, record.name, one_line(error))
        return path
    if known is None:
        _record_first(path, record, digest)
    elif digest != known:
        raise CheckpointError(
            f"{path} has changed: its sha256 is {digest}, at the first download from {url} it "
            f"was {known}. Delete it to download it again, and {record.name} too if the authors "
            "have replaced the file"
        )
    return path


def _record_first(path: Path, record: Path, digest: str) -> None:
    try:
        read(path)
    except CheckpointError:
        with suppress(OSError):
            path.unlink()  # a damaged download must not stay in the cache
        raise
    try:
        with replaced(record) as part:
            part.write_text(digest + "\n", encoding="utf-8")
    except OSError as error:
        _logger.warning("later changes of %s will not be noticed: %s", path, one_line(error))
    _logger.info("sha256 of %s: %s", path, digest)


def read(path: str | Path) -> StateDict:
    """Reads the weights from a checkpoint file; the averaged ones (EMA) where it has both.

    Raises:
        CheckpointError: If the file is missing, damaged, no checkpoint, or holds code.
    """
    check_whole(path)
    try:
        state_dict = load_state_dict(str(path))
    except Exception as error:  # unpicklers raise anything when a file is damaged
        raise CheckpointError(
            f"{path} cannot be read as weights: it is truncated, no checkpoint, or holds objects other "
            f"than tensors (code is never run). Download it again. The reader says: {one_line(error)}"
        ) from error
    check_values(state_dict, str(path))
    return state_dict


def check_whole(path: str | Path) -> None:
    """Compares a file of ``torch.save`` with the checksums that it carries, which ``torch.load`` does not.

    Files of other formats carry none: they pass.

    Raises:
        CheckpointError: If they differ, or there is no such file.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except Exception as error:  # flipped bits make a zip look like anything
        damaged = one_line(error)
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged, its content is not what was written ({damaged})")


def check_values(state_dict: StateDict, source: str) -> None:
    """Makes sure that weights are plain tensors of real numbers that float32 can hold.

    Raises:
        CheckpointError: If one is complex, sparse, quantized, NaN or infinite, or there are none.
    """
    if not state_dict or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise CheckpointError(f"{source} holds no weights: expected a dictionary of tensors")
    for name, tensor in state_dict.items():
        if tensor.is_complex():
            raise CheckpointError(f"{source}: {name} is complex ({tensor.dtype}), weights must be real")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise CheckpointError(
                f"{source}: {name} is sparse, quantized, nested or empty of values: save it dense"
            )
        if tensor.is_floating_point() and not tensor.float().isfinite().all():  # torch cannot ask float8
            raise CheckpointError(
                f"{source}: {name} has NaN or infinite values, so it computes nothing of use"
            )


def allow_namespace() -> torch.serialization.safe_globals:
    """Inside this context weights-only loading accepts the ``argparse.Namespace`` in timm's checkpoints."""
    return torch.serialization.safe_globals([argparse.Namespace])


def convert(
    state_dict: StateDict, model: nn.Module, rename: Rename, head: str, headless: bool = False
) -> StateDict:
    """Turns a checkpoint of the authors into a state dict of ``model``; ours passes through, checked.

    Args:
        state_dict: As stored in the file, wrapped or not.
        model: The model that it is for.
        rename: timm's ``checkpoint_filter_fn`` of the family.
        head: Name of the classifier. It is loaded if the checkpoint has the model's number of classes, and
            left to timm, which drops it, if the model was asked for another number than was released.
        headless: Whether the classifier does not matter, because only features are wanted.

    Returns:
        A state dict with exactly the model's keys (apart from the classifier).

    Raises:
        CheckpointError: If copies of shared positions disagree, or keys or shapes are not the model's.
    """
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state_dict.get(key), dict):
            state_dict = clean_state_dict(state_dict[key])
            break
    check_values(state_dict, "the checkpoint")
    expected = model.state_dict()
    if not any(key in state_dict for key in expected if key.endswith("positions")):
        if model.num_classes == 0:  # timm's rename looks for a place for every key
            top = head.split(".")[0]
            state_dict = {k: v for k, v in state_dict.items() if not k.startswith(f"{top}.")}
        try:
            state_dict = _rename(state_dict, model, rename)
            for name, module in model.named_modules():
                if "positions" in module._parameters:
                    translate_reference_keys(module, state_dict, f"{name}." if name else "")
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    cfg = getattr(model, "pretrained_cfg", {})
    of_head = {k for k in expected.keys() | state_dict.keys() if k.startswith(f"{head}.")}
    if all(k in expected and k in state_dict and expected[k].shape == state_dict[k].shape for k in of_head):
        cfg["num_classes"] = model.num_classes  # timm would drop a head of another size than was released
    elif headless or model.num_classes != cfg["num_classes"]:
        expected = {k: v for k, v in expected.items() if k not in of_head}
        _check({k: v for k, v in state_dict.items() if k not in of_head}, expected, cfg)
        return state_dict
    _check(state_dict, expected, cfg)
    return state_dict


def _rename(state_dict: StateDict, model: nn.Module, rename: Rename) -> StateDict:
    """Renames the weights with timm's function and lets positions and sigmas follow their weight."""
    plain = {k: v for k, v in state_dict.items() if not k.endswith((".P", ".SIG"))}
    try:
        renamed = rename(dict(plain), model)
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint is not one of a {type(model).__name__} of this size ({error!r}). {_HINT}"
        ) from error
    new_names = dict(zip(plain, renamed, strict=True)) if len(plain) == len(renamed) else {}
    for old, new in new_names.items():  # timm reshapes what has the right number of elements
        if plain[old].squeeze().shape != renamed[new].squeeze().shape:
            theirs, ours = tuple(plain[old].shape), tuple(renamed[new].shape)
            raise ValueError(f"{old} has the shape {theirs} instead of {ours}. {_HINT}")
    for key, value in state_dict.items():
        if key not in plain:
            base, kind = key.rsplit(".", 1)
            weight = new_names.get(f"{base}.weight", f"{base}.weight")
            renamed[weight.removesuffix("weight") + kind] = value
    return renamed


def _check(state_dict: StateDict, expected: StateDict, cfg: dict[str, Any]) -> None:
    first_conv, channels = cfg.get("first_conv") or (), cfg["input_size"][0]
    adapted = {f"{name}.weight" for name in ([first_conv] if isinstance(first_conv, str) else first_conv)}

    def fits(key: str) -> bool:
        ours, theirs = expected[key].shape, state_dict[key].shape
        return ours == theirs or (key in adapted and theirs == (ours[0], channels, *ours[2:]))

    missing = sorted(expected.keys() - state_dict.keys())
    extra = sorted(state_dict.keys() - expected.keys())
    both = sorted(expected.keys() & state_dict.keys())
    wrong = [k for k in both if not fits(k)]
    whole = [k for k in both if expected[k].is_floating_point() and not state_dict[k].is_floating_point()]
    if missing or extra or wrong or whole:
        shapes = [f"{k} {tuple(state_dict[k].shape)} instead of {tuple(expected[k].shape)}" for k in wrong]
        lists = {
            "missing": missing,
            "not expected": extra,
            "of another shape": shapes,
            "in whole numbers": whole,
        }
        differences = "; ".join(f"{len(v)} {k} ({some(v)})" for k, v in lists.items() if v)
        raise CheckpointError(
            f"the checkpoint does not fit {cfg.get('architecture', 'the model')}: {differences}. {_HINT}"
        )
