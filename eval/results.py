"""Writing what a command measured: the result first, then its picture, which may fail."""

import argparse
import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dcls_models.files import replaced, write_json
from dcls_models.pictures import write_picture
from dcls_models.provenance import provenance


def write_result(
    arguments: argparse.Namespace, result: Mapping[str, Any], draw: Callable[[], Figure] | None = None
) -> None:
    """Writes the files that the command line asks for.

    Args:
        arguments: With ``output``, ``picture`` or neither.
        result: What was measured.
        draw: Makes the picture.
    """
    output, picture = arguments.output, getattr(arguments, "picture", None)
    device = getattr(arguments, "device", "cpu")
    command = ["python", "-m", "eval", *arguments.argv]
    content = {**result, "pictures": [], **provenance(arguments.task, command, device)}
    if output:
        write_json(output, content)
    if picture and draw and write_picture(picture, draw) and output:
        write_json(output, content | {"pictures": [relative(picture, output)]})


def relative(file: Path, page: Path) -> str:
    """The path of a file as seen from the folder of another one."""
    return Path(os.path.relpath(file, page.parent)).as_posix()


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table in UTF-8; bytes of a name that are none are written as escapes."""
    with (
        replaced(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([head, *rows])
