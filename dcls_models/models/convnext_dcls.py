"""ConvNeXt (arXiv:2201.03545) with learned spacings in its depthwise convolutions (arXiv:2112.03740)."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn

from dcls_models.dclsify import dclsify
from dcls_models.spectrogram import LogMel

from ._build import AUDIO_CFG, PositionsInTimm, authors, build, spectrogram_stem


class ConvNeXtDcls(PositionsInTimm, ConvNeXt):
    """timm's ConvNeXt; the depthwise convolutions of a stage share their positions."""

    def __init__(
        self,
        *args: Any,
        kernel_count: int = 34,
        dilated_kernel_size: int | tuple[int, int] = 17,
        version: str = "v0",
        positions: str = "authors",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        dclsify(
            self,
            "stages.*.conv_dw",
            share=self.stages,
            kernel_count=kernel_count,
            dilated_kernel_size=dilated_kernel_size,
            version=version,
            positions=positions,
        )


class ConvNeXtDclsAudio(ConvNeXtDcls):
    """For spectrograms ``(N, 1, mel, time)``, with a stem of 2 x 16 patches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stem[0] = spectrogram_stem(self.stem[0], bias=True)
        self.front_end = LogMel(device=self.stem[0].weight.device)


def _create_convnext(
    variant: str, pretrained: bool, model_class: type[ConvNeXtDcls] = ConvNeXtDcls, **kwargs: Any
) -> ConvNeXtDcls:
    return build(
        model_class,
        variant,
        pretrained,
        rename=checkpoint_filter_fn,
        head="head.fc",
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head.fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "convnext_dcls_atto": _cfg(),
        "convnext_dcls_femto": _cfg(),
        "convnext_dcls_pico": _cfg(),
        "convnext_dcls_nano": _cfg(),
        "convnext_dcls_tiny.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/record/7112021/files/convnext_dcls_tiny_1k_224_ema.pth",
                "arXiv:2112.03740",
            )
        ),
        "convnext_dcls_gauss_tiny.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/record/8029747/files/convnext_dcls_gauss_tiny_1k_224_ema.pth",
                "arXiv:2306.00817",
            )
        ),
        "convnext_dcls_small.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/record/7112021/files/convnext_dcls_small_1k_224_ema.pth",
                "arXiv:2112.03740",
            )
        ),
        "convnext_dcls_base.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/record/7112021/files/convnext_dcls_base_1k_224_ema.pth",
                "arXiv:2112.03740",
            )
        ),
        "convnext_dcls_large": _cfg(),
        "convnext_dcls_audio_tiny.dcls_as2m": _cfg(
            **AUDIO_CFG,
            **authors(
                "https://zenodo.org/record/8370979/files/convnext_dcls_audio_tiny.pth",
                "arXiv:2309.13972",
            ),
        ),
        "test_convnext_dcls": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
    }
)


@register_model
def convnext_dcls_atto(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Atto, 17x17 kernels of 34 elements, bilinear; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (2, 2, 6, 2),
        "dims": (40, 80, 160, 320),
        "kernel_count": 34,
        "conv_mlp": True,
    }
    return _create_convnext("convnext_dcls_atto", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_femto(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Femto, 17x17 kernels of 34 elements, bilinear; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (2, 2, 6, 2),
        "dims": (48, 96, 192, 384),
        "kernel_count": 34,
        "conv_mlp": True,
    }
    return _create_convnext("convnext_dcls_femto", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_pico(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Pico, 17x17 kernels of 34 elements, bilinear; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (2, 2, 6, 2),
        "dims": (64, 128, 256, 512),
        "kernel_count": 34,
        "conv_mlp": True,
    }
    return _create_convnext("convnext_dcls_pico", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_nano(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Nano, 17x17 kernels of 34 elements, bilinear; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (2, 2, 8, 2),
        "dims": (80, 160, 320, 640),
        "kernel_count": 34,
        "conv_mlp": True,
    }
    return _create_convnext("convnext_dcls_nano", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_tiny(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Tiny, 17x17 kernels of 34 elements, bilinear."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 9, 3),
        "dims": (96, 192, 384, 768),
        "kernel_count": 34,
    }
    return _create_convnext("convnext_dcls_tiny", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_gauss_tiny(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Tiny, 23x23 kernels of 26 elements, Gaussian."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 9, 3),
        "dims": (96, 192, 384, 768),
        "kernel_count": 26,
        "dilated_kernel_size": 23,
        "version": "gauss",
    }
    return _create_convnext("convnext_dcls_gauss_tiny", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_small(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Small, 17x17 kernels of 40 elements, bilinear."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 27, 3),
        "dims": (96, 192, 384, 768),
        "kernel_count": 40,
    }
    return _create_convnext("convnext_dcls_small", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_base(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Base, 17x17 kernels of 40 elements, bilinear."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 27, 3),
        "dims": (128, 256, 512, 1024),
        "kernel_count": 40,
    }
    return _create_convnext("convnext_dcls_base", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_large(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Large, 17x17 kernels of 40 elements, bilinear; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 27, 3),
        "dims": (192, 384, 768, 1536),
        "kernel_count": 40,
    }
    return _create_convnext("convnext_dcls_large", pretrained, **{**model_args, **kwargs})


@register_model
def convnext_dcls_audio_tiny(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """ConvNeXt-Tiny for AudioSet tagging, 23x23 kernels of 26 elements, Gaussian."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 9, 3),
        "dims": (96, 192, 384, 768),
        "kernel_count": 26,
        "dilated_kernel_size": 23,
        "version": "gauss",
    }
    return _create_convnext(
        "convnext_dcls_audio_tiny", pretrained, ConvNeXtDclsAudio, **{**model_args, **kwargs}
    )


@register_model
def test_convnext_dcls(pretrained: bool = False, **kwargs: Any) -> ConvNeXtDcls:
    """A tiny ConvNeXt for tests: timm's test_convnext with 17x17 kernels of 34 elements."""
    model_args: dict[str, Any] = {
        "depths": (1, 2, 4, 2),
        "dims": (24, 32, 48, 64),
        "norm_eps": 1e-5,
        "act_layer": "gelu_tanh",
    }
    return _create_convnext("test_convnext_dcls", pretrained, **{**model_args, **kwargs})
