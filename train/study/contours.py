"""Contour tracing: a task that needs long-range vision, made on the fly (after Pathfinder, arXiv:1805.08315).

Two dots are marked: does a dashed curve connect them? Two curves run from left to right, side by side or
crossing, and short ones distract. One left end is marked, and one right end, of the same curve or of the
other. Both right ends are equally likely to be the upper one: neither dots nor ink alone tell anything.
"""

import math
from collections.abc import Callable

import torch

PERIOD, DASH = 4.0, 0.6  # pixels along the curve, and the share of them that is drawn
WIGGLE = 0.15  # of the distance from end to end
SHORT = 2  # curves that distract


def contours(count: int, side: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws images; in every other one the dots are connected.

    Args:
        count: How many images.
        side: Height and width in pixels.
        seed: Of everything that is random.

    Returns:
        Images ``(count, 3, side, side)`` in 0..1, grey curves and red dots; labels ``(count,)``, 1 where they
        are connected.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, curves: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, curves, 1, generator=random)

    span = side * uniform(0.2, 0.7)
    start = 2 + (side - 5 - span) * uniform(0, 1)
    centre = side / 2 + (side / 2 - 2 - 0.7 * span) * uniform(-1, 1)
    tilt = span * uniform(-WIGGLE, WIGGLE)
    apart = torch.tensor([-1.0, 1.0]).view(2, 1)
    left = centre - tilt + apart * uniform(-1, 1).sign() * span * uniform(0.25, 0.35)
    right = centre + tilt + apart * uniform(-1, 1).sign() * span * uniform(0.25, 0.35)
    ink = _curves(side, start, span, left, right, uniform)

    short = side * uniform(0.15, 0.3, SHORT)
    column, row = ((side - short) * uniform(0, 1, SHORT) for _ in range(2))
    away = row + short * uniform(-1, 1, SHORT)
    ink = torch.maximum(ink, _curves(side, column, short, row, away, uniform))

    labels = torch.arange(count) % 2
    rows = torch.stack([left[:, 0], right[torch.arange(count), 1 - labels]], 1)
    columns = torch.stack([start[:, 0], (start + span)[:, 0]], 1)
    pixels = torch.arange(side)
    squared = (pixels[:, None] - rows[..., None]) ** 2 + (pixels - columns[..., None]) ** 2
    dots = torch.exp(-((squared / 3) ** 2)).amax(1)
    return torch.stack([torch.maximum(ink, dots), ink, ink], 1), labels


def _curves(
    side: int,
    start: torch.Tensor,
    span: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    uniform: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Ink ``(count, side, side)`` of dashed curves from row ``left`` at column ``start`` to row ``right``."""
    curves = left.shape[1]
    along = (torch.arange(side) - start) / span
    rows = left + (right - left) * along
    for k in (1, 2):
        rows = rows + WIGGLE * span / k * uniform(-1, 1, curves) * torch.sin(math.pi * k * along)
    length = (1 + torch.gradient(rows, dim=-1)[0] ** 2).sqrt()
    drawn = (length.cumsum(-1) / PERIOD + uniform(0, 1, curves)) % 1 < DASH
    drawn &= (along > -0.05) & (along < 1.05)
    distance = (torch.arange(side)[:, None] - rows[:, :, None]) / length[:, :, None]
    return (0.6 * torch.exp(-((distance / 0.7) ** 2)) * drawn[:, :, None]).amax(1)
