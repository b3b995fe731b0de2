"""Does it learn better? Fixed and learned spacings at equal parameters and equal steps, over several seeds.

Run ``python -m train.study``. A ConvMixer (arXiv:2201.09792) is trained on two tasks: tracing contours
(see ``train.study.contours``) and the digits that scikit-learn ships. Only its depthwise convolutions differ;
the number of elements, or where there is none to choose the width, makes the parameters equal.
"""

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch

from dcls_models.files import write_json
from dcls_models.provenance import provenance
from train.module import Classifier
from train.study.contours import contours
from train.study.models import VARIANTS, equal_parameters, parameters
from train.study.tasks import TASKS, baselines, task_data

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
        **provenance("study", ["python", "-m", "train.study", *argv]),
        "results": results,
        "baselines_on_contours": baselines(size["side"]),
        "size": size,
        "load_before": load,
        "seconds": round(time.monotonic() - begin),
    }
    write_json(arguments.out / "study.json", written)
    draw(results, arguments.out / "study.png")
    for label, result in results.items():
        said = [f"{task} {result[task]['mean']:.2f} ± {result[task]['std'] or 0:.2f} %" for task in TASKS]
        print(f"{label:14} {result['parameters']:7,} parameters  " + "  ".join(said))
