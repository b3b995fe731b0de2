"""The JSON of a result: what was measured, and how it came to be. The report and the model cards read it."""

import argparse
import json
import os
import platform
import shlex
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch

import dcls_models


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every result says about how it came to be: ``task``, ``command``, ``date``, machine, versions."""
    versions = {"torch": torch.__version__, "timm": timm.__version__, "dcls_models": dcls_models.__version__}
    return {
        "task": arguments.task,
        "command": shlex.join(["python", "-m", "eval", *arguments.argv]),
        "date": date.today().isoformat(),
        "machine": machine(getattr(arguments, "device", "cpu")),
        "versions": {"python": platform.python_version(), **versions},
    }


def pictures(picture: Path | None, output: Path) -> list[str]:
    """The names of a result's pictures, relative to its JSON."""
    return [Path(os.path.relpath(picture, output.parent)).as_posix()] if picture else []


def machine(device: str) -> str:
    """The accelerator's name, or the processor's with the number of threads used."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a result, beside the old one first, so that there is always a whole file or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
