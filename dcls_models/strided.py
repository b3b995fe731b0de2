"""Around a bug of oneDNN, which computes convolutions on a CPU: it writes outside of its memory.

The weight gradient of a strided 1x1 convolution of few input channels does so in ``channels_last`` (oneDNN's
issue 6035; seen with 3 channels and not with 16, torch 2.14 and 2.15). The process crashes, or computes
nonsense. timm's FastViT has such a convolution in its stem.
"""

import torch
from torch import nn
from torch.nn import functional as F

SAFE_CHANNELS = 16  # from so many input channels on


class SlicedConv2d(nn.Conv2d):
    """A strided 1x1 convolution as a slice and an unstrided one: the same output, and safe to train."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` to ``(N, C', ceil(H / stride), ceil(W / stride))``."""
        chosen = F.avg_pool2d(input, 1, self.stride)  # input[:, :, ::rows, ::columns], whose layout varies
        return F.conv2d(chosen, self.weight, self.bias)


def overrunning(model: nn.Module) -> list[str]:
    """Names of the convolutions whose training on a CPU in ``channels_last`` is not safe."""
    return [name for name, module in model.named_modules() if _overruns(module)]


def _overruns(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.padding == (0, 0)
        and max(module.stride) > 1
        and module.groups == 1
        and module.in_channels < SAFE_CHANNELS
    )


def slice_strided(model: nn.Module) -> nn.Module:
    """Makes a model safe to train on a CPU in ``channels_last``, in place.

    Parameters, hooks, names of the state dict and outputs stay as they are.

    Returns:
        The model.

    >>> model = slice_strided(timm.create_model("fastvit_t8"))
    """
    for name in overrunning(model):
        model.get_submodule(name).__class__ = SlicedConv2d
    return model
