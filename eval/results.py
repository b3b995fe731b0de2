"""Writing what a command measured: the result first, then its picture, which may fail."""

import argparse
import csv
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dcls_models.files import one_line, replaced, write_json
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


def write_picture(path: Path, draw: Callable[[], Figure]) -> bool:
    """Draws and writes a PNG file; what goes wrong with it is a warning.

    Text is drawn as it is, also that of a class called ``$5_$10``, which matplotlib would read as a formula.

    Returns:
        Whether there is a picture now.
    """
    try:
        with plt.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks becomes a box
            figure = draw()
            with replaced(path) as part:
                figure.savefig(part, format="png", dpi=110)
    except Exception as error:  # the numbers do not depend on it
        print(f"warning: the picture {path} could not be drawn: {one_line(error)}")
        return False
    finally:
        plt.close("all")
    return True


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table in UTF-8; bytes of a name that are none are written as escapes."""
    with (
        replaced(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([head, *rows])
