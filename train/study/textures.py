"""Textures: a task that needs no long range. Which of eight small filters made this noise?

The filters, of 5 x 5 pixels, are random and always the same; none changes the mean or the variance of the
noise. What tells them apart is how pixels at most four apart go together, anywhere in the image.
"""

import torch
from torch.nn import functional as F

CLASSES, FILTER = 8, 5


def textures(count: int, side: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws images of filtered noise, every class equally often.

    Args:
        count: How many images.
        side: Height and width in pixels.
        seed: Of the noise; the filters do not depend on it.

    Returns:
        Grey images ``(count, 3, side, side)`` of mean 0 and variance 1; labels ``(count,)``, 0 to 7.
    """
    filters = torch.randn(CLASSES, 1, FILTER, FILTER, generator=torch.Generator().manual_seed(0))
    filters = filters - filters.mean((2, 3), keepdim=True)
    filters = filters / filters.square().sum((2, 3), keepdim=True).sqrt()
    noise = torch.randn(
        count, 1, side + FILTER - 1, side + FILTER - 1, generator=torch.Generator().manual_seed(seed)
    )
    labels = torch.arange(count) % CLASSES
    images = F.conv2d(noise, filters)[torch.arange(count), labels]
    return images[:, None].expand(-1, 3, -1, -1), labels
