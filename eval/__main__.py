"""The command line of ``eval``: each subcommand measures a model and writes what it found."""

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would report on itself

import torch

from eval import accuracy, erf, gradcam, kernels, layers, pictures, report, robustness, throughput

COMMANDS = (accuracy, robustness, gradcam, erf, kernels, pictures, throughput, layers, report)
WRITTEN = ("output", "predictions", "per_class", "results_csv", "picture", "json")  # files to write


def parser() -> argparse.ArgumentParser:
    """The subcommands and their options; each module adds its own, with the function that runs it."""
    top = argparse.ArgumentParser(prog="python -m eval", description="Measures models.")
    commands = top.add_subparsers(dest="task", required=True)
    for module in COMMANDS:
        module.add_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(argv)
    arguments.argv = argv
    for name in WRITTEN:
        if file := getattr(arguments, name, None):
            if file.is_dir():
                raise ValueError(f"--{name} must be a file, got the folder {file}")
            file.parent.mkdir(parents=True, exist_ok=True)
    if getattr(arguments, "device", "cpu").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {arguments.device}: torch finds no CUDA device here")
    arguments.run(arguments)


if __name__ == "__main__":
    try:
        main()
    # timm: RuntimeError for an unknown model, AssertionError for an image size that does not fit it
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        sys.exit(f"error: {error}")
