"""Linear layers by oneDNN, where torch's own choice (MKL) is slower: on AMD processors, for instance.

oneDNN reaches the same product in two ways: an inference operator of torch, and, with gradients, a 1x1
convolution in channels_last. Where neither pays, or code is traced or exported, it is ``F.linear``.
"""

import time
from functools import cache
from typing import Any

import torch
from timm.layers import Mlp, register_notrace_module
from torch import nn
from torch.nn import functional as F

from .tracing import is_recorded, is_transformed

# Multiply-adds and rows from which oneDNN was the faster one (AMD Zen 5, AVX-512, one and two threads)
INFERENCE_FROM = 2**22
TRAINING_FROM = 2**24
TRAINING_ROWS = 64
CLEARLY = 0.8  # of MKL's time: where both are good, as on Intel's processors, nothing changes


@register_notrace_module
class FastLinear(nn.Linear):
    """``nn.Linear``, computed by ``fast_linear``; ``use_fast_linear`` makes it of one, with its parameters.

    Attributes:
        gelu: Whether the output goes through a GELU.
    """

    __constants__ = [*nn.Linear.__constants__, "gelu"]  # noqa: RUF012 (as in torch)
    gelu: bool

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As ``nn.Linear``, and the GELU of it where ``gelu`` is set."""
        if torch.jit.is_scripting():
            output = F.linear(input, self.weight, self.bias)
            return F.gelu(output) if self.gelu else output
        else:
            return fast_linear(input, self.weight, self.bias, self.gelu)


def use_fast_linear(model: nn.Module, gelu: bool = False) -> nn.Module:
    """Lets oneDNN compute the linear layers of a model, in place, if it is the faster one here.

    Parameters, state-dict keys and outputs (up to rounding) stay as they are.

    Args:
        model: Any model; subclasses of ``nn.Linear`` are left alone.
        gelu: Whether the GELU of timm's MLPs is computed along (for inference: it saves no time in training).

    Returns:
        The same model.
    """
    if not onednn_is_faster():
        return model
    modules: list[Any] = list(model.modules())
    for module in modules:
        if gelu and type(module) is Mlp and type(module.fc1) is nn.Linear and _is_gelu(module.act):
            _make_fast(module.fc1, gelu=True)
            module.act = nn.Identity()
        elif type(module) is nn.Linear:
            _make_fast(module)
    return model


def _make_fast(linear: Any, gelu: bool = False) -> None:
    linear.__class__ = FastLinear  # keeps its hooks, and every reference to it
    linear.gelu = gelu


def _is_gelu(module: nn.Module) -> bool:
    return type(module) is nn.GELU and module.approximate == "none"


def fast_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gelu: bool = False
) -> torch.Tensor:
    """``F.linear``, and its GELU if asked for, by oneDNN where that is faster.

    Args:
        input: ``(..., in_features)``.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``.
        gelu: Whether to apply the (exact) GELU.
    """
    tensors = [t for t in (input, weight, bias) if t is not None]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    as_convolution = recorded or torch.compiler.is_compiling()
    if not _is_plain(tensors) or not _pays(input, weight, as_convolution):
        output = F.linear(input, weight, bias)
    elif as_convolution:
        output = _convolution(input, weight, bias)
    else:
        operator = torch.ops.mkldnn._linear_pointwise
        return operator(input.contiguous(), weight, bias, "gelu" if gelu else "none", [], "none")
    return F.gelu(output) if gelu else output


def _pays(input: torch.Tensor, weight: torch.Tensor, as_convolution: bool) -> bool:
    rows = input.shape[:-1].numel()
    work = rows * weight.numel()
    return rows >= TRAINING_ROWS and work >= TRAINING_FROM if as_convolution else work >= INFERENCE_FROM


def _is_plain(tensors: list[torch.Tensor]) -> bool:
    """Whether these are float32 tensors, and nothing is at work that knows ``F.linear`` only."""
    if not all(t.is_cpu and t.dtype == torch.float32 for t in tensors) or torch.is_autocast_enabled("cpu"):
        return False
    if is_recorded():
        return False
    if torch.compiler.is_compiling():
        return True
    if not torch.backends.mkldnn.enabled:
        return False
    if any(type(t) not in (torch.Tensor, nn.Parameter) for t in tensors) or is_transformed(*tensors):
        return False
    return onednn_is_faster()  # a layer may come from another machine


def _convolution(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    batch = len(input) if input.ndim > 2 else 1
    images = input.reshape(batch, 1, -1, input.shape[-1]).permute(0, 3, 1, 2)
    # dilation does not matter to 1x1 kernels, but without it torch does not ask oneDNN on one thread
    output = F.conv2d(images, weight[:, :, None, None], bias, dilation=2)
    return output.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN is clearly faster than ``F.linear`` here, by one product timed once per process."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    input, weight = torch.ones(1024, 256), torch.ones(1024, 256)
    theirs, ours = [], []
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(6):
            start = time.perf_counter()
            F.linear(input, weight)
            between = time.perf_counter()
            torch.ops.mkldnn._linear_pointwise(input, weight, None, "none", [], "none")
            theirs.append(between - start)
            ours.append(time.perf_counter() - between)
    return min(ours) < CLEARLY * min(theirs)
