"""The pictures of docs/study.md."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from train.study.contours import contours
from train.study.experiments import FIRST, WIDE, Row

COLOURS = {"learned": "tab:red", "frozen": "tab:orange", "fixed": "tab:blue"}
LEGEND = {"learned": "learned places", "frozen": "frozen places", "fixed": "a regular grid"}
SHOWN = (FIRST, WIDE)
NAMES = (
    "DCLS: each weight of a sparse 13x13 kernel has a place of its own, which is trained as well (v1,\n"
    "gauss: two ways to put it between pixels). spread: places all over the kernel at the start, else near\n"
    "its centre; frozen: such places, not trained. In brackets: trained numbers. A dot: one seed; a line:\n"
    "the mean, written at the right, which lies between two groups where only some trainings found the task."
)


def kind(variant: str) -> str:
    """What is done with the positions: ``learned``, ``frozen``, or ``fixed`` where there are none."""
    return "frozen" if "frozen" in variant else "learned" if variant.startswith("DCLS") else "fixed"


def draw_variants(table: list[Row]) -> Figure:
    """Each seed as a dot and the mean as a line, on the two tasks where reach matters most."""
    figure, axes = plt.subplots(
        1, 1 + len(SHOWN), figsize=(14, 5.6), layout="constrained", width_ratios=(0.8, 2, 2)
    )
    images, _ = contours(8, seed=3)
    shown = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0).unflatten(0, (4, 2))
    axes[0].imshow(shown.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2))
    axes[0].axis("off")
    axes[0].set_title("Does a dashed curve\nconnect the red dots?\nleft: no, right: yes", fontsize=8)
    for axis, task in zip(axes[1:], SHOWN, strict=True):
        rows = [row for row in table if (row["experiment"], row["task"]) == ("variants", task)]
        for i, row in enumerate(rows):
            colour = COLOURS[kind(row["variant"])]
            axis.scatter(row["top1"], [i] * len(row["top1"]), color=colour, alpha=0.5)
            axis.vlines(row["mean"], i - 0.3, i + 0.3, color=colour)
            axis.text(101.5, i, f"{row['mean']:.1f}", fontsize=8, verticalalignment="center")
        axis.axvline(50, color="0.8", linewidth=1, zorder=0)
        axis.set_yticks(range(len(rows)), [f"{r['variant']} ({r['trained']:,})" for r in rows], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("top-1 on new images (%); chance is 50", fontsize=9)
        axis.set_xlim(46, 108)
        axis.set_title(task, fontsize=9)
    for name, colour in COLOURS.items():
        axes[-1].scatter([], [], color=colour, label=LEGEND[name])
    figure.legend(loc="outside upper center", ncols=len(COLOURS), fontsize=8)
    figure.supxlabel(NAMES, fontsize=8.5)
    return figure


def draw_curve(rows: Iterable[Row]) -> Figure:
    """Accuracy, and the positions' mean distance from the centre, over a long training; a line a seed.

    Colours are those of ``draw_variants``.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    own = [row for row in rows if row["experiment"] == "curve"]
    for row in own:
        late = row["variant"] == "DCLS v1"  # starts at the centre
        name = f"{row['variant']}, starting near the centre" if late else row["variant"]
        label = name if row["seed"] == own[0]["seed"] else None
        updates = [point["updates"] for point in row["points"]]
        look = {"color": COLOURS[kind(row["variant"])], "linestyle": "--" if late else "-", "label": label}
        axes[0].plot(updates, [point["top1"] for point in row["points"]], **look)
        if "from_centre" in row["points"][0]:
            axes[1].plot(updates, [point["from_centre"] for point in row["points"]], **look)
    axes[0].set(
        xlabel="updates", ylabel="top-1 on new images (%)", title=f"{FIRST}: accuracy; a line: one seed"
    )
    axes[1].set(
        xlabel="updates",
        ylabel="cells of the feature map (2 px each)",
        title="mean distance of the elements from the centre",
    )
    for axis in axes:
        axis.legend(fontsize=8)
    return figure
