"""Accuracy where images are corrupted, drawn, rare or taken anew: ImageNet-C, C-bar, A, R, Sketch and V2."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dcls_models.files import write_json
from eval import processes
from eval.classification.accuracy import summarise
from eval.classification.classes import read_indices
from eval.classification.corruptions import (
    ALEXNET,
    C_BAR,
    SEVERITIES,
    Corruption,
    corruption_errors,
    library,
    mean_errors,
)
from eval.classification.data import open_samples
from eval.classification.evaluate import Setup, evaluate, set_up
from eval.options import evaluation_options
from eval.preprocessing import check_size
from eval.results import write_result
from eval.section import Section
from eval.store import claim, parts_of

CORRUPTED = {"c": tuple(ALEXNET), "c-bar": C_BAR}
SUBSETS = {"a": "imagenet_a_indices.txt", "r": "imagenet_r_indices.txt"}  # timm's lists of 200 classes each
BENCHMARKS = (*CORRUPTED, *SUBSETS, "sketch", "v2")
IMAGENET = 1000  # classes
SECTION = Section(
    "Robustness",
    "Accuracy on images of other kinds. mCE: mean corruption error, each corruption's error divided by "
    "AlexNet's (arXiv:1903.12261); lower is better.",
    {
        "benchmark": ("benchmark", 0),
        "source": ("images from", 0),
        "top1": ("top-1, %", 2),
        "mce": ("mCE, %", 2),
        "n": ("images", 0),
    },
    ("top1", "higher is better"),
)


@dataclass
class Part:
    """A folder of a benchmark: its name, what its row says of it, the corruption that is made, if any."""

    name: str
    row: dict[str, Any]
    root: str
    corruption: Corruption | None = None


def parts(benchmark: str, root: str, generate: bool, only: Sequence[str] | None) -> list[Part]:
    """What a benchmark is made of.

    Args:
        benchmark: One of ``BENCHMARKS``.
        root: Its folder, for ``c`` and ``c-bar`` with ``CORRUPTION/SEVERITY/CLASS``; or that of clean images.
        generate: Whether to corrupt clean images.
        only: Some of the corruptions; all by default.

    Raises:
        FileNotFoundError: If a corruption is not there.
        ValueError: If there are not five severities.
    """
    there = []
    for name in (c for c in CORRUPTED.get(benchmark, ()) if c in (only or (c,))):
        folder = Path(root, name)
        if not generate and not folder.is_dir():
            hint = ", or give clean images and --generate" if benchmark == "c" else ""
            raise FileNotFoundError(f"there is no folder {folder}: expected CORRUPTION/SEVERITY/CLASS{hint}")
        below = [] if generate else sorted((p for p in folder.iterdir() if p.is_dir()), key=_number)
        if not generate and len(below) != len(SEVERITIES):
            raise ValueError(f"{folder} has {len(below)} folders, expected one for each of 5 severities")
        for i, severity in enumerate(SEVERITIES):
            row = {"corruption": name, "severity": severity}
            made = Corruption(name, severity) if generate else None
            there.append(Part(f"{name}-{severity}", row, root if generate else str(below[i]), made))
    return there or [Part(benchmark, {}, root)]


def _number(path: Path) -> float:
    try:
        return float(path.name)
    except ValueError as error:
        raise ValueError(f"{path} is not a severity: expected folders 1 to 5") from error


def check(arguments: argparse.Namespace, setup: Setup) -> None:
    """Refuses what does not fit together.

    Raises:
        ValueError: What, and what would fit.
    """
    benchmark, classes = arguments.benchmark, setup.original.num_classes
    if benchmark not in CORRUPTED and classes != IMAGENET:
        raise ValueError(
            f"imagenet-{benchmark} needs a model with ImageNet's {IMAGENET} classes, not {classes}"
        )
    if arguments.generate and benchmark != "c":
        raise ValueError(f"--generate makes the corruptions of --benchmark c, not of {benchmark}")
    if arguments.generate and (
        setup.config["input_size"][0] != 3 or min(setup.config["input_size"][1:]) < 32
    ):
        raise ValueError("--generate needs colour images of 32 pixels or more; see --img-size")
    if unknown := set(arguments.corruptions or ()) - set(CORRUPTED.get(benchmark, ())):
        expected = ", ".join(CORRUPTED.get(benchmark, ())) or "none"
        raise ValueError(f"{benchmark} has no {', '.join(sorted(unknown))}; its corruptions: {expected}")


def measure(arguments: argparse.Namespace, setup: Setup, part: Part, folder: Path | None) -> dict[str, Any]:
    """The row of a part; from ``folder``, if it is there already. Empty in all processes but the first."""
    subset = SUBSETS.get(arguments.benchmark)
    outputs = read_indices(Path(str(files("timm.data") / "_info" / subset))) if subset else None
    mode = "RGB" if setup.config["input_size"][0] == 3 else "L"
    samples = open_samples(part.root, setup.original, outputs=outputs, mode=mode, exif=arguments.exif)
    samples.transform = setup.transform(part.corruption)
    row, kept = None, folder / "row.json" if folder else None
    if kept and processes.rank_and_world()[0] == 0:
        settings = {**setup.settings, "part": part.name, "images": samples.fingerprint()}
        claim(kept.parent, {**settings, "batch_size": arguments.batch_size, "source": source(arguments)})
        row = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else None
    row = processes.from_first(row)
    if row is None:
        predictions = evaluate(
            setup, samples, outputs, folder, arguments.batch_size, arguments.workers, name=part.name
        )
        row = {**part.row, **summarise(samples, predictions)[0]} if predictions else {}
        if kept and predictions:
            write_json(kept, row)
            for file in kept.parent.glob("*.pt"):
                file.unlink()
    return row


def source(arguments: argparse.Namespace) -> str:
    """Whose images these are."""
    return f"generated by {library()}" if arguments.generate else "published"


def run(arguments: argparse.Namespace) -> None:
    """Measures robustness and writes it as JSON."""
    published = arguments.benchmark in CORRUPTED and not arguments.generate
    setup = set_up(arguments, **({"crop_pct": 1.0} if published else {}))  # those images are cropped already
    check(arguments, setup)
    check_size(setup.model, setup.config["input_size"])
    said = ""
    with parts_of(arguments.output) as folder:
        rows = [
            measure(arguments, setup, part, folder / part.name if folder else None)
            for part in parts(arguments.benchmark, arguments.data, arguments.generate, arguments.corruptions)
        ]
        if processes.rank_and_world()[0] == 0:
            said = _finish(arguments, setup, rows)
    if said:
        print(said)


def _finish(arguments: argparse.Namespace, setup: Setup, rows: list[dict[str, Any]]) -> str:
    """Writes the result; returns what is to be said."""
    name = str(arguments.checkpoint or arguments.model)
    what = {"benchmark": f"imagenet-{arguments.benchmark}", "source": source(arguments)}
    numbers = over_corruptions(rows, setup.original.num_classes) if rows[0].get("corruption") else rows[0]
    result = {"model": name, **what, **numbers, "dataset": arguments.data, **setup.settings}
    write_result(arguments, result)
    mce = f", mCE {result['mce']} %" if "mce" in result else ""
    return f"{name} on {what['benchmark']} ({what['source']}): top-1 {result['top1']} %{mce}"


def over_corruptions(rows: Sequence[dict[str, Any]], classes: int) -> dict[str, Any]:
    """The means of a benchmark of corruptions.

    Args:
        rows: Of each corruption and severity.
        classes: Of the model; AlexNet's errors are for ImageNet's.

    Returns:
        In percent: ``top1`` over all ``n`` images and ``errors`` of each corruption; ``ce`` and ``mce``
        (arXiv:1903.12261) if all 15 corruptions of ImageNet-C are there.
    """
    errors = mean_errors(rows)
    numbers: dict[str, Any] = {
        "top1": round(100 - sum(errors.values()) / len(errors), 4),
        "n": sum(row["n"] for row in rows),
        "errors": {k: round(v, 4) for k, v in errors.items()},
    }
    if classes == IMAGENET and errors.keys() == ALEXNET.keys():
        ce = corruption_errors(errors)
        numbers["mce"] = round(sum(ce.values()) / len(ce), 4)
        numbers["mce_normalised_by"] = "AlexNet (arXiv:1903.12261)"
        numbers["ce"] = {k: round(v, 4) for k, v in ce.items()}
    return {**numbers, "rows": list(rows)}


def add_commands(commands: Any) -> None:
    """Adds ``robustness``."""
    command = commands.add_parser(
        "robustness",
        parents=[evaluation_options()],
        help="ImageNet-C, C-bar, A, R, Sketch, V2",
        description="With --output, a run that was killed goes on when the same command is given again.",
    )
    command.add_argument("--benchmark", choices=BENCHMARKS, required=True)
    command.add_argument(
        "--data", required=True, help="its folder; for c and c-bar CORRUPTION/SEVERITY/CLASS"
    )
    command.add_argument("--generate", action="store_true", help="corrupt the clean images of --data")
    command.add_argument("--corruptions", nargs="+", metavar="NAME", help="only these")
    command.set_defaults(run=run)
