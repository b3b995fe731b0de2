"""Single images as a model wants them, and what it calls its classes."""

from typing import Any

from timm.data import create_transform, resolve_data_config
from torch import nn


def transform_of(model: nn.Module) -> Any:
    """The preprocessing that the model was trained for."""
    return create_transform(**resolve_data_config({}, model=model))


def label_names(model: nn.Module) -> list[str]:
    """Names of the model's classes; their numbers where nobody has named them."""
    names = model.pretrained_cfg.get("label_names")
    return list(names or map(str, range(model.num_classes)))
