"""Plain depthwise convolutions, such as fused DCLS layers, computed by the operator."""

from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import nn

from .operators import depthwise_conv2d


@register_notrace_module
class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d``, computed by ``depthwise_conv2d``; ``use_operator`` makes it of one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As ``nn.Conv2d``."""
        if torch.jit.is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:
            padding: Any = self.padding
            return depthwise_conv2d(input, self.weight, self.bias, padding)


def use_operator(model: nn.Module) -> nn.Module:
    """Lets ``depthwise_conv2d`` compute the depthwise convolutions of stride 1 in a model, in place.

    Parameters, state-dict keys and outputs (up to rounding) stay as they are; subclasses of ``nn.Conv2d``
    are left alone.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels:
            plain = module.stride == module.dilation == (1, 1) and module.padding_mode == "zeros"
            if plain and isinstance(module.padding, tuple):
                module.__class__ = DepthwiseConv2d  # keeps its hooks, and every reference to it
    return model
