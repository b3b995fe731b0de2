"""The models of the study: a ConvMixer (arXiv:2201.09792) of which only the spatial mixing differs."""

from typing import Any, NamedTuple

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convmixer import ConvMixer
from torch import nn

import dcls_models
from train.study.peers import MIXERS

REACH = 13  # side of the kernels with a long reach
DILATED = {"kernel_size": 7, "dilation": 2}
AUTHORS, SPREAD = ({"kernel_size": REACH, "positions": start} for start in ("authors", "spread"))
RATES = {"authors": 25.0, "spread": 5.0}  # factors on the positions' learning rate, by the first experiment


class Variant(NamedTuple):
    """One kind of spatial mixing.

    Attributes:
        model: Arguments of ``study_convmixer``.
        matched: Which of them makes the trained parameters as many as the standard one's, if any does.
        frozen: Whether the positions are frozen after that.
    """

    model: dict[str, Any]
    matched: str | None = None
    frozen: bool = False

    @property
    def rate(self) -> float:
        """Factor on the positions' learning rate."""
        return RATES.get(self.model.get("positions", ""), 1.0)


STANDARD = "standard 7x7"
VARIANTS = {
    STANDARD: Variant({"kernel_size": 7}),
    "dilated 7x7": Variant(DILATED),
    "DCLS v1": Variant({**AUTHORS, "version": "v1"}, "kernel_count"),
    "DCLS gauss": Variant({**AUTHORS, "version": "gauss"}, "kernel_count"),
    "DCLS v1, spread": Variant({**SPREAD, "version": "v1"}, "kernel_count"),
    "DCLS gauss, spread": Variant({**SPREAD, "version": "gauss"}, "kernel_count"),
    "frozen, as many elements": Variant({**SPREAD, "version": "v1"}, "kernel_count", frozen=True),
    "frozen, more elements": Variant({**SPREAD, "version": "v1", "frozen": True}, "kernel_count"),
    "dense 13x13, narrower": Variant({"kernel_size": REACH}, "dim"),
    "dense 13x13": Variant({"kernel_size": REACH}),
}
PEERS = {
    "InceptionNeXt": Variant({"mixer": "inception"}, "dim"),
    "FocalNet": Variant({"mixer": "focal"}, "dim"),
    "deformable 3x3": Variant({"mixer": "deformable"}, "dim"),
    "dense 31x31": Variant({"mixer": "dense31"}),
    "31x31 with a 5x5 branch": Variant({"mixer": "reparam31"}),
}
default_cfgs = generate_default_cfgs({"study_convmixer": {}})


@register_model
def study_convmixer(
    pretrained: bool = False,
    mixer: str | None = None,
    dilation: int = 1,
    version: str | None = None,
    kernel_count: int = 16,
    positions: str = "authors",
    frozen: bool = False,
    **kwargs: Any,
) -> ConvMixer:
    """A ConvMixer with a choice of what mixes its pixels.

    Args:
        pretrained: There are no weights.
        mixer: One of ``train.study.peers.MIXERS`` in place of the depthwise convolutions.
        dilation: Theirs.
        version: Learned spacings: how elements are interpolated in kernels of ``kernel_size``.
        kernel_count: Elements of a kernel with learned spacings.
        positions: Where they start; see ``dcls_models.dclsify``.
        frozen: Whether they stay there.
        **kwargs: As for timm's ``ConvMixer``.
    """
    model = build_model_with_cfg(ConvMixer, "study_convmixer", pretrained, patch_size=2, **kwargs)
    residuals = [block[0].fn for block in model.blocks]  # depthwise convolution, activation, normalisation
    for block in residuals:
        if mixer:
            block[0] = MIXERS[mixer](block[0].in_channels)
        else:
            block[0].dilation = (dilation, dilation)
    if version:
        extent = residuals[0][0].kernel_size[0]
        dcls_models.dclsify(
            model,
            version=version,
            kernel_count=kernel_count,
            dilated_kernel_size=extent,
            share=[model.blocks],
            positions=positions,
        )
        for learned in (model.blocks.positions, model.blocks.sigma):
            if frozen and learned is not None:
                learned.requires_grad_(False)
    return model


def parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters a model has, and how many of them are trained."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"parameters": sum(n for n, _ in counts), "trained": sum(n for n, trained in counts if trained)}


def model_kwargs(variant: Variant, dim: int, depth: int) -> dict[str, Any]:
    """The arguments of a variant's model, with as many trained parameters as the standard one if matched.

    Args:
        variant: The variant.
        dim: Width of the standard one.
        depth: Layers.
    """

    def trained(kwargs: dict[str, Any]) -> int:
        return parameters(timm.create_model("study_convmixer", num_classes=2, **kwargs))["trained"]

    shape = {"dim": dim, "depth": depth}
    chosen = {**shape, **variant.model}
    if variant.matched:
        wanted = trained({**shape, **VARIANTS[STANDARD].model})
        low, high = 8, 4096
        while low < high:  # the largest with at most so many; parameters grow with both
            middle = (low + high + 1) // 2
            fits = trained({**chosen, variant.matched: middle}) <= wanted
            low, high = (middle, high) if fits else (low, middle - 1)
        chosen[variant.matched] = low
    return {**chosen, "frozen": True} if variant.frozen else chosen
