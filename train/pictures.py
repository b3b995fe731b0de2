"""Pictures of a run: one that cannot be drawn costs a warning, and never what was computed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

from dcls_models.files import one_line, replaced

_logger = logging.getLogger(__name__)


def write_picture(path: Path, draw: Callable[..., Figure], *args: Any) -> None:
    """Draws ``draw(*args)`` and writes it as PNG; names are drawn as they are, and not as formulas."""
    _write(path, lambda part: draw(*args).savefig(part, format="png", dpi=110))


def write_animation(path: Path, animate: Callable[..., FuncAnimation], *args: Any) -> None:
    """Writes ``animate(*args)`` as GIF, ten frames a second."""

    def write(part: Path) -> None:
        gif = part.with_name(part.name + ".gif")  # Pillow goes by the name
        try:
            animate(*args).save(gif, writer=PillowWriter(fps=10), dpi=80)
            gif.replace(part)
        finally:
            gif.unlink(missing_ok=True)

    _write(path, write)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    try:
        with plain_names(), replaced(path) as part:
            write(part)
    except Exception as error:  # fonts, disks, names: nothing that the training depends on
        _logger.warning("the picture %s could not be drawn: %s", path, one_line(error))
    plt.close("all")


def plain_names() -> Any:
    """A context in which a class called ``$5_$10`` is drawn as that; matplotlib would read a formula."""
    return plt.rc_context({"text.parse_math": False})
