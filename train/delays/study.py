"""Is learning delays worth it? No delays, fixed random ones and learned ones, over several seeds.

Run ``python -m train.delays study``. Networks of two hidden layers hear spoken digits (``train.speech``) and
are tested on voices that they have not heard, after the last epoch. docs/delays.md has plan and results.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
from matplotlib.figure import Figure

from dcls_models.files import write_json
from dcls_models.options import at_least_1
from dcls_models.pictures import write_picture
from dcls_models.provenance import provenance
from dcls_models.spikes import Arrays, Recordings, padded
from train.delays.data import spoken_digits
from train.delays.module import NarrowDelays, SpikingClassifier
from train.loaders import TaskData

NARROW, WIDE = [48, 48], [76, 76]
CONDITIONS: dict[str, dict[str, Any]] = {
    "no delays": {"delays": "none", "hidden": NARROW},
    "fixed delays": {"delays": "fixed", "hidden": NARROW},
    "learned delays": {"delays": "learned", "hidden": NARROW},
    "narrowing, frozen": {"delays": "learned", "positions_lr_scale": 0.0, "hidden": NARROW},
    "no delays, wide": {"delays": "none", "hidden": WIDE},
    "fixed delays, wide": {"delays": "fixed", "hidden": WIDE},
}

SAID = {"narrowing, frozen": "as learned,\nbut not moving"}  # in the picture


class Speech(TaskData):
    """Spoken digits in memory.

    Args:
        root: Folder of ``python -m train.speech``.
        batch_size: Utterances per step.
    """

    collate = staticmethod(padded)

    def __init__(self, root: Path, batch_size: int = 128) -> None:
        super().__init__(batch_size, num_workers=0)
        self.train_set, self.val_set = (
            Recordings(Arrays(root / f"{split}.npz")) for split in ("train", "test")
        )


def train_one(condition: str, seed: int, root: Path, epochs: int) -> dict[str, Any]:
    """Trains one network.

    Returns:
        Top-1 on the test voices after the last epoch, in percent, and what the run took.
    """
    pl.seed_everything(seed, verbose=False)
    module = SpikingClassifier(**CONDITIONS[condition])
    data = Speech(root)
    before = [layer.delays for layer in module.model.delays()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        max_epochs=epochs, check_val_every_n_epoch=epochs, devices=1, callbacks=[NarrowDelays()], **quiet
    )
    begin = time.monotonic()
    trainer.fit(module, datamodule=data)
    after = [layer.delays for layer in module.model.delays()]
    moved = [(a - b).abs().float().mean().item() for a, b in zip(after, before, strict=True)]
    metrics = trainer.callback_metrics
    return {
        "condition": condition,
        "seed": seed,
        "top1": round(float(metrics["val/top1"]), 2),
        "train_top1": round(float(metrics["train/top1"]), 2),
        "frames_moved": [round(m, 2) for m in moved],
        "minutes": round((time.monotonic() - begin) / 60, 2),
    }


def numbers(condition: str) -> dict[str, int]:
    """Synapses, and trained numbers of weights and delays (the normalisation's not counted)."""
    module = SpikingClassifier(**CONDITIONS[condition])
    trained = {n: p.numel() for n, p in module.model.named_parameters() if p.requires_grad}
    synapses = sum(
        count for name, count in trained.items() if name.endswith("weight") and "norms" not in name
    )
    learned = sum(count for name, count in trained.items() if "positions" in name)
    moves = module.hparams["positions_lr_scale"] > 0
    return {"synapses": synapses, "trained": synapses + learned * moves}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per condition its numbers, the seeds that ran, their top-1, mean and standard deviation."""
    table = {}
    for condition in CONDITIONS:
        own = sorted((run for run in runs if run["condition"] == condition), key=lambda run: run["seed"])
        values = [run["top1"] for run in own]
        row: dict[str, Any] = {**numbers(condition), "seeds": [run["seed"] for run in own], "top1": values}
        row["mean"] = round(statistics.mean(values), 2) if values else None
        row["std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
        table[condition] = row
    return table


def markdown(table: dict[str, Any]) -> str:
    """The table of docs/delays.md."""
    lines = [
        "| condition | synapses | trained numbers | seeds | mean ± standard deviation | each |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for condition, row in table.items():
        mean = "not run" if row["mean"] is None else f"{row['mean']:.1f}"
        spread = "" if row["std"] is None else f" ± {row['std']:.1f}"
        each = ", ".join(f"{value:.1f}" for value in row["top1"])
        numbers = f"{row['synapses']:,} | {row['trained']:,} | {len(row['seeds'])}"
        lines.append(f"| {condition} | {numbers} | {mean}{spread} | {each} |")
    return "\n".join(lines)


def draw(table: dict[str, Any]) -> Figure:
    """Draws each seed as a dot, and the mean as a line."""
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for i, row in enumerate(table.values()):
        colour = "tab:red" if i == list(CONDITIONS).index("learned delays") else "tab:blue"
        axis.scatter([i] * len(row["top1"]), row["top1"], color=colour, alpha=0.5)
        if row["mean"] is not None:
            axis.hlines(row["mean"], i - 0.25, i + 0.25, color=colour)
    names = [
        f"{SAID.get(k, k)}\n{r['synapses']:,} synapses\n{r['trained']:,} trained" for k, r in table.items()
    ]
    axis.set_xticks(range(len(table)), names, fontsize=8)
    axis.set(
        ylabel="words recognised, top-1 (%)",
        title="Spoken digits, voices not heard in training: dots are seeds, lines means, red the method.\n"
        "Compare red with the blue ones of as many synapses (all but the last two),\n"
        "and with those of as many trained numbers (the last two)",
    )
    axis.title.set_fontsize(10)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what has not run yet; writes ``delays_study.json`` after every run, and a picture at the end."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m train.delays study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/delays_study"), help="folder to write to")
    parser.add_argument("--seeds", type=at_least_1, default=5)
    parser.add_argument("--epochs", type=at_least_1, default=40)
    options = parser.parse_args(argv)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("train").setLevel(logging.ERROR)
    root = spoken_digits(options.out / "speech")
    path = options.out / "delays_study.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    done = {(run["condition"], run["seed"], run["epochs"]) for run in runs}
    command = ["python", "-m", "train.delays", "study", *argv]
    for seed in range(options.seeds):
        for condition in CONDITIONS:
            if (condition, seed, options.epochs) in done:
                continue
            runs.append(train_one(condition, seed, root, options.epochs) | {"epochs": options.epochs})
            print(
                "{condition:20} seed {seed}  {top1:6.2f} %  {minutes:.1f} min".format(**runs[-1]), flush=True
            )
            record = provenance("delays_study", command, packages=("pytorch-lightning", "espeakng-loader"))
            table = summary([run for run in runs if run["epochs"] == options.epochs])
            write_json(path, {**record, "results": table, "runs": runs})
    table = summary([run for run in runs if run["epochs"] == options.epochs])
    write_picture(options.out / "delays_study.png", draw, table)
    print(markdown(table))
