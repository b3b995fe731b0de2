"""The maps inside a model: which layer, in which layout, and how to get hold of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def stage_of(model: nn.Module, stage: int = -1) -> str:
    """The name of a stage, by timm's ``feature_info``.

    Args:
        model: A timm model.
        stage: Which one; -1 is the last.

    Raises:
        ValueError: If the model does not say what its stages are, or has no such stage.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise ValueError(f"{type(model).__name__} has no feature_info: it does not say what its stages are")
    if not -len(info) <= stage < len(info):
        raise ValueError(f"{type(model).__name__} has stages 0 to {len(info) - 1}, got {stage}")
    return info[stage]["module"]


def _stages(model: nn.Module) -> str:
    return ", ".join(info["module"] for info in getattr(model, "feature_info", [])) or "not known"


@contextmanager
def output_of(model: nn.Module, name: str, detach: bool = False) -> Iterator[list[torch.Tensor]]:
    """Keeps what a layer gives while the model runs.

    Args:
        model: The model.
        name: Of the layer.
        detach: Cut the graph there, so that gradients end at what is kept.

    Yields:
        A list, which every forward adds ``(N, C, H, W)`` or, with timm's ``output_fmt = "NHWC"``,
        ``(N, H, W, C)`` to.

    Raises:
        ValueError: If there is no such layer, or what it gives is not a map.
    """
    if name not in dict(model.named_modules()):
        raise ValueError(f"{type(model).__name__} has no layer {name}, its stages are {_stages(model)}")
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"{name} of {type(model).__name__} gives {shape}, expected a map (N, C, H, W)")
        kept.append(output.detach().requires_grad_() if detach else output)
        return kept[-1].clone()  # what comes next may work in place

    hook = model.get_submodule(name).register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


def channels_first(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` of what ``output_of`` has kept."""
    return features.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features
