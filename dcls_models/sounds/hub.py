"""Hugging Face data sets with an audio column; sounds are decoded here, not by ``datasets``."""

from collections.abc import Sequence
from typing import Any

import torch

from dcls_models.files import one_line, some

from .reading import read_sound, seconds_of


class HubSounds:
    """A split of a Hugging Face data set with an audio column, which is decoded here.

    Args:
        name: Its name on the Hub, or a folder.
        split: Which part.
        cache: Where data sets are cached; the default of ``datasets`` if None.
        audio: The column of the sounds.
        label: The column of the classes: names, ``ClassLabel`` or lists of these.
        names: The known classes; by default those of the column.

    Raises:
        ValueError: If the package is missing, or the split or a column cannot be read.
    """

    def __init__(
        self,
        name: str,
        split: str,
        cache: str | None = None,
        audio: str = "audio",
        label: str = "label",
        names: Sequence[str] | None = None,
    ) -> None:
        self.name, self.audio = f"hfds/{name}", audio
        self.rows, column, feature = self._opened(name, split, cache, label)
        values = [value if isinstance(value, list) else [value] for value in column]
        known = getattr(
            getattr(feature, "feature", feature), "names", None
        )  # of a list of classes, or a class
        labels = [[str(known[v]) if known else str(v) for v in value] for value in values]
        there = sorted({label for several in labels for label in several})
        self.names = list(names or known or there)
        self.one_label = all(len(several) == 1 for several in labels)
        number = {name: i for i, name in enumerate(self.names)}
        if unknown := [label for label in there if label not in number]:
            raise ValueError(f"{self.name} ({split}) has classes that are not known: {some(unknown)}")
        self.labels = [tuple(number[label] for label in several) for several in labels]

    def _opened(self, name: str, split: str, cache: str | None, label: str) -> tuple[Any, Any, Any]:
        """The sounds, the column of their classes, and what that is."""
        try:
            import datasets
        except ImportError as error:
            raise ValueError(f"{self.name} needs a package: pip install datasets") from error
        try:
            rows = datasets.load_dataset(name, split=split, cache_dir=cache)
        except Exception as error:  # whatever a loader raises
            raise ValueError(f"cannot read the split {split!r} of {self.name}: {one_line(error)}") from error
        if missing := sorted({self.audio, label} - set(rows.column_names)):
            has = ", ".join(rows.column_names)
            raise ValueError(f"{self.name} has no column {', '.join(missing)}, only {has}")
        sounds = rows.select_columns([self.audio]).cast_column(self.audio, datasets.Audio(decode=False))
        return sounds, rows[label], rows.features[label]

    def __len__(self) -> int:
        return len(self.labels)

    def classes(self, index: int) -> tuple[int, ...]:
        """The classes of a sound."""
        return self.labels[index]

    def seconds(self, index: int) -> float:
        """How long a sound is."""
        return seconds_of(self._bytes(index))

    def read(self, index: int, sample_rate: int, seconds: float | None, start: float = 0.0) -> torch.Tensor:
        """A part of a sound, as ``read_sound`` gives it."""
        return read_sound(self._bytes(index), sample_rate, seconds, start)

    def filename(self, index: int) -> str:
        """Its name in the data set, or its number."""
        return f"{self.name}:{self.rows[index][self.audio]['path'] or index}"

    def _bytes(self, index: int) -> Any:
        stored = self.rows[index][self.audio]
        return stored["bytes"] if stored["bytes"] is not None else stored["path"]
