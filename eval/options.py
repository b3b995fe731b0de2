"""Options that several subcommands share, and the types of their values."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcls_models.loading import load_model, why_no_download
from dcls_models.options import at_least_1, whole

side = whole(1, 4096)  # pixels of an image


def share(text: str) -> float:
    """A share of an image."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.05 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0.05 to 1, got {text!r}")
    return number


def odd(text: str) -> int:
    """The side of a kernel that has a centre."""
    number = at_least_1(text)
    if number % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be odd, got {text!r}")
    return number


def ending(*suffixes: str) -> Callable[[str], Path]:
    """A file to write, whose name says what it is."""

    def file(text: str) -> Path:
        path = Path(text)
        if path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"must end in {' or '.join(suffixes)}, got {text!r}")
        return path

    return file


def model_options() -> argparse.ArgumentParser:
    """``--model`` and ``--checkpoint``, for ``load_model``."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--model", help="timm name, local-dir:FOLDER or hf-hub:USER/NAME")
    parent.add_argument("--checkpoint", type=Path, help="checkpoint of python -m train, instead or as well")
    return parent


def baseline_option() -> argparse.ArgumentParser:
    """``--baseline``, a second model."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--baseline", help="model to compare with: as --model, or a checkpoint file")
    return parent


def load(
    name: str | None, checkpoint: Path | None = None, option: str = "--model", **kwargs: Any
) -> nn.Module:
    """``load_model``, where a download that fails says what can be given instead.

    Args:
        name: A timm name, a folder or a Hub id.
        checkpoint: Of the trainer.
        option: Of the command line, that gives the name.
        **kwargs: As in ``load_model``.

    Raises:
        ValueError: If neither is given, or weights cannot be downloaded; also what ``load_model`` raises.
    """
    if name is None and checkpoint is None:
        raise ValueError("say which model: --model NAME, or --checkpoint FILE")
    with named(name, option):
        return load_model(name, checkpoint, **kwargs)


@contextmanager
def named(name: str | None, option: str = "--model") -> Iterator[None]:
    """Says which option has named a model whose files cannot be had, and what can be given instead."""
    try:
        yield
    except Exception as error:
        reason = why_no_download(error)
        if reason is None:
            raise
        raise ValueError(
            f"{option} {name}: its weights cannot be downloaded ({reason}); try again later, or give weights "
            f"that are here: {option} local-dir:FOLDER, which python -m hub convert makes of a file of the "
            "authors, and python -m hub download of a repository"
        ) from error


def models(arguments: argparse.Namespace) -> Iterator[tuple[str, nn.Module]]:
    """Names and models of ``model_options`` and ``baseline_option``, the baseline first, one at a time.

    They are in eval mode, on ``arguments.device``, and take no gradients.
    """
    sources = {"--model": (arguments.model, arguments.checkpoint)}
    if baseline := arguments.baseline:
        is_file = Path(baseline).is_file()
        sources = {"--baseline": (None, Path(baseline)) if is_file else (baseline, None), **sources}
    for option, (name, checkpoint) in sources.items():
        model = load(name, checkpoint, option).requires_grad_(False).to(arguments.device)
        yield str(checkpoint or name), model


def json_option() -> argparse.ArgumentParser:
    """``--output``, the result."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--output", type=ending(".json"), help="JSON file to write")
    return parent


def picture_option() -> argparse.ArgumentParser:
    """``--picture``, what a result looks like."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--picture", type=ending(".png"), help="PNG file to write")
    return parent


def device_option() -> argparse.ArgumentParser:
    """``--device``."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parent


def batch_options() -> argparse.ArgumentParser:
    """``--batch-size`` and ``--workers``."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--batch-size", type=at_least_1, default=64)
    parent.add_argument("--workers", type=whole(0, 1024), default=2, help="processes that read images")
    return parent


def exif_option() -> argparse.ArgumentParser:
    """``--exif``."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--exif", action="store_true", help="turn images as their EXIF data say, unlike timm")
    return parent


def evaluation_options() -> argparse.ArgumentParser:
    """How ``accuracy`` and ``robustness`` use a model; most options are those of timm's ``validate.py``."""
    parent = argparse.ArgumentParser(
        add_help=False,
        parents=[model_options(), device_option(), batch_options(), json_option(), exif_option()],
    )
    parent.add_argument("--img-size", type=side, help="pixels; the model's own by default")
    parent.add_argument("--crop-pct", type=share, help="share of the resized image that is seen")
    parent.add_argument("--crop-mode", choices=("center", "squash", "border"))
    parent.add_argument("--interpolation", choices=("bilinear", "bicubic", "lanczos", "nearest"))
    parent.add_argument("--train-size", action="store_true", help="the size of the training, not of the test")
    parent.add_argument(
        "--test-pool", action="store_true", help="test time pooling, above the model's own size"
    )
    parent.add_argument("--amp", choices=("bfloat16", "float16"), help="mixed precision")
    parent.add_argument("--channels-last", action="store_true", help="memory layout")
    parent.add_argument("--fuse", action="store_true", help="plain convolutions (reparameterize_model)")
    return parent


def timing_options() -> argparse.ArgumentParser:
    """What every timing takes."""
    parent = argparse.ArgumentParser(
        add_help=False, parents=[device_option(), json_option(), picture_option()]
    )
    dtypes = ("float32", "bfloat16", "float16")
    parent.add_argument("--dtype", default="float32", choices=dtypes, help="of models and convolutions")
    parent.add_argument("--threads", type=at_least_1, help="of the CPU")
    parent.add_argument("--rounds", type=at_least_1, default=15, help="runs of each, in turns")
    return parent
