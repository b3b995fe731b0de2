"""Images and sounds on their way to a model."""

from collections.abc import Iterable, Iterator
from typing import Any

from dcls_models.files import one_line

WHOLE = {"crop_pct": 1.0, "crop_mode": "squash"}  # for ``transform_of``: resized, nothing cut off


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; a file that is wrong is one line, without the traceback of a worker."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(one_line(error)) from error
