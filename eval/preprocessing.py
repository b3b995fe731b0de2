"""Images and sounds on their way to a model."""

from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcls_models.files import one_line, printable
from dcls_models.folders import files_below
from dcls_models.loading import check_takes

WHOLE = {"crop_pct": 1.0, "crop_mode": "squash"}  # for ``transform_of``: resized, nothing cut off


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; a file that is wrong is one line, without the traceback of a worker."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(one_line(error)) from error


def check_size(model: nn.Module, size: Sequence[int]) -> None:
    """Makes sure that a model takes images ``(C, H, W)``, before the work.

    Raises:
        ValueError: If it does not.
    """
    first = next(model.parameters())
    image = torch.zeros(1, *size, device=first.device, dtype=first.dtype)
    check_takes(model, image, f"{type(model).__name__} takes no images of {size[-1]} pixels: see --img-size")


def files_of(given: Iterable[str], extensions: Sequence[str], what: str) -> list[Path]:
    """Files: those that are given, those that a pattern matches, all below a folder.

    Args:
        given: Names, patterns and folders.
        extensions: Of the files of a folder.
        what: Such files are called.

    Raises:
        FileNotFoundError: If a folder has none.
    """
    files: list[Path] = []
    # not every shell expands patterns; a file may be called so
    for path in (Path(p) for text in given for p in (sorted(glob(text)) or [text])):  # noqa: PTH207
        below = [Path(file) for file in files_below(path, extensions)] if path.is_dir() else [path]
        if not below:
            raise FileNotFoundError(f"no {what} in {path} ({' '.join(extensions)})")
        files += below
    return files


def refuse_unreadable(errors: Sequence[str], count: int) -> None:
    """Names the files that could not be read, each on a line.

    Raises:
        ValueError: If there are any of ``count``.
    """
    for error in errors if len(errors) > 1 else ():
        print(printable(f"unreadable: {error}"))
    if errors:
        others = f"{len(errors)} of {count} files cannot be read, the first: " if len(errors) > 1 else ""
        raise ValueError(others + errors[0])
