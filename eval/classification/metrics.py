"""Numbers and tables from what a model says of images. Shares and errors are in percent."""

import csv
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from eval.classification.store import Predictions
from eval.results import write_csv

BINS = 15  # of the calibration error, as Guo et al. 2017
TOP = 5  # answers that count for top-5, which says nothing where there are no more classes
TABLE = (
    "model",
    "top1",
    "top1_err",
    "top5",
    "top5_err",
    "param_count",
    "img_size",
    "crop_pct",
    "interpolation",
)


def summary(predictions: Predictions) -> dict[str, Any]:
    """The measures of a result.

    Args:
        predictions: For readable images.

    Returns:
        ``top1``, ``top5`` (rounded as timm's ``validate.py`` does), ``loss`` (negative log-likelihood),
        ``ece`` (expected calibration error in percent, 15 bins, Guo et al. 2017, arXiv:1706.04599) and ``n``.
    """
    logits, labels = predictions.logits, predictions.labels
    right = predictions.ranked == labels[:, None]
    ece = multiclass_calibration_error(logits.softmax(1), labels, num_classes=logits.shape[1], n_bins=BINS)
    return {
        "top1": percent(right[:, 0]),
        "top5": percent(right.any(1)),
        "loss": F.cross_entropy(logits, labels).item(),
        "ece": round(100 * ece.item(), 4),
        "n": len(right),
    }


def in_words(result: Mapping[str, Any]) -> str:
    """Top-1, and top-5 where there are more classes than that."""
    text = f"top-1 {result['top1']} %"
    return text + f", top-5 {result['top5']} %" if result["classes"] > TOP else text


def percent(right: torch.Tensor) -> float:
    """The share of what is true, rounded as timm's ``validate.py`` does."""
    return round(100 * right.sum().item() / len(right), 4)


def real_labels(names: Sequence[str], classes: int, path: Path | None) -> list[list[int]]:
    """The reassessed labels of images of ImageNet (Beyer et al. 2020, arXiv:2006.07159).

    Args:
        names: File names, ``ILSVRC2012_val_00000001.JPEG``...
        classes: How many are evaluated.
        path: The authors' ``real.json``; the copy in timm by default.

    Returns:
        The labels of each image, none for some.

    Raises:
        ValueError: If an image is not one of the validation set, none has labels, or the classes are others.
    """
    if classes != 1000:
        raise ValueError(f"--real-labels needs all 1000 classes of ImageNet, not {classes}")
    shipped = files("timm.data") / "_info" / "imagenet_real_labels.json"
    listed = json.loads((path or shipped).read_text(encoding="utf-8"))
    real = {f"ILSVRC2012_val_{i:08}.JPEG": labels for i, labels in enumerate(listed, 1)}
    if strangers := [name for name in names if name not in real]:
        raise ValueError(f"--real-labels: {strangers[0]} is not an image of ImageNet's validation set")
    labels = [real[name] for name in names]
    if not any(labels):
        raise ValueError("--real-labels: none of these images has such labels")
    return labels


def real_accuracy(predictions: Predictions, labels: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Accuracy by labels of which any counts; an image without labels does not count.

    Returns:
        ``real_top1``, ``real_top5`` (None where no image counts) and ``real_n``, the images that count.
    """
    pairs = zip(predictions.ranked.tolist(), labels, strict=True)
    hits = torch.tensor([[best in known for best in ranked] for ranked, known in pairs if known])
    if not len(hits):
        return {"real_top1": None, "real_top5": None, "real_n": 0}
    return {"real_top1": percent(hits[:, 0]), "real_top5": percent(hits.any(1)), "real_n": len(hits)}


def confusions(predictions: Predictions, names: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """The pairs of classes that are taken for one another most often.

    Returns:
        ``label``, ``prediction``, ``n`` and ``share``, of the images with that label.
    """
    classes, labels, best = len(names), predictions.labels, predictions.ranked[:, 0]
    wrong = labels != best
    pairs, counts = (labels * classes + best)[wrong].unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most]
    of_label = labels.bincount(minlength=classes).tolist()
    rows = []
    for pair, n in zip(pairs[order].tolist(), counts[order].tolist(), strict=True):
        label, prediction = divmod(pair, classes)
        share = _share(n, of_label[label])
        rows.append({"label": names[label], "prediction": names[prediction], "n": n, "share": share})
    return rows


def write_per_class(path: Path, predictions: Predictions, names: Sequence[str]) -> None:
    """Writes a table: of every class how many images, top-1, top-5, and how often the prediction is right."""
    labels, right = predictions.labels, predictions.ranked == predictions.labels[:, None]
    n, top1, top5 = (
        labels[mask].bincount(minlength=len(names)).tolist()
        for mask in (right[:, 0] | True, right[:, 0], right.any(1))
    )
    predicted = predictions.ranked[:, 0].bincount(minlength=len(names)).tolist()
    rows = [
        [
            name,
            n[i],
            _share(top1[i], n[i]),
            _share(top5[i], n[i]),
            predicted[i],
            _share(top1[i], predicted[i]),
        ]
        for i, name in enumerate(names)
    ]
    write_csv(path, ["class", "n", "top1", "top5", "predicted", "precision"], rows)


def _share(part: int, whole: int) -> float | str:
    return round(100 * part / whole, 4) if whole else ""


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table as timm's ``results-*.csv``; none where there is no such file.

    Raises:
        ValueError: If the file is another table.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(TABLE):
            raise ValueError(f"{path} is not a table of results: expected the columns {','.join(TABLE)}")
        return list(reader)


def add_to_table(path: Path, result: dict[str, Any]) -> None:
    """Adds a model to a table as timm's ``results-*.csv``, best first; it replaces the model's older row."""
    changes = {
        "top1_err": round(100 - result["top1"], 4),
        "top5_err": round(100 - result["top5"], 4),
        "param_count": round(result["param_count"] / 1e6, 2),
    }
    row = {key: (result | changes)[key] for key in TABLE}
    others = [other for other in read_table(path) if other["model"] != row["model"]]
    rows = sorted([row, *others], key=lambda r: -float(r["top1"]))
    write_csv(path, TABLE, [list(r.values()) for r in rows])
