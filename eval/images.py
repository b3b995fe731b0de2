"""Single images as a model wants them, and what it calls its classes."""

from collections.abc import Iterable, Iterator
from typing import Any

from timm.data import create_transform, resolve_data_config
from torch import nn

WHOLE = {"crop_pct": 1.0, "crop_mode": "squash"}  # for ``transform_of``: resized, nothing cut off


def transform_of(model: nn.Module, **changes: Any) -> Any:
    """The preprocessing that the model was trained for, with changes to timm's data config.

    Raises:
        ValueError: If the model is not for colour images.
    """
    config = resolve_data_config({}, model=model) | changes
    if (channels := config["input_size"][0]) != 3:
        raise ValueError(f"{type(model).__name__} takes inputs of {channels} channels, images have 3")
    return create_transform(**config)


def label_names(model: nn.Module) -> list[str]:
    """Names of the model's classes; their numbers where nobody has named them."""
    names = model.pretrained_cfg.get("label_names")
    return list(names or map(str, range(model.num_classes)))


def read(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; what is wrong with a file is said without the traceback of a worker."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from error
