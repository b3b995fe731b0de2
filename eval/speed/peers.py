"""What models of the zoo are compared with: the authors' own layers (``pip install DCLS``), plain ones."""

import logging
from importlib import import_module
from typing import Any

import torch
from torch import nn

from dcls_models.layers import Dcls1d, Dcls2d


def authors_layer(layer: Dcls1d | Dcls2d) -> nn.Module:
    """The authors' layer that computes what ours does, with copies of its parameters.

    Args:
        layer: A layer whose kernel has the same size along both axes.

    Returns:
        Theirs of the same name, in the mode that ours is in.

    Raises:
        ValueError: If their package is not installed.
    """
    try:
        modules = import_module("DCLS.construct.modules")
    except ImportError as error:
        raise ValueError("the authors' layers need their package: pip install DCLS") from error
    logging.disable(logging.WARNING)  # that a GPU extension of theirs is not installed, once per layer
    theirs: Any = getattr(modules, type(layer).__name__)(
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
    axes = range(len(layer.positions))
    order = list(axes if layer.version == "v0" else reversed(axes))  # theirs of the other versions are x, y
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


def with_plain_layers(model: nn.Module) -> nn.Module:
    """Replaces every ``Dcls2d`` of a model by the convolution that the family has without learned spacings.

    These are 3 x 3 where they mix channels (ResNet) and 7 x 7 where they are depthwise (all others).

    Raises:
        ValueError: If there is none.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Dcls2d)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DCLS layer that a plain one could replace")
    for name, layer in layers.items():
        side = 3 if layer.groups == 1 else 7
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            side,
            stride=layer.stride,
            padding=side // 2,
            groups=layer.groups,
            bias=layer.bias is not None,
        )
        model.set_submodule(name, plain.to(layer.weight).train(layer.training))
    for holder in model.modules():
        for shared in ("positions", "sigma"):
            holder._parameters.pop(shared, None)
    return model
