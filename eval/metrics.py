"""Numbers and tables from what a model says of images. Shares and errors are in percent."""

import csv
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from eval.store import Outputs

BINS = 15  # of the calibration error, as Guo et al. 2017


def summary(found: Outputs) -> dict[str, Any]:
    """The measures of a result.

    Args:
        found: Of readable images.

    Returns:
        ``top1``, ``top5`` (rounded as timm's ``validate.py`` does), ``loss`` (negative log-likelihood),
        ``ece`` (expected calibration error in percent, 15 bins, Guo et al. 2017, arXiv:1706.04599) and ``n``.
    """
    right = found.ranked == found.labels[:, None]
    ece = multiclass_calibration_error(
        found.logits.softmax(1), found.labels, num_classes=found.logits.shape[1], n_bins=BINS
    )
    return {
        "top1": percent(right[:, 0]),
        "top5": percent(right.any(1)),
        "loss": F.cross_entropy(found.logits, found.labels).item(),
        "ece": round(100 * ece.item(), 4),
        "n": len(right),
    }


def percent(right: torch.Tensor) -> float:
    """The share of what is true, rounded as timm's ``validate.py`` does."""
    return round(100 * right.sum().item() / len(right), 4)


def real_labels(found: Outputs, names: Sequence[str], path: Path | None) -> dict[str, Any]:
    """Accuracy by the reassessed labels of ImageNet (Beyer et al. 2020, arXiv:2006.07159).

    An image may have several labels, any of which counts; one without labels does not count.

    Args:
        found: Of images of ImageNet's validation set, with all 1000 classes.
        names: File names, ``ILSVRC2012_val_00000001.JPEG``...
        path: The authors' ``real.json``; the copy in timm by default.

    Returns:
        ``real_top1``, ``real_top5`` and ``real_n``, the images that have such labels.

    Raises:
        ValueError: If an image is not one of the validation set, or the classes are others.
    """
    if found.logits.shape[1] != 1000:
        raise ValueError(f"--real-labels needs all 1000 classes of ImageNet, not {found.logits.shape[1]}")
    shipped = files("timm.data") / "_info" / "imagenet_real_labels.json"
    listed = json.loads((path or shipped).read_text())
    real = {f"ILSVRC2012_val_{i:08}.JPEG": labels for i, labels in enumerate(listed, 1)}
    right = []
    for name, ranked in zip(names, found.ranked.tolist(), strict=True):
        if name not in real:
            raise ValueError(f"--real-labels: {name} is not an image of ImageNet's validation set")
        if real[name]:
            right.append([best in real[name] for best in ranked])
    if not right:
        raise ValueError("--real-labels: none of these images has such labels")
    hits = torch.tensor(right)
    return {"real_top1": percent(hits[:, 0]), "real_top5": percent(hits.any(1)), "real_n": len(hits)}


def confusions(found: Outputs, names: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    """The pairs of classes that are taken for one another most often.

    Returns:
        ``label``, ``prediction``, ``n`` and ``share``, of the images with that label.
    """
    classes, predicted = len(names), found.ranked[:, 0]
    wrong = found.labels != predicted
    pairs, counts = (found.labels * classes + predicted)[wrong].unique(return_counts=True)
    best = counts.argsort(descending=True, stable=True)[:most]
    of_label = found.labels.bincount(minlength=classes).tolist()
    rows = []
    for pair, n in zip(pairs[best].tolist(), counts[best].tolist(), strict=True):
        label, prediction = divmod(pair, classes)
        share = _share(n, of_label[label])
        rows.append({"label": names[label], "prediction": names[prediction], "n": n, "share": share})
    return rows


def write_per_class(path: Path, found: Outputs, names: Sequence[str]) -> None:
    """Writes a table: of every class how many images, top-1, top-5, and how often the prediction is right."""
    right = found.ranked == found.labels[:, None]
    n, top1, top5 = (
        found.labels[mask].bincount(minlength=len(names)).tolist()
        for mask in (right[:, 0] | True, right[:, 0], right.any(1))
    )
    predicted = found.ranked[:, 0].bincount(minlength=len(names)).tolist()
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


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table, beside the old one first."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    part.replace(path)


def add_to_table(path: Path, result: dict[str, Any]) -> None:
    """Adds a model to a table as timm's ``results-*.csv``, best first; it replaces the model's older row.

    Raises:
        ValueError: If the file is another table.
    """
    row = {
        "model": result["model"],
        "top1": result["top1"],
        "top1_err": round(100 - result["top1"], 4),
        "top5": result["top5"],
        "top5_err": round(100 - result["top5"], 4),
        "param_count": round(result["param_count"] / 1e6, 2),
        **{k: result[k] for k in ("img_size", "crop_pct", "interpolation")},
    }
    others = []
    if path.is_file():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != list(row):
                raise ValueError(f"{path} is not a table of results: expected the columns {','.join(row)}")
            others = [r for r in reader if r["model"] != row["model"]]
    rows = sorted([row, *others], key=lambda r: -float(r["top1"]))
    write_csv(path, list(row), [list(r.values()) for r in rows])
