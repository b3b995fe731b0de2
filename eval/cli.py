"""The commands of ``eval``: each measures a model and writes a result."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

import torch

from dcls_models.files import check_writable, expand_home, locked
from dcls_models.options import Parser
from eval import delays, predict, processes, report
from eval.audio import tagging
from eval.classification import accuracy, robustness
from eval.interpretability import erf, gradcam, kernels
from eval.speed import growth, layers, long_kernels, models, throughput

CLASSIFIERS = (accuracy, tagging, robustness, gradcam, erf, kernels, predict)
COMMANDS = (*CLASSIFIERS, throughput, growth, layers, long_kernels, delays, models, report)
WRITTEN = ("output", "predictions", "per_class", "results_csv", "picture")  # options that name files to write


def parser() -> argparse.ArgumentParser:
    """The commands and their options; each module adds its own, with the function that runs it."""
    top = Parser(prog="python -m eval", description="Measures models.")
    commands = top.add_subparsers(dest="task", required=True)
    for module in COMMANDS:
        module.add_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(argv)
    expand_home(arguments)
    arguments.argv = argv
    for name in WRITTEN:
        if file := getattr(arguments, name, None):
            check_writable(file, f"--{name.replace('_', '-')}")
    _check_device(getattr(arguments, "device", "cpu"))
    with _output_lock(arguments):
        arguments.run(arguments)


def _check_device(name: str) -> None:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no CUDA device here")
    try:
        device = torch.device(name)
        if device.type == "cuda":  # nothing is put on it yet: each process of torchrun has its own
            there = (device.index or 0) < torch.cuda.device_count()
        else:
            there = torch.ones(1, device=device).cpu().item() == 1
    except (RuntimeError, AssertionError):
        there = False
    if not there:
        raise ValueError(f"--device {name}: torch has no such device here; expected cpu, cuda or cuda:NUMBER")


def _output_lock(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Lets no other evaluation write the same result; the first process holds the lock for all."""
    output = getattr(arguments, "output", None)
    if output is None or processes.rank_and_world()[0] > 0:
        return contextlib.nullcontext()
    taken = f"another evaluation is writing {output}: wait for its end, or give another --output"
    return locked(output.with_name(output.name + ".lock"), taken)
