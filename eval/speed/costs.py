"""What a model costs: parameters, multiply-accumulates and activations of the form that is deployed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Costs(NamedTuple):
    """Counted for one image.

    Attributes:
        parameters: Numbers that are trained; positions that a stage shares count once.
        deployed_parameters: The same after re-parameterization, when every DCLS layer is a dense convolution.
        macs: Multiplications (with their additions) in convolutions and matrix products of the deployed form.
        activations: Numbers that these put out, as timm counts activations.
    """

    parameters: int
    deployed_parameters: int
    macs: int
    activations: int


class _Counter(TorchDispatchMode):
    """Counts the operators that torch has a formula for, as they run.

    Counters that read the modules instead take a DCLS layer's elements for its kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.activations = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operator and counts it."""
        result = operator(*args, **(kwargs or {}))
        if formula := flop_registry.get(operator._overloadpacket):
            self.macs += formula(*args, **(kwargs or {}), out_val=result) // 2
            self.activations += result.numel()
        return result


def costs(name: str) -> tuple[Costs, nn.Module]:
    """Counts what a registered model costs at its own input size, without computing anything.

    Args:
        name: A name of timm's registry.

    Returns:
        The costs, and the model on the meta device as it was trained.
    """
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    return costs_of(model), model


def costs_of(model: Any, img_size: int | None = None) -> Costs:
    """Counts what a model on the meta device costs.

    Args:
        model: In eval mode, with timm's ``default_cfg``.
        img_size: Side of the image, in pixels; the model's own where None.
    """
    channels, *size = model.default_cfg["input_size"]
    # attention as two matrix products: torch has no formula for its fused operator on a CPU
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        deployed = reparameterize_model(model)
        image = torch.empty(1, channels, *([img_size] * 2 if img_size else size))
        with _Counter() as counted:
            deployed(image)
    return Costs(_parameters(model), _parameters(deployed), counted.macs, counted.activations)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
