"""What a tagger is measured by, during a training."""

import warnings
from typing import Any

import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Tagging(Metric):
    """Loss, mean average precision (as scikit-learn's, of logits) and, where there is one label, top-1.

    Precision and accuracy are in percent. A class without a sound counts 0 in the mean, as the authors count.

    Args:
        one_label: Whether each sound has exactly one class.
    """

    full_state_update = False
    logits: list[torch.Tensor]
    targets: list[torch.Tensor]

    def __init__(self, one_label: bool) -> None:
        super().__init__(compute_with_cache=False)
        self.one_label = one_label
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds a batch, ``(N, classes)`` each."""
        self.logits.append(logits.detach().float())
        self.targets.append(targets)

    def compute(self) -> dict[str, float]:
        """The measures, over all processes; none if there was nothing to measure."""
        if not len(self.logits):
            return {}
        logits, targets = dim_zero_cat(self.logits), dim_zero_cat(self.targets)
        if not len(logits):
            return {}
        if not logits.isfinite().all():
            return {"loss": float("nan"), "map": 0.0}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive class found")
            precision = average_precision_score(targets.cpu().numpy(), logits.cpu().numpy())
        measures: dict[str, Any] = {
            "loss": F.binary_cross_entropy_with_logits(logits, targets).item(),
            "map": 100 * float(precision),
        }
        if self.one_label:
            measures["top1"] = 100 * (logits.argmax(1) == targets.argmax(1)).float().mean().item()
        return measures
