"""ConvFormer and CAFormer (arXiv:2210.13452) with learned spacings in their separable convolutions."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models.metaformer import (
    Attention,
    LayerNorm2dNoBias,
    LayerNormNoBias,
    MetaFormer,
    SepConv,
    checkpoint_filter_fn,
)

from dcls_models.dclsify import dclsify
from dcls_models.spectrogram import LogMel

from ._build import AUDIO_CFG, PositionsInTimm, authors, build, spectrogram_stem

CONVFORMER: dict[str, Any] = {"token_mixers": SepConv, "norm_layers": LayerNorm2dNoBias}
CAFORMER: dict[str, Any] = {
    "token_mixers": [SepConv, SepConv, Attention, Attention],
    "norm_layers": [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
}


class _MetaFormerGroups(MetaFormer):
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups for layer decay (timm's MetaFormer has none)."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}


class MetaFormerDcls(PositionsInTimm, _MetaFormerGroups):
    """timm's MetaFormer; the depthwise convolutions of a stage share their positions."""

    def __init__(
        self,
        *args: Any,
        kernel_count: int = 40,
        dilated_kernel_size: int | tuple[int, int] = 17,
        version: str = "v1",
        positions: str = "authors",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        dclsify(
            self,
            "stages.*.token_mixer.dwconv",
            share=self.stages,
            kernel_count=kernel_count,
            dilated_kernel_size=dilated_kernel_size,
            version=version,
            positions=positions,
        )


class MetaFormerDclsAudio(MetaFormerDcls):
    """For spectrograms ``(N, 1, mel, time)``, with a stem of 2 x 16 patches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stem.conv = spectrogram_stem(self.stem.conv, bias=False)
        self.front_end = LogMel(device=self.stem.conv.weight.device)


def _create_metaformer(
    variant: str,
    pretrained: bool,
    model_class: type[MetaFormerDcls] = MetaFormerDcls,
    **kwargs: Any,
) -> MetaFormerDcls:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
    return build(
        model_class,
        variant,
        pretrained,
        rename=checkpoint_filter_fn,
        head="head.fc",
        feature_cfg={"out_indices": out_indices, "flatten_sequential": True},
        **kwargs,
    )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc.fc2",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "convformer_dcls_s18.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/records/8370737/files/convformer_s18_v1_17lim_40el_seed0.pth.tar",
                "arXiv:2408.03164",
            )
        ),
        "convformer_dcls_s36": _cfg(),
        "convformer_dcls_m36": _cfg(),
        "convformer_dcls_b36": _cfg(),
        "convformer_dcls_audio_s18.dcls_as2m": _cfg(
            **AUDIO_CFG,
            **authors(
                "https://zenodo.org/record/8370979/files/convformer_dcls_audio_s18.pth",
                "arXiv:2309.13972",
            ),
        ),
        "caformer_dcls_s18.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/records/8370737/files/caformer_s18_v1_17lim_34el_seed0.pth.tar",
                "arXiv:2408.03164",
            )
        ),
        "caformer_dcls_s36": _cfg(),
        "caformer_dcls_m36": _cfg(),
        "caformer_dcls_b36": _cfg(),
        "test_convformer_dcls": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
        "test_caformer_dcls": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
    }
)


@register_model
def convformer_dcls_s18(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """ConvFormer-S18, 17x17 kernels of 40 elements, triangle."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 9, 3),
        "dims": (64, 128, 320, 512),
        "kernel_count": 40,
    }
    return _create_metaformer("convformer_dcls_s18", pretrained, **CONVFORMER, **{**model_args, **kwargs})


@register_model
def convformer_dcls_s36(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """ConvFormer-S36, 17x17 kernels of 40 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (3, 12, 18, 3),
        "dims": (64, 128, 320, 512),
        "kernel_count": 40,
    }
    return _create_metaformer("convformer_dcls_s36", pretrained, **CONVFORMER, **{**model_args, **kwargs})


@register_model
def convformer_dcls_m36(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """ConvFormer-M36, 17x17 kernels of 40 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (3, 12, 18, 3),
        "dims": (96, 192, 384, 576),
        "kernel_count": 40,
    }
    return _create_metaformer("convformer_dcls_m36", pretrained, **CONVFORMER, **{**model_args, **kwargs})


@register_model
def convformer_dcls_b36(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """ConvFormer-B36, 17x17 kernels of 40 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (3, 12, 18, 3),
        "dims": (128, 256, 512, 768),
        "kernel_count": 40,
    }
    return _create_metaformer("convformer_dcls_b36", pretrained, **CONVFORMER, **{**model_args, **kwargs})


@register_model
def convformer_dcls_audio_s18(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """ConvFormer-S18 for AudioSet tagging, 23x23 kernels of 26 elements, Gaussian."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 9, 3),
        "dims": (64, 128, 320, 512),
        "kernel_count": 26,
        "dilated_kernel_size": 23,
        "version": "gauss",
    }
    return _create_metaformer(
        "convformer_dcls_audio_s18",
        pretrained,
        MetaFormerDclsAudio,
        **CONVFORMER,
        **{**model_args, **kwargs},
    )


@register_model
def caformer_dcls_s18(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """CAFormer-S18, 17x17 kernels of 34 elements, triangle."""
    model_args: dict[str, Any] = {
        "depths": (3, 3, 9, 3),
        "dims": (64, 128, 320, 512),
        "kernel_count": 34,
    }
    return _create_metaformer("caformer_dcls_s18", pretrained, **CAFORMER, **{**model_args, **kwargs})


@register_model
def caformer_dcls_s36(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """CAFormer-S36, 17x17 kernels of 34 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (3, 12, 18, 3),
        "dims": (64, 128, 320, 512),
        "kernel_count": 34,
    }
    return _create_metaformer("caformer_dcls_s36", pretrained, **CAFORMER, **{**model_args, **kwargs})


@register_model
def caformer_dcls_m36(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """CAFormer-M36, 17x17 kernels of 34 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (3, 12, 18, 3),
        "dims": (96, 192, 384, 576),
        "kernel_count": 34,
    }
    return _create_metaformer("caformer_dcls_m36", pretrained, **CAFORMER, **{**model_args, **kwargs})


@register_model
def caformer_dcls_b36(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """CAFormer-B36, 17x17 kernels of 34 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "depths": (3, 12, 18, 3),
        "dims": (128, 256, 512, 768),
        "kernel_count": 34,
    }
    return _create_metaformer("caformer_dcls_b36", pretrained, **CAFORMER, **{**model_args, **kwargs})


@register_model
def test_convformer_dcls(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """A tiny ConvFormer for tests."""
    model_args: dict[str, Any] = {
        "depths": (1, 2, 2, 1),
        "dims": (16, 24, 32, 64),
        "kernel_count": 40,
    }
    return _create_metaformer("test_convformer_dcls", pretrained, **CONVFORMER, **{**model_args, **kwargs})


@register_model
def test_caformer_dcls(pretrained: bool = False, **kwargs: Any) -> MetaFormerDcls:
    """A tiny CAFormer for tests."""
    model_args: dict[str, Any] = {
        "depths": (1, 2, 2, 1),
        "dims": (16, 24, 32, 64),
        "kernel_count": 34,
    }
    return _create_metaformer("test_caformer_dcls", pretrained, **CAFORMER, **{**model_args, **kwargs})
