"""Events in HDF5 files, in the form of the Heidelberg sets (SHD, SSC)."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcls_models.files import one_line

from .binning import Binning, binned


class EventFile:
    """Recordings of ``spikes/times`` (seconds), ``spikes/units`` and ``labels``, read when asked for.

    Args:
        path: The file.
        binning: How events become frames.

    Raises:
        ValueError: If it is not such a file.
    """

    def __init__(self, path: Path, binning: Binning) -> None:
        self.path, self.binning = path, binning
        self.channels = binning.channels
        self._opened: tuple[int, Any] | None = None  # by this process: a file does not survive a fork
        try:
            file = self._file()
            lengths = {key: len(file[key]) for key in ("spikes/times", "spikes/units", "labels")}
            self.labels = np.asarray(file["labels"])
            names = file.get("extra/keys", [])
            self.class_names = [n.decode() if isinstance(n, bytes) else str(n) for n in names]
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no HDF5 file with spikes/times, spikes/units and labels ({one_line(error)})"
            ) from error
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path} must have as many times, units and labels, it has {lengths}")

    def read(self, index: int) -> torch.Tensor:
        """A recording, counts ``(channels, frames)``."""
        spikes = self._file()["spikes"]
        return binned(spikes["times"][index], spikes["units"][index], self.binning)

    def name(self, index: int) -> str:
        """Where a recording is."""
        return f"{self.path} [{index}]"

    def _file(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                import h5py
            except ImportError as error:
                raise ValueError(f"{self.path} needs a package: pip install h5py") from error
            self._opened = os.getpid(), h5py.File(self.path, "r")
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        """A worker opens the file itself."""
        return {**self.__dict__, "_opened": None}
