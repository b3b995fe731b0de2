"""What the families share: building with timm, and telling timm about the positions."""

from functools import partial
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg
from torch import nn

from dcls_models._timm import resolve_pretrained_cfg
from dcls_models.checkpoint import CheckpointError, Rename, allow_namespace, check_whole, convert, fetch, read
from dcls_models.layers.dcls import sizes
from dcls_models.spectrogram import MEAN, STD

AUDIO_CFG = {
    "num_classes": 527,
    "input_size": (1, 128, 1001),
    "pool_size": None,
    "crop_pct": 1.0,
    "mean": (MEAN,),
    "std": (STD,),
}


def authors(url: str, paper: str) -> dict[str, Any]:
    """The part of a default cfg that points to the authors' weights and their licence."""
    record = url.split("/files/")[0]
    return {
        "url": url,
        "origin_url": record,
        "paper_ids": paper,
        "notes": (f"for the licence see {record}",),
    }


def plain_name(name: str) -> str:
    """What timm calls the model with the same blocks and plain convolutions, if it has that one."""
    return name.replace("_dcls", "").replace("_gauss", "")


def build(
    model_class: type[nn.Module],
    variant: str,
    pretrained: bool,
    rename: Rename,
    head: str,
    **kwargs: Any,
) -> Any:
    """Calls timm's ``build_model_with_cfg`` for files of the authors.

    Args:
        model_class: Class of the model.
        variant: Its registered name.
        pretrained: Whether to load weights.
        rename: timm's ``checkpoint_filter_fn`` of the family.
        head: Name of the classifier.
        **kwargs: As for ``build_model_with_cfg``.

    Raises:
        CheckpointError: If the weights cannot be loaded completely.
        ValueError: If ``dilated_kernel_size`` is even: images would grow on the way through a block.
    """
    size = kwargs.get("dilated_kernel_size", 1)
    if any(k % 2 == 0 for k in sizes(size, 2, "dilated_kernel_size")):
        raise ValueError(f"dilated_kernel_size of {variant} must be odd, got {size}")
    file, url = _where(variant, **kwargs) if pretrained else ("", "")
    if file:
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        kwargs["pretrained_cfg_overlay"] = {**overlay, "file": file}
        check_whole(file)
    elif url:
        file = str(fetch(url, kwargs.get("cache_dir")))
    headless = bool(kwargs.get("features_only"))
    try:
        with allow_namespace():
            return build_model_with_cfg(
                model_class,
                variant,
                pretrained,
                pretrained_filter_fn=partial(convert, rename=rename, head=head, headless=headless),
                **kwargs,
            )
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}" if file else str(error)) from error
    except Exception:
        if file:
            read(file)  # if the file is to blame, this says so in one line
        raise


def _where(variant: str, **kwargs: Any) -> tuple[str, str]:
    """The file or else the URL that ``build`` reads; neither if timm reads a folder, the Hub or tensors."""
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if cfg.source or cfg.state_dict:
        return "", ""
    if cfg.file:
        return str(Path(cfg.file).expanduser()), ""
    return "", str(cfg.url) if cfg.url and not cfg.hf_hub_id else ""


class PositionsInTimm:
    """Mixin: puts the positions of a stage where timm's optimizer groups expect them."""

    stage_pattern = r"^stages\.(\d+)"

    def no_weight_decay(self) -> set[str]:
        """Patterns of the parameters that timm's optimizers must not decay."""
        inherited = getattr(super(), "no_weight_decay", set)
        return {*inherited(), "*.positions", "*.sigma"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups for layer decay; positions belong to the first block of their stage."""
        matcher = dict(super().group_matcher(coarse))  # type: ignore[misc]
        if not coarse:
            blocks = matcher["blocks"]
            blocks = [(blocks, None)] if isinstance(blocks, str) else list(blocks)
            matcher["blocks"] = [(rf"{self.stage_pattern}\.(?:positions|sigma)$", (0,)), *blocks]
        return matcher


def spectrogram_stem(conv: nn.Conv2d, bias: bool) -> nn.Conv2d:
    """The stem of the authors' audio models: patches of 2 (mel) x 16 (time), in place of ``conv``."""
    like: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    stem = nn.Conv2d(conv.in_channels, conv.out_channels, (2, 16), stride=(2, 16), bias=bias, **like)
    nn.init.trunc_normal_(stem.weight, std=0.02)
    if stem.bias is not None:
        nn.init.zeros_(stem.bias)
    return stem
