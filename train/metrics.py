"""What a classifier is measured by, during a training."""

from typing import Any

from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from train.readers import IGNORED


def classification_metrics(num_classes: int) -> MetricCollection:
    """Mean loss, top-1 and top-5 accuracy in 0..1 (top-k of fewer than five classes counts all of them)."""
    options: dict[str, Any] = {"num_classes": num_classes, "average": "micro", "ignore_index": IGNORED}
    top5 = MulticlassAccuracy(top_k=min(5, num_classes), **options)
    top1 = MulticlassAccuracy(**options)
    return MetricCollection({"loss": MeanMetric(), "top1": top1, "top5": top5}, compute_groups=False)
