"""How well two sets of maps agree, and how certain that is."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

CEILING = 0.65753  # people's agreement with each other: HUMAN_SPEARMAN_CEILING in the study's utils.py
RESAMPLES = 1000  # of the bootstrap


def ranks(x: torch.Tensor) -> torch.Tensor:
    """Ranks from 1 along the last dimension of ``(N, values)``; equal values share their mean rank."""
    ordered, order = x.sort(-1)
    group = F.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(-1), (1, 0))
    place = torch.arange(1, x.shape[1] + 1, dtype=torch.float64, device=x.device).expand_as(x)
    empty = torch.zeros_like(place)
    means = empty.scatter_reduce(-1, group, place, "mean", include_self=False)
    return empty.scatter(-1, order, means.gather(-1, group))


def spearman(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation of each pair of maps.

    Args:
        a: ``(N, H, W)``, finite.
        b: The same shape.

    Returns:
        ``(N,)`` in float64, NaN where a map is constant: what ``scipy.stats.spearmanr`` gives.
    """
    a, b = (ranks(maps.flatten(1)) for maps in (a, b))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def summarise(scores: torch.Tensor) -> dict[str, Any]:
    """The result of a model's correlations ``(N,)``, of which the constant maps' are NaN.

    Returns:
        ``spearman``, the mean; ``ceiling``; ``score``, the mean over the ceiling; ``low`` and ``high``,
        between which lie 95 % of the scores of a seeded bootstrap over images (1000 resamples); ``n``, all
        images; ``flat``, those with a constant map, which do not count. None where no image counts.
    """
    values = scores[~scores.isnan()].numpy()
    counts = {"ceiling": CEILING, "n": len(scores), "flat": len(scores) - len(values)}
    if not len(values):
        return {"score": None, "low": None, "high": None, "spearman": None, **counts}
    mean, low, high = values.mean(), *_interval(values)
    return {"score": mean / CEILING, "low": low / CEILING, "high": high / CEILING, "spearman": mean, **counts}


def _interval(values: np.ndarray) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = [generator.choice(values, len(values)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


def compare(scores: torch.Tensor, baseline: torch.Tensor) -> dict[str, float | None]:
    """How much higher a model's score is than the baseline's, over the images that count for both."""
    both = (scores - baseline)[~(scores - baseline).isnan()].numpy()
    if not len(both):
        return {"gain": None, "gain_low": None, "gain_high": None}
    low, high = _interval(both)
    return {"gain": both.mean() / CEILING, "gain_low": low / CEILING, "gain_high": high / CEILING}
