"""The Triton kernels of a depthwise convolution. Imported only where triton is installed.

Outputs are cut into tiles of ``block_h`` x ``block_w`` pixels, and a *patch* is one tile of one image. The
inputs that a tile needs are its *window*, of ``rows`` x ``window`` pixels. The windows of many patches are a
matrix ``(patches, inputs of a window)``, and the kernel is a Toeplitz matrix ``(inputs of a window, block_h *
block_w)`` that holds ``weight[row - tile row, column - tile column]`` and zeros elsewhere. Their product is
the convolution, on matrix units, with one Toeplitz matrix for all images of a batch. The weight gradient is
the dual: a matrix product over patches, then sums along the diagonals on which the Toeplitz matrix repeats
one number.

``move`` brings images of any layout into aligned rows and back; ``spread`` writes the Toeplitz matrices.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def pixels(
    image, patch, row, column, patches,
    stride_n, stride_h, height, width,
    tiles_h, tiles_w, block_h, block_w,
):  # fmt: skip
    """Where pixel (row, column) of each patch is, counted from its tile's corner, and whether it exists."""
    n = (patch // (tiles_h * tiles_w)).to(tl.int64)
    h = patch // tiles_w % tiles_h * block_h + row
    w = patch % tiles_w * block_w + column
    exists = (patch < patches) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    return image + n * stride_n + h * stride_h + w, exists


@triton.jit
def move(
    image, copy,
    image_n, image_c, image_h, image_w, copy_n, copy_c, copy_p,  # strides
    channels, height, width, left, copy_width, blocks,
    block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """One program: ``block_p`` pixels of ``block_c`` channels, in rows that begin with ``left`` zeros."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * block_p + tl.arange(0, block_p)[None, :]
    c = (tl.program_id(1) * block_c + tl.arange(0, block_c)[:, None]).to(tl.int64)
    h, w = pixel // copy_width, pixel % copy_width - left
    exists = (c < channels) & (h < height)
    values = tl.load(
        image + n * image_n + c * image_c + h * image_h + w * image_w,
        mask=exists & (w >= 0) & (w < width), other=0,
    )  # fmt: skip
    tl.store(copy + n * copy_n + c * copy_c + pixel * copy_p, values, mask=exists)


@triton.jit
def spread(
    weight, toeplitz,
    weight_c, weight_h, toeplitz_c,  # strides
    rows, first_row, first_column,
    kernel_h: tl.constexpr, kernel_w: tl.constexpr, window: tl.constexpr,
    block_h: tl.constexpr, block_w: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One program: ``block_k`` rows of a channel's Toeplitz matrix, zeros after the window's last row."""
    channel = tl.program_id(1).to(tl.int64)
    pixels: tl.constexpr = block_h * block_w
    position = tl.program_id(0) * block_k + tl.arange(0, block_k)[:, None]
    pixel = tl.arange(0, pixels)[None, :]
    r = first_row + position // window - pixel // block_w
    s = first_column + position % window - pixel % block_w
    inside = (r >= 0) & (r < kernel_h) & (s >= 0) & (s < kernel_w) & (position < rows * window)
    values = tl.load(weight + channel * weight_c + r * weight_h + s, mask=inside, other=0)
    tl.store(toeplitz + channel * toeplitz_c + position * pixels + pixel, values)


@triton.jit
def convolve(
    input, toeplitz, bias, output,
    input_n, input_c, input_h, toeplitz_c, output_n, output_c, output_h,  # strides
    height, out_height, out_width,
    tiles_h, tiles_w, rows, above,  # of an image: tiles; of a tile: rows of its window, those above the image
    patches,
    window: tl.constexpr, block_h: tl.constexpr, block_w: tl.constexpr, block_k: tl.constexpr,
    block_m: tl.constexpr, operand: tl.constexpr,
):  # fmt: skip
    """One program: ``block_m`` patches of one channel, ``block_k`` inputs of their windows at a time."""
    channel = tl.program_id(1).to(tl.int64)
    patch = tl.program_id(0) * block_m + tl.arange(0, block_m)
    exists = (patch < patches)[:, None]
    n = (patch // (tiles_h * tiles_w)).to(tl.int64)
    top = (patch // tiles_w % tiles_h * block_h)[:, None]
    left = (patch % tiles_w * block_w)[:, None]
    pixels: tl.constexpr = block_h * block_w
    pixel = tl.arange(0, pixels)[None, :]
    k = tl.arange(0, block_k)
    inputs = input + channel * input_c + n[:, None] * input_n + (top - above) * input_h + left
    matrices = toeplitz + channel * toeplitz_c + k[:, None] * pixels + pixel
    total = tl.zeros((block_m, pixels), tl.float32)
    for start in range(0, rows * window, block_k):
        row, column = ((start + k) // window)[None, :], ((start + k) % window)[None, :]
        here = exists & (row < rows) & (top + row >= above) & (top + row < height + above)
        values = tl.load(inputs + row * input_h + column, mask=here, other=0)
        matrix = tl.load(matrices + start * pixels)
        total = tl.dot(values.to(operand), matrix.to(operand), total)
    if bias is not None:
        total += tl.load(bias + channel)
    row, column = top + pixel // block_w, left + pixel % block_w
    address = output + channel * output_c + n[:, None] * output_n + row * output_h + column
    mask = exists & (row < out_height) & (column < out_width)
    tl.store(address, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def correlate(
    input, grad, partial,
    input_n, input_c, input_h, grad_n, grad_c, grad_h,  # strides
    height, width, out_height, out_width,
    tiles_h, tiles_w, rows, chunks, above,  # as for ``convolve``; steps of a row
    first_row, first_column,  # what was cut off from the windows' start
    patches, channels, group, share,  # images at a time, and in all
    kernel_h: tl.constexpr, kernel_w: tl.constexpr,
    block_h: tl.constexpr, block_w: tl.constexpr, block_k: tl.constexpr,
    block_m: tl.constexpr, operand: tl.constexpr,
    block_steps: tl.constexpr, block_s: tl.constexpr,
):  # fmt: skip
    """One program: ``block_steps`` steps of one channel, summed over ``share`` images, ``group`` at a time.

    It writes to ``partial``, of shape ``(lots, chunks, block_h, channels, kernel_h, kernel_w)``, where no
    other program writes, so that no atomic additions are needed and results are the same at every run.
    """
    channel = tl.program_id(1).to(tl.int64)
    position = tl.arange(0, block_steps * block_k)
    step = tl.program_id(0) * block_steps + position // block_k
    row = (step // chunks - above)[None, :]
    column = (step % chunks * block_k + position % block_k)[None, :]
    pixel = tl.arange(0, block_h * block_w)[None, :]

    tiles = tiles_h * tiles_w
    lots = tl.cdiv(group * tiles, block_m)  # of the patches of one group
    lane = tl.program_id(2) % lots * block_m + tl.arange(0, block_m)[:, None]
    first = tl.program_id(2) // lots * share * tiles
    last = min(first + share * tiles, patches)
    inputs, of_input = pixels(
        input + channel * input_c, first + lane, row, column, last,
        input_n, input_h, height, width, tiles_h, tiles_w, block_h, block_w,
    )  # fmt: skip
    grads, of_grad = pixels(
        grad + channel * grad_c, first + lane, pixel // block_w, pixel % block_w, last,
        grad_n, grad_h, out_height, out_width, tiles_h, tiles_w, block_h, block_w,
    )  # fmt: skip
    of_group = lane < group * tiles
    total = tl.zeros((block_steps * block_k, block_h * block_w), tl.float32)
    for start in range(first, last, group * tiles):
        exists = of_group & (start + lane < last)
        x = tl.load(inputs, mask=of_input & exists, other=0)
        y = tl.load(grads, mask=of_grad & exists, other=0)
        total = tl.dot(tl.trans(x.to(operand)), y.to(operand), total, input_precision="ieee")
        inputs += group * input_n
        grads += group * grad_n

    # column s of the kernel meets column j of a tile in column s + j of the window
    step = (tl.program_id(0) * block_steps + tl.arange(0, block_steps))[:, None, None]
    s = tl.arange(0, block_s)[None, :, None]
    column = s + (pixel % block_w)[:, None, :] - first_column - step % chunks * block_k
    here = (column >= 0) & (column < block_k)
    cube = tl.reshape(total, (block_steps, block_k, block_h * block_w))
    skewed = tl.where(here, tl.gather(cube, tl.where(here, column, 0), 1), 0.0)
    sums = tl.sum(tl.reshape(skewed, (block_steps, block_s, block_h, block_w)), 3)
    pixel_row = tl.arange(0, block_h)[None, None, :]
    r = first_row + step // chunks - pixel_row
    lot = (tl.program_id(2) * chunks + step % chunks) * block_h + pixel_row
    address = partial + ((lot * channels + channel) * kernel_h + r) * kernel_w + s
    tl.store(address, sums, mask=(step < rows * chunks) & (r >= 0) & (r < kernel_h) & (s < kernel_w))


INTERPRETED = not isinstance(convolve, triton.JITFunction)  # TRITON_INTERPRET=1, on the CPU


def operand(dtype: torch.dtype) -> tl.dtype:
    """What is multiplied: the interpreter would take bfloat16's bits for integers, so there it is float32."""
    return tl.float32 if INTERPRETED else getattr(tl, str(dtype).removeprefix("torch."))
