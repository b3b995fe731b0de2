"""What to keep away from oneDNN, which computes convolutions on a CPU."""

import torch
from torch import nn


def overruns(model: nn.Module) -> bool:
    """Whether training a model on a CPU in ``channels_last`` makes oneDNN write outside of its memory.

    The weight gradient of a strided 1x1 convolution with fewer than 16 input channels does (oneDNN's issue
    6035, torch 2.15): the stem of FastViT, for instance. The process crashes, or computes nonsense. In
    ``contiguous_format`` it does not.
    """
    return torch.backends.mkldnn.is_available() and any(
        isinstance(m, nn.Conv2d)
        and m.kernel_size == (1, 1)
        and max(m.stride) > 1
        and m.groups == 1
        and m.in_channels < 16
        for m in model.modules()
    )
