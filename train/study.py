"""Does it learn better? Dense kernels and learned spacings on the digits, at equal steps, over several seeds.

Run ``python -m train.study``. With 16 elements a kernel of learned spacings has about as many parameters as a
dense 7x7 one (positions included, where one layer has them for itself).
"""

import argparse
import csv
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import timm
import torch
import yaml

import dcls_models
from train.__main__ import main as train
from train.digits import write_digits
from train.models import build_model

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"
SPACED = {"kernel_count": 16, "dilated_kernel_size": 9}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense 3x3": ("convnext_tiny", {"kernel_sizes": 3}),
    "dense 7x7": ("convnext_tiny", {"kernel_sizes": 7}),
    "dense 9x9": ("convnext_tiny", {"kernel_sizes": 9}),
    "DCLS v0": ("convnext_dcls_tiny", {**SPACED, "version": "v0"}),
    "DCLS v1": ("convnext_dcls_tiny", {**SPACED, "version": "v1"}),
    "DCLS gauss": ("convnext_dcls_tiny", {**SPACED, "version": "gauss"}),
}


def study(out: Path, seeds: int, epochs: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Trains every variant with every seed and writes ``study.json`` and ``study.png``.

    Args:
        out: Folder of the study; each training has a folder of its own in it.
        seeds: How many seeds, from 0.
        epochs: Length of each training.
        flags: More flags of ``python -m train fit``.

    Returns:
        Per variant the number of parameters, and top-1 accuracy (percent) of each seed, mean and spread.
    """
    write_digits(out / "digits")
    shared = yaml.safe_load(CONFIG.read_text())["model"]["model_kwargs"]
    shape = {k: v for k, v in shared.items() if k not in SPACED}
    results = {}
    for label, (name, extra) in VARIANTS.items():
        kwargs = {**shape, **extra}
        top1 = []
        for seed in range(seeds):
            run = out / label.replace(" ", "_") / str(seed)
            where = ["--data.root", str(out / "digits"), "--trainer.default_root_dir", str(run)]
            what = [
                "--model.name",
                name,
                "--model.model_kwargs",
                json.dumps(kwargs),
                "--seed_everything",
                str(seed),
            ]
            last = ["--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", str(epochs)]
            quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
            quiet += ["--report.pictures", "false", "--positions.every_n_epochs", str(epochs + 1)]
            train(["fit", "--config", str(CONFIG), *where, *what, *last, *quiet, *flags])
            rows = list(csv.DictReader((run / "summary.csv").open()))
            top1.append(round(float(rows[-1]["eval_top1"]), 4))
        results[label] = {
            "parameters": sum(p.numel() for p in build_model(name, False, None, 10, kwargs).parameters()),
            "top1": top1,
            "mean": round(statistics.mean(top1), 4),
            "std": round(statistics.stdev(top1), 4) if seeds > 1 else None,
        }
    draw(results, out / "study.png")
    return results


def draw(results: dict[str, Any], picture: Path) -> None:
    """Draws each seed as a dot, and the mean as a line."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for i, (label, result) in enumerate(results.items()):
        colour = "tab:red" if label.startswith("DCLS") else "tab:blue"
        axis.scatter([i] * len(result["top1"]), result["top1"], color=colour, alpha=0.5)
        axis.hlines(result["mean"], i - 0.25, i + 0.25, color=colour)
    axis.set_xticks(
        range(len(results)), [f"{k}\n{v['parameters']:,}" for k, v in results.items()], fontsize=8
    )
    axis.set(ylabel="top-1 (%)", title="held-out digits; dots: seeds, lines: means; below: parameters")
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study and prints a table."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m train.study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder to write to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    arguments, flags = parser.parse_known_args(argv)
    begin = time.monotonic()
    results = study(arguments.out, arguments.seeds, arguments.epochs, flags)
    versions = {"torch": torch.__version__, "timm": timm.__version__, "dcls_models": dcls_models.__version__}
    provenance = {
        "command": shlex.join(["python", "-m", "train.study", *argv]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "seconds": round(time.monotonic() - begin),
        "versions": {"python": platform.python_version(), **versions},
    }
    (arguments.out / "study.json").write_text(json.dumps({"results": results, **provenance}, indent=2) + "\n")
    for label, found in results.items():
        spread = f" ± {found['std']:.2f}" if found["std"] is not None else ""
        print(f"{label:11} {found['parameters']:8,} parameters  top-1 {found['mean']:.2f}{spread} %")


if __name__ == "__main__":
    main()
