"""How well sounds are tagged: mean average precision, area under the curve and d', as the authors count."""

import math
import warnings
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score


@dataclass
class Tags:
    """What a model says of sounds.

    Attributes:
        indices: Which sounds of the data set, ``(n,)``.
        targets: The classes of each, ``(n, classes)``, bool.
        logits: ``(n, classes)``, float32.
        readable: Which sounds could be read, ``(n,)``.
    """

    indices: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor
    readable: torch.Tensor


def per_class(targets: np.ndarray, logits: np.ndarray) -> list[dict[str, Any]]:
    """For every class its number of sounds, its average precision and its area under the ROC curve.

    Both are scikit-learn's, of the logits themselves: a sigmoid in float32 would make the largest equal.
    A class that no sound has counts 0 in precision, and one that none or all have has no area (None).
    """
    rows = []
    for i in range(targets.shape[1]):
        count = int(targets[:, i].sum())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive class found")
            precision = float(average_precision_score(targets[:, i], logits[:, i]))
        both = 0 < count < len(targets)
        area = float(roc_auc_score(targets[:, i], logits[:, i])) if both else None
        rows.append({"n": count, "ap": precision, "auc": area})
    return rows


def summary(tags: Tags, rows: list[dict[str, Any]], one_label: bool) -> dict[str, Any]:
    """The measures of a result.

    Args:
        tags: Of readable sounds.
        rows: What ``per_class`` gives.
        one_label: Whether each sound has exactly one class.

    Returns:
        ``map`` in percent: scikit-learn's macro average over all classes; ``map_present``, over those that a
        sound has, where some have none; ``auc``, the mean area under the ROC curve; ``d_prime``, sqrt(2)
        times the mean of the normal quantiles of the areas (None where an area is 0 or 1); ``top1`` in
        percent where there is one label; ``classes``, ``classes_without_sounds`` and ``n``.
    """
    areas = [row["auc"] for row in rows if row["auc"] is not None]
    present = [row["ap"] for row in rows if row["n"]]
    finite = areas and all(0 < area < 1 for area in areas)
    quantiles = [NormalDist().inv_cdf(area) for area in areas] if finite else []
    measures: dict[str, Any] = {"map": round(100 * _mean([row["ap"] for row in rows]), 4)}
    if len(present) < len(rows):
        measures["map_present"] = round(100 * _mean(present), 4)
    measures |= {
        "auc": round(_mean(areas), 6) if areas else None,
        "d_prime": round(math.sqrt(2) * _mean(quantiles), 4) if quantiles else None,
    }
    if one_label:
        right = tags.logits.argmax(1) == tags.targets.int().argmax(1)
        measures["top1"] = round(100 * right.float().mean().item(), 4)
    measures |= {"classes": len(rows), "classes_without_sounds": len(rows) - len(present)}
    return {**measures, "n": len(tags.indices)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
