"""Pictures of a run or a result: one that cannot be drawn costs a warning, and never what was computed."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import one_line, replaced

_logger = logging.getLogger(__name__)


def write_picture(path: Path, draw: Callable[..., Any], *args: Any) -> bool:
    """Draws ``draw(*args)``, a figure of matplotlib, and writes it as PNG.

    Returns:
        Whether there is a picture now.
    """
    return _drawn(path, lambda part: draw(*args).savefig(part, format="png", dpi=110))


def write_animation(path: Path, animate: Callable[..., Any], *args: Any) -> bool:
    """Writes ``animate(*args)``, an animation of matplotlib, as GIF, ten frames a second."""

    def write(part: Path) -> None:
        from matplotlib.animation import PillowWriter

        gif = part.with_name(part.name + ".gif")  # Pillow goes by the name
        try:
            animate(*args).save(gif, writer=PillowWriter(fps=10), dpi=80)
            gif.replace(part)
        finally:
            gif.unlink(missing_ok=True)

    return _drawn(path, write)


def _drawn(path: Path, write: Callable[[Path], None]) -> bool:
    """Text is drawn as it is, also a class called ``$5_$10``, which matplotlib would read as a formula."""
    from matplotlib import pyplot as plt

    try:
        with plt.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks becomes a box
            with replaced(path) as part:
                write(part)
    except Exception as error:  # fonts, disks, names: nothing that the numbers depend on
        _logger.warning("the picture %s could not be drawn: %s", path, one_line(error))
        return False
    finally:
        plt.close("all")
    return True
