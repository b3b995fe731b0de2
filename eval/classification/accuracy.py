"""Top-1, top-5, calibration and confusions on ImageNet or a folder, as timm's ``validate.py`` counts them."""

import argparse
from pathlib import Path
from typing import Any

from dcls_models.files import printable
from eval import processes
from eval.classification import metrics
from eval.classification.classes import read_indices
from eval.classification.data import UNREADABLE, Samples, open_samples
from eval.classification.evaluate import Setup, evaluate, set_up
from eval.classification.held_out import held_out, training_of
from eval.classification.store import Predictions
from eval.options import evaluation_options
from eval.preprocessing import check_size
from eval.results import write_result
from eval.section import Section
from eval.store import claim, parts_of

SHIPPED = "timm"  # the ReaL labels that come with it
SECTION = Section(
    "Accuracy",
    "Share of images whose label is the best (top-1) or among the five best answers; NLL is the mean "
    "cross-entropy, ECE the expected calibration error.",
    {
        "dataset": ("data", 0),
        "top1": ("top-1, %", 2),
        "top5": ("top-5, %", 2),
        "real_top1": ("ReaL top-1, %", 2),
        "loss": ("NLL", 3),
        "ece": ("ECE, %", 2),
        "n": ("images", 0),
    },
    ("top1", "higher is better"),
)


def summarise(samples: Samples, predictions: Predictions) -> tuple[dict[str, Any], Predictions]:
    """The numbers, and the predictions for the images that could be read.

    Args:
        samples: The images.
        predictions: For all of them.

    Returns:
        What ``metrics.summary`` gives, and ``unreadable``, the names of images and why.

    Raises:
        ValueError: If no image could be read.
    """
    bad = (~predictions.readable).nonzero().flatten().tolist()
    unreadable = [samples.why(i) for i in bad]
    if len(bad) == len(samples):
        raise ValueError(f"none of the {len(samples)} images can be read, the first: {unreadable[0]}")
    readable = predictions.select(predictions.readable)
    return {**metrics.summary(readable), "unreadable": unreadable}, readable


def write_predictions(path: Path, samples: Samples, predictions: Predictions) -> None:
    """Writes every image's path, label, prediction and score (softmax); for the unreadable only the path."""
    scores, names = predictions.logits.softmax(1), samples.names
    rows: list[list[str]] = []
    pairs = zip(predictions.labels.tolist(), predictions.ranked[:, 0].tolist(), strict=True)
    for i, (label, best) in enumerate(pairs):
        cells = [names[label], names[best], f"{scores[i, best]:.6f}"] if label != UNREADABLE else [""] * 3
        rows.append([samples.filename(i), *cells])
    metrics.write_csv(path, ["path", "label", "prediction", "score"], rows)


def run(arguments: argparse.Namespace) -> None:
    """Measures accuracy and writes it as JSON."""
    if arguments.results_csv:
        metrics.read_table(arguments.results_csv)  # so that another table is refused before the work
    setup = set_up(arguments)
    check_size(setup.model, setup.config["input_size"])
    outputs = read_indices(arguments.valid_labels) if arguments.valid_labels else None
    samples = _samples(arguments, setup, outputs)
    data = {
        "dataset": arguments.dataset or str(arguments.data),
        "split": arguments.split,
        "classes": len(samples.names),
        **_seen_in_training(arguments, samples),
    }
    real_labels = _real_labels(arguments.real_labels, samples) if arguments.real_labels else None
    said: list[str] = []
    with parts_of(arguments.output) as folder:
        if folder and processes.rank_and_world()[0] == 0:
            images = {"images": samples.fingerprint(), "batch_size": arguments.batch_size}
            claim(folder, {**setup.settings, **data, **images})
        predictions = evaluate(
            setup, samples, outputs, folder, arguments.batch_size, arguments.workers, name="accuracy"
        )
        if predictions is not None:
            said = _finish(arguments, samples, predictions, {**data, **setup.settings}, real_labels)
    for line in said:
        print(printable(line))


def _finish(
    arguments: argparse.Namespace,
    samples: Samples,
    predictions: Predictions,
    settings: dict[str, Any],
    real_labels: list[list[int]] | None,
) -> list[str]:
    """Writes what is asked for; returns what is to be said."""
    name = str(arguments.checkpoint or arguments.model)
    numbers, readable = summarise(samples, predictions)
    result = {"model": name, **numbers, **settings}
    if real_labels:
        result |= metrics.real_accuracy(readable, [real_labels[i] for i in readable.indices.tolist()])
    result["confused"] = metrics.confusions(readable, samples.names)
    write_result(arguments, result)
    if arguments.predictions:
        write_predictions(arguments.predictions, samples, predictions)
    if arguments.per_class:
        metrics.write_per_class(arguments.per_class, readable, samples.names)
    if arguments.results_csv:
        metrics.add_to_table(arguments.results_csv, result)
    said = [f"unreadable: {line}" for line in result["unreadable"]]
    return [*said, f"{name}: {metrics.in_words(result)} of {result['n']} images"]


def _samples(arguments: argparse.Namespace, setup: Setup, outputs: list[int] | None) -> Samples:
    samples = open_samples(
        arguments.data,
        setup.original,
        arguments.dataset,
        arguments.split,
        arguments.class_map,
        outputs,
        mode="RGB" if setup.config["input_size"][0] == 3 else "L",
        exif=arguments.exif,
    )
    samples.transform = setup.transform()
    return samples


def _seen_in_training(arguments: argparse.Namespace, samples: Samples) -> dict[str, bool]:
    """Keeps the images that the training held out, if asked to; says what a number is worth otherwise."""
    training = training_of(arguments.model, arguments.checkpoint)
    if arguments.held_out:
        samples.keep(held_out(samples.reader, training, arguments.data))
        return {"held_out": True}
    if training is None or not training.was_on(samples.reader):
        return {}
    print("warning: the model was trained on these images, which says little about others", end="")
    print(": --held-out evaluates those that it was validated on" if training.held_out != 0 else "")
    return {"trained_on": True}


def _real_labels(given: str, samples: Samples) -> list[list[int]]:
    files = [samples.filename(i, basename=True) for i in range(len(samples))]
    return metrics.real_labels(files, len(samples.names), None if given == SHIPPED else Path(given))


def add_commands(commands: Any) -> None:
    """Adds ``accuracy``."""
    command = commands.add_parser(
        "accuracy",
        parents=[evaluation_options()],
        help="top-1, top-5, calibration, confusions",
        description="With --output, a run that was killed goes on when the same command is given again.",
    )
    command.add_argument("--data", help="folder of class folders, or one with val/; of shards for wds/")
    command.add_argument("--dataset", default="", help="hfds/NAME or wds/, as timm names it; else a folder")
    command.add_argument("--split", default="validation", help="which part of the data set")
    command.add_argument("--class-map", help="file with the names of all classes in the model's order")
    command.add_argument(
        "--held-out",
        action="store_true",
        help="of the folder that the model was trained on, only the images that were held out",
    )
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
