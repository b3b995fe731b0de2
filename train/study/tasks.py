"""The tasks of the study: tracing contours, and the digits that scikit-learn ships."""

from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from train.loaders import TaskData
from train.study.contours import contours

TASKS = ("contours", "digits")
HELD_OUT = 4000  # contours to validate on


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
def task_data(task: str, side: int, images: int, seed: int) -> Tensors:
    """The images of a task, normalised; contours are drawn anew for each seed, the digits' split stays."""
    if task == "contours":
        chunks = [contours(2048, side, seed * 1_000_000 + i) for i in range(-(-images // 2048))]
        train = torch.cat([c[0] for c in chunks])[:images], torch.cat([c[1] for c in chunks])[:images]
        val = contours(HELD_OUT, side, seed * 1_000_000 + 999_999)
    else:
        pixels, digits = load_digits(return_X_y=True)
        grey = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32).expand(-1, 3, -1, -1)
        large = torch.nn.functional.interpolate(grey, size=(side, side), mode="bilinear")
        split = train_test_split(range(len(digits)), test_size=0.2, stratify=digits, random_state=0)
        train, val = ((large[part], torch.tensor(digits[part]).long()) for part in split)
    mean, std = train[0].mean(), train[0].std()
    return Tensors(((train[0] - mean) / std, train[1]), ((val[0] - mean) / std, val[1]), batch_size=64)


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
