"""The effective receptive field: which pixels the middle of a stage depends on, as in arXiv:2203.06717."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from timm.data import resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dcls_models.files import one_line
from dcls_models.folders import files_below
from dcls_models.images import EXTENSIONS, read_image, transform_of
from dcls_models.provenance import state_dict_sha256
from eval.interpretability.features import channels_first, output_of, stage_of
from eval.options import (
    at_least_1,
    baseline_option,
    batch_options,
    device_option,
    exif_option,
    json_option,
    model_options,
    models,
    picture_option,
    side,
)
from eval.preprocessing import WHOLE, batches_of, check_size
from eval.results import write_result
from eval.section import Section

SHARES = (0.2, 0.3, 0.5, 0.99)  # of the contribution, as in table 9 of the paper
SQUARES = {"0.5": "-", "0.99": "--"}  # those that are drawn
SECTION = Section(
    "Effective receptive field",
    "The share of the image's area that holds so much of the gradient of the centre output "
    "(arXiv:2203.06717).",
    {f"share_of_area/{share}": (f"{share:.0%}".replace("%", " %"), 3) for share in SHARES},
)


def contributions(model: nn.Module, images: torch.Tensor, stage: int = -1) -> torch.Tensor:
    """How much each pixel adds to the middle of a stage.

    The rectified gradient, with respect to the images, of the sum over channels of the rectified middle of
    the stage's output; ``get_input_grad`` in the authors' ``erf/visualize_erf.py``. Where a side of the
    output is even, its middle is two outputs (theirs: the one behind), so that it is the middle of the image.

    Args:
        model: In eval mode.
        images: ``(N, C, H, W)``, as the model wants them.
        stage: Number of the stage, -1 for the last.

    Returns:
        ``(H, W)``, summed over colours and images.
    """
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad(), output_of(model, stage_of(model, stage)) as kept:
        model(images)
        features = channels_first(model, kept[0])
        rows, columns = (slice((side - 1) // 2, side // 2 + 1) for side in features.shape[2:])
        middle = features[:, :, rows, columns]
        (gradient,) = torch.autograd.grad(middle.relu().sum(), images)
    return gradient.relu().sum((0, 1))


def effective_receptive_field(
    model: nn.Module, batches: Iterable[torch.Tensor], stage: int = -1
) -> tuple[torch.Tensor, int]:
    """The mean of ``contributions`` over images, ``(H, W)``, and how many images.

    Raises:
        ValueError: If nothing contributes.
    """
    device, total, n = next(model.parameters()).device, torch.zeros(()), 0
    for images in batches:
        total = total + contributions(model, images.to(device), stage).double().cpu()
        n += len(images)
    if not total.isfinite().all() or not total.any():
        raise ValueError(f"no pixel has a finite effect on the middle of {stage_of(model, stage)}")
    return total / n, n


def for_drawing(field: torch.Tensor) -> torch.Tensor:
    """``log10(field + 1)`` over its maximum, which the authors draw and measure (``erf/analyze_erf.py``)."""
    field = (field + 1).log10()
    return field / field.max()


def share_of_area(field: torch.Tensor) -> dict[str, float]:
    """How much of the image the smallest centred square takes that holds a share of the contributions.

    Args:
        field: ``(H, W)``, that of ``for_drawing``.

    Returns:
        For each of the shares 0.2, 0.3, 0.5 and 0.99 a fraction of the area; 1 is the whole image.
    """
    height, width = field.shape
    y, x = ((torch.arange(size) - size // 2).abs() for size in field.shape)
    ring = torch.maximum(y[:, None], x[None]).flatten()  # 0 is the middle
    held = torch.bincount(ring, field.flatten()).cumsum(0) / field.sum()
    areas = {}
    for share in SHARES:
        side = 2 * int((held > share).int().argmax()) + 1
        areas[str(share)] = min(side, height) * min(side, width) / (height * width)
    return areas


class _Images(Dataset[torch.Tensor]):
    """Images from all over a folder, resized (not cropped) as the authors do."""

    def __init__(
        self, root: Path, limit: int, exif: bool, transform: Callable[[Image.Image], torch.Tensor]
    ) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}")
        files = files_below(root, EXTENSIONS)
        if not files:
            raise FileNotFoundError(f"no images in {root} ({' '.join(EXTENSIONS)})")
        self.files = files[:: max(1, len(files) // limit)][:limit]
        self.exif, self.transform = exif, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        try:
            return self.transform(read_image(self.files[index], self.exif))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.files[index]} cannot be read as an image: {one_line(error)}") from error


def _batches(arguments: argparse.Namespace, model: nn.Module) -> Iterator[torch.Tensor]:
    """Images, or noise: the same for all models."""
    size, batch_size = resolve_data_config({}, model=model)["input_size"], arguments.batch_size
    if arguments.img_size:
        size = (size[0], arguments.img_size, arguments.img_size)
    check_size(model, size)
    if arguments.random:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, arguments.limit, batch_size):
            yield torch.randn(min(batch_size, arguments.limit - start), *size, generator=generator)
    else:
        transform = transform_of(model, input_size=size, **WHOLE)
        data = _Images(arguments.data, arguments.limit, arguments.exif, transform)
        yield from batches_of(DataLoader(data, batch_size=batch_size, num_workers=arguments.workers))


def draw(fields: dict[str, torch.Tensor]) -> Figure:
    """Draws fields of ``for_drawing`` side by side, with titles and two squares of ``share_of_area``."""
    size = (3.4 * len(fields) + 0.8, 4.2)
    figure, axes = plt.subplots(1, len(fields), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, field) in zip(axes[0], fields.items(), strict=True):
        height, width = field.shape
        left, top = -(width // 2) - 0.5, -(height // 2) - 0.5
        edges = (left, left + width, top + height, top)
        shown = axis.imshow(field, cmap="viridis", vmin=0, vmax=1, extent=edges)
        areas = share_of_area(field)
        for share, line in SQUARES.items():
            h, w = height * areas[share] ** 0.5 - 0.5, width * areas[share] ** 0.5 - 0.5
            axis.add_patch(Rectangle((-w / 2, -h / 2), w, h, fill=False, edgecolor="white", linestyle=line))
        axis.set_xlabel("pixels from the middle", fontsize=8)
        axis.tick_params(labelsize=7)
        name = title.rpartition("/")[2]  # of a path its end
        axis.set_title(f"{name}: half in {areas['0.5']:.1%} of the area", fontsize=8)
    bar = figure.colorbar(shown, ax=axes, shrink=0.7)
    bar.set_label("effect, logarithm over the largest", fontsize=8)
    figure.suptitle(
        "Which pixels the middle of the output depends on: yellow much, dark blue nothing.\n"
        "Half of the effect comes from inside the solid square, 99 % from inside the dashed one",
        fontsize=9,
    )
    return figure


def run(arguments: argparse.Namespace) -> None:
    """Measures a model, and a baseline, and writes shares of the area as JSON and the fields as a picture."""
    rows, fields = [], {}
    for name, model in models(arguments):
        batches = tqdm(_batches(arguments, model), desc=f"erf of {name}", unit="batch")
        field, n = effective_receptive_field(model, batches, arguments.stage)
        fields[name] = for_drawing(field)
        shares = share_of_area(fields[name])
        stage = stage_of(model, arguments.stage)
        which = {"model": name, "state_dict_sha256": state_dict_sha256(model), "stage": stage}
        rows.append({**which, "size": list(field.shape), "share_of_area": shares, "n": n})
    result = {**rows[-1], "dataset": str(arguments.data or "noise"), "exif": arguments.exif, "rows": rows}
    write_result(arguments, result, lambda: draw(fields))
    for row in rows:
        areas = ", ".join(f"{float(s):.0%} in {a:.1%}" for s, a in row["share_of_area"].items())
        print(f"{row['model']}, {row['stage']}: {areas} of the area")


def add_commands(commands: Any) -> None:
    """Adds ``erf``."""
    parents = [
        model_options(),
        baseline_option(),
        device_option(),
        batch_options(),
        json_option(),
        picture_option(),
        exif_option(),
    ]
    command = commands.add_parser("erf", parents=parents, help="the effective receptive field")
    data = command.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, help="folder of images")
    data.add_argument("--random", action="store_true", help="noise instead of images")
    command.add_argument("--limit", type=at_least_1, default=50, help="images, from all over the folder")
    command.add_argument("--img-size", type=side, help="default: the model's; the paper takes 1024")
    command.add_argument("--stage", type=int, default=-1, help="number of the stage; default: the last")
    command.set_defaults(run=run)
