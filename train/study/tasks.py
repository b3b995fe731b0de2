"""The tasks of the study: contours (reach matters), digits and textures (it does not)."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from train.loaders import TaskData
from train.study.contours import contours
from train.study.textures import CLASSES, textures

HELD_OUT = 4000  # drawn images to validate on
CHUNK = 2048  # images are drawn so many at a time
BATCH = 64
Labelled = tuple[torch.Tensor, torch.Tensor]


class Task(NamedTuple):
    """What is learned, and how large images, model and training are.

    Attributes:
        draw: ``(count, side, seed)`` to images and labels; None are the digits that scikit-learn ships.
        classes: How many.
        side: Height and width of the images.
        depth: Layers of the model.
        images: Drawn images to train on.
        epochs: Passes over them.
    """

    draw: Callable[[int, int, int], Labelled] | None
    classes: int
    side: int
    depth: int
    images: int
    epochs: int


TASKS = {
    "contours 32 px, 2 layers": Task(contours, 2, 32, 2, 20480, 2),
    "contours 32 px, 4 layers": Task(contours, 2, 32, 4, 20480, 2),
    "contours 48 px, 2 layers": Task(contours, 2, 48, 2, 20480, 2),
    "digits": Task(None, 10, 32, 2, 1437, 10),
    "textures": Task(textures, CLASSES, 32, 2, 10240, 2),
}
LARGE = {  # for a GPU: longer, deeper, and images on which more is far away
    "contours 32 px, 2 layers": Task(contours, 2, 32, 2, 200_000, 20),
    "contours 64 px, 2 layers": Task(contours, 2, 64, 2, 200_000, 20),
    "contours 64 px, 8 layers": Task(contours, 2, 64, 8, 200_000, 20),
    "digits": Task(None, 10, 32, 4, 1437, 100),
    "textures": Task(textures, CLASSES, 64, 4, 200_000, 5),
}


class Tensors(TaskData):
    """Images and labels that fit into memory.

    Args:
        train: Images ``(N, 3, H, W)`` and labels ``(N,)`` to train on.
        val: Likewise to validate on.
        batch_size: Images per step.
    """

    def __init__(
        self, train: tuple[torch.Tensor, ...], val: tuple[torch.Tensor, ...], batch_size: int
    ) -> None:
        super().__init__(batch_size, num_workers=0)
        self.train_set, self.val_set = TensorDataset(*train), TensorDataset(*val)


@lru_cache(maxsize=1)
def task_data(task: Task, seed: int) -> Tensors:
    """The images of a task, normalised; they are drawn anew for each seed, the digits' split stays."""
    train, val = _digits(task.side) if task.draw is None else _drawn(task, seed)
    mean, std = train[0].mean(), train[0].std()
    return Tensors(((train[0] - mean) / std, train[1]), ((val[0] - mean) / std, val[1]), batch_size=BATCH)


def _drawn(task: Task, seed: int) -> tuple[Labelled, Labelled]:
    assert task.draw is not None
    first = seed * 1_000_000
    chunks = [task.draw(CHUNK, task.side, first + i) for i in range(-(-task.images // CHUNK))]
    images, labels = (torch.cat(parts)[: task.images] for parts in zip(*chunks, strict=True))
    return (images, labels), task.draw(HELD_OUT, task.side, first + 999_999)


def _digits(side: int) -> tuple[Labelled, Labelled]:
    pixels, digits = load_digits(return_X_y=True)
    grey = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32).expand(-1, 3, -1, -1)
    large = torch.nn.functional.interpolate(grey, size=(side, side), mode="bilinear")
    train, val = train_test_split(range(len(digits)), test_size=0.2, stratify=digits, random_state=0)
    labels = torch.tensor(digits).long()
    return (large[train], labels[train]), (large[val], labels[val])


def baselines(side: int) -> dict[str, float]:
    """What simple models make of the contours (percent); they trace nothing."""

    def seen(images: torch.Tensor) -> dict[str, torch.Tensor]:
        ink, dots = images[:, 1], images[:, 0] - images[:, 1]
        places, amount = torch.cat([dots.sum(1), dots.sum(2)], 1), ink.sum((1, 2))[:, None]
        alone = {"linear": images.flatten(1), "dots": places, "amount of ink": amount}
        both = torch.cat([places, amount], 1)
        sums = torch.cat([places, ink.sum(1), ink.sum(2)], 1)
        return {**alone, "dots and amount of ink": both, "dots, row and column sums of ink": sums}

    (images, labels), (held_out, truth) = contours(4000, side, seed=1), contours(HELD_OUT, side, seed=2)
    scores = {}
    for name, inputs in seen(images).items():
        simple = (
            LogisticRegression(C=0.01) if name == "linear" else HistGradientBoostingClassifier(random_state=0)
        )
        accuracy = simple.fit(inputs, labels).score(seen(held_out)[name], truth)
        scores[name] = round(100 * accuracy, 2)
    return scores
