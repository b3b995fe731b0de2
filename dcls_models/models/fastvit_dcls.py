"""FastViT (arXiv:2303.14189) with learned spacings in its depthwise 7x7 convolutions."""

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models.fastvit import FastVit, RepConditionalPosEnc, checkpoint_filter_fn
from torch import nn

from dcls_models.dclsify import dclsify
from dcls_models.spectrogram import LogMel
from dcls_models.strided import slice_strided

from ._build import AUDIO_CFG, PositionsInTimm, authors, build, spectrogram_stem

ATTENTION_LAST: dict[str, Any] = {
    "token_mixers": ("repmixer", "repmixer", "repmixer", "attention"),
    "pos_embs": (None, None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7))),
}


class FastVitDcls(PositionsInTimm, FastVit):
    """timm's FastViT; the depthwise 7x7 convolutions of a stage share their positions.

    These are the ones in the MLPs and in the positional encoding; patch embeddings stay dense.
    """

    def __init__(
        self,
        *args: Any,
        kernel_count: int = 34,
        dilated_kernel_size: int | tuple[int, int] = 17,
        version: str = "v1",
        positions: str = "authors",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        slice_strided(self)
        dclsify(
            self,
            ("stages.*.mlp.conv.conv", "stages.*.pos_emb.pos_enc"),
            share=self.stages,
            kernel_count=kernel_count,
            dilated_kernel_size=dilated_kernel_size,
            version=version,
            positions=positions,
        )


class FastVitDclsAudio(FastVitDcls):
    """For spectrograms ``(N, 1, mel, time)``: one convolution of 2 x 16 patches is the whole stem."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        first: nn.Conv2d = self.get_submodule("stem.0.conv_kxk.0.conv")
        self.stem = spectrogram_stem(first, bias=False)
        self.front_end = LogMel(device=self.stem.weight.device)


def _create_fastvit(
    variant: str, pretrained: bool, model_class: type[FastVitDcls] = FastVitDcls, **kwargs: Any
) -> FastVitDcls:
    return build(
        model_class,
        variant,
        pretrained,
        rename=checkpoint_filter_fn,
        head="head.fc",
        feature_cfg={
            "out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)),
            "flatten_sequential": True,
        },
        **kwargs,
    )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 256, 256),
        "pool_size": (8, 8),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": ("stem.0.conv_kxk.0.conv", "stem.0.conv_scale.conv"),
        "classifier": "head.fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "fastvit_dcls_t8": _cfg(),
        "fastvit_dcls_sa12": _cfg(),
        "fastvit_dcls_sa24.dcls_in1k": _cfg(
            **authors(
                "https://zenodo.org/records/8370737/files/fastvit_sa24_v1_17lim_34el_seed0.pth.tar",
                "arXiv:2408.03164",
            )
        ),
        "fastvit_dcls_sa36.dcls_in1k": _cfg(
            crop_pct=0.95,
            **authors(
                "https://zenodo.org/records/8370737/files/fastvit_sa36_v1_17lim_34el_seed0.pth.tar",
                "arXiv:2408.03164",
            ),
        ),
        "fastvit_dcls_ma36": _cfg(crop_pct=0.95),
        "fastvit_dcls_audio_sa24.dcls_as2m": _cfg(
            **AUDIO_CFG,
            first_conv="stem",
            **authors(
                "https://zenodo.org/record/8370979/files/fastvit_dcls_audio_sa24.pth",
                "arXiv:2309.13972",
            ),
        ),
        "test_fastvit_dcls": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
    }
)


@register_model
def fastvit_dcls_t8(pretrained: bool = False, **kwargs: Any) -> FastVitDcls:
    """FastViT-T8, 17x17 kernels of 34 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "layers": (2, 2, 4, 2),
        "embed_dims": (48, 96, 192, 384),
        "mlp_ratios": (3, 3, 3, 3),
        "token_mixers": ("repmixer",) * 4,
    }
    return _create_fastvit("fastvit_dcls_t8", pretrained, **{**model_args, **kwargs})


@register_model
def fastvit_dcls_sa12(pretrained: bool = False, **kwargs: Any) -> FastVitDcls:
    """FastViT-SA12, 17x17 kernels of 34 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "layers": (2, 2, 6, 2),
        "embed_dims": (64, 128, 256, 512),
        "mlp_ratios": (4, 4, 4, 4),
    }
    return _create_fastvit("fastvit_dcls_sa12", pretrained, **{**ATTENTION_LAST, **model_args, **kwargs})


@register_model
def fastvit_dcls_sa24(pretrained: bool = False, **kwargs: Any) -> FastVitDcls:
    """FastViT-SA24, 17x17 kernels of 34 elements, triangle."""
    model_args: dict[str, Any] = {
        "layers": (4, 4, 12, 4),
        "embed_dims": (64, 128, 256, 512),
        "mlp_ratios": (4, 4, 4, 4),
    }
    return _create_fastvit("fastvit_dcls_sa24", pretrained, **{**ATTENTION_LAST, **model_args, **kwargs})


@register_model
def fastvit_dcls_sa36(pretrained: bool = False, **kwargs: Any) -> FastVitDcls:
    """FastViT-SA36, 17x17 kernels of 34 elements, triangle."""
    model_args: dict[str, Any] = {
        "layers": (6, 6, 18, 6),
        "embed_dims": (64, 128, 256, 512),
        "mlp_ratios": (4, 4, 4, 4),
        "layer_scale_init_value": 1e-6,
    }
    return _create_fastvit("fastvit_dcls_sa36", pretrained, **{**ATTENTION_LAST, **model_args, **kwargs})


@register_model
def fastvit_dcls_ma36(pretrained: bool = False, **kwargs: Any) -> FastVitDcls:
    """FastViT-MA36, 17x17 kernels of 34 elements, triangle; a size that the authors never released."""
    model_args: dict[str, Any] = {
        "layers": (6, 6, 18, 6),
        "embed_dims": (76, 152, 304, 608),
        "mlp_ratios": (4, 4, 4, 4),
        "layer_scale_init_value": 1e-6,
    }
    return _create_fastvit("fastvit_dcls_ma36", pretrained, **{**ATTENTION_LAST, **model_args, **kwargs})


@register_model
def fastvit_dcls_audio_sa24(pretrained: bool = False, **kwargs: Any) -> FastVitDcls:
    """FastViT-SA24 for AudioSet tagging, 23x23 kernels of 26 elements, Gaussian."""
    model_args: dict[str, Any] = {
        "layers": (4, 4, 12, 4),
        "embed_dims": (64, 128, 256, 512),
        "mlp_ratios": (4, 4, 4, 4),
        "kernel_count": 26,
        "dilated_kernel_size": 23,
        "version": "gauss",
    }
    return _create_fastvit(
        "fastvit_dcls_audio_sa24",
        pretrained,
        FastVitDclsAudio,
        **{**ATTENTION_LAST, **model_args, **kwargs},
    )


@register_model
def test_fastvit_dcls(pretrained: bool = False, **kwargs: Any) -> FastVitDcls:
    """A tiny FastViT for tests."""
    model_args: dict[str, Any] = {
        "layers": (1, 1, 2, 1),
        "embed_dims": (8, 16, 32, 64),
        "mlp_ratios": (3, 3, 3, 3),
    }
    return _create_fastvit("test_fastvit_dcls", pretrained, **{**ATTENTION_LAST, **model_args, **kwargs})
