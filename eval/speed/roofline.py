"""What the Triton kernels of a depthwise convolution cannot be faster than: computed, nothing is measured.

    python -m eval.roofline

prints the table of docs/gpu.md, from the tiles that the kernels take and NVIDIA's published peaks of an H200.
"""

from collections.abc import Iterator

import torch

from dcls_models.layers.depthwise import gpu

BATCH = 128
STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))  # channels and side of ConvNeXt-T's stages at 224 px
MATRIX, ORDINARY, MEMORY = 989e12, 67e12, 4.8e12  # bfloat16 and float32 operations, bytes, a second
HEAD = (
    "C, H x W, K",
    "GFLOP direct",
    "GFLOP Toeplitz",
    "MB",
    "FLOP/byte",
    "bound",
    "µs at least",
    "forward, input gradient",
    "weight gradient",
    "direct, ordinary units",
)


def row(channels: int, side: int, kernel: int) -> list[str]:
    """One layer in bfloat16, with padding K // 2."""
    extent = (side, side, kernel, kernel // 2)
    plan = gpu._plan((extent, extent), torch.bfloat16)
    planes = BATCH * channels
    direct = 2 * planes * side**2 * kernel**2
    toeplitz = 2 * planes * plan.products
    image = 2 * planes * side**2
    aligned, aligned_grad = (2 * planes * side * width for width in plan.widths)
    compute, memory = toeplitz / MATRIX, 2 * image / MEMORY

    def in_turn(copied: int, moved: int) -> float:
        """The aligned copies first, then the kernel that reads them."""
        return copied / MEMORY + max(compute, moved / MEMORY)

    forward = in_turn(image + aligned, aligned + image)
    of_weight = in_turn(2 * image + aligned + aligned_grad, aligned + aligned_grad)
    return [
        f"{channels}, {side} x {side}, {kernel}",
        f"{direct / 1e9:.1f}",
        f"{toeplitz / 1e9:.1f}",
        f"{2 * image / 1e6:.0f}",
        f"{toeplitz / (2 * image):.0f}",
        "matrix units" if compute > memory else "memory",
        *(f"{1e6 * t:.0f}" for t in (max(compute, memory), forward, of_weight, direct / ORDINARY)),
    ]


def table() -> Iterator[str]:
    """Lines of Markdown."""
    rows = [row(*stage, kernel) for kernel in (17, 23, 31) for stage in STAGES]
    for cells in (HEAD, ["---"] * len(HEAD), *rows):
        yield f"| {' | '.join(cells)} |"
