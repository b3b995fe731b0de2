"""The predictions of an evaluation while it runs, in files beside its output: what was killed goes on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcls_models.files import replaced, write_json


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

    def select(self, which: torch.Tensor) -> "Predictions":
        """Some of the images, by mask or by order."""
        return Predictions(*(tensor[which] for tensor in vars(self).values()))


class Store:
    """One file per batch, written beside and renamed; in memory without a folder.

    Args:
        folder: Where the files are. All processes of an evaluation must see it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: list[Predictions] = []
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, predictions: Predictions) -> None:
        """Keeps a batch."""
        if self.folder is None:
            self._kept.append(predictions)
            return
        with replaced(self.folder / f"{predictions.indices[0]:09}.pt") as part:
            torch.save(vars(predictions), part)

    def batches(self) -> list[Predictions]:
        """All that is kept."""
        if self.folder is None:
            return self._kept
        files = sorted(self.folder.glob("*.pt"))
        return [Predictions(**torch.load(file, map_location="cpu", weights_only=True)) for file in files]

    def done(self) -> set[int]:
        """Images that need not be evaluated again."""
        return {i for batch in self.batches() for i in batch.indices.tolist()}

    def whole(self, n: int) -> Predictions:
        """All images in the order of the data set.

        Raises:
            RuntimeError: If one of them is missing.
        """
        batches = self.batches()
        joined = Predictions(*(torch.cat([getattr(b, name) for b in batches]) for name in vars(batches[0])))
        if sorted(joined.indices.tolist()) != list(range(n)):
            raise RuntimeError(
                f"{len(joined.indices)} results arrived for {n} images: all processes must see the folder "
                "of --output"
            )
        return joined.select(joined.indices.argsort())


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes a folder for the results of an evaluation, or finds what one with the same settings has left.

    Args:
        folder: Where.
        settings: All that the numbers depend on.

    Raises:
        ValueError: If what is there was computed with other settings.
    """
    file, settings = folder / "settings.json", json.loads(json.dumps(settings))
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        other = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
        if other:
            raise ValueError(
                f"{folder} is the beginning of an evaluation with another {', '.join(other)}: "
                "delete that folder, or give another --output"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def split(indices: Sequence[int], size: int) -> list[list[int]]:
    """Batches of ``size``, the last one shorter."""
    return [list(indices[i : i + size]) for i in range(0, len(indices), size)]
