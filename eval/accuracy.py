"""Top-1, top-5, calibration and confusions on ImageNet or a folder, as timm's ``validate.py`` counts them."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from eval import metrics, ranks
from eval.data import UNREADABLE, Samples, open_samples, read_indices
from eval.evaluate import evaluate, set_up
from eval.options import evaluated
from eval.results import provenance, write_json
from eval.store import Outputs, claim

SHIPPED = "timm"  # the ReaL labels that come with it


def measured(samples: Samples, found: Outputs) -> tuple[dict[str, Any], Outputs]:
    """The numbers, and the outputs of the images that could be read.

    Args:
        samples: The images.
        found: What the model says of them.

    Returns:
        What ``eval.metrics.summary`` gives, and ``unreadable``, the names of images and why.

    Raises:
        ValueError: If no image could be read.
    """
    bad = (found.labels == UNREADABLE).nonzero().flatten().tolist()
    unreadable = [samples.why(i) for i in bad]
    for line in unreadable:
        print(f"unreadable: {line}")
    if len(bad) == len(samples):
        raise ValueError(f"none of the {len(samples)} images can be read, the first: {unreadable[0]}")
    readable = found.select(found.labels != UNREADABLE)
    return {**metrics.summary(readable), "unreadable": unreadable}, readable


def write_predictions(path: Path, samples: Samples, found: Outputs) -> None:
    """Writes every image's path, label, prediction and score (softmax); of the unreadable only the path."""
    scores, names = found.logits.softmax(1), samples.names
    rows: list[list[str]] = []
    for i, (label, best) in enumerate(zip(found.labels.tolist(), found.ranked[:, 0].tolist(), strict=True)):
        said = [names[label], names[best], f"{scores[i, best]:.6f}"] if label != UNREADABLE else ["", "", ""]
        rows.append([samples.filename(i), *said])
    metrics.write_csv(path, ["path", "label", "prediction", "score"], rows)


def run(arguments: argparse.Namespace) -> None:
    """Measures accuracy and writes it as JSON."""
    setup = set_up(arguments)
    outputs = read_indices(arguments.valid_labels) if arguments.valid_labels else None
    samples = open_samples(
        arguments.data,
        setup.original,
        arguments.dataset,
        arguments.split,
        arguments.class_map,
        outputs,
        mode="RGB" if setup.config["input_size"][0] == 3 else "L",
    )
    samples.transform = setup.transform()
    data = {
        "dataset": arguments.dataset or str(arguments.data),
        "split": arguments.split,
        "classes": len(samples.names),
    }
    folder = parts_of(arguments.output)
    if folder and ranks.rank_and_world()[0] == 0:
        claim(
            folder,
            {**setup.settings, **data, "images": samples.fingerprint(), "batch_size": arguments.batch_size},
        )
    found = evaluate(
        setup, samples, outputs, folder, arguments.batch_size, arguments.workers, name="accuracy"
    )
    if found is None:
        return
    name = str(arguments.checkpoint or arguments.model)
    numbers, readable = measured(samples, found)
    result = {"model": name, **numbers, **data, **setup.settings}
    if arguments.real_labels:
        files = [samples.filename(i, basename=True) for i in readable.indices.tolist()]
        given = None if arguments.real_labels == SHIPPED else Path(arguments.real_labels)
        result |= metrics.real_labels(readable, files, given)
    result |= {"confused": metrics.confusions(readable, samples.names), **provenance(arguments)}
    print(f"{name}: top-1 {result['top1']} %, top-5 {result['top5']} % of {result['n']} images")
    if arguments.predictions:
        write_predictions(arguments.predictions, samples, found)
    if arguments.per_class:
        metrics.write_per_class(arguments.per_class, readable, samples.names)
    if arguments.results_csv:
        metrics.add_to_table(arguments.results_csv, result)
    if arguments.output:
        write_json(arguments.output, result)
        shutil.rmtree(folder)


def parts_of(output: Path | None) -> Path | None:
    """The folder beside a result where it is kept while it grows."""
    return output.with_name(output.name + ".parts") if output else None


def add_commands(commands: Any) -> None:
    """Adds ``accuracy``."""
    command = commands.add_parser(
        "accuracy",
        parents=[evaluated()],
        help="top-1, top-5, calibration, confusions",
        description="With --output, a run that was killed goes on when the same command is given again.",
    )
    command.add_argument("--data", help="folder of class folders, or one with val/; of shards for wds/")
    command.add_argument("--dataset", default="", help="hfds/NAME or wds/, as timm names it; else a folder")
    command.add_argument("--split", default="validation", help="which part of the data set")
    command.add_argument("--class-map", help="file with the names of all classes in the model's order")
    command.add_argument("--valid-labels", type=Path, help="file with the outputs that count, one a line")
    command.add_argument(
        "--real-labels",
        nargs="?",
        const=SHIPPED,
        metavar="FILE",
        help="ReaL labels too; timm's copy by default",
    )
    command.add_argument("--predictions", type=Path, help="CSV file to write: every image's prediction")
    command.add_argument("--per-class", type=Path, help="CSV file to write: every class's accuracy")
    command.add_argument("--results-csv", type=Path, help="table as timm's results-*.csv to add the model to")
    command.set_defaults(run=run)
