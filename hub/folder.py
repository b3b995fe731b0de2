"""A folder of weights: what it may hold, how it is written, and whether it can be trusted.

Weights and config name each other: ``config.json`` has the sha256 of ``model.safetensors``
(``weights_sha256``), whose metadata has the sha256 of the rest of the config (``config_sha256``).
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open

import dcls_models  # noqa: F401  (registers the models)
from dcls_models.checkpoint import check_values
from dcls_models.config import CONFIG, read_config
from dcls_models.files import one_line, sha256_of
from dcls_models.spectrogram import LogMel
from hub import HubError

WEIGHTS, CARD = "model.safetensors", "README.md"
FILES = (  # patterns of what a folder may publish; nothing else of it is ever sent or fetched
    CONFIG,
    WEIGHTS,
    CARD,
    "model.onnx",
    "training.json",
    "conversion.json",
    "results.json",
    "results[0-9].json",
    "kernels.png",
    ".eval_results/*.yaml",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.tar")
ELSEWHERE = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
DEPTHS = ("depth", "depths", "layers")  # each counts at least one tensor
LIMITS = {"dilated_kernel_size": 255, "kernel_sizes": 255, "input_size": 4096, "img_size": 4096}


@dataclass(frozen=True)
class Checked:
    """A folder that was found sound."""

    path: Path
    config: dict[str, Any]
    metadata: dict[str, str]
    sha256: str  # of the weights
    parameters: int


def config_sha256(config: dict[str, Any]) -> str:
    """The sha256 of a config without ``weights_sha256``, whatever the order of its keys."""
    rest = {key: value for key, value in config.items() if key != "weights_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_ours(name: str) -> bool:
    """Whether a path in a repository or folder is one that may be published."""
    return any(fnmatch(name, pattern) for pattern in FILES)


def published_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that may be published, by their path in it."""
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {name: path for name, path in files.items() if is_ours(name)}


@contextmanager
def written_at_once(out: Path) -> Iterator[Path]:
    """A folder to write to; what is in it at the end is moved to ``out``, and nothing after an error.

    A new ``out`` appears as a whole. In one that exists, files of the same names are replaced, each as a
    whole, the weights last; other files stay.

    Raises:
        HubError: If ``out`` is no place for a folder, or there is no room.
    """
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise HubError(f"{out} is a file; give a folder to write to")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name[:100]}.", dir=out.parent) as temporary:
            part = Path(temporary) / "part"
            part.mkdir()
            yield part
            _move(part, out)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise HubError(
            f"{out} cannot be written ({reason}): make room there, or give another folder"
        ) from error


def _move(part: Path, out: Path) -> None:
    if not out.exists():
        part.replace(out)
        return
    files = {file: out / file.relative_to(part) for file in part.rglob("*") if file.is_file()}
    if inside := [target for target in files.values() if target.is_dir()]:
        raise HubError(f"{inside[0]} is a folder, where a file is to be written: choose another place")
    for file in sorted(files, key=lambda path: path.name == WEIGHTS):
        files[file].parent.mkdir(parents=True, exist_ok=True)
        file.replace(files[file])


def copy_files(files: dict[str, Path], out: Path) -> None:
    """Copies files to a folder, all or none."""
    with written_at_once(out) as part:
        for name, path in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, part / name)


