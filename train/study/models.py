"""The models of the study: a ConvMixer (arXiv:2201.09792) of which only the depthwise convolutions differ."""

from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convmixer import ConvMixer

import dcls_models

DILATED = {"kernel_size": 7, "dilation": 2}
VARIANTS: dict[
    str, dict[str, Any]
] = {  # all but the first reach over 13 x 13; v0 is v1 in a kernel of odd size
    "standard 7x7": {"kernel_size": 7},
    "dilated 7x7": DILATED,
    "DCLS v1": {**DILATED, "version": "v1"},
    "DCLS gauss": {**DILATED, "version": "gauss"},
    "DCLS v1 spread": {**DILATED, "version": "v1", "spread": True},
    "dense 13x13": {"kernel_size": 13},
}
default_cfgs = generate_default_cfgs({"study_convmixer": {}})


@register_model
def study_convmixer(
    pretrained: bool = False,
    dilation: int = 1,
    version: str | None = None,
    kernel_count: int = 16,
    spread: bool = False,
    **kwargs: Any,
) -> ConvMixer:
    """A ConvMixer with dilated depthwise convolutions, or with learned spacings over the same extent.

    Positions start where the authors' do, within two pixels of the centre, or else spread over the kernel.
    """
    model = build_model_with_cfg(ConvMixer, "study_convmixer", pretrained, patch_size=2, **kwargs)
    depthwise = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    if version is None:
        for conv in depthwise:
            conv.dilation = (dilation, dilation)
        return model
    extent = dilation * (depthwise[0].kernel_size[0] - 1) + 1
    spacings: dict[str, Any] = {"kernel_count": kernel_count, "dilated_kernel_size": extent}
    dcls_models.dclsify(model, version=version, share=[model.blocks], **spacings)
    if spread:
        torch.nn.init.uniform_(model.blocks.positions, -(extent // 2), extent // 2)
    return model


def parameters(kwargs: dict[str, Any]) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in timm.create_model("study_convmixer", num_classes=2, **kwargs).parameters())


def equal_parameters(dim: int, depth: int) -> dict[str, dict[str, Any]]:
    """The arguments of every variant, with as many parameters as the first, as closely as possible."""
    shape = {"dim": dim, "depth": depth}
    wanted = parameters({**next(iter(VARIANTS.values())), **shape})

    def closest(kwargs: dict[str, Any], key: str, most: int) -> dict[str, Any]:
        choices = [{**kwargs, key: n} for n in range(4, most + 1)]
        return min(choices, key=lambda chosen: abs(parameters(chosen) - wanted))

    chosen = {label: {**shape, **kwargs} for label, kwargs in VARIANTS.items()}
    for label, kwargs in chosen.items():
        if "version" in kwargs:
            chosen[label] = closest(kwargs, "kernel_count", 49)
        elif parameters(kwargs) != wanted:
            chosen[label] = closest(kwargs, "dim", dim)
    return chosen
