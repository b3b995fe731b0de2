"""Depthwise convolution with large kernels on the matrix units of a GPU, in Triton, compiled on first use.

In float16 and bfloat16 all passes are here; in float32, where matrix units would round, the weight gradient
alone, and the others are ATen's forward convolution. ``docs/gpu.md`` has the measurements.
They decide on which GPUs these kernels are used, ``MEASURED``; ``DCLS_TRITON=1`` in the environment asks for
them on others, ``DCLS_TRITON=0`` switches them off. Without triton, on other devices and for what
``supports`` does not name, ATen computes.

The two functions know nothing of autograd. The input gradient is a ``convolution`` with the flipped kernel.

Shape letters: N batch, C channels, H x W image, K kernel.
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from dcls_models.layers.interpolation import without_autocast

from . import tiles
from .layout import layout_of

_logger = logging.getLogger(__name__)

KERNELS = range(9, 32)  # sides that the kernels are meant for and tested with
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CAPABILITY = (8, 0)  # the first one whose matrix units take bfloat16
MEASURED = ((9, 0),)  # where all these kernels were measured to be faster than ATen and cuDNN (H200)
# Multiply-adds of the direct form from which that outweighs launching more kernels, estimated from times of
# 128 images: about 0.3 ms of ATen for a forward pass, as much for all passes of a training step
INFERENCE_FROM = 2**29
TRAINING_FROM = 2**27

PROGRAMS = 1024  # at least so many, if there is work for them: a few for each processor of a large GPU


def admit(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """The tensors to convolve here, cast as autocast would cast them; None where ATen is to do it."""
    if os.environ.get("DCLS_TRITON") == "0":
        return None
    if torch.is_autocast_enabled("cuda") and torch.float64 not in (input.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype("cuda")
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return (input, weight, bias) if chosen(input, weight, padding) else None


def chosen(input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> bool:
    """Whether to convolve here: it is supported, and asked for, or much work on a GPU that was measured."""
    wish = os.environ.get("DCLS_TRITON")
    trains = torch.is_grad_enabled() and weight.requires_grad
    if wish == "0" or not supports(input, weight, padding) or (input.dtype == torch.float32 and not trains):
        return False
    if wish == "1":
        return True
    work = input.numel() * weight.shape[2] * weight.shape[3]
    return work >= (TRAINING_FROM if trains else INFERENCE_FROM) and _pays_on(input.device)


def supports(input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> bool:
    """Whether ``convolution`` and ``correlation`` can do it: a CUDA device, triton, K from 9 to 31.

    Args:
        input: ``(N, C, H, W)``, any strides.
        weight: ``(C, 1, K, K)``, same device and dtype: float32, float16 or bfloat16; the sides may differ.
        padding: Zeros on either side of each axis, less than K.
    """
    if any(type(t) not in (torch.Tensor, torch.nn.Parameter) for t in (input, weight)):
        return False  # without numbers, or distributed
    if input.ndim != 4 or weight.ndim != 4 or weight.shape[:2] != (input.shape[1], 1):
        return False
    if not input.numel() or len(weight) >= 2**16:  # channels, which the launch of a kernel counts in 16 bits
        return False
    if input.dtype != weight.dtype or input.dtype not in DTYPES or input.device != weight.device:
        return False
    sides = zip(input.shape[2:], weight.shape[2:], padding, strict=True)
    if not all(k in KERNELS and 0 <= p < k and i + 2 * p >= k for i, k, p in sides):
        return False
    return _may_run_on(input.device)


@torch.compiler.assume_constant_result  # torch.compile cannot trace these questions
def _may_run_on(device: torch.device) -> bool:
    return _runs_on(device)


@torch.compiler.assume_constant_result
def _pays_on(device: torch.device) -> bool:
    return _is_measured(device)


@lru_cache
def _is_measured(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) in MEASURED:
        return True
    _logger.warning(
        "large depthwise kernels were not measured on %s and are left to PyTorch; with DCLS_TRITON=1 in the "
        "environment they may be several times faster: python -m eval layers --device cuda measures it",
        torch.cuda.get_device_name(device),
    )
    return False


@lru_cache
def _runs_on(device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if not hasattr(importlib.import_module("triton.language"), "gather"):  # before 3.3, as with torch 2.6
        return False
    if device.type != "cuda":
        return device.type == "cpu" and _kernels().INTERPRETED
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= CAPABILITY


def convolution(
    input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``F.conv2d`` of stride 1 with one kernel per channel, summed in float32, without autograd.

    Args:
        input: ``(N, C, H, W)``, in either memory layout, which the output keeps.
        weight: ``(C, 1, K, K)``, for what ``supports`` says.
        padding: Zeros on either side of each axis.
        bias: ``(C,)``, added before the output is rounded.

    Returns:
        ``(N, C, H + 2 padding - K + 1, W + 2 padding - K + 1)`` in the dtype of ``input``.
    """
    if input.dtype == torch.float32:
        with without_autocast(input.device.type):  # a backward pass may be in one
            # in channels_last cuDNN would be asked, which is slower
            output = F.conv2d(input.contiguous(), weight, bias, padding=padding, groups=len(weight))
        return output.contiguous(memory_format=layout_of(input))
    tile = tiles.cheapest(tiles.extents_of(input.shape, weight.shape, padding))
    rows, columns = tile.rows, tile.columns
    constants = {"window": columns.window, "block_h": rows.block, "block_w": columns.block}
    values = _aligned(input, columns.left, tile.width)
    output = input.new_empty(*input.shape[:2], *tile.out)
    patches = len(input) * tile.number
    block_k = 64 if tile.pixels <= 128 else 32
    block_m = _block(patches, 128 if tile.pixels == 64 else 64)
    with torch.cuda.device_of(input):
        toeplitz = _toeplitz(weight, tile, block_k, constants)
        _kernels().convolve[-(-patches // block_m), input.shape[1]](
            values,
            toeplitz,
            bias,
            output,
            *values.stride()[:3],
            toeplitz.stride(0),
            *output.stride()[:3],
            values.shape[2],
            *tile.out,
            rows.tiles,
            columns.tiles,
            rows.window,
            rows.left,
            patches,
            **constants,
            block_k=block_k,
            block_m=block_m,
            operand=_kernels().operand(input.dtype),
            num_warps=4,
        )
    if layout_of(input) == torch.channels_last:
        return _move(output, torch.empty_like(output, memory_format=torch.channels_last), 0)
    return output


def _toeplitz(
    weight: torch.Tensor, tile: tiles.Tile, block_k: int, constants: dict[str, int]
) -> torch.Tensor:
    """The matrices that tiles are multiplied with, ``(C, inputs of a window, outputs of a tile)``."""
    rows, columns = tile.rows, tile.columns
    positions = -(-rows.window * columns.window // block_k) * block_k
    toeplitz = weight.new_empty(len(weight), positions, tile.pixels)
    weight = weight.contiguous()
    _kernels().spread[positions // 16, len(weight)](
        weight,
        toeplitz,
        weight.stride(0),
        weight.stride(2),
        toeplitz.stride(0),
        rows.window,
        rows.first,
        columns.first,
        kernel_h=weight.shape[2],
        kernel_w=weight.shape[3],
        **constants,
        block_k=16,
        num_warps=4,
    )
    return toeplitz


def correlation(
    input: torch.Tensor, grad: torch.Tensor, size: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """The weight gradient of ``convolution``, summed in float32, the same at every run, without autograd.

    Args:
        input: ``(N, C, H, W)``, the input of the convolution.
        grad: ``(N, C, H', W')``, the gradient of its output, in the same dtype.
        size: The two sides of the kernel.
        padding: Zeros on either side of each axis.

    Returns:
        ``(C, 1, *size)`` in the dtype of ``input``.
    """
    channels = input.shape[1]
    tile = tiles.of_64(tiles.extents_of(input.shape, (channels, 1, *size), padding))
    rows, columns = tile.rows, tile.columns
    values = _aligned(input, columns.left, tile.width)
    grads = _aligned(grad, 0, -(-columns.tiles * columns.block // 16) * 16)
    large = tile.out[1] > 32
    block_k = 16 if columns.window % 32 else 32
    chunks = columns.window // block_k
    block_m = _block(len(input) * tile.number, 64 if input.dtype.itemsize == 2 else 32)
    group = max(1, block_m // tile.number)  # images at a time
    lots = -(-group * tile.number // block_m)
    block_steps = (128 if large else 64) // block_k
    parts = -(-rows.window * chunks // block_steps)
    shares = min(-(-PROGRAMS // max(1, parts * channels * lots)), -(-len(input) // group))
    share = -(-len(input) // max(1, shares * group)) * group
    numbers = (shares * lots, chunks, rows.block, channels, *size)
    partial = values.new_zeros(numbers, dtype=torch.float32)
    with torch.cuda.device_of(input):
        _kernels().correlate[parts, channels, shares * lots](
            values,
            grads,
            partial,
            *values.stride()[:3],
            *grads.stride()[:3],
            *values.shape[2:],
            *grads.shape[2:],
            rows.tiles,
            columns.tiles,
            rows.window,
            chunks,
            rows.left,
            rows.first,
            columns.first,
            len(input) * tile.number,
            channels,
            group,
            share,
            kernel_h=size[0],
            kernel_w=size[1],
            block_h=rows.block,
            block_w=columns.block,
            block_k=block_k,
            block_m=block_m,
            operand=_kernels().operand(input.dtype),
            block_steps=block_steps,
            block_s=16 if size[1] <= 16 else 32,
            num_warps=8 if large else 4,
        )
    return partial.sum((0, 1, 2)).to(input.dtype)[:, None]


def _kernels() -> Any:
    return importlib.import_module("dcls_models.layers.depthwise.triton_kernels")


def _block(patches: int, most: int) -> int:
    return min(most, max(16, 1 << (patches - 1).bit_length()))


def _aligned(image: torch.Tensor, left: int, width: int) -> torch.Tensor:
    """A copy in rows of ``width``, after ``left`` zeros; images of either layout then look the same."""
    return _move(image, image.new_empty(*image.shape[:3], width), left)


def _move(image: torch.Tensor, copy: torch.Tensor, left: int) -> torch.Tensor:
    """Fills ``copy``, of any layout, with ``image``, of any strides, after ``left`` columns of zeros."""
    n, channels, height, width = copy.shape
    blocks = -(-height * width // 64)
    if copy.numel():
        with torch.cuda.device_of(image):
            _kernels().move[n * blocks, -(-channels // 64)](
                image,
                copy,
                *image.stride(),
                *copy.stride()[:2],
                copy.stride(3),
                channels,
                height,
                image.shape[3],
                left,
                width,
                blocks,
                block_c=64,
                block_p=64,
                num_warps=4,
            )
    return copy
