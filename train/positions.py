"""What the positions do during training: how far they move, histograms, a picture, an animation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pytorch_lightning.loggers import TensorBoardLogger

from dcls_models.layers.positions import stage_title
from dcls_models.optim import holders
from dcls_models.pictures import write_animation, write_picture
from train.ranges import Count, CountOrNone, check_ranges

KEPT = 64  # kernels of a stage whose ways are kept for the animation
CAPTION = (
    "A dot is one weight (element) of the kernel. Hollow: where it started; red: where it is now, alone if\n"
    "it has hardly moved; dotted: a 7x7 square. Dots outside of it see further than an ordinary 7x7 kernel."
)


class Stage(NamedTuple):
    """Where a stage's elements were: ``(moments, 2, out_channels, in_channels // groups, n)``, in pixels."""

    title: str
    paths: torch.Tensor
    size: tuple[int, ...]


class PositionsPicture(pl.Callback):
    """Follows the positions of every stage from where they started.

    Each epoch logs ``positions/moved_<stage>``, the mean distance in pixels; TensorBoard also gets histograms
    and pictures of kernels. The end of the training leaves a picture of before and after.

    Args:
        filename: File in the run's folder (``trainer.default_root_dir``).
        kernels: Kernels (output channels) per stage that are drawn; 0 for no pictures.
        every_n_epochs: How often TensorBoard gets histograms and pictures.
        animate_every: Also leaves an animation (GIF, beside the picture), with a frame at each so many
            updates; 0 for none.
    """

    leaves_files = True

    def __init__(
        self,
        filename: str = "positions.png",
        kernels: CountOrNone = 4,
        every_n_epochs: Count = 10,
        animate_every: CountOrNone = 0,
    ) -> None:
        numbers = {"kernels": kernels, "every_n_epochs": every_n_epochs, "animate_every": animate_every}
        check_ranges("positions", self, numbers)
        self.filename = filename
        self.kernels = kernels
        self.every_n_epochs = every_n_epochs
        self.animate_every = animate_every
        self.before: list[torch.Tensor] = []
        self.moments: list[list[torch.Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Where the positions started and were, for a resumed run."""
        return {"before": self.before, "moments": self.moments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where the positions started and were."""
        self.before = state_dict["before"]
        self.moments = state_dict.get("moments", [])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers where the positions start."""
        if not self.before:
            self.before = [h.positions.detach().cpu().clone() for h in _holders(pl_module).values()]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remembers where the positions are now, for the animation."""
        if self.animate_every and trainer.global_step == self.animate_every * (len(self.moments) + 1):
            now = [h.positions.detach().cpu()[:, :KEPT].clone() for h in _holders(pl_module).values()]
            self.moments.append(now)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs how far the positions have moved, and what TensorBoard shows."""
        for i, stage in enumerate(self._stages(pl_module)):
            pl_module.log(f"positions/moved_{i}", moved(stage.paths).mean(), rank_zero_only=True)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero and self.before:
                    self._show(logger, trainer.global_step, self._stages(pl_module))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the picture, and the animation where it is asked for."""
        stages = self._stages(pl_module)
        if trainer.is_global_zero and stages and self.kernels:
            file = Path(trainer.default_root_dir) / self.filename
            write_picture(file, draw_positions, stages, self.kernels)
            if self.moments:
                stages = self._stages(pl_module, whole=True)
                gif = file.with_suffix(".gif")
                write_animation(gif, animate_positions, stages, self.animate_every, self.kernels)

    def _stages(self, pl_module: pl.LightningModule, whole: bool = False) -> list[Stage]:
        """Before and now, or also all the moments between."""
        stages = []
        for i, (before, (name, h)) in enumerate(zip(self.before, _holders(pl_module).items(), strict=False)):
            now = h.positions.detach().cpu()
            between = [moment[i] for moment in self.moments] if whole else []
            kept = KEPT if whole else len(now[0])
            paths = torch.stack([before[:, :kept], *between, now[:, :kept]])
            stages.append(Stage(stage_title(name), paths, h.positions_size))
        return stages

    def _show(self, logger: TensorBoardLogger, step: int, stages: list[Stage]) -> None:
        for i, stage in enumerate(stages):
            for axis, row in enumerate(stage.paths[-1]):
                logger.experiment.add_histogram(f"positions/stage_{i}_axis_{axis}", row, step)
        if self.kernels:
            logger.experiment.add_figure("positions", draw_positions(stages, self.kernels), step)


def _holders(pl_module: pl.LightningModule) -> dict[str, Any]:
    """The holders of the trained model by name, not of its averaged copy, and not of a sharded one."""
    model = getattr(pl_module, "model", pl_module)
    held = set(holders(model))
    named = {name: m for name, m in model.named_modules() if m in held}
    return {
        name: m
        for name, m in named.items()
        if not hasattr(m.positions, "placements") and len(m.positions) == 2
    }


def moved(paths: torch.Tensor) -> torch.Tensor:
    """The mean distance of each kernel's elements from where they started, ``(out_channels,)``, in pixels."""
    return (paths[-1] - paths[0]).norm(dim=0).mean((1, 2))


def draw_positions(stages: list[Stage], kernels: int) -> Figure:
    """Draws a row per stage: the kernels whose elements travelled furthest, before and after in one frame.

    Args:
        stages: Where their elements were.
        kernels: How many kernels to draw of each.
    """
    return _draw(stages, kernels)[0]


def _draw(stages: list[Stage], kernels: int) -> tuple[Figure, list[Callable[[int], None]]]:
    """The figure, and for each kernel on it a function that shows it as it was at a moment."""
    size = (max(7.4, 2.3 * kernels + 0.4), 2.6 * len(stages) + 1.7)
    figure, axes = plt.subplots(len(stages), kernels, figsize=size, squeeze=False, layout="constrained")
    movers: list[Callable[[int], None]] = []
    for stage, line in zip(stages, axes, strict=True):
        distances = moved(stage.paths)
        furthest = distances.argsort(descending=True).tolist()
        for column, axis in enumerate(line):
            if column >= len(furthest):
                axis.axis("off")
                continue
            channel = furthest[column]
            path = stage.paths[:, :, channel, 0]
            movers.append(_draw_paths(axis, path, stage.size))
            axis.set_title(f"{stage.title}, kernel {channel + 1}\n{_said(path)}", fontsize=9)
        line[0].set_ylabel("pixels from the centre", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("pixels from the centre", fontsize=8)
    mean = torch.cat([moved(stage.paths) for stage in stages]).mean()
    figure.suptitle(
        f"The kernels whose elements training moved furthest (of all kernels, {mean:.2f} px on average)"
    )
    figure.supxlabel(CAPTION, fontsize=8.5)
    return figure, movers


def _said(path: torch.Tensor) -> str:
    """How far the elements of one kernel have come on average, along ``(moments, 2, n)``."""
    return f"moved {(path[-1] - path[0]).norm(dim=0).mean():.2f} px"


def _draw_paths(axis: Axes, path: torch.Tensor, size: tuple[int, ...]) -> Callable[[int], None]:
    """Draws the ways ``(moments, 2, n)`` of one kernel's elements."""
    places = path.numpy()
    y, x = places[:, 0], places[:, 1]
    half_y, half_x = (k // 2 for k in size)
    if min(size) > 7:
        axis.add_patch(Rectangle((-3.5, -3.5), 7, 7, fill=False, linestyle=":", edgecolor="0.4"))
    axis.scatter(x[0], y[0], s=16, facecolors="white", edgecolors="0.45", zorder=2)
    ways = axis.plot(x, y, color="0.7", linewidth=0.9, zorder=1)
    dots = axis.scatter(x[-1], y[-1], s=20, color="tab:red", zorder=3)
    axis.set(xlim=(-half_x - 0.7, half_x + 0.7), ylim=(half_y + 0.7, -half_y - 0.7), aspect="equal")
    axis.set(xticks=(-half_x, 0, half_x), yticks=(-half_y, 0, half_y))
    axis.tick_params(labelsize=7)

    def move(moment: int) -> None:
        for i, way in enumerate(ways):
            way.set_data(x[: moment + 1, i], y[: moment + 1, i])
        dots.set_offsets(places[moment, ::-1].T)
        axis.title.set_text(f"{axis.title.get_text().splitlines()[0]}\n{_said(path[: moment + 1])}")

    return move


def animate_positions(stages: list[Stage], every: int, kernels: int) -> FuncAnimation:
    """Lets the elements of the stage that changed most travel from where they started to where they are.

    Args:
        stages: Where their elements were, at the start, at each ``every`` updates and at the end.
        every: Updates between two frames.
        kernels: How many kernels to draw.
    """
    most = max(stages, key=lambda stage: float(moved(stage.paths).mean()))
    figure, movers = _draw([most], kernels)
    heading = f"The {kernels} kernels whose elements training moved furthest\n"
    title = figure.suptitle(f"{heading}after 0 updates")
    figure.canvas.draw()
    figure.set_layout_engine("none")  # once is enough, and the frames do not jump
    last = len(most.paths) - 1

    def show(frame: int) -> None:
        moment = min(frame, last)
        when = f"after {moment * every} updates" if moment < last else "at the end"
        title.set_text(f"{heading}{when}")
        for move in movers:
            move(moment)

    return FuncAnimation(figure, show, frames=last + 11)  # at its end it stands still for a second
