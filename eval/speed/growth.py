"""How the cost of learned spacings grows with the image, the batch, the kernel and its elements."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import timm
import torch
from matplotlib.figure import Figure

from eval.options import timing_options
from eval.results import write_result
from eval.section import Section, markdown_table
from eval.speed.steps import step_of
from eval.speed.timing import LAYOUTS, time_in_turns

SECONDS = 2.0  # of runs of one model at one point; three runs at least
MODES = ("inference", "train")


class Point(NamedTuple):
    """Side of the images and images in a batch; side of the kernels, and their elements."""

    side: int = 224
    batch: int = 1
    kernel: int = 17
    elements: int = 34


GRID: dict[str, dict[str, tuple[int, ...]]] = {  # a training step takes long
    "inference": {
        "side": (128, 224, 320, 384, 512),
        "batch": (1, 4, 16, 32),
        "kernel": (7, 13, 17, 23, 31),
        "elements": (9, 34, 100, 200),
    },
    "train": {
        "side": (128, 224, 384),
        "batch": (1, 2, 4),
        "kernel": (7, 13, 17, 23, 31),
        "elements": (9, 34, 100, 200),
    },
}
BASE = {"inference": Point(), "train": Point(batch=2)}


def growth(
    mode: str,
    fields: Sequence[str] = Point._fields,
    model: str = "convnext_tiny",
    rounds: int = 5,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, Any]]:
    """Times a ConvNeXt with learned spacings beside the plain one, one number changed at a time.

    Args:
        mode: ``inference`` or ``train``.
        fields: Of ``Point``: what changes.
        model: The plain ConvNeXt, of timm.
        rounds: Runs of each model in each layout.
        device: Where to compute.
        dtype: float32, or a shorter one for autocast.

    Returns:
        Per value of ``GRID``, with all else as in ``BASE``: ``along`` (the field), the point, ``mode``, by
        model ``ms`` and ``layout``, the faster one, and ``ratio``, our time by that of the plain model.

    Raises:
        ValueError: If the model has no twin.
    """
    if _twin(model) == model or not timm.is_model(_twin(model)):
        raise ValueError(
            f"--model {model} has no twin with learned spacings: give a ConvNeXt, as convnext_tiny"
        )
    measured: dict[Point, dict[str, Any]] = {}
    rows = []
    for along in fields:
        for value in GRID[mode][along]:
            point = BASE[mode]._replace(**{along: value})
            if point not in measured:
                measured[point] = _compare(point, mode, model, rounds, device, dtype)
            rows.append({"along": along, "mode": mode, **point._asdict(), **measured[point]})
    return rows


def _twin(plain: str) -> str:
    return plain.replace("convnext", "convnext_dcls", 1)


def _compare(
    point: Point, mode: str, plain: str, rounds: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    learned = _twin(plain)
    words = {plain: {}, learned: {"dilated_kernel_size": point.kernel, "kernel_count": point.elements}}
    calls = {}
    for name, layout in product(words, LAYOUTS):
        model = timm.create_model(name, **words[name]).train(mode == "train")
        images = torch.randn(point.batch, 3, point.side, point.side)
        model, images = (t.to(device, memory_format=LAYOUTS[layout]) for t in (model, images))
        calls[name, layout] = step_of(model, images, mode, dtype)
    timings = time_in_turns(calls, device, rounds, SECONDS)
    best = {n: min(LAYOUTS, key=lambda layout, n=n: timings[n, layout].median) for n in words}
    ms = {name: timings[name, layout]._asdict() for name, layout in best.items()}
    return {"ms": ms, "layout": best, "ratio": round(ms[learned]["median"] / ms[plain]["median"], 3)}


def tables(result: Mapping[str, Any]) -> str:
    """A row for each field, with the ratio at each of its values."""
    modes = dict.fromkeys(row["mode"] for row in result["rows"])
    return "\n\n".join(_table([row for row in result["rows"] if row["mode"] == mode]) for mode in modes)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = {
        along: [f"{row[along]}: {row['ratio']:.2f}" for row in rows if row["along"] == along]
        for along in dict.fromkeys(row["along"] for row in rows)
    }
    width = max(map(len, cells.values()))
    header = [f"{rows[0]['mode']}, value: ratio of times", *[""] * width]
    return markdown_table(header, [[a, *c, *[""] * (width - len(c))] for a, c in cells.items()])


def draw(result: Mapping[str, Any]) -> Figure:
    """One panel per field, one line per mode."""
    fields = list(dict.fromkeys(row["along"] for row in result["rows"]))
    figure, axes = plt.subplots(
        1, len(fields), figsize=(3 * len(fields) + 1, 3), sharey=True, squeeze=False, layout="constrained"
    )
    for along, axis in zip(fields, axes[0], strict=True):
        for mode in MODES:
            if rows := [r for r in result["rows"] if (r["along"], r["mode"]) == (along, mode)]:
                axis.plot([r[along] for r in rows], [r["ratio"] for r in rows], "o-", label=mode)
        axis.axhline(1, color="black", linewidth=0.8, zorder=0)
        axis.set(xlabel=along)
    axes[0][0].set_ylabel("time, 1 = plain model")
    axes[0][0].legend()
    return figure


SECTION = Section(
    "Growth", "Time with learned spacings by that of the plain model, one number changed.", {}, tables=tables
)


def run(arguments: argparse.Namespace) -> None:
    """Times a ConvNeXt over sizes of images, batches and kernels."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    where = arguments.device, getattr(torch, arguments.dtype)
    what = arguments.along, arguments.model, arguments.rounds
    rows = [row for mode in arguments.modes for row in growth(mode, *what, *where)]
    result = {"rows": rows}
    write_result(arguments, result, lambda: draw(result))
    print(tables(result))


def add_commands(commands: Any) -> None:
    """Adds ``growth``."""
    command = commands.add_parser(
        "growth", parents=[timing_options()], help="cost by size of image, batch and kernel"
    )
    command.add_argument("--model", default="convnext_tiny", help="a ConvNeXt of timm that has a DCLS twin")
    command.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    command.add_argument("--along", nargs="+", default=list(Point._fields), choices=Point._fields)
    command.set_defaults(run=run, rounds=5)
