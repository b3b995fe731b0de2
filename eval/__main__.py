"""The command line of ``eval``: each subcommand measures a model and writes what it found."""

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from glob import glob
from pathlib import Path
from typing import Any

import timm
import torch

import dcls_models
from dcls_models.loading import load_model
from eval.accuracy import accuracy, write_predictions
from eval.images import image_folder
from eval.pictures import draw_kernels, draw_predictions, predict


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """What every result says about how it came to be."""
    versions = {"torch": torch.__version__, "timm": timm.__version__, "dcls_models": dcls_models.__version__}
    return {
        "command": shlex.join(["python", "-m", "eval", *argv]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), **versions},
    }


def run_accuracy(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measures accuracy and writes it as JSON."""
    model = load_model(arguments.model, arguments.checkpoint).to(arguments.device)
    dataset = image_folder(arguments.data, model)
    found, logits = accuracy(model, dataset, arguments.batch_size, arguments.workers)
    name = str(arguments.checkpoint or arguments.model)
    result = {"model": name, **found, **provenance(argv)}
    print(f"{name}: top-1 {result['top1']} %, top-5 {result['top5']} % of {result['n']} images")
    if arguments.predictions:
        write_predictions(arguments.predictions, model, dataset, logits)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def run_kernels(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Draws the learned kernels."""
    drawn = draw_kernels(load_model(arguments.model, arguments.checkpoint), arguments.output)
    print(f"drew kernels of {drawn} layers: {arguments.output}")


def run_predict(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Says what single images show."""
    # not every shell expands patterns
    images = [Path(p) for given in arguments.images for p in (sorted(glob(given)) or [given])]  # noqa: PTH207
    found = predict(load_model(arguments.model, arguments.checkpoint), images)
    for image, best in zip(images, found, strict=True):
        print(f"{image}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in best))
    if arguments.output:
        draw_predictions(images, found, arguments.output)


def parser() -> argparse.ArgumentParser:
    """The subcommands and their options."""
    top = argparse.ArgumentParser(prog="python -m eval", description="Measures models.")
    commands = top.add_subparsers(dest="command", required=True)
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--model", help="timm name, local-dir:FOLDER or hf-hub:USER/NAME")
    which.add_argument("--checkpoint", type=Path, help="checkpoint of python -m train, instead or as well")

    command = commands.add_parser("accuracy", parents=[which], help="top-1 and top-5 on a folder of images")
    command.add_argument("--data", type=Path, required=True, help="folder of class folders, or one with val/")
    command.add_argument("--output", type=Path, help="JSON file to write")
    command.add_argument("--predictions", type=Path, help="CSV file to write: every image's prediction")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--workers", type=int, default=2, help="processes that read images")
    command.set_defaults(run=run_accuracy)

    command = commands.add_parser("kernels", parents=[which], help="a picture of the learned kernels")
    command.add_argument("--output", type=Path, required=True, help="PNG file to write")
    command.set_defaults(run=run_kernels)

    command = commands.add_parser("predict", parents=[which], help="what single images show")
    command.add_argument("images", nargs="+", help="image files, or patterns of them")
    command.add_argument("--output", type=Path, help="PNG file to write")
    command.set_defaults(run=run_predict)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(argv)
    for file in (arguments.output, getattr(arguments, "predictions", None)):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    arguments.run(arguments, argv)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:  # timm: RuntimeError for an unknown model
        sys.exit(f"error: {error}")
