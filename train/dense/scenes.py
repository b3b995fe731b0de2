"""Scenes of several handwritten digits, with what segmentation and detection are to find in them.

The digits are those of ``train.digits``, of which the held-out ones are in validation scenes only.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from train.digits import digits


class Scene(NamedTuple):
    """An image ``(3, side, side)`` in [0, 1], masks ``(k, side, side)`` of its digits, and which they are."""

    image: torch.Tensor
    masks: torch.Tensor
    labels: torch.Tensor


class Scenes(Dataset[Scene]):
    """Digits of different sizes and colours beside each other, on a background of coloured noise.

    Args:
        count: How many scenes.
        training: Whether they are of the digits to train on, or of those that are held out.
        side: Height and width of a scene in pixels.
        digits_per_scene: How many digits are tried to be placed; those that would overlap are left out.
        digit_sides: Smallest and largest side of a digit in pixels.
    """

    def __init__(
        self,
        count: int,
        training: bool,
        side: int = 96,
        digits_per_scene: int = 10,
        digit_sides: tuple[int, int] = (20, 44),
    ) -> None:
        pixels, labels, held_out = digits()
        chosen = ~held_out if training else held_out
        self.digits = torch.from_numpy(pixels[chosen]).float() / 255
        self.labels = torch.from_numpy(labels[chosen])
        self.count, self.training, self.side = count, training, side
        self.digits_per_scene, self.digit_sides = digits_per_scene, digit_sides

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        """The same scene whenever it is asked for."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((self.training, index))
        image = 0.5 * _noise(rng, 6, self.side)
        taken = torch.zeros(self.side, self.side, dtype=torch.bool)
        masks, labels = [], []
        for _ in range(self.digits_per_scene):
            size = int(rng.integers(*self.digit_sides, endpoint=True))
            y, x = rng.integers(0, self.side - size, size=2, endpoint=True)
            place = slice(y, y + size), slice(x, x + size)
            if taken[place].any():
                continue
            taken[place] = True
            which = int(rng.integers(len(self.digits)))
            ink = _resized(self.digits[which][None], size)[0]
            colour = torch.from_numpy(rng.uniform(0.4, 1, (3, 1, 1))).float()
            behind = image[(slice(None), *place)]
            behind += ink * (colour - behind)
            masks.append(torch.zeros_like(taken))
            masks[-1][place] = ink > 0.4
            labels.append(self.labels[which])
        return Scene(image, torch.stack(masks), torch.stack(labels))


def _noise(rng: np.random.Generator, cells: int, side: int) -> torch.Tensor:
    return _resized(torch.from_numpy(rng.random((3, cells, cells), dtype=np.float32)), side)


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Of ``(channels, height, width)``, to a square."""
    return F.interpolate(images[None], (side, side), mode="bilinear", align_corners=False)[0]
