"""What one would take instead: token mixers of timm and torchvision, alone and in a ConvNeXt.

Importing this registers ``convnext_tiny_deformable``, ``convnext_tiny_31x31`` and
``convnext_tiny_31x31_reparam`` with timm, and tells torch's counter of operations what a deformable
convolution takes. ``python -m train.study.peers RESULT`` prints the table of docs/peers.md.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from timm.models.fastvit import ReparamLargeKernelConv
from timm.models.focalnet import FocalModulation
from timm.models.inception_next import InceptionDWConv2d
from torch import nn
from torch.utils.flop_counter import flop_registry, register_flop_formula
from torchvision.ops import DeformConv2d

from dcls_models.layers.depthwise import depthwise_conv2d
from dcls_models.provenance import read_result


class Deformable(nn.Module):
    """A depthwise 3x3 convolution whose taps each pixel moves by itself (arXiv:1703.06211).

    Args:
        dim: Channels. A 3x3 convolution that starts at zero says from them, for each pixel, where the nine
            taps of all channels are.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(dim, 2 * 9, 3, padding=1)
        self.conv = DeformConv2d(dim, dim, 3, padding=1, groups=dim)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, dim, H, W)`` to the same size."""
        return self.conv(input, self.offset(input))


class Dense31(nn.Conv2d):
    """A depthwise 31x31 convolution by the operator of this project: ATen's takes several times as long."""

    def __init__(self, dim: int, bias: bool = True) -> None:
        super().__init__(dim, dim, 31, padding=15, groups=dim, bias=bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, dim, H, W)`` to the same size."""
        return depthwise_conv2d(input, self.weight, self.bias, (15, 15))


def _reparam31(dim: int) -> nn.Module:
    module = ReparamLargeKernelConv(dim, dim, 31, stride=1, group_size=1, small_kernel=5)
    module.large_conv.conv = Dense31(dim, bias=False)
    return module


# By name, what makes a mixer of so many channels: ``(N, dim, H, W)`` in, the same size out.
MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "inception": InceptionDWConv2d,  # arXiv:2303.16900; eight channels at least
    "focal": partial(
        FocalModulation, focal_window=3, focal_level=2
    ),  # arXiv:2203.11926, as focalnet_tiny_srf
    "deformable": Deformable,
    "dense31": Dense31,
    "reparam31": _reparam31,  # arXiv:2203.06717: 31x31 and 5x5 side by side, each with a batch norm
}

default_cfgs = generate_default_cfgs(
    {
        f"convnext_tiny_{name}": {"input_size": (3, 224, 224), "num_classes": 1000, "crop_pct": 0.875}
        for name in ("deformable", "31x31", "31x31_reparam")
    }
)


def _convnext_tiny(name: str, mixer: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """A ``convnext_tiny`` of timm with another mixer in place of each depthwise convolution."""
    shape = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
    model = build_model_with_cfg(ConvNeXt, name, pretrained, **{**shape, **kwargs})
    for path, module in list(model.named_modules()):
        if path.endswith("conv_dw"):
            model.set_submodule(path, MIXERS[mixer](module.in_channels))
    return model


@register_model
def convnext_tiny_deformable(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With deformable 3x3 convolutions."""
    return _convnext_tiny("convnext_tiny_deformable", "deformable", pretrained, **kwargs)


@register_model
def convnext_tiny_31x31(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With dense 31x31 kernels."""
    return _convnext_tiny("convnext_tiny_31x31", "dense31", pretrained, **kwargs)


@register_model
def convnext_tiny_31x31_reparam(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With dense 31x31 kernels that are trained with 5x5 ones beside them, as in RepLKNet."""
    return _convnext_tiny("convnext_tiny_31x31_reparam", "reparam31", pretrained, **kwargs)


def _deformable_flops(
    input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """Two for each multiplication with a weight; the bilinear sampling of the input is not counted."""
    return 2 * torch.Size(out_shape).numel() * torch.Size(weight[1:]).numel()


if torch.ops.torchvision.deform_conv2d not in flop_registry:
    register_flop_formula(torch.ops.torchvision.deform_conv2d)(_deformable_flops)


def markdown(result: Mapping[str, Any]) -> str:
    """The table of docs/peers.md: times of the first model's median, quartiles, sizes and memory.

    Args:
        result: Of ``eval throughput`` with all its modes, on a CPU; the first model is compared with.
    """
    timed = {(row["model"], row["mode"]): row for row in result["rows"]}
    names = list(result["costs"])
    lines = [
        "| model | parameters, M | GMACs | training step | inference | deployed | memory of a training step "
        "| of inference |",
        "|---|" + "---:|" * 7,
    ]
    for name in names:
        costs = result["costs"][name]
        cells = [f"`{name}`", f"{costs['parameters'] / 1e6:.1f}", f"{costs['macs'] / 1e9:.2f}"]
        for mode in ("train", "inference", "deployed"):
            ms, first = (timed[n, mode]["ms"] for n in (name, names[0]))
            cells.append(f"{ms['median'] / first['median']:.2f}x, {ms['low']:,.0f} to {ms['high']:,.0f} ms")
        for mode in ("train", "inference"):
            peak, first = (timed[n, mode]["peak_bytes"] for n in (name, names[0]))
            cells.append(f"{peak / 2**20:,.0f} MiB, {peak / first:.2f}x")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(read_result(Path(sys.argv[1]))))
