"""Kernel construction and depthwise convolution, forward and backward, beside what else can do it."""

import argparse
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from eval.options import at_least_1, odd, timing_options
from eval.results import write_result
from eval.section import Section, markdown_table
from eval.speed.layer_times import (
    BATCH_SIZES,
    KERNEL_SIZES,
    KERNELS,
    LARGE_BATCH,
    MODELS,
    SHOWN,
    construction,
    convolution,
    peers,
)
from eval.speed.passes import KERNEL_SIZES as GPU_KERNEL_SIZES
from eval.speed.passes import passes
from eval.speed.passes import table as passes_table

PARTS = ("construction", "convolution", "peers", "passes")


def tables(result: Mapping[str, Any]) -> str:
    """The results as Markdown; of the convolutions the kernel sizes ``SHOWN`` and the extremes."""
    parts = []
    if result["construction"]:
        rows = [
            [f"{r['version']}, {r['channels']} channels, {r['elements']} in {r['kernel']}x{r['kernel']}"]
            + [f"{r['ms'][n]['median']:.2f}" if n in r["ms"] else "-" for n in ("ours", "authors")]
            + [f"{r[n]:.0f}x" if n in r else "-" for n in ("ratio", "memory_ratio")]
            for r in result["construction"]
        ]
        header = ["kernel construction", "ours, ms", "authors', ms", "faster", "peak memory smaller"]
        parts.append(markdown_table(header, rows))
    if result["convolution"]:
        rows = [
            [f"{_name(r)}, {r['layout']}"]
            + [f"{r['ms'][n]['median']:.2f}" for n in ("ours", "torch")]
            + [f"{r['ratio']:.2f}x"]
            for r in result["convolution"]
            if r["kernel"] in SHOWN
        ]
        parts.append(markdown_table(["depthwise convolution", "ours, ms", "torch, ms", "faster"], rows))
        ratios = sorted(r["ratio"] for r in result["convolution"])
        parts.append(f"Over all {len(ratios)} shapes: from {ratios[0]:.2f}x to {ratios[-1]:.2f}x as fast.")
    if result["peers"]:
        names = list(result["peers"][0]["ms"])
        rows = [
            [_name(r), *(f"{r['ms'][n]['median']:.1f}" if n in r["ms"] else "-" for n in names)]
            for r in result["peers"]
        ]
        parts.append(markdown_table(["layer, ms", *names], rows))
    if result.get("passes"):
        parts.append(passes_table(result["passes"]))
    return "\n\n".join(parts)


def _name(row: dict[str, Any]) -> str:
    return f"{row['batch']}x{row['channels']}x{row['side']}x{row['side']}, {row['kernel']}x{row['kernel']}"


def draw(result: Mapping[str, Any]) -> Figure:
    """How many times faster: construction over channels, convolutions over the size of the kernel."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for version in KERNELS:
        rows = [r for r in result["construction"] if r["version"] == version and "ratio" in r]
        left.plot([r["channels"] for r in rows], [r["ratio"] for r in rows], marker="o", label=version)
    left.set(
        title="kernel construction", xlabel="channels", ylabel="times as fast as the authors'", yscale="log"
    )
    left.legend()
    batch = max((r["batch"] for r in result["convolution"] if r["batch"] < LARGE_BATCH), default=LARGE_BATCH)
    lines: dict[str, list[dict[str, Any]]] = {}
    for r in result["convolution"]:
        if r["batch"] == batch:
            lines.setdefault(f"{r['channels']}x{r['side']}x{r['side']}, {r['layout']}", []).append(r)
    for label, rows in lines.items():
        style = "o-" if "channels_last" in label else "o--"
        right.plot([r["kernel"] for r in rows], [r["ratio"] for r in rows], style, markersize=3, label=label)
    if lines:
        right.axhline(1, color="black", linewidth=0.8)
    title = f"depthwise convolution, batch {batch}"
    right.set(title=title, xlabel="K", ylabel="times as fast as PyTorch", yscale="log")
    if lines:
        right.legend(fontsize=6)
    for axis in (left, right):
        axis.set_visible(bool(axis.lines))
    return figure


SECTION = Section("Layers", "Forward and backward, by themselves: the median of the runs.", {}, tables=tables)


def run(arguments: argparse.Namespace) -> None:
    """Times kernel construction and depthwise convolution."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    device, rounds, names = arguments.device, arguments.rounds, arguments.models
    dtype = getattr(torch, arguments.dtype)
    on_gpu = device.startswith("cuda")
    parts = arguments.parts or (PARTS[3:] if on_gpu else PARTS[:3])
    if "passes" in parts and not on_gpu:
        raise ValueError("--parts passes times kernels of a GPU: add --device cuda, or leave it out")
    result: dict[str, Any] = {part: [] for part in PARTS}
    if "construction" in parts:
        result["construction"] = construction(device, rounds, names[0], arguments.authors)
    if "convolution" in parts:
        sizes = arguments.batch_sizes, arguments.kernel_sizes or KERNEL_SIZES
        result["convolution"] = convolution(device, rounds, *sizes, dtype, names)
    if "peers" in parts:
        result["peers"] = peers(device, rounds, names[0])
    if "passes" in parts:
        result["passes"] = passes(device, names[0], arguments.kernel_sizes or GPU_KERNEL_SIZES)
    write_result(arguments, result, lambda: draw(result))
    print(tables(result))


def add_commands(commands: Any) -> None:
    """Adds ``layers``."""
    command = commands.add_parser(
        "layers", parents=[timing_options()], help="kernel construction and convolution"
    )
    parts_help = (
        "by default, on a GPU, passes: the convolution's three, in batches of 128; else all but these"
    )
    command.add_argument("--parts", nargs="+", choices=PARTS, help=parts_help)
    command.add_argument(
        "--no-authors", dest="authors", action="store_false", help="construction without the authors' package"
    )
    of = "of the convolutions, by default %(default)s"
    command.add_argument(
        "--batch-sizes", nargs="+", type=at_least_1, default=BATCH_SIZES, help=f"images {of}"
    )
    sides = f"sides of the convolutions, by default {KERNEL_SIZES}, of passes {GPU_KERNEL_SIZES}"
    command.add_argument("--kernel-sizes", nargs="+", type=odd, help=sides)
    command.add_argument("--models", nargs="+", default=MODELS, help="of the zoo: whose shapes")
    command.set_defaults(run=run)
