"""The picture of README.md: a dense, a dilated and a learned kernel, and how the elements of one moved.

Run ``python -m train.study.picture --output docs/spacings.png``. It trains three networks to tell whether two
dots are connected by a dashed curve (``train.study.contours``), half a minute each on a CPU.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from dcls_models.files import replaced
from dcls_models.layers import Dcls2d
from dcls_models.options import at_least_1
from train.study.experiments import FIRST
from train.study.models import DILATED, SPREAD
from train.study.tasks import TASKS, task_data
from train.study.training import classifier, quiet, silent_trainer

HALF = 6  # the dilated and the learned kernel reach so many pixels from their centre
KERNELS: dict[str, dict[str, Any]] = {
    "dense: 49 weights,\nside by side": {"kernel_size": 7},
    "dilated: 49 weights,\nwith fixed gaps": DILATED,
    "learned spacings: 16 weights,\neach with a position of its own": {
        **SPREAD,
        "version": "v1",
        "kernel_count": 16,
    },
}
POSITIONS_LR_SCALE = 10.0  # the recipes have 5; in so short a training, 10 shows more
EPOCHS, UPDATES = 2, 640


class Paths(pl.Callback):
    """Keeps the positions ``(2, channels, 1, elements)``, in pixels, at every tenth update and at the end."""

    def __init__(self) -> None:
        self.positions: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Keeps them."""
        if trainer.global_step % 10 == 0:
            self.positions.append(module.model.blocks.positions.detach().clone())

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Keeps the last ones."""
        self.positions.append(module.model.blocks.positions.detach().clone())


def train(model_kwargs: dict[str, Any], updates: int, callbacks: Sequence[pl.Callback] = ()) -> nn.Conv2d:
    """Trains a network of two layers on contours, with seed 0; returns its first depthwise convolution."""
    pl.seed_everything(0, verbose=False)
    module = classifier({"dim": 32, "depth": 2, **model_kwargs}, 2, POSITIONS_LR_SCALE, EPOCHS)
    trainer = silent_trainer(
        max_epochs=EPOCHS, max_steps=updates, limit_val_batches=0, callbacks=list(callbacks)
    )
    trainer.fit(module, datamodule=task_data(TASKS[FIRST], seed=0))
    return next(m for m in module.model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)


def on_pixels(layer: nn.Conv2d) -> torch.Tensor:
    """Kernels as they lie on an image, ``(channels, height, width)``, with the gaps of a dilated one."""
    if isinstance(layer, Dcls2d):
        return layer.kernel().detach()[:, 0]
    step = layer.dilation[0]
    side = step * (layer.kernel_size[0] - 1) + 1
    kernels = torch.zeros(layer.out_channels, side, side)
    kernels[:, ::step, ::step] = layer.weight.detach()[:, 0]
    return kernels


def draw(layers: dict[str, nn.Conv2d], paths: torch.Tensor) -> Figure:
    """Draws a kernel of every layer, and the paths of the elements of the last one.

    Args:
        layers: By title; the last has learned positions.
        paths: Its positions over the training ``(moments, 2, channels, 1, elements)``, in pixels.
    """
    figure, axes = plt.subplots(1, len(layers) + 1, figsize=(14.5, 4.4), layout="constrained")
    furthest = int((paths[-1] - paths[0]).norm(dim=0).mean((1, 2)).argmax())  # the kernel that changed most
    for (title, layer), axis in zip(layers.items(), axes, strict=False):
        kernels = on_pixels(layer)
        learned = isinstance(layer, Dcls2d)
        strongest = int(kernels.abs().sum((1, 2)).argmax())
        _draw_kernel(axis, kernels[furthest if learned else strongest], title)
    last, after = axes[-2:]
    y, x = paths[:, :, furthest, 0].unbind(1)
    last.scatter(x[-1], y[-1], s=18, color="black", label="element")
    after.plot(x, y, color="0.65", linewidth=1)
    after.scatter(x[0], y[0], s=36, facecolors="white", edgecolors="black", zorder=3, label="before training")
    after.scatter(x[-1], y[-1], s=36, color="black", zorder=3, label="after")
    after.set_title("how training moved\nthese 16 elements")
    for axis in axes:
        axis.set(xlim=(-HALF - 1, HALF + 1), ylim=(HALF + 1, -HALF - 1), aspect="equal")
        axis.set(xticks=range(-HALF, HALF + 1, 3), yticks=range(-HALF, HALF + 1, 3))
        axis.set_xlabel("pixels from the centre")
    for axis in (last, after):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2, frameon=False)
    return figure


def _draw_kernel(axis: Axes, kernel: torch.Tensor, title: str) -> None:
    """Colours the pixels: red for positive weights, blue for negative ones, white for none."""
    half, largest = kernel.shape[-1] // 2 + 0.5, float(kernel.abs().max())
    colours = axis.imshow(
        kernel, cmap="RdBu_r", vmin=-largest, vmax=largest, extent=(-half, half, half, -half)
    )
    axis.set_title(title)
    bar = axis.figure.colorbar(
        colours, ax=axis, orientation="horizontal", shrink=0.6, pad=0.02, location="top"
    )
    bar.set_ticks([-largest, 0, largest], labels=["negative weight", "0", "positive"])


def main(argv: Sequence[str] | None = None) -> None:
    """Trains the networks and writes the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m train.study.picture", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--updates", type=at_least_1, default=UPDATES, help="length of each training")
    arguments = parser.parse_args(argv)
    paths = Paths()
    with quiet():
        layers = {
            title: train(kwargs, arguments.updates, [paths] if "version" in kwargs else [])
            for title, kwargs in KERNELS.items()
        }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with replaced(arguments.output) as part:
        draw(layers, torch.stack(paths.positions)).savefig(part, format="png", dpi=100)
    plt.close("all")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
