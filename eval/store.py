"""What an evaluation has computed while it runs, in files beside its output: what was killed goes on."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from dcls_models.files import replaced, write_json
from eval import processes

SETTINGS = "settings.json"


class Batch(Protocol):
    """A dataclass of tensors, one row per sample.

    Attributes:
        indices: Which samples of the data set.
        readable: Which of these could be read.
    """

    indices: torch.Tensor

    @property
    def readable(self) -> torch.Tensor:
        """``(n,)``, bool."""


Batches = TypeVar("Batches", bound=Batch)


class Store(Generic[Batches]):
    """One file per batch, written beside and renamed; in memory without a folder.

    Args:
        kind: The dataclass of a batch.
        folder: Where the files are. All processes of an evaluation must see it.
    """

    def __init__(self, kind: type[Batches], folder: Path | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self._kept: list[Batches] = []
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, batch: Batches) -> None:
        """Keeps a batch."""
        if self.folder is None:
            self._kept.append(batch)
            return
        with replaced(self.folder / f"{batch.indices[0]:09}.pt") as part:
            torch.save(vars(batch), part)

    def batches(self) -> list[Batches]:
        """All that is kept."""
        if self.folder is None:
            return self._kept
        return [self._read(file) for file in self._files()]

    def done(self) -> set[int]:
        """Samples that need not be evaluated again."""
        return {i for batch in self.batches() for i in batch.indices.tolist()}

    def forget_unreadable(self) -> None:
        """Forgets batches in which something could not be read: when it is tried again, it may be mended."""
        for file in self._files():
            if not self._read(file).readable.all():
                file.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.pt")) if self.folder else []

    def _read(self, file: Path) -> Batches:
        return self.kind(**torch.load(file, map_location="cpu", weights_only=True))

    def whole(self, n: int) -> Batches:
        """All samples in the order of the data set.

        Raises:
            RuntimeError: If one of them is missing.
        """
        batches = self.batches()
        columns = {name: torch.cat([getattr(b, name) for b in batches]) for name in vars(batches[0])}
        indices = columns["indices"]
        if sorted(indices.tolist()) != list(range(n)):
            raise RuntimeError(
                f"{len(indices)} results arrived for {n} samples: all processes must see the folder of "
                "--output"
            )
        order = indices.argsort()
        return self.kind(**{name: column[order] for name, column in columns.items()})


@contextmanager
def parts_of(output: Path | None) -> Iterator[Path | None]:
    """The folder beside a result where it is kept while it grows.

    It goes at the end, and with an error before there was anything to keep; an interruption leaves it.
    """
    folder = output.with_name(output.name + ".parts") if output else None
    if folder is None or processes.rank_and_world()[0] > 0:
        yield folder
        return
    try:
        yield folder
    except Exception:
        if not any(path.is_file() and path.name != SETTINGS for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes a folder for the results of an evaluation, or finds what one with the same settings has left.

    Args:
        folder: Where.
        settings: All that the numbers depend on.

    Raises:
        ValueError: If what is there was computed with other settings.
    """
    file, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if file.is_file() and len(list(folder.iterdir())) > 1:
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
