"""Whether two models give the same logits."""

import torch

from hub import HubError


def check_logits(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Compares logits up to a ``tolerance`` on their spread.

    Raises:
        HubError: If they differ by more, or by NaN.
    """
    difference = (actual - expected).abs().max().item()
    if not difference <= tolerance * max(1.0, spread(expected)):  # so written, NaN is refused too
        raise HubError(f"{what} differs from the model by {difference} in its logits; nothing was written")


def spread(logits: torch.Tensor) -> float:
    """The largest logit less the smallest."""
    return (logits.max() - logits.min()).item()
