"""Depthwise convolution with large kernels on the matrix units of a GPU, in Triton, compiled on first use.

**Written and tested in Triton's interpreter, not yet measured on a GPU.** ATen therefore stays the default:
the table of what was measured to be faster, ``FASTER``, is empty, and only ``DCLS_TRITON=1`` in the
environment switches these kernels on (``DCLS_TRITON=0`` switches them off whatever the table says). Without
triton, on other devices and for what ``supports`` does not name, ATen computes. ``docs/gpu.md`` has the
roofline.

The two functions know nothing of autograd. The input gradient is a ``convolution`` with the flipped kernel.

Shape letters: N batch, C channels, H x W image, K kernel.
"""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .layout import layout_of

KERNELS = range(13, 32)  # sides that the kernels are meant for and tested with
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CAPABILITY = (8, 0)  # the first one whose matrix units take bfloat16

# (compute capability, dtype, K, H) that a benchmark found faster than ATen: none was measured yet
FASTER: frozenset[tuple[tuple[int, int], torch.dtype, int, int]] = frozenset()

PROGRAMS = 1024  # at least so many, if there is work for them: a few for each processor of a large GPU


def admit(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """The tensors to convolve here, cast as autocast would cast them; None where ATen is to do it."""
    if not enabled():
        return None
    if torch.is_autocast_enabled("cuda") and torch.float64 not in (input.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype("cuda")
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return (input, weight, bias) if chosen(input, weight, padding) else None


def enabled() -> bool:
    """Whether these kernels are used at all: they are asked for, or one was measured to be faster."""
    wish = os.environ.get("DCLS_TRITON", "")
    return wish != "0" and (wish == "1" or bool(FASTER))


def chosen(input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> bool:
    """Whether to convolve here: it is supported, and was measured to be faster or is asked for."""
    if not enabled() or not supports(input, weight, padding):
        return False
    if os.environ.get("DCLS_TRITON") == "1":
        return True
    return (_capability(input.device), input.dtype, weight.shape[-1], input.shape[-2]) in FASTER


def supports(input: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> bool:
    """Whether ``convolution`` and ``correlation`` can do it: a CUDA device, triton, K from 13 to 31.

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
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


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
    plan = _plan(_extents(input.shape, weight.shape, padding), input.dtype)
    rows, columns = plan.rows, plan.columns
    values = _aligned(input, columns.left, plan.widths[0])
    toeplitz = _toeplitz(weight[:, 0], plan)
    output = input.new_empty(*input.shape[:2], *plan.out)
    patches = len(input) * plan.tiles
    block_m = _block(patches, 64)
    with torch.cuda.device_of(input):
        _kernels().convolve[-(-patches // block_m), input.shape[1]](
            values,
            toeplitz,
            bias,
            output,
            *values.stride()[:3],
            toeplitz.stride(0),
            *output.stride()[:3],
            values.shape[2],
            *plan.out,
            rows.tiles,
            columns.tiles,
            rows.window,
            rows.left,
            patches,
            chunks=plan.chunks,
            **_constants(plan, input.dtype),
            block_m=block_m,
            num_warps=4,
        )
    if layout_of(input) == torch.channels_last:
        copy = torch.empty_like(output, memory_format=torch.channels_last)
        return _move(output, copy, 0)
    return output


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
    plan = _plan(_extents(input.shape, (channels, 1, *size), padding), input.dtype)
    values = _aligned(input, plan.columns.left, plan.widths[0])
    grads = _aligned(grad, 0, plan.widths[1])
    fits = input.dtype.itemsize == 2 and plan.pixels < 256  # into the shared memory of any GPU
    block_m = _block(len(input) * plan.tiles, 64 if fits else 32)
    group = max(1, block_m // plan.tiles)  # images at a time
    lots = -(-group * plan.tiles // block_m)
    block_steps = (128 if plan.pixels == 64 else 64) // plan.block_k
    parts = -(-plan.rows.window * plan.chunks // block_steps)
    shares = min(-(-PROGRAMS // max(1, parts * channels * lots)), -(-len(input) // group))
    share = -(-len(input) // max(1, shares * group)) * group
    numbers = (shares * lots, plan.chunks, plan.rows.block, channels, *size)
    partial = values.new_zeros(numbers, dtype=torch.float32)
    with torch.cuda.device_of(input):
        _kernels().correlate[parts, channels, shares * lots](
            values,
            grads,
            partial,
            *values.stride(),
            *grads.stride(),
            *values.shape[2:],
            *grads.shape[2:],
            *plan.numbers,
            len(input) * plan.tiles,
            channels,
            group,
            share,
            kernel_h=size[0], kernel_w=size[1],
            **_constants(plan, input.dtype),
            block_m=block_m,
            block_steps=block_steps,
            block_s=16 if size[1] <= 16 else 32,
            num_warps=8,
        )
    return partial.sum((0, 1, 2)).to(input.dtype)[:, None]


class Axis(NamedTuple):
    """How one axis of the output is cut: tiles of ``block``, each with a window of inputs."""

    block: int
    tiles: int
    window: int  # inputs that a tile needs, without those that no image has
    first: int  # how many of these were cut off from the window's start
    left: int  # how far the first window starts before the image

    @classmethod
    def cut(cls, extent: tuple[int, int, int, int], block: int) -> "Axis":
        """``extent`` is the axis' input, output, kernel and padding."""
        inputs, outputs, kernel, padding = extent
        tiles = -(-outputs // block)
        first = max(0, padding - (tiles - 1) * block)
        return cls(block, tiles, min(block + kernel - 1, inputs + padding) - first, first, padding - first)

    @property
    def products(self) -> int:
        """Multiply-adds along this axis of one image."""
        return self.tiles * self.block * self.window


class Plan(NamedTuple):
    """How an image is cut into tiles, and a window into steps of ``block_k`` columns."""

    rows: Axis
    columns: Axis  # its window is a multiple of ``block_k``
    block_k: int
    out: tuple[int, int]

    @property
    def chunks(self) -> int:
        """Steps in one row of the window."""
        return self.columns.window // self.block_k

    @property
    def tiles(self) -> int:
        """Tiles of one image."""
        return self.rows.tiles * self.columns.tiles

    @property
    def pixels(self) -> int:
        """Outputs in one tile."""
        return self.rows.block * self.columns.block

    @property
    def products(self) -> int:
        """Multiply-adds of one channel of one image, those with zeros counted in."""
        return self.rows.products * self.columns.products

    @property
    def widths(self) -> tuple[int, int]:
        """Row lengths of the aligned copies: inputs (all windows) and output gradients.

        They are multiples of 16, which the compiler turns into loads of 16 bytes.
        """
        axis = self.columns
        inputs, grads = (axis.tiles - 1) * axis.block + axis.window, axis.tiles * axis.block
        return -(-inputs // 16) * 16, -(-grads // 16) * 16

    @property
    def numbers(self) -> tuple[int, ...]:
        """What both kernels want to know; images are stored from the first window's column on."""
        rows, columns = self.rows, self.columns
        return (rows.tiles, columns.tiles, rows.window, self.chunks, -rows.left, 0, rows.first, columns.first)


@lru_cache
def _plan(extents: tuple[tuple[int, int, int, int], ...], dtype: torch.dtype) -> Plan:
    """The tile with the fewest multiply-adds among those that fill a matrix unit and fit into registers."""
    plans = []
    for block_w in (8, 16, 32, 64):
        columns = Axis.cut(extents[1], block_w)
        columns = columns._replace(window=-(-columns.window // 16) * 16)
        for block_h in (1, 2, 4, 8, 16, 32):
            if 64 <= block_h * block_w <= (256 if dtype.itemsize == 2 else 64):
                block_k = 16 if columns.window % 32 else 32
                out = (extents[0][1], extents[1][1])
                plans.append(Plan(Axis.cut(extents[0], block_h), columns, block_k, out))
    return min(plans, key=lambda plan: plan.products)


def _extents(
    input: Sequence[int], weight: Sequence[int], padding: Sequence[int]
) -> tuple[tuple[int, int, int, int], ...]:
    sides = zip(input[2:], weight[2:], padding, strict=True)
    return tuple((i, i + 2 * p - k + 1, k, p) for i, k, p in sides)


def _constants(plan: Plan, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "block_h": plan.rows.block,
        "block_w": plan.columns.block,
        "block_k": plan.block_k,
        "operand": _kernels().operand(dtype),
    }


def _kernels() -> Any:
    return importlib.import_module("dcls_models.layers.depthwise.triton_kernels")


def _block(patches: int, most: int) -> int:
    return min(most, max(16, 1 << (patches - 1).bit_length()))


def _toeplitz(kernels: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The matrices of all steps, ``(C, rows, columns of the window, block_h, block_w)``, of kernels ``(C, K, K)``.

    The pixels of a tile are in reversed order, so that all strides of the view are positive.
    """
    frame: list[int] = []  # zeros around the kernels, as far as the steps of any tile ask for them
    for axis, size in zip((plan.columns, plan.rows), kernels.shape[:0:-1], strict=True):
        before = axis.block - 1 - axis.first  # where it is negative, weights that meet no image are cut off
        frame += [before, axis.block - 1 + axis.window - size - before]
    framed = F.pad(kernels, frame)
    shape = (len(kernels), plan.rows.window, plan.columns.window, plan.rows.block, plan.columns.block)
    of_kernel, of_row, of_column = framed.stride()
    return framed.as_strided(shape, (of_kernel, of_row, of_column, of_row, of_column)).contiguous()


def _aligned(image: torch.Tensor, left: int, width: int) -> torch.Tensor:
    """A copy in rows of ``width``, after ``left`` zeros; images of either layout then look the same."""
    return _move(image, image.new_empty(*image.shape[:3], width), left)


def _move(image: torch.Tensor, copy: torch.Tensor, left: int) -> torch.Tensor:
    """Fills ``copy``, of any layout, with ``image``, of any strides, after ``left`` columns of zeros."""
    n, channels, height, width = copy.shape
    block_c, block_p = (32, 64)
    blocks = -(-height * width // block_p)
    if not copy.numel():
        return copy
    with torch.cuda.device_of(image):
        _kernels().move[n * blocks, -(-channels // block_c)](
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
            block_c=block_c,
            block_p=block_p,
            num_warps=4,
        )
    return copy
