"""A model made ready for inference: everything that saves time and leaves the outputs as they are."""

import copy
import logging
import time
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import nn

from .layers import DclsNd, trim
from .layers.depthwise.module import use_operator
from .layers.linear import use_fast_linear
from .layers.long_kernels import use_fft
from .layers.positions import FOLDING, fuse_layers

_logger = logging.getLogger(__name__)
ROUNDS = 5  # timed runs of each of two models that are compared
SECONDS = 2.0  # for one comparison; three runs each at least
TIE = 1.02  # as fast, to the exactness of so short a measurement: compilers prefer channels_last then
OWN = ("dcls_models", "timm", "torch")  # packages whose blocks may fold their branches themselves


def deploy(model: nn.Module, example_input: torch.Tensor | None = None, *, trims: bool = True) -> nn.Module:
    """Makes a copy of any model that is as fast as it can be here, with the same outputs up to rounding.

    DCLS layers become plain convolutions, and the branches of timm's re-parameterizable blocks one; on a GPU
    depthwise convolutions go through our operator, which knows where its kernels are faster, and on a CPU
    long ones along time through FFTs. Then each of these is kept if a short measurement on this machine finds
    it faster: the layout ``channels_last`` (also if it is as fast), kernels without their empty borders,
    linear layers by oneDNN.

    Args:
        model: Any model, a timm one or another with DCLS layers or without; it stays as it is.
        example_input: What the model is measured on; by default one image of the size that timm knows for it.
        trims: Whether empty borders of kernels may be cut off.

    Returns:
        The copy, in eval mode and without gradients. ``copy.deployment`` says what was chosen: ``fused`` (how
        many DCLS layers), ``channels_last``, ``trimmed``, ``fast_linear``, and the milliseconds of a run
        before and after, ``ms_fused`` and ``ms``.

    Raises:
        ValueError: If there is no ``example_input``, and timm knows no size for the model.
    """
    layers = sum(isinstance(module, DclsNd) for module in model.modules())
    deployed: Any = fused(model).requires_grad_(False)
    deployed = deployed.to(memory_format=torch.contiguous_format)
    images = _example(deployed) if example_input is None else example_input
    deployed = use_operator(deployed) if images.is_cuda else use_fft(deployed)
    changes: dict[str, Any] = {
        "channels_last": lambda m: m.to(memory_format=torch.channels_last),
        "trimmed": trim,
        "fast_linear": lambda m: use_fast_linear(m, gelu=True),
    }
    chosen: dict[str, Any] = {"fused": layers} | dict.fromkeys(changes, False)
    if not trims:
        del changes["trimmed"]
    for name, change in changes.items():
        changed = change(copy.deepcopy(deployed))
        now, then = _milliseconds(deployed, changed, images)
        chosen.setdefault("ms_fused", now)
        chosen[name] = then <= (TIE if name == "channels_last" else 1.0) * now
        chosen["ms"] = then if chosen[name] else now
        deployed = changed if chosen[name] else deployed
    deployed.deployment = chosen
    _logger.info("deployed %s: %s", type(model).__name__, chosen)
    return deployed


def fused(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose DCLS layers are plain convolutions.

    The branches of timm's blocks become one as well, unless other packages' blocks have such a method: theirs
    may mean anything.
    """
    model = fuse_layers(copy.deepcopy(model).eval())
    folding = [m for m in model.modules() if any(callable(getattr(m, name, None)) for name in FOLDING)]
    if any(type(m).__module__.partition(".")[0] not in OWN for m in folding):
        return model
    return reparameterize_model(model, inplace=True)


def _example(model: nn.Module) -> torch.Tensor:
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    if not size:
        raise ValueError(
            f"{type(model).__name__} says no input_size: give deploy an example_input to measure it with"
        )
    like = next(model.parameters())
    return torch.zeros(1, *size, device=like.device, dtype=like.dtype)


@torch.inference_mode()
def _milliseconds(now: nn.Module, then: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """The fastest run of each of two models, that take turns: others' work makes runs only slower."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    for turn in range(1 + ROUNDS):
        for model, runs in zip((now, then), times, strict=True):
            start = time.perf_counter()
            model(images)
            if images.device.type != "cpu":
                torch.accelerator.synchronize(images.device)
            if turn:  # the first run allocates
                runs.append(1e3 * (time.perf_counter() - start))
        if turn >= 3 and time.perf_counter() > end:
            break
    return round(min(times[0]), 3), round(min(times[1]), 3)
