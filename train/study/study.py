"""Does it learn better? Fixed and learned spacings at equal parameters and equal steps, over several seeds.

Run ``python -m train.study``. A ConvMixer (arXiv:2201.09792) is trained on two tasks: tracing contours
(see ``train.contours``) and the digits that scikit-learn ships. Only its depthwise convolutions differ; the
number of elements, or where there is none to choose the width, makes the parameters equal.
"""

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convmixer import ConvMixer
from torch.utils.data import DataLoader, TensorDataset

import dcls_models
from train.contours import contours
from train.module import Classifier

DILATED = {"kernel_size": 7, "dilation": 2}
VARIANTS: dict[
    str, dict[str, Any]
] = {  # all but the first reach over 13 x 13; v0 is v1 in a kernel of odd size
    "standard 7x7": {"kernel_size": 7},
    "dilated 7x7": DILATED,
    "DCLS v1": {**DILATED, "version": "v1"},
    "DCLS gauss": {**DILATED, "version": "gauss"},
    "DCLS v1 spread": {**DILATED, "version": "v1", "spread": True},
    "dense 13x13": {"kernel_size": 13},
}
TASKS = ("contours", "digits")
SIZES: dict[str, dict[str, int]] = {
    "small": {"side": 32, "dim": 32, "depth": 4, "images": 20480, "contours_epochs": 2, "digits_epochs": 10},
    "large": {
        "side": 64,
        "dim": 96,
        "depth": 8,
        "images": 200_000,
        "contours_epochs": 20,
        "digits_epochs": 100,
    },
}
HELD_OUT = 4000  # contours to validate on
default_cfgs = generate_default_cfgs({"study_convmixer": {}})


