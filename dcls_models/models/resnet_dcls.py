"""ResNet (arXiv:1512.03385) with learned spacings in its 3x3 convolutions."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from dcls_models.dclsify import dclsify

from ._build import PositionsInTimm, authors, build


class ResNetDcls(PositionsInTimm, ResNet):
    """timm's bottleneck ResNet; the 3x3 convolutions of a stage share their positions."""

    stage_pattern = r"^layer(\d+)"

    def __init__(
        self,
        *args: Any,
        kernel_count: int = 5,
        dilated_kernel_size: int | tuple[int, int] = 7,
        version: str = "v0",
        positions: str = "authors",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        dclsify(
            self,
            "layer*.conv2",
            share=(self.layer1, self.layer2, self.layer3, self.layer4),
            kernel_count=kernel_count,
            dilated_kernel_size=dilated_kernel_size,
            version=version,
            positions=positions,
        )


def _same_names(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    return state_dict


def _create_resnet(variant: str, pretrained: bool, **kwargs: Any) -> ResNetDcls:
    return build(ResNetDcls, variant, pretrained, rename=_same_names, head="fc", block=Bottleneck, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "resnet26_dcls": _cfg(),
        "resnet50_dcls.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/records/8373830/files/resnet_dcls_kernel_5_model_best.pth.tar",
                "arXiv:2112.03740",
            )
        ),
        "resnet101_dcls": _cfg(),
        "test_resnet_dcls": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
    }
)


@register_model
def resnet26_dcls(pretrained: bool = False, **kwargs: Any) -> ResNetDcls:
    """ResNet-26, 7x7 kernels of 5 elements, bilinear; a size that the authors never released."""
    model_args: dict[str, Any] = {"layers": (2, 2, 2, 2)}
    return _create_resnet("resnet26_dcls", pretrained, **{**model_args, **kwargs})


@register_model
def resnet50_dcls(pretrained: bool = False, **kwargs: Any) -> ResNetDcls:
    """ResNet-50, 7x7 kernels of 5 elements, bilinear."""
    model_args: dict[str, Any] = {"layers": (3, 4, 6, 3)}
    return _create_resnet("resnet50_dcls", pretrained, **{**model_args, **kwargs})


@register_model
def resnet101_dcls(pretrained: bool = False, **kwargs: Any) -> ResNetDcls:
    """ResNet-101, 7x7 kernels of 5 elements, bilinear; a size that the authors never released."""
    model_args: dict[str, Any] = {"layers": (3, 4, 23, 3)}
    return _create_resnet("resnet101_dcls", pretrained, **{**model_args, **kwargs})


@register_model
def test_resnet_dcls(pretrained: bool = False, **kwargs: Any) -> ResNetDcls:
    """A tiny ResNet for tests."""
    model_args: dict[str, Any] = {"layers": (1, 2, 2, 1), "channels": (8, 12, 16, 24)}
    return _create_resnet("test_resnet_dcls", pretrained, **{**model_args, **kwargs})
