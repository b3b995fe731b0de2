"""Callbacks: a picture of how far the positions have moved."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch

from dcls_models.layers import DclsNd
from dcls_models.optim import holders


class PositionsPicture(pl.Callback):
    """Draws the positions of a few kernels per stage before and after training.

    Args:
        filename: File in the run's folder (``trainer.default_root_dir``).
        kernels: Kernels (output channels) per stage.
    """

    def __init__(self, filename: str = "positions.png", kernels: int = 4) -> None:
        self.filename = filename
        self.kernels = kernels
        self.before: list[torch.Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers where the positions start."""
        self.before = [h.positions.detach().cpu().clone() for h in holders(pl_module)]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the picture."""
        if not trainer.is_global_zero or not self.before:
            return
        sizes = {m.holder(): m.dilated_kernel_size for m in pl_module.modules() if isinstance(m, DclsNd)}
        rows = [
            (before, holder.positions.detach().cpu(), sizes[holder])
            for before, holder in zip(self.before, holders(pl_module), strict=True)
        ]
        draw_positions(rows, self.kernels, Path(trainer.default_root_dir) / self.filename)


def draw_positions(
    rows: list[tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]], kernels: int, path: Path
) -> None:
    """Draws a row per stage and a column per kernel: hollow where an element started, filled where it is.

    Args:
        rows: Per stage the positions ``(2, out_channels, in_channels // groups, n)`` before and after, in
            pixels, and the size of the kernel.
        kernels: How many output channels to draw.
        path: The picture to write.
    """
    size = (2.2 * kernels, 2.4 * len(rows))
    figure, axes = plt.subplots(len(rows), kernels, figsize=size, squeeze=False, layout="constrained")
    for row, (before, after, (height, width)) in enumerate(rows):
        for column, axis in enumerate(axes[row]):
            if column >= before.shape[1]:
                axis.axis("off")
                continue
            (y0, x0), (y1, x1) = before[:, column, 0].tolist(), after[:, column, 0].tolist()
            axis.plot([x0, x1], [y0, y1], color="0.75", linewidth=0.8, zorder=1)
            axis.scatter(x0, y0, s=16, facecolors="white", edgecolors="0.45", zorder=2)
            axis.scatter(x1, y1, s=18, color="tab:red", zorder=3)
            axis.set(
                xlim=(-(width // 2) - 0.7, width // 2 + 0.7), ylim=(height // 2 + 0.7, -(height // 2) - 0.7)
            )
            axis.set(aspect="equal", title=f"stage {row + 1}, kernel {column}")
            axis.tick_params(labelsize=7)
            axis.title.set_fontsize(9)
    figure.suptitle("positions before (hollow) and after training (red), in pixels of the kernel")
    figure.savefig(path, dpi=110)
    plt.close(figure)
