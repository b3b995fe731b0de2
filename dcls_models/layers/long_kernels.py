"""Convolution along time with long kernels, as products of spectra: its work hardly grows with the kernel.

Source: overlap-save, T. G. Stockham, "High-speed convolution and correlation", 1966.

Shape letters: N batch, I and O channels in and out, G groups, T time, K kernel, B blocks, F frequencies.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import nn
from torch.nn import functional as F

from .tracing import is_traced

DEPTHWISE_FROM, DENSE_FROM, DENSE_SAMPLES = 64, 128, 3000  # K, K, samples of all recordings
BLOCK = 2  # kernels that a block of the input is long, where kernels are many
SHORT = 512  # samples, with padding, that are one block


def conv1d(
    input: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    padding: str | Sequence[int],
    groups: int,
) -> torch.Tensor:
    """``F.conv1d`` of stride 1, by FFT where that was measured to be faster.

    Whatever records code (``torch.compile``, export, ``torch.jit.trace``) gets ``F.conv1d`` itself.
    """
    sides = _sides(padding, kernel.shape[-1])
    tensors = [input, kernel] if bias is None else [input, kernel, bias]
    if not (_is_plain(tensors) and _fits(input, kernel, sides, groups) and fft_pays(input, kernel)):
        return F.conv1d(input, kernel, bias, padding=padding, groups=groups)
    output = fft_convolution(input, kernel, sides, groups)
    return output if bias is None else output + bias[:, None]


@register_notrace_module
class LongConv1d(nn.Conv1d):
    """``nn.Conv1d``, computed by ``conv1d``; ``use_fft`` makes it of one, with its parameters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As ``nn.Conv1d``."""
        if torch.jit.is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:
            padding: Any = self.padding
            return conv1d(input, self.weight, self.bias, padding, self.groups)


def use_fft(model: nn.Module) -> nn.Module:
    """Lets ``conv1d`` compute the convolutions with long kernels in a model, in place.

    Parameters, state-dict keys and outputs (up to rounding) stay as they are; subclasses of ``nn.Conv1d``
    are left alone.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        long = type(module) is nn.Conv1d and module.kernel_size[0] >= DEPTHWISE_FROM
        if long and module.stride == module.dilation == (1,) and module.padding_mode == "zeros":
            module.__class__ = LongConv1d  # keeps its hooks, and every reference to it
    return model


def _sides(padding: str | Sequence[int], size: int) -> tuple[int, int]:
    """Zeros before and after; ``"same"`` has the odd one after, as in torch."""
    if padding == "same":
        return (size - 1) // 2, size // 2
    return (0, 0) if isinstance(padding, str) else (padding[0], padding[0])


def _is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether these are tensors of one type on a CPU, and no graph is being made of what is done."""
    if is_traced() or torch.is_autocast_enabled("cpu"):
        return False
    first = tensors[0].dtype
    if first not in (torch.float32, torch.float64) or any(t.dtype != first or not t.is_cpu for t in tensors):
        return False
    return all(type(t) in (torch.Tensor, nn.Parameter) for t in tensors)


def _fits(input: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int], groups: int) -> bool:
    """False also where ``F.conv1d`` is to say what is wrong."""
    if input.ndim != 3 or input.numel() == 0 or input.shape[1] != groups * kernel.shape[1]:
        return False
    return input.shape[-1] + sum(padding) >= kernel.shape[-1]


def fft_pays(input: torch.Tensor, kernel: torch.Tensor) -> bool:
    """Whether ``fft_convolution`` is the faster one in training and in inference."""
    # Measured with torch 2.14 on one thread (AVX-512), 8 to 256 channels, 500 to 16000 samples, batch 1 and
    # 8, K of 15 to 2049: depthwise it was from K 63 on, dense with 4000 samples or more too. In 500 samples
    # the spectra of 256 x 256 dense kernels cost three times what they save.
    if kernel.shape[1] == 1:
        return kernel.shape[-1] >= DEPTHWISE_FROM
    return kernel.shape[-1] >= DENSE_FROM and len(input) * input.shape[-1] >= DENSE_SAMPLES


def fft_convolution(
    input: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int] = (0, 0), groups: int = 1
) -> torch.Tensor:
    """``F.conv1d`` of the padded input, as products of spectra, differentiable any number of times.

    Equal up to rounding: errors are relative to the largest outputs of a block, not to each output, and a
    sample that is NaN or infinite spoils its block.

    Args:
        input: ``(N, I, T)``.
        kernel: ``(O, I / G, K)``.
        padding: Zeros before and after the input.
        groups: G.

    Returns:
        ``(N, O, T + sum(padding) - K + 1)``.
    """
    (batch, _, length), (channels, inputs, size), before = input.shape, kernel.shape, padding[0]
    outputs = length + sum(padding) - size + 1
    block = _fast(outputs + size - 1)
    if inputs > 1 and block > SHORT:  # the spectra of many kernels cost more than those of a long input
        block = min(block, _fast(BLOCK * size))
    step = block - size + 1  # outputs of a block; the others have come round its end
    count = -(-outputs // step)
    padded = F.pad(input, (before, count * step + size - 1 - before - length))
    blocks = padded.unfold(-1, block, step).movedim(2, 0)  # B N I block
    # the kernel is not flipped; its spectrum, the largest tensor here, is not conjugated for that
    spectra = _product(torch.fft.rfft(blocks).conj(), torch.fft.rfft(kernel, block), groups).conj()
    signal = torch.fft.irfft(spectra, block)[..., :step]
    return signal.movedim(0, 2).reshape(batch, channels, count * step)[..., :outputs].contiguous()


def _product(signal: torch.Tensor, taps: torch.Tensor, groups: int) -> torch.Tensor:
    """``(B, N, I, F)`` and ``(O, I / G, F)`` to ``(B, N, O, F)``: a matrix product at each frequency."""
    if taps.shape[1] == 1 and len(taps) == groups:
        return signal * taps[:, 0]
    by_group = signal.unflatten(2, (groups, -1)), taps.unflatten(0, (groups, -1))
    return torch.einsum("bngif,goif->bngof", *by_group).flatten(2, 3)


def _fast(length: int) -> int:
    """The next length that an FFT is fast for."""
    return min(n for n in _FAST if n >= length) if length <= _FAST[-1] else length


_FAST = sorted(2**a * 3**b * 5**c for a in range(21) for b in range(4) for c in range(3))
