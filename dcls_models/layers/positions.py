"""Who holds the positions of a layer, and how layers share them.

A *holder* is the module that registers ``positions`` (and ``sigma``): a layer itself, or a container,
such as a stage, on behalf of all its layers. Layers read from their holder at every forward, so one
registered tensor serves them all whatever is done to the model (assignment, ``to_empty``, deepcopy,
safetensors, FSDP2).
"""

import copy
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from .in_range import (
    Holder,
    clamp_before_saving,
    clamp_positions,
    keep_loaded_outside,
    note_parameter,
    track,
)
from .reference_keys import translate

FOLDING = ("fuse", "reparameterize", "switch_to_deploy")  # what timm calls on a block to deploy it


class ReadsPositions(nn.Module):
    """A layer that reads ``positions`` and ``sigma`` from itself or from a container around it.

    Attributes:
        not_copied: Names of attributes that a copy or pickle goes without.
    """

    version: str
    dilated_kernel_size: tuple[int, ...]
    weight: torch.Tensor
    _shared: tuple[nn.Module] | None  # in a tuple, so that it is not registered as a child
    not_copied: tuple[str, ...] = ()

    def holder(self) -> Holder:
        """The module that registers the positions: this layer, or a container that it shares them with."""
        return self if self._shared is None else self._shared[0]

    def read_from(self, holder: nn.Module) -> None:
        """Drops the layer's own positions and sigma and reads them from ``holder`` from now on."""
        del self.positions, self.sigma
        self._shared = (holder,)

    def clamp_parameters(self) -> None:
        """Clamps the positions, for training loops of the authors; every optimizer step does it, too."""
        clamp_positions(self.holder())

    def __getattr__(self, name: str) -> Any:
        """Shared positions read as if they were the layer's own."""
        shared = self.__dict__.get("_shared")
        if shared is not None and name in ("positions", "sigma") and name not in self._parameters:
            return getattr(shared[0], name)
        return super().__getattr__(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Shows shared positions to an FX tracer, which keeps only the parameters that it sees used."""
        if self._shared is not None and len(args) == 1 and isinstance(args[0], torch.fx.Proxy):
            args = (*args, self.positions, self.sigma)
        return super().__call__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled."""
        return {k: v for k, v in self.__dict__.items() if k not in self.not_copied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The optimizer hook knows the holder of a copied or unpickled layer as well."""
        super().__setstate__(state)
        track(self.holder())

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReadsPositions":
        """Copied without its holder, a layer takes positions of its own along."""
        state = self.__getstate__()
        if self._shared is not None and id(self._shared[0]) not in memo:
            own = {"positions": self.positions, "sigma": self.sigma}
            state |= {
                "_parameters": {**self._parameters, **own},
                "_shared": None,
                "positions_kept_at": self._shared[0].positions_kept_at,
            }
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(state, memo))
        return new


def hold(holder: Holder, positions: nn.Parameter, sigma: nn.Parameter | None, size: Sequence[int]) -> None:
    """Registers positions and sigma on their holder, with the hooks that load, save and clamp them.

    Args:
        holder: The module that registers them.
        positions: ``(axes, out_channels, in_channels // groups, ..., kernel_count)``, in pixels.
        sigma: The same shape, or None for a version without.
        size: Size of the dilated kernel along each learned axis.
    """
    holder.register_parameter("positions", positions)
    holder.register_parameter("sigma", sigma)
    holder.positions_size = tuple(size)
    holder.positions_kept_at = None
    note_parameter(holder)
    holder.register_load_state_dict_pre_hook(_translate_on_load)
    holder.register_load_state_dict_post_hook(keep_loaded_outside)
    holder.register_state_dict_pre_hook(clamp_before_saving)
    track(holder)


@torch.no_grad()
def start_positions(layer: Holder, start: str) -> None:
    """Puts the elements of a new layer, which holds its own positions, where they are to start.

    Args:
        layer: As constructed.
        start: ``"authors"``, where the constructor has put them (normal, standard deviation 0.5 pixels), or
            ``"spread"``, uniform over the whole kernel, along each axis by its own size.

    Raises:
        ValueError: If ``start`` is another word.
    """
    if start not in ("authors", "spread"):
        raise ValueError(
            "positions must be 'authors' (elements start near the centre) or 'spread' (all over the kernel), "
            f"got {start!r}"
        )
    if start == "spread":
        for axis, k in zip(layer.positions, layer.positions_size, strict=True):
            nn.init.uniform_(axis, -(k // 2), k // 2)


def share_positions(holder: Holder, layers: Sequence[ReadsPositions]) -> None:
    """Makes layers share one set of positions (and sigma), held by a container around them.

    The holder takes those of the first layer, as in the authors' models.

    Args:
        holder: A module that contains all the layers and is called, directly or through a parent,
            whenever they are (a stage).
        layers: Layers of one version, kernel size and shape that hold their own positions.

    Raises:
        ValueError: If a layer is outside the holder or does not fit the first, or the holder already
            has something of that name.
    """
    members = set(holder.modules())
    for layer in layers:
        if layer not in members:
            raise ValueError(f"{layer} is not inside the module that is to hold its positions")
    check_shareable(holder, layers)
    first = layers[0]
    positions, sigma = first.positions, first.sigma
    for layer in layers:
        layer.read_from(holder)
    hold(holder, positions, sigma, first.dilated_kernel_size)
    holder.reparameterize = partial(_fuse_layers, holder)  # timm calls it before it fuses the layers


def check_shareable(holder: nn.Module, layers: Sequence[ReadsPositions]) -> None:
    """The checks of ``share_positions``, usable before the layers are in place."""
    for layer in layers:
        first = layers[0]
        if (layer.version, layer.dilated_kernel_size, layer.weight.shape) != (
            first.version,
            first.dilated_kernel_size,
            first.weight.shape,
        ):
            raise ValueError(
                f"layers that share positions must have one version, kernel size and shape, got {first} "
                f"and {layer}; share them over smaller containers, or not at all"
            )
    if layers and hasattr(holder, "positions"):
        raise ValueError(f"{type(holder).__name__} already has an attribute 'positions'")


def _fuse_layers(holder: Holder) -> None:
    """Fuses the layers that share the positions of ``holder``, which then hold nothing for anybody."""
    for parent in list(holder.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, ReadsPositions) and layer.holder() is holder:
                setattr(parent, name, layer.fuse())
    del holder.positions, holder.sigma, holder.reparameterize


def fuse_layers(model: nn.Module) -> nn.Module:
    """Makes plain convolutions of all DCLS layers of a model, in place, and calls nothing else of it."""
    if isinstance(model, ReadsPositions):
        return model.fuse()
    layers = [m for m in model.modules() if isinstance(m, ReadsPositions)]
    fused = {layer: layer.fuse() for layer in layers}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out second names
            if child in fused:
                setattr(parent, name, fused[child])
    for holder in {layer.holder() for layer in layers} - set(layers):
        del holder.positions, holder.sigma, holder.reparameterize
    return model


def translate_reference_keys(holder: Holder, state_dict: dict[str, Any], prefix: str) -> None:
    """Turns the authors' keys of the layers that read from ``holder`` into its own, below ``prefix``.

    Raises:
        ValueError: If the copies of layers that share positions disagree.
    """
    layers = {
        name: (layer.version, layer.dilated_kernel_size)
        for name, layer in holder.named_modules()
        if isinstance(layer, ReadsPositions) and layer.holder() is holder
    }
    translate(state_dict, prefix, layers)


def _translate_on_load(
    module: Holder,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    try:
        if "positions" in module._parameters:
            translate_reference_keys(module, state_dict, prefix)
    except ValueError as error:
        error_msgs.append(str(error))


def stage_title(name: str) -> str:
    """What a picture calls the module that holds positions: ``stages.0`` and ``layer1`` are ``stage 1``."""
    found = re.fullmatch(r"(?:.*\.)?(stages[._]|layer)(\d+)", name)
    return f"stage {int(found[2]) + (found[1] != 'layer')}" if found else name or "kernels"
