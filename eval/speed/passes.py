"""The passes of large depthwise convolutions on a GPU: our kernels beside ATen and cuDNN."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch.nn import functional as F

from dcls_models.layers.depthwise import gpu, tiles
from eval.section import markdown_table
from eval.speed.layer_times import MODELS, shapes_of
from eval.speed.timing import LAYOUTS, Timing, time_on_gpu

PASSES = ("forward", "input gradient", "weight gradient")
BATCH = 128
KERNEL_SIZES = (9, 13, 17, 23, 31)
DTYPES = (torch.bfloat16, torch.float32)
RUNS = 3  # PyTorch's kernels are far too slow for more


def ceilings(device: str) -> dict[str, float]:
    """What the GPU reaches: operations a second of large products by type, and bytes a second of a copy."""
    result: dict[str, float] = {}
    for dtype in DTYPES:
        matrix = torch.randn(8192, 8192, device=device, dtype=dtype)
        ms = time_on_gpu(partial(torch.matmul, matrix, matrix), device, RUNS).median
        result[_name(dtype)] = 2e3 * 8192**3 / ms
    numbers = torch.randn(2**29, device=device)
    ms = time_on_gpu(numbers.clone, device, RUNS).median
    return result | {"bytes": 8e3 * len(numbers) / ms}


def passes(
    device: str, model: str = MODELS[0], kernel_sizes: Sequence[int] = KERNEL_SIZES, batch: int = BATCH
) -> dict[str, Any]:
    """Times the passes on the stages of a model, in both types and layouts; copies are counted in.

    Args:
        device: A CUDA device.
        model: A name of the zoo.
        kernel_sizes: Sides of the kernels, of those that our kernels take.
        batch: Images.

    Returns:
        ``ceilings``, and as ``rows`` per shape, type, layout and pass: ``ms`` of ``ours`` and ``torch``, the
        ``ratio`` of them, and ``of_bound``, the least time that the GPU needs for our way by ``ours``.

    Raises:
        ValueError: If our kernels do not run there.
    """
    rates = ceilings(device)
    stages = dict.fromkeys((shape.channels, shape.side) for shape in shapes_of(model))
    rows = []
    for k, (channels, side), dtype, layout in product(kernel_sizes, stages, DTYPES, LAYOUTS):
        size = (batch, channels, side, side)
        images, grads = (
            torch.randn(size, device=device, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
            for _ in range(2)
        )
        kernel = torch.randn(channels, 1, k, k, device=device, dtype=dtype) / k
        if not gpu.supports(images, kernel, (k // 2, k // 2)):
            raise ValueError(
                f"no kernel of ours for {k}x{k} on {device}: they have sides from {gpu.KERNELS[0]} to "
                f"{gpu.KERNELS[-1]}, an NVIDIA GPU of compute capability 8.0, and triton 3.3, or newer ones"
            )
        for name, ours, *theirs in _calls(images, kernel, grads):
            ms = {"ours": time_on_gpu(ours, device, RUNS)} | {"torch": min(_torch_times(theirs[0], device))}
            bound = _bound(images, kernel, name, rates)
            rows.append(
                {"kernel": k, "channels": channels, "side": side, "dtype": _name(dtype), "layout": layout}
                | {"pass": name, "ms": {key: t._asdict() for key, t in ms.items()}}
                | {"ratio": round(ms["torch"].median / ms["ours"].median, 2)}
                | {"of_bound": None if bound is None else round(bound / ms["ours"].median, 3)}
            )
    return {"batch": batch, "ceilings": rates, "rows": rows}


Call = Callable[[], object]


def _calls(
    images: torch.Tensor, kernel: torch.Tensor, grads: torch.Tensor
) -> Iterator[tuple[str, Call, Call]]:
    """Each pass: its name, ours, and PyTorch's."""
    k, channels = kernel.shape[-1], len(kernel)
    padding, flipped = [k // 2] * 2, kernel.flip(-2, -1)

    def backward(*mask: bool) -> object:
        return torch.ops.aten.convolution_backward(
            grads, images, kernel, None, [1, 1], padding, [1, 1], False, [0, 0], channels, mask
        )

    yield (
        PASSES[0],
        lambda: gpu.convolution(images, kernel, padding),
        lambda: F.conv2d(images, kernel, padding=padding, groups=channels),
    )
    yield PASSES[1], lambda: gpu.convolution(grads, flipped, padding), lambda: backward(True, False, False)
    yield (
        PASSES[2],
        lambda: gpu.correlation(images, grads, (k, k), padding),
        lambda: backward(False, True, False),
    )


def _torch_times(call: Call, device: str) -> Iterator[Timing]:
    """With cuDNN, where torch chooses it, and without."""
    for enabled in (True, False):
        with torch.backends.cudnn.flags(enabled=enabled):
            yield time_on_gpu(call, device, RUNS)


def _bound(images: torch.Tensor, kernel: torch.Tensor, name: str, rates: dict[str, float]) -> float | None:
    """Milliseconds: two images moved once, or the products of our tiles; None where ATen computes for us."""
    if images.dtype == torch.float32 and name != PASSES[2]:
        return None
    extents = tiles.extents_of(images.shape, kernel.shape, [k // 2 for k in kernel.shape[2:]])
    tile = (tiles.of_64 if name == PASSES[2] else tiles.cheapest)(extents)
    operations = 2 * len(images) * len(kernel) * tile.products
    moved = 2 * images.numel() * images.dtype.itemsize
    return 1e3 * max(operations / rates[_name(images.dtype)], moved / rates["bytes"])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def table(result: dict[str, Any]) -> str:
    """The results as Markdown: one line for each shape, type and layout, and what to switch on."""
    cells: dict[tuple[str, ...], list[str]] = {}
    for r in result["rows"]:
        shape = f"{r['channels']}, {r['side']} x {r['side']}, {r['kernel']}"
        line = cells.setdefault((shape, r["dtype"], r["layout"]), [])
        ours = 1e3 * r["ms"]["ours"]["median"]
        share = "" if r["of_bound"] is None else f", {100 * r['of_bound']:.0f} %"
        line.append(f"{ours:.0f} ({r['ratio']:.1f}x{share})")
    header = ["C, H x W, K", "type", "layout", *PASSES]
    ratios = sorted(r["ratio"] for r in result["rows"])
    said = (
        "µs of ours, copies included; in brackets how many times as fast as the faster one of ATen and "
        "cuDNN, and the share of what the GPU reaches. "
        f"All {len(ratios)} ratios are between {ratios[0]:.2f} and {ratios[-1]:.1f}. "
        "Where ours are not the default, DCLS_TRITON=1 in the environment switches them on."
    )
    return f"{markdown_table(header, [[*key, *line] for key, line in cells.items()])}\n\n{said}"