@register_model
def study_convmixer(
    pretrained: bool = False,
    dilation: int = 1,
    version: str | None = None,
    kernel_count: int = 16,
    spread: bool = False,
    **kwargs: Any,
) -> ConvMixer:
    """A ConvMixer with dilated depthwise convolutions, or with learned spacings over the same extent.

    Positions start where the authors' do, within two pixels of the centre, or else spread over the kernel.
    """
    model = build_model_with_cfg(ConvMixer, "study_convmixer", pretrained, patch_size=2, **kwargs)
    depthwise = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    if version is None:
        for conv in depthwise:
            conv.dilation = (dilation, dilation)
        return model
    extent = dilation * (depthwise[0].kernel_size[0] - 1) + 1
    spacings: dict[str, Any] = {"kernel_count": kernel_count, "dilated_kernel_size": extent}
    dcls_models.dclsify(model, version=version, share=[model.blocks], **spacings)
    if spread:
        torch.nn.init.uniform_(model.blocks.positions, -(extent // 2), extent // 2)
    return model


class Tensors(pl.LightningDataModule):
    """Images and labels that fit into memory.

    Args:
        train: Images ``(N, 3, H, W)`` and labels ``(N,)`` to train on.
        val: Likewise to validate on.
        batch_size: Images per step.
    """

    def __init__(
        self, train: tuple[torch.Tensor, ...], val: tuple[torch.Tensor, ...], batch_size: int
    ) -> None:
        super().__init__()
        self.train, self.val, self.batch_size = TensorDataset(*train), TensorDataset(*val), batch_size

    def train_batches(self, devices: int = 1) -> int:
        """Batches of one epoch."""
        return len(self.train) // self.batch_size

    def train_dataloader(self) -> DataLoader:
        """Shuffled, without the last incomplete batch."""
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """In order and complete."""
        return DataLoader(self.val, 4 * self.batch_size)


@lru_cache(maxsize=1)
def task_data(task: str, side: int, images: int, seed: int) -> Tensors:
    """The images of a task, normalised; contours are drawn anew for each seed, the digits' split stays."""
    if task == "contours":
        chunks = [contours(2048, side, seed * 1_000_000 + i) for i in range(-(-images // 2048))]
        train = torch.cat([c[0] for c in chunks])[:images], torch.cat([c[1] for c in chunks])[:images]
        val = contours(HELD_OUT, side, seed * 1_000_000 + 999_999)
    else:
        pixels, digits = load_digits(return_X_y=True)
        grey = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32).expand(-1, 3, -1, -1)
        large = torch.nn.functional.interpolate(grey, size=(side, side), mode="bilinear")
        split = train_test_split(range(len(digits)), test_size=0.2, stratify=digits, random_state=0)
        train, val = ((large[part], torch.tensor(digits[part]).long()) for part in split)
    mean, std = train[0].mean(), train[0].std()
    return Tensors(((train[0] - mean) / std, train[1]), ((val[0] - mean) / std, val[1]), batch_size=64)


def parameters(kwargs: dict[str, Any]) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in timm.create_model("study_convmixer", num_classes=2, **kwargs).parameters())


def equal_parameters(dim: int, depth: int) -> dict[str, dict[str, Any]]:
    """The arguments of every variant, with as many parameters as the first, as closely as possible."""
    shape = {"dim": dim, "depth": depth}
    wanted = parameters({**next(iter(VARIANTS.values())), **shape})

    def closest(kwargs: dict[str, Any], key: str, most: int) -> dict[str, Any]:
        choices = [{**kwargs, key: n} for n in range(4, most + 1)]
        return min(choices, key=lambda chosen: abs(parameters(chosen) - wanted))

    chosen = {label: {**shape, **kwargs} for label, kwargs in VARIANTS.items()}
    for label, kwargs in chosen.items():
        if "version" in kwargs:
            chosen[label] = closest(kwargs, "kernel_count", 49)
        elif parameters(kwargs) != wanted:
            chosen[label] = closest(kwargs, "dim", dim)
    return chosen


def train_one(task: str, kwargs: dict[str, Any], seed: int, size: dict[str, int]) -> float:
    """Trains one model and returns its top-1 accuracy (percent) on held-out images after the last step."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("train").setLevel(logging.ERROR)
    data = task_data(task, size["side"], size["images"], seed)
    epochs = size[f"{task}_epochs"]
    pl.seed_everything(seed, verbose=False)
    module = Classifier(
        "study_convmixer",
        num_classes=2 if task == "contours" else 10,
        model_kwargs=kwargs,
        lr=1e-2,
        warmup_epochs=0.1 * epochs,
        label_smoothing=0.0,
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=epochs, check_val_every_n_epoch=epochs, enable_model_summary=False, devices=1, **quiet
    )
    trainer.fit(module, datamodule=data)
    return round(float(trainer.callback_metrics["val/top1"]), 3)


def baselines(side: int) -> dict[str, float]:
    """What simple models make of the contours (percent); they trace nothing."""

    def seen(images: torch.Tensor) -> dict[str, torch.Tensor]:
        ink, dots = images[:, 1], images[:, 0] - images[:, 1]
        places, amount = torch.cat([dots.sum(1), dots.sum(2)], 1), ink.sum((1, 2))[:, None]
        alone = {"linear": images.flatten(1), "dots": places, "amount of ink": amount}
        both = torch.cat([places, amount], 1)
        sums = torch.cat([places, ink.sum(1), ink.sum(2)], 1)
        return {**alone, "dots and amount of ink": both, "dots, row and column sums of ink": sums}

    (images, labels), (held_out, truth) = contours(4000, side, seed=1), contours(HELD_OUT, side, seed=2)
    found = {}
    for name, inputs in seen(images).items():
        simple = (
            LogisticRegression(C=0.01) if name == "linear" else HistGradientBoostingClassifier(random_state=0)
        )
        accuracy = simple.fit(inputs, labels).score(seen(held_out)[name], truth)
        found[name] = round(100 * accuracy, 2)
    return found


def study(seeds: int, size: dict[str, int], workers: int) -> dict[str, Any]:
    """Trains every variant on both tasks with every seed.

    Args:
        seeds: How many seeds, from 0.
        size: Of images, models and trainings; see ``SIZES``.
        workers: Trainings at once, of one thread each.

    Returns:
        Per variant its arguments and parameters (for two classes), and per task the top-1 accuracies
        (percent) of the seeds, their mean and standard deviation.
    """
    models = equal_parameters(size["dim"], size["depth"])
    jobs = [(task, label, seed) for task in TASKS for seed in range(seeds) for label in VARIANTS]
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        running = {job: pool.submit(train_one, job[0], models[job[1]], job[2], size) for job in jobs}
        top1 = {}
        for job, future in running.items():
            top1[job] = future.result()
            print(f"{job[0]:8}  {job[1]:14}  seed {job[2]}  {top1[job]:6.2f} %", flush=True)
    results: dict[str, Any] = {}
    for label, kwargs in models.items():
        results[label] = {"parameters": parameters(kwargs), "model": kwargs}
        for task in TASKS:
            values = [top1[task, label, seed] for seed in range(seeds)]
            spread = round(statistics.stdev(values), 3) if seeds > 1 else None
            results[label][task] = {"top1": values, "mean": round(statistics.mean(values), 3), "std": spread}
    return results


def draw(results: dict[str, Any], picture: Path) -> None:
    """Draws each seed as a dot, and the mean as a line, beside some contours."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained", width_ratios=(1, 1.6, 1.6))
    images, _ = contours(8, seed=3)
    shown = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0).unflatten(0, (4, 2))
    axes[0].imshow(shown.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2))
    axes[0].axis("off")
    axes[0].set_title("contours: not connected (left), connected", fontsize=9)
    for axis, task in zip(axes[1:], TASKS, strict=True):
        for i, (label, result) in enumerate(results.items()):
            colour = "tab:red" if label.startswith("DCLS") else "tab:blue"
            axis.scatter([i] * len(result[task]["top1"]), result[task]["top1"], color=colour, alpha=0.5)
            axis.hlines(result[task]["mean"], i - 0.25, i + 0.25, color=colour)
        names = [f"{label}\n{r['parameters']:,}".replace(" ", "\n", 1) for label, r in results.items()]
        axis.set_xticks(range(len(results)), names, fontsize=8)
        axis.set(ylabel="top-1 (%)", title=f"{task}, held out; dots: seeds, lines: means; below: parameters")
        axis.title.set_fontsize(9)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study, writes ``study.json`` and ``study.png``, prints a table."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m train.study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder to write to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings at once")
    parser.add_argument("--large", action="store_true", help="larger images, models and trainings, for a GPU")
    for name, value in SIZES["small"].items():
        parser.add_argument(
            f"--{name}", type=int, help=f"default {value}, with --large {SIZES['large'][name]}"
        )
    arguments = parser.parse_args(argv)
    size = SIZES["large" if arguments.large else "small"]
    size = {k: v if getattr(arguments, k) is None else getattr(arguments, k) for k, v in size.items()}
    begin, load = time.monotonic(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = study(arguments.seeds, size, arguments.workers)
    written = {
        "results": results,
        "baselines_on_contours": baselines(size["side"]),
        "size": size,
        "command": shlex.join(["python", "-m", "train.study", *argv]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {load} before",
        "seconds": round(time.monotonic() - begin),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "dcls_models": dcls_models.__version__,
        },
    }
    (arguments.out / "study.json").write_text(json.dumps(written, indent=2) + "\n")
    draw(results, arguments.out / "study.png")
    for label, result in results.items():
        said = [f"{task} {result[task]['mean']:.2f} ± {result[task]['std'] or 0:.2f} %" for task in TASKS]
        print(f"{label:14} {result['parameters']:7,} parameters  " + "  ".join(said))


if __name__ == "__main__":
    main()
