"""The command line of ``eval``: each subcommand measures a model and writes what it found."""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from glob import glob
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would report on itself

import timm
import torch

import dcls_models
from dcls_models.loading import load_model
from eval import layers, throughput
from eval.accuracy import accuracy, write_predictions
from eval.images import image_folder
from eval.pictures import draw_kernels, draw_predictions, predict

LAYER_PARTS = ("construction", "convolution", "peers")


def provenance(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """What every result says about how it came to be."""
    versions = {"torch": torch.__version__, "timm": timm.__version__, "dcls_models": dcls_models.__version__}
    return {
        "command": shlex.join(["python", "-m", "eval", *argv]),
        "date": date.today().isoformat(),
        "machine": machine(getattr(arguments, "device", "cpu")),
        "versions": {"python": platform.python_version(), **versions},
    }


def machine(device: str) -> str:
    """The accelerator's name, or the processor's with the number of threads used."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a result."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def run_accuracy(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measures accuracy and writes it as JSON."""
    model = load_model(arguments.model, arguments.checkpoint).to(arguments.device)
    dataset = image_folder(arguments.data, model)
    found, logits = accuracy(model, dataset, arguments.batch_size, arguments.workers)
    name = str(arguments.checkpoint or arguments.model)
    result = {"model": name, **found, **provenance(arguments, argv)}
    print(f"{name}: top-1 {result['top1']} %, top-5 {result['top5']} % of {result['n']} images")
    if arguments.predictions:
        write_predictions(arguments.predictions, model, dataset, logits)
    if arguments.output:
        write_json(arguments.output, result)


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


def run_throughput(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Times models side by side."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    settings = throughput.Settings(
        arguments.batch_size,
        arguments.img_size,
        arguments.device,
        getattr(torch, arguments.dtype),
        arguments.compile,
        arguments.pretrained,
    )
    rows = throughput.throughput(arguments.models, arguments.modes, settings, arguments.rounds)
    print(throughput.table(rows))
    if arguments.output:
        write_json(arguments.output, {"rows": rows, **provenance(arguments, argv)})
    if arguments.picture:
        throughput.draw(rows, arguments.picture)


def run_layers(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Times kernel construction and depthwise convolution."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    device, rounds, parts = arguments.device, arguments.rounds, arguments.parts
    dtype = getattr(torch, arguments.dtype)
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in LAYER_PARTS}
    if "construction" in parts:
        found["construction"] = layers.construction(device, rounds, arguments.models[0], arguments.authors)
    if "convolution" in parts:
        found["convolution"] = layers.convolution(
            device, rounds, arguments.batch_sizes, arguments.kernel_sizes, dtype, arguments.models
        )
    if "peers" in parts:
        found["peers"] = layers.peers(device, rounds, arguments.models[0])
    print(layers.tables(found))
    if arguments.output:
        write_json(arguments.output, {**found, **provenance(arguments, argv)})
    if arguments.picture:
        layers.draw(found, arguments.picture)


def at_least_1(text: str) -> int:
    """A whole number for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def odd(text: str) -> int:
    """The side of a kernel that has a centre."""
    number = at_least_1(text)
    if number % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be odd, got {number}")
    return number


def png(text: str) -> Path:
    """A picture to write."""
    path = Path(text)
    if path.suffix != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png, got {text}")
    return path


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
    command.add_argument("--batch-size", type=at_least_1, default=64)
    command.add_argument("--workers", type=int, default=2, help="processes that read images")
    command.set_defaults(run=run_accuracy)

    command = commands.add_parser("kernels", parents=[which], help="a picture of the learned kernels")
    command.add_argument("--output", type=png, required=True, help="PNG file to write")
    command.set_defaults(run=run_kernels)

    command = commands.add_parser("predict", parents=[which], help="what single images show")
    command.add_argument("images", nargs="+", help="image files, or patterns of them")
    command.add_argument("--output", type=png, help="PNG file to write")
    command.set_defaults(run=run_predict)

    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    timed.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    timed.add_argument("--threads", type=at_least_1, help="of the CPU")
    timed.add_argument("--rounds", type=at_least_1, default=15, help="runs of each, in turns")
    timed.add_argument("--output", type=Path, help="JSON file to write")
    timed.add_argument("--picture", type=png, help="PNG file to write")

    command = commands.add_parser("throughput", parents=[timed], help="images per second, side by side")
    models_help = f"timm names, folders, Hub ids; the first is the baseline; {throughput.AUTHORS}NAME for"
    models_help += " a model of the zoo with the layers of the authors' package"
    command.add_argument("--models", nargs="+", required=True, metavar="MODEL", help=models_help)
    modes_help = "; ".join(f"{mode}: {text}" for mode, text in throughput.MODES.items())
    command.add_argument(
        "--modes",
        nargs="+",
        default=["train", "inference", "deployed"],
        choices=throughput.MODES,
        help=modes_help,
    )
    command.add_argument("--batch-size", type=at_least_1, default=4)
    command.add_argument("--img-size", type=at_least_1, help="pixels; each model's own by default")
    command.add_argument("--compile", action="store_true", help="torch.compile the models")
    command.add_argument("--pretrained", action="store_true", help="with weights, for --modes trimmed")
    command.set_defaults(run=run_throughput)

    command = commands.add_parser("layers", parents=[timed], help="kernel construction and convolution")
    command.add_argument("--parts", nargs="+", default=LAYER_PARTS, choices=LAYER_PARTS)
    command.add_argument("--no-authors", dest="authors", action="store_false", help="without their package")
    command.add_argument("--batch-sizes", nargs="+", type=at_least_1, default=layers.BATCH_SIZES)
    command.add_argument("--kernel-sizes", nargs="+", type=odd, default=layers.KERNEL_SIZES)
    command.add_argument("--models", nargs="+", default=layers.MODELS, help="of the zoo: whose shapes")
    command.set_defaults(run=run_layers)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(argv)
    for name in ("output", "predictions", "picture"):
        if file := getattr(arguments, name, None):
            if file.is_dir():
                raise ValueError(f"--{name} must be a file, got the folder {file}")
            file.parent.mkdir(parents=True, exist_ok=True)
    if getattr(arguments, "device", "cpu").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {arguments.device}: torch finds no CUDA device here")
    arguments.run(arguments, argv)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:  # timm: RuntimeError for an unknown model
        sys.exit(f"error: {error}")
