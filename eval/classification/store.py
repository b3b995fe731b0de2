"""What a model predicts for images, as it is kept while an evaluation runs."""

from dataclasses import dataclass

import torch

UNREADABLE = -1  # label of an image that could not be read


@dataclass
class Predictions:
    """What a model predicts for images.

    Attributes:
        indices: Which images of the data set, ``(n,)``.
        labels: Their labels, ``(n,)``, as columns of ``logits``; ``UNREADABLE`` for an image that
            could not be read.
        logits: ``(n, classes)``, float32: 200 MB for the 50,000 images of ImageNet.
        ranked: The five best classes (or all, if there are fewer), best first, ``(n, 5)``, as the device that
            computed the logits ranks them.
    """

    indices: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    ranked: torch.Tensor

    @property
    def readable(self) -> torch.Tensor:
        """Which images could be read, ``(n,)``."""
        return self.labels != UNREADABLE

    def select(self, which: torch.Tensor) -> "Predictions":
        """Some of the images, by mask or by order."""
        return Predictions(*(tensor[which] for tensor in vars(self).values()))
