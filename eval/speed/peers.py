"""The authors' own layers (the package ``DCLS``), to compare with; optional: ``pip install DCLS``."""

import logging
from typing import Any

import torch
from torch import nn

from dcls_models.layers import Dcls2d


def authors_layer(layer: Dcls2d) -> nn.Module:
    """The authors' layer that computes what ours does, with copies of its parameters.

    Args:
        layer: A layer whose kernel has the same size along both axes.

    Returns:
        Their ``Dcls2d``, in the mode that ours is in.

    Raises:
        ValueError: If their package is not installed.
    """
    try:
        from DCLS.construct.modules import Dcls2d as Theirs
    except ImportError as error:
        raise ValueError("the authors' layers need their package: pip install DCLS") from error
    logging.disable(logging.WARNING)  # that a GPU extension of theirs is not installed, once per layer
    theirs: Any = Theirs(
        layer.in_channels,
        layer.out_channels,
        kernel_count=layer.kernel_count,
        stride=layer.stride,
        padding=layer.padding,
        dilated_kernel_size=layer.dilated_kernel_size,
        groups=layer.groups,
        bias=layer.bias is not None,
        version=layer.version,
    )
    logging.disable(logging.NOTSET)
    order = [0, 1] if layer.version == "v0" else [1, 0]  # their rows of the other versions are x, y
    with torch.no_grad():
        theirs.weight.copy_(layer.weight)
        theirs.P.copy_(layer.positions[order])
        if layer.sigma is not None:
            theirs.SIG.copy_(layer.sigma[order])
        if layer.bias is not None:
            theirs.bias.copy_(layer.bias)
    return theirs.to(layer.weight).train(layer.training)


def with_authors_layers(model: nn.Module) -> nn.Module:
    """Replaces every ``Dcls2d`` of a model of the zoo by the authors' layer, in place.

    Raises:
        ValueError: If there is none.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Dcls2d)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DCLS layer that the authors' could replace")
    for name, layer in layers.items():
        model.set_submodule(name, authors_layer(layer))
    return model
