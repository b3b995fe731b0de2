"""The loggers of a run: CSV and TensorBoard, which write nothing before its first update."""

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

Told = list[tuple[str, tuple[Any, ...], dict[str, Any]]]  # which method, and what it was told


def _later(name: str) -> Callable[..., None]:
    def tell(self: "Waiting", *args: Any, **kwargs: Any) -> None:
        if self.told is None:
            getattr(super(Waiting, self), name)(*args, **kwargs)
        else:
            self.told.append((name, args, kwargs))

    return tell


class _Experiment:
    """What somebody's callback talks to instead of the writer that does not write yet."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self._told.append((f"experiment.{name}", args, kwargs))


class Waiting:
    """What makes a logger keep what it is told until ``begin``, and write it then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told: Told | None = []

    log_hyperparams = _later("log_hyperparams")
    log_metrics = _later("log_metrics")
    log_graph = _later("log_graph")
    save = _later("save")

    @property
    def experiment(self) -> Any:
        """The writer; Lightning asks for it early, and with it folders are made."""
        return _Experiment(self.told) if self.told is not None else super().experiment  # type: ignore[misc]

    def begin(self) -> None:
        """Writes what was kept, and from now on all at once."""
        told, self.told = self.told or [], None
        for name, args, kwargs in told:
            attrgetter(name)(self)(*args, **kwargs)


class Csv(Waiting, CSVLogger):
    """Lightning's CSV logger."""


class TensorBoard(Waiting, TensorBoardLogger):
    """Lightning's TensorBoard logger, in the folder as it is called: a dollar sign is no variable."""

    @property
    def log_dir(self) -> str:
        """The folder."""
        return str(self.root_dir)


def loggers(root: Path) -> list[Any]:
    """CSV in ``logs/`` (where Lightning also saves the config) and TensorBoard in ``tensorboard/``."""
    return [Csv(root, "logs", ""), TensorBoard(root, "tensorboard", "")]
