"""Timings of one-dimensional layers with long kernels, as for sound, beside what else reaches as far."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn

from dcls_models.layers import Dcls1d
from eval.options import at_least_1, device_option, json_option, odd
from eval.results import write_result
from eval.section import Section, markdown_table
from eval.speed.peers import authors_layer
from eval.speed.timing import time_in_turns

MODES = {"train": "forward and backward", "inference": "eval mode, without gradients"}
SECONDS = 2.0  # of runs of one layer; three runs at least
SECTION_TEXT = "One layer of 64 channels; same: nn.Conv1d with the same kernel; dilated: with as many taps."


def long_kernels(
    kernel_sizes: Sequence[int],
    samples: Sequence[int],
    batch_sizes: Sequence[int],
    channels: int = 64,
    elements: int = 5,
    rounds: int = 7,
    authors: bool = True,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Times ``Dcls1d``, dense and depthwise, that keeps the length of its input.

    Args:
        kernel_sizes: K, odd.
        samples: Lengths of the input.
        batch_sizes: Recordings in a batch.
        channels: Of input and output.
        elements: Per kernel, at least 2.
        rounds: Runs of each.
        authors: Whether to time the layer of the authors' package as well.
        device: Where to compute.

    Returns:
        Per shape and mode: ``ms`` by name. ``dcls`` is our layer with its kernel construction, ``same`` a
        ``nn.Conv1d`` with a kernel of the same size, ``dilated`` one of as many taps as we have elements that
        reaches as far, ``authors`` their layer.

    Raises:
        ValueError: If no dilation makes the taps reach as far.
    """
    if elements < 2 or any((size - 1) % (elements - 1) for size in kernel_sizes):
        raise ValueError(f"K - 1 must be a multiple of elements - 1, got {kernel_sizes=}, {elements=}")
    rows = []
    for batch, length, groups, size in product(batch_sizes, samples, (1, channels), kernel_sizes):
        words: dict[str, Any] = {"padding": size // 2, "groups": groups}
        ours = Dcls1d(channels, channels, elements, dilated_kernel_size=size, version="v1", **words)
        nn.init.uniform_(ours.positions, -(size // 2), size // 2)
        layers: dict[str, nn.Module] = {
            "dcls": ours,
            "same": nn.Conv1d(channels, channels, size, **words),
            "dilated": nn.Conv1d(
                channels, channels, elements, **words, dilation=(size - 1) // (elements - 1)
            ),
        }
        if authors:
            layers["authors"] = authors_layer(ours)
        sounds = torch.randn(batch, channels, length, device=device)
        for mode in MODES:
            calls = {n: _step(m.to(device).train(mode == "train"), sounds, mode) for n, m in layers.items()}
            timings = time_in_turns(calls, device, rounds, SECONDS)
            shape = {
                "batch": batch,
                "channels": channels,
                "groups": groups,
                "samples": length,
                "kernel": size,
            }
            rows.append({**shape, "mode": mode, "ms": {n: ms._asdict() for n, ms in timings.items()}})
    return rows


def _step(layer: nn.Module, sounds: torch.Tensor, mode: str) -> Callable[[], object]:
    if mode != "train":
        return torch.inference_mode()(lambda: layer(sounds))
    inputs = sounds.clone().requires_grad_()
    leaves, grad = (inputs, *layer.parameters()), torch.randn_like(sounds)
    return lambda: torch.autograd.grad(layer(inputs), leaves, grad)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    names = list(rows[0]["ms"])
    header = ["layer", *(f"{name}, {mode}" for mode in MODES for name in names)]
    lines: dict[str, list[str]] = {}
    for row in rows:
        kind = "dense" if row["groups"] == 1 else "depthwise"
        cells = lines.setdefault(f"{kind}, {row['batch']} x {row['samples']}, K {row['kernel']}", [])
        cells += [f"{row['ms'][name]['median']:.1f}" for name in names]
    return markdown_table(header, [[name, *cells] for name, cells in lines.items()])


SECTION = Section("Long kernels", SECTION_TEXT, {}, tables=lambda result: table(result["rows"]))


def run(arguments: argparse.Namespace) -> None:
    """Times one-dimensional layers."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    rows = long_kernels(
        arguments.kernel_sizes,
        arguments.samples,
        arguments.batch_sizes,
        arguments.channels,
        arguments.elements,
        arguments.rounds,
        arguments.authors,
        arguments.device,
    )
    write_result(arguments, {"rows": rows})
    print(table(rows))


def add_commands(commands: Any) -> None:
    """Adds ``long_kernels``."""
    command = commands.add_parser(
        "long_kernels", parents=[device_option(), json_option()], help="layers of one dimension, as for sound"
    )
    command.add_argument("--threads", type=at_least_1, help="of the CPU")
    command.add_argument("--rounds", type=at_least_1, default=7, help="runs of each, in turns")
    command.add_argument("--kernel-sizes", nargs="+", type=odd, default=[257, 1025, 2049])
    command.add_argument(
        "--samples", nargs="+", type=at_least_1, default=[4000, 16000], help="of a recording"
    )
    command.add_argument("--batch-sizes", nargs="+", type=at_least_1, default=[1, 8])
    command.add_argument("--channels", type=at_least_1, default=64)
    command.add_argument("--elements", type=at_least_1, default=5, help="per kernel, at least 2")
    command.add_argument("--no-authors", dest="authors", action="store_false", help="without their package")
    command.set_defaults(run=run)
