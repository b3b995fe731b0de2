"""Whether a model looks where people look: Grad-CAM against human maps, as in arXiv:2408.03164."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from dcls_models.images import transform_of
from dcls_models.provenance import state_dict_sha256
from eval.interpretability.alignment import compare, spearman, summarise
from eval.interpretability.cam import METHODS, layer_of, normalise, resize, weighted_activations
from eval.interpretability.clickme import SIDE, HumanMaps, open_human_maps
from eval.interpretability.features import stage_of
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
)
from eval.preprocessing import WHOLE, batches_of
from eval.results import write_result
from eval.section import Section

SECTION = Section(
    "Where it looks",
    "Score: mean Spearman correlation of the model's map with the map of people, divided by the "
    "agreement of people with each other (arXiv:2408.03164), with its 95 % interval; flat maps have no "
    "correlation and are counted.",
    {
        "method": ("map", 0),
        "score": ("score", 3),
        "low": ("from", 3),
        "high": ("to", 3),
        "spearman": ("Spearman", 3),
        "n": ("images", 0),
        "flat": ("flat maps", 0),
    },
    ("score", "higher is better"),
)


class _Prepared(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Human maps with the images as a model wants them."""

    def __init__(self, data: Dataset[Any], model: nn.Module, crop: bool) -> None:
        self.data, self.transform = data, transform_of(model, **({} if crop else WHOLE))

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        image, human, label = self.data[index]
        return self.transform(image), human, label


