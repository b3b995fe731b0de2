"""The command line of ``eval``: each subcommand measures a model and writes what it found."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would report on itself

import torch
from filelock import FileLock, Timeout

from eval import accuracy, erf, gradcam, kernels, layers, pictures, ranks, report, robustness, throughput

COMMANDS = (accuracy, robustness, gradcam, erf, kernels, pictures, throughput, layers, report)
WRITTEN = ("output", "predictions", "per_class", "results_csv", "picture")  # files to write


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
    with _alone(arguments):
        arguments.run(arguments)


@contextmanager
def _alone(arguments: argparse.Namespace) -> Iterator[None]:
    """Lets nobody else write the same result."""
    output = getattr(arguments, "output", None)
    if output is None or ranks.rank_and_world()[0] > 0:
        yield
        return
    lock = output.with_name(output.name + ".lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ValueError(
            f"another evaluation is writing {output}: wait for its end, or give another --output"
        ) from error


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command with --output goes on where that takes long", file=sys.stderr)
        sys.exit(130)
    # timm: RuntimeError for an unknown model, AssertionError for an image size that does not fit it
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        sys.exit(f"error: {error}")
