"""The model that is trained: created by timm, warm-started or frozen as asked."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm
from torch import nn

import dcls_models
from dcls_models.loading import config_of, load_model, why_no_download
from dcls_models.strided import slice_strided
from train.errors import reason

_logger = logging.getLogger(__name__)


def build_model(
    name: str, pretrained: bool, warm_start: str | None, num_classes: int, model_kwargs: dict[str, Any]
) -> nn.Module:
    """Creates a model.

    Args:
        name: A timm name, ``local-dir:FOLDER`` or ``hf-hub:USER/NAME``.
        pretrained: Whether to start from published weights; a warning says so if there are none.
        warm_start: A dense model (as ``name``) whose weights the DCLS model starts from.
        num_classes: Number of outputs.
        model_kwargs: More arguments of the model.

    Raises:
        ValueError: If timm knows no such model, or the arguments or the warm start do not fit it.
    """
    if pretrained and warm_start:
        raise ValueError("start from model.pretrained or from model.warm_start, not from both")
    pretrained = starts_pretrained(name, pretrained, model_kwargs)
    if taken := model_kwargs.keys() & {"pretrained", "num_classes"}:
        raise ValueError(f"give model.{min(taken)}, not model.model_kwargs.{min(taken)}")
    options = {"pretrained": pretrained, "num_classes": num_classes, **model_kwargs}
    with downloading(name):
        model = build_checked(timm.create_model, "model.model_kwargs", model_name=name, **options)
    if warm_start:
        channels = {k: v for k, v in model_kwargs.items() if k == "in_chans"}  # timm adapts the stem
        with downloading(warm_start, "model.warm_start"):
            dense = load_model(warm_start, num_classes=num_classes, **channels)
        dcls_models.warm_start(model, dense)
    return slice_strided(model)


def freeze_all_but_head(model: nn.Module) -> None:
    """Leaves gradients to the classifier only."""
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)  # type: ignore[operator]


class SyncBatchNorm(TorchSyncBatchNorm):
    """For ``Trainer(plugins=...)``: synchronises timm's layers as well, whose activation torch would drop."""

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with layers that share their statistics between processes."""
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """The same model: its layers share nothing outside of training."""
        return model


def build_checked(make: Callable[..., Any], option: str, **kwargs: Any) -> Any:
    """Calls ``make`` and names the option if its arguments do not fit.

    Raises:
        ValueError: If they do not fit.
    """
    try:
        return make(**kwargs)
    except (AssertionError, AttributeError, LookupError, TypeError) as error:
        if why_no_download(error) is not None:
            raise
        raise ValueError(f"{option} do not fit: {reason(error)}") from error


def compile_model(model: nn.Module, backend: str | None) -> None:
    """Compiles a model, once, and not the module that holds it: its parameters keep their names.

    Raises:
        ValueError: If torch knows no such backend.
    """
    if backend is None or model._compiled_call_impl is not None:
        return
    if backend not in torch.compiler.list_backends(()):
        usual = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"model.compile must be one of {usual}, got {backend!r}")
    model.compile(backend=backend)


@contextmanager
def downloading(name: str, option: str = "model.pretrained") -> Iterator[None]:
    """Says what to do instead where the weights of a model cannot be downloaded.

    Raises:
        ValueError: If they cannot.
    """
    try:
        yield
    except Exception as error:
        why = why_no_download(error)
        if why is None:
            raise
        file = '--model.model_kwargs.pretrained_cfg_overlay \'{"file": "PATH"}\' for a file that is here'
        instead = (
            f"--model.pretrained false, or {file}" if option == "model.pretrained" else "local-dir:FOLDER"
        )
        raise ValueError(
            f"{option}: the weights of {name} cannot be downloaded ({why}); try again later, or give "
            f"{instead}"
        ) from error


def starts_pretrained(name: str, pretrained: bool, model_kwargs: dict[str, Any]) -> bool:
    """Whether a model starts from published weights: those it was asked for, if there are any.

    Raises:
        ValueError: If timm knows no such model.
    """
    config_of(name)
    if pretrained and not has_weights(name, model_kwargs):
        _logger.warning("WARNING: %s has no published weights: it starts from RANDOM ones", name)
        return False
    return pretrained


def has_weights(name: str, model_kwargs: dict[str, Any]) -> bool:
    """Whether a model has published weights, or others that it is given."""
    if ":" in name or any(k in model_kwargs for k in ("pretrained_cfg", "pretrained_cfg_overlay")):
        return True
    cfg = timm.get_pretrained_cfg(name)
    return bool(cfg and cfg.has_weights)


def to_memory_layout(images: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """The images ``(N, C, H, W)`` in the memory layout that was asked for."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout)