def maps_of(
    model: nn.Module,
    data: HumanMaps | Subset[Any],
    methods: Sequence[str],
    target: str = "predicted",
    crop: bool = False,
    layer: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """A model's maps beside people's, batch by batch.

    Args:
        model: In eval mode.
        data: Images and human maps.
        methods: Keys of ``METHODS``.
        target: The class to explain: the image's ``"label"`` (the study's choice) or the ``"predicted"``.
        crop: Show the model its usual crop of the image, as the study's code does, although people have seen
            all of it; otherwise all of the image, which is what the human map covers.
        layer: Name of the layer to look at; by default that of ``layer_of``.
        batch_size: Images per forward pass.
        workers: Processes that read images.

    Yields:
        Per method ``(N, 224, 224)``, and the human maps ``(N, 224, 224)``, on the model's device.

    Raises:
        ValueError: If an image has no label or the model not its class, a file is broken, or the model's
            maps are not finite or of one pixel.
    """
    device = next(model.parameters()).device
    loader = DataLoader(_Prepared(data, model, crop), batch_size=batch_size, num_workers=workers)
    for inputs, human, labels in batches_of(loader):
        known = target == "label"
        if known and not (labels.min() >= 0 and labels.max() < model.num_classes):
            wrong = "no label" if labels.min() < 0 else f"the label {labels.max()}"
            raise ValueError(
                f"an image has {wrong}, expected 0 to {model.num_classes - 1} for this model; --target "
                "predicted explains what the model says instead"
            )
        weighted, _ = weighted_activations(
            model, inputs.to(device), labels.to(device) if known else None, layer
        )
        if weighted.shape[2:].numel() == 1:
            raise ValueError(
                f"{layer or layer_of(model)} gives one pixel for an input of {tuple(inputs.shape[2:])}: "
                f"look at an earlier layer, as --layer {stage_of(model, 1)}"
            )
        maps = {method: resize(METHODS[method](weighted), (SIDE, SIDE)) for method in methods}
        if not all(of_method.isfinite().all() for of_method in maps.values()):
            raise ValueError(f"{type(model).__name__} gives maps that are not finite")
        yield maps, human.to(device)


def draw_sheet(data: HumanMaps | Subset[Any], columns: dict[str, torch.Tensor]) -> Figure:
    """Draws images, what people look at and what models look at, one row per image.

    Args:
        data: The images.
        columns: Titles and maps ``(N, 224, 224)``.
    """
    samples = [data[i] for i in range(len(data))]
    columns = {"people": torch.stack([s.human for s in samples]), **columns}
    size = (1.6 * (1 + len(columns)), 1.6 * len(samples) + 0.4)
    figure, axes = plt.subplots(
        len(samples), 1 + len(columns), figsize=size, squeeze=False, layout="constrained"
    )
    for row, sample in enumerate(samples):
        image = sample.image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        axes[row, 0].imshow(image)
        for axis, maps in zip(axes[row, 1:], columns.values(), strict=True):
            axis.imshow(image)
            axis.imshow(normalise(maps[row : row + 1])[0], cmap="viridis", alpha=0.6, vmin=0, vmax=1)
            if maps is not columns["people"]:
                rho = spearman(maps[row : row + 1], sample.human[None]).item()
                axis.set_xlabel("constant" if np.isnan(rho) else f"{rho:.2f}", fontsize=7)
    for axis, title in zip(axes[0], ("image", *columns), strict=True):
        axis.set_title(title.rpartition("/")[2], fontsize=7)  # of a path its end
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def score(
    model: nn.Module, data: HumanMaps | Subset[Any], title: str, batch_size: int, **how: Any
) -> dict[str, torch.Tensor]:
    """Spearman's correlation ``(n,)`` with the human maps, per method; ``how`` as in ``maps_of``."""
    total = -(-len(data) // batch_size)
    batches = tqdm(maps_of(model, data, batch_size=batch_size, **how), desc=title, total=total, unit="batch")
    scores = [{method: spearman(maps[method], human).cpu() for method in maps} for maps, human in batches]
    return {method: torch.cat([batch[method] for batch in scores]) for method in scores[0]}


def run(arguments: argparse.Namespace) -> None:
    """Scores a model, and a baseline, and writes the scores as JSON and the maps as a picture."""
    data = open_human_maps(arguments.data, arguments.exif)
    every = Subset(data, range(min(arguments.limit or len(data), len(data))))
    shown = Subset(data, range(min(arguments.images, len(every))))
    methods = list(METHODS) if arguments.method == "both" else [arguments.method]
    target = arguments.target or ("predicted" if data[0].label < 0 else "label")
    how = {"methods": methods, "target": target, "crop": arguments.crop, "layer": arguments.layer}
    rows, columns, all_scores = [], {}, []
    for name, model in models(arguments):
        scores = score(model, every, name, arguments.batch_size, workers=arguments.workers, **how)
        all_scores.append(scores)
        layer = arguments.layer or layer_of(model)
        which = {"model": name, "state_dict_sha256": state_dict_sha256(model)}
        rows += [{**which, "method": m, "layer": layer, **summarise(scores[m])} for m in methods]
        if arguments.picture:
            (maps, _), *_ = maps_of(model, shown, batch_size=len(shown), **how)
            columns |= {f"{name}\n{method}": of_method.cpu() for method, of_method in maps.items()}
    ours = rows[-len(methods) :]
    if arguments.baseline:
        for row, m in zip(ours, methods, strict=True):
            row |= compare(all_scores[1][m], all_scores[0][m])
    settings = {
        "dataset": str(arguments.data),
        "target": target,
        "crop": arguments.crop,
        "exif": arguments.exif,
    }
    write_result(arguments, {**ours[0], **settings, "rows": rows}, lambda: draw_sheet(shown, columns))
    print("\n".join(map(_say, rows)))


def _say(row: dict[str, Any]) -> str:
    what = f"{row['model']}, {row['method']}"
    flat = f"{row['flat']} of {row['n']} images have a constant map"
    if row["score"] is None:
        return f"{what}: no score, {flat}"
    return f"{what}: score {row['score']:.4f} ({row['low']:.4f} to {row['high']:.4f}), {flat}"


def add_commands(commands: Any) -> None:
    """Adds ``gradcam``."""
    parents = [
        model_options(),
        baseline_option(),
        device_option(),
        batch_options(),
        json_option(),
        picture_option(),
        exif_option(),
    ]
    command = commands.add_parser("gradcam", parents=parents, help="whether a model looks where people look")
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="ClickMe shard, folder of shards, or one with images/ and maps/",
    )
    command.add_argument("--method", default="both", choices=(*METHODS, "both"))
    command.add_argument(
        "--target",
        choices=("label", "predicted"),
        help="class to explain; default: the label, if there is one",
    )
    command.add_argument(
        "--crop", action="store_true", help="the model's usual crop, as the study's code has it"
    )
    command.add_argument("--layer", help="name of the layer; default: the last before the pooling")
    command.add_argument("--limit", type=at_least_1, help="images, from the first on; default: all")
    images_help = "on the picture, beside people's maps and the models'"
    command.add_argument("--images", type=at_least_1, default=8, help=images_help)
    command.set_defaults(run=run)
