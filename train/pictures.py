"""Pictures of a run: one that cannot be drawn costs a warning, and never what was computed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dcls_models.files import one_line, replaced

_logger = logging.getLogger(__name__)


def write_picture(path: Path, draw: Callable[..., Figure], *args: Any) -> None:
    """Draws ``draw(*args)`` and writes it as PNG; names are drawn as they are, and not as formulas."""
    try:
        with plain_names():
            figure = draw(*args)
            with replaced(path) as part:
                figure.savefig(part, format="png", dpi=110)
    except Exception as error:  # fonts, disks, names: nothing that the training depends on
        _logger.warning("the picture %s could not be drawn: %s", path, one_line(error))
    plt.close("all")


def plain_names() -> Any:
    """A context in which a class called ``$5_$10`` is drawn as that; matplotlib would read a formula."""
    return plt.rc_context({"text.parse_math": False})
