"""What the positions do during training: how far they move, histograms, pictures."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger

from dcls_models.layers import DclsNd
from dcls_models.optim import holders
from train.pictures import write_picture
from train.ranges import Count, CountOrNone, check_ranges

Stage = tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]


class PositionsPicture(pl.Callback):
    """Follows the positions of every stage from where they started.

    Each epoch logs ``positions/moved_<stage>``, the mean distance in pixels; TensorBoard also gets histograms
    and pictures of kernels. The end of the training leaves a picture of before and after.

    Args:
        filename: File in the run's folder (``trainer.default_root_dir``).
        kernels: Kernels (output channels) per stage that are drawn; 0 for no pictures.
        every_n_epochs: How often TensorBoard gets histograms and pictures.
    """

    leaves_files = True

    def __init__(
        self, filename: str = "positions.png", kernels: CountOrNone = 4, every_n_epochs: Count = 10
    ) -> None:
        check_ranges("positions", self, {"kernels": kernels, "every_n_epochs": every_n_epochs})
        self.filename = filename
        self.kernels = kernels
        self.every_n_epochs = every_n_epochs
        self.before: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Where the positions started, for a resumed run."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where the positions started."""
        self.before = state_dict["before"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers where the positions start."""
        if not self.before:
            self.before = [h.positions.detach().cpu().clone() for h in _holders(pl_module)]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs how far the positions have moved, and what TensorBoard shows."""
        for i, (before, now, _) in enumerate(self._stages(pl_module)):
            distance = (now - before).square().sum(0).sqrt().mean()
            pl_module.log(f"positions/moved_{i}", distance, rank_zero_only=True)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero and self.before:
                    self._show(logger, trainer.global_step, self._stages(pl_module))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the picture."""
        stages = self._stages(pl_module)
        if trainer.is_global_zero and stages and self.kernels:
            write_picture(
                Path(trainer.default_root_dir) / self.filename, draw_positions, stages, self.kernels
            )

    def _stages(self, pl_module: pl.LightningModule) -> list[Stage]:
        sizes = {m.holder(): m.dilated_kernel_size for m in pl_module.modules() if isinstance(m, DclsNd)}
        pairs = zip(self.before, _holders(pl_module), strict=False)
        return [(before, h.positions.detach().cpu(), sizes[h]) for before, h in pairs]

    def _show(self, logger: TensorBoardLogger, step: int, stages: list[Stage]) -> None:
        for i, (_, now, _) in enumerate(stages):
            for axis, row in enumerate(now):
                logger.experiment.add_histogram(f"positions/stage_{i}_axis_{axis}", row, step)
        if self.kernels:
            logger.experiment.add_figure("positions", draw_positions(stages, self.kernels), step)


def _holders(pl_module: pl.LightningModule) -> list[Any]:
    """The holders of the trained model, not of its averaged copy, and not of a sharded one."""
    model = getattr(pl_module, "model", pl_module)
    return [h for h in holders(model) if not hasattr(h.positions, "placements") and len(h.positions) == 2]


def draw_positions(stages: list[Stage], kernels: int) -> Figure:
    """Draws a row per stage and a column per kernel: hollow where an element started, filled where it is.

    Args:
        stages: Per stage the positions ``(2, out_channels, in_channels // groups, n)`` before and after, in
            pixels, and the size of the kernel.
        kernels: How many output channels to draw.
    """
    size = (2.2 * kernels, 2.4 * len(stages))
    figure, axes = plt.subplots(len(stages), kernels, figsize=size, squeeze=False, layout="constrained")
    for row, (before, after, (height, width)) in enumerate(stages):
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
            axis.set(xticks=(-(width // 2), 0, width // 2), yticks=(-(height // 2), 0, height // 2))
            axis.tick_params(labelsize=7)
            axis.title.set_fontsize(9)
    figure.suptitle("positions before (hollow) and after training (red), in pixels of the kernel")
    return figure
