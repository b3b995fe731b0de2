"""The kernel of a layer in eval mode, kept until something that it is made of changes.

Without gradients a kernel takes up to a third of a layer's time for one image. So it is built once, and
compared at every call are the values of all that it is made of: whoever writes them, and however, is seen.
Comparing is cheap on a CPU; an accelerator would have to be waited for, so there nothing is kept.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from .in_range import as_loaded
from .tracing import is_traced


class KeptKernel(NamedTuple):
    """A kernel and all that it was made of."""

    settings: tuple[Any, ...]
    values: list[torch.Tensor]
    kernel: torch.Tensor


def kept_kernel(layer: Any) -> torch.Tensor:
    """``layer.kernel()``, or the one that the layer keeps in eval mode without gradients."""
    sources = [t for t in (layer.weight, layer.positions, layer.sigma) if t is not None]
    if layer.training or torch.is_grad_enabled() or not _are_comparable(sources):
        return layer.kernel()
    settings = (layer.version, layer.dilated_kernel_size, layer.sigma_offset, as_loaded(layer.holder()))
    kept: KeptKernel | None = layer._kept  # another thread may replace it meanwhile
    if kept is None or kept.settings != settings or not _are_equal(kept.values, sources):
        values = [t.detach().clone() for t in sources]
        layer._kept = kept = KeptKernel(settings, values, layer.kernel())
    return kept.kernel


def _are_comparable(sources: list[torch.Tensor]) -> bool:
    """True for ordinary parameters on a CPU outside tracing and compiling."""
    if is_traced():
        return False
    return all(type(t) is nn.Parameter and t.is_cpu for t in sources)


def _are_equal(values: list[torch.Tensor], sources: list[torch.Tensor]) -> bool:
    if len(values) != len(sources):
        return False
    return all(v.dtype == s.dtype and torch.equal(v, s) for v, s in zip(values, sources, strict=True))