def check_folder(folder: Path, root: Path | None = None) -> Checked:
    """Looks at a folder: no code is run, and tensors are read, one by one, only after their shapes are known.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        root: What symbolic links may point into; by default ``folder``.

    Returns:
        The folder with what its files say.

    Raises:
        HubError: If it is not what ``timm`` can load, or weights and config do not belong together.
        CheckpointError: If a weight is NaN or infinite.
    """
    if not folder.is_dir():
        raise HubError(f"there is no folder {folder}")
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to((root or folder).resolve()):
            raise HubError(
                f"{path} is a link to {path.resolve()}, outside the folder; such a folder is refused"
            )
    config = _read_config(folder / CONFIG)
    tensors, metadata = _read_header(folder)
    _check_config(config, tensors)
    _check_shapes(config, tensors)
    digest = sha256_of(folder / WEIGHTS)
    if config.get("weights_sha256", digest) != digest:
        raise HubError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} was written for: its sha256 is {digest}, "
            f"expected {config['weights_sha256']}. It was changed or damaged: download or export it again"
        )
    if metadata.get("config_sha256", config_sha256(config)) != config_sha256(config):
        raise HubError(
            f"{folder / CONFIG} was changed after {WEIGHTS} was written: download or export it again"
        )
    with safe_open(folder / WEIGHTS, "pt") as file:
        for key in tensors:
            check_values({key: file.get_tensor(key)}, str(folder / WEIGHTS))
    learned = {
        key: shape for key, (shape, _) in tensors.items() if not key.endswith(("_mean", "_var", "_tracked"))
    }
    return Checked(folder, config, metadata, digest, sum(map(math.prod, learned.values())))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise HubError(f"there is no {path}: expected a folder of python -m hub export or convert")
    if path.stat().st_size > 2**22:
        raise HubError(f"{path} has {path.stat().st_size} bytes, which no config needs; it is refused")
    try:
        config = read_config(path)
    except ValueError as error:
        raise HubError(str(error)) from error
    if not config["pretrained_cfg"].get("input_size"):
        raise HubError(f"{path}: input_size must be three whole numbers, got None")
    if "front_end" in config:
        try:
            LogMel(**config["front_end"])
        except (TypeError, ValueError) as error:
            raise HubError(f"{path}: front_end makes no spectrograms ({one_line(error)})") from error
    return config


def _read_header(folder: Path) -> tuple[dict[str, tuple[list[int], str]], dict[str, str]]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        if pickles:
            raise HubError(
                f"{folder} has {', '.join(pickles)} and no {WEIGHTS}; a pickle can run code and is refused. "
                "Ask for safetensors, or convert a file that you trust with python -m hub convert"
            )
        raise HubError(f"there is no {path}")
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
            tensors = {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise HubError(
            f"{path} is truncated, damaged or no safetensors file ({error}); download it again"
        ) from error


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield abs(value)


def _check_config(config: dict[str, Any], tensors: dict[str, tuple[list[int], str]]) -> None:
    """Refuses what would make building the model run away or load something else."""
    cfg, arguments = config["pretrained_cfg"], config.get("model_args", {})
    moved = sorted(key for key in ELSEWHERE if cfg.get(key))
    if moved:
        raise HubError(f"pretrained_cfg in {CONFIG} sends timm elsewhere for the weights: {', '.join(moved)}")
    elements = sum(math.prod(shape) for shape, _ in tensors.values())
    sizes = {"num_classes": config.get("num_classes", 0), **arguments, "input_size": cfg["input_size"]}
    for key, value in sizes.items():
        limit = LIMITS.get(key, len(tensors) if key in DEPTHS else elements)
        numbers = list(_numbers(value))
        largest = sum(numbers) if key in DEPTHS else max(numbers, default=0)
        if not largest <= limit or len(numbers) > 1000:
            raise HubError(f"{CONFIG} wants {key}={str(value)[:60]}, which {WEIGHTS} cannot be for; refused")


def _check_shapes(config: dict[str, Any], tensors: dict[str, tuple[list[int], str]]) -> None:
    name, cfg = config["architecture"], dict(config["pretrained_cfg"])
    cfg |= {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained_cfg=cfg, **config.get("model_args", {}))
    except Exception as error:  # whatever a model raises for arguments that nobody has checked
        raise HubError(
            f"timm cannot build {name} as {CONFIG} says ({type(error).__name__}: {one_line(error)})"
        ) from error
    if config.get("num_classes", model.num_classes) != model.num_classes:
        raise HubError(f"{CONFIG} says {config['num_classes']} classes, of a model with {model.num_classes}")
    expected = {key: list(value.shape) for key, value in model.state_dict().items()}
    wrong = sorted(
        key for key in expected.keys() | tensors if expected.get(key) != tensors.get(key, [None])[0]
    )
    if wrong:
        key = wrong[0]
        raise HubError(
            f"{WEIGHTS} does not fit {CONFIG} in {len(wrong)} of {len(expected)} tensors: {key} has the "
            f"shape {tensors.get(key, ['none'])[0]}, the config wants {expected.get(key, 'none')}"
        )
    of_numbers = (key for key, value in model.state_dict().items() if value.is_floating_point())
    if whole := [key for key in of_numbers if not tensors[key][1].startswith(("F", "BF"))]:
        raise HubError(f"{WEIGHTS} has {whole[0]} as {tensors[whole[0]][1]}, which holds no weights")
