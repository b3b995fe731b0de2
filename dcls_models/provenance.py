"""The record that every results file carries, and what a results file must contain.

``train``, ``eval`` and ``hub`` write it here and read it here: files pass between them, not imports.
"""

import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

# What every results file contains, and every reader may rely on. Tasks add keys of their own.
RESULT_KEYS = {
    "task": "what was measured: accuracy, robustness, gradcam, throughput, ...",
    "command": "the command line that measured it, as it can be typed again",
    "date": "the day, as YYYY-MM-DD",
    "machine": "the accelerator, or the processor and the number of threads",
    "versions": "of Python and of the packages that matter, by name",
}
VERSIONS = ("torch", "timm", "dcls_models")


def provenance(
    task: str, command: Sequence[str], device: str | torch.device = "cpu", packages: Sequence[str] = ()
) -> dict[str, Any]:
    """The record of a measurement: the keys of ``RESULT_KEYS``, in their order.

    Args:
        task: What was measured.
        command: The words of the command line.
        device: Where it ran.
        packages: Names of installed packages whose versions matter beside those of ``VERSIONS``.
    """
    return {
        "task": task,
        "command": shlex.join(command),
        "date": date.today().isoformat(),
        "machine": machine(device),
        "versions": versions(packages),
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """The versions of Python, of ``VERSIONS`` and of more ``packages``, by name."""
    return {"python": platform.python_version()} | {name: _version(name) for name in (*VERSIONS, *packages)}


def _version(name: str) -> str:
    if name == "torch":
        return torch.__version__  # with the build, which the metadata may lack
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine(device: str | torch.device = "cpu") -> str:
    """The accelerator's name, or the processor's with the number of threads in use."""
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def read_result(path: Path) -> dict[str, Any]:
    """A results file, with all the keys of ``RESULT_KEYS``.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not a results file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a results file: {error}") from error
    wanted = {key: dict if key == "versions" else str for key in RESULT_KEYS}
    missing = [
        k for k, kind in wanted.items() if not isinstance(result, dict) or not isinstance(result.get(k), kind)
    ]
    if missing:
        raise ValueError(
            f"{path} is not a results file, it lacks {', '.join(missing)}: give what a command of eval or "
            "train wrote with --output"
        )
    return dict(result)


def state_dict_sha256(model: nn.Module) -> str:
    """A hash of a model's parameters and buffers: names, types, shapes, values.

    It is the same for a checkpoint and for what was exported from it, whatever the format of the file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
