"""The LightningDataModule: recordings of spikes, or spoken digits that are made where nothing is given."""

import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader

from dcls_models.files import locked, some
from dcls_models.folders import ClassFolders
from dcls_models.spikes import Batch, Binning, Recordings, open_recordings, padded
from train.loaders import TaskData
from train.ranges import Count, CountOrNone, Positive, ShareInside, check_ranges

_logger = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")


class SpikeData(TaskData):
    """Recordings in a folder: ``<split>.npz``, ``<split>.h5`` (SHD, SSC), or sounds (docs/delays.md).

    Args:
        root: The folder; by default spoken digits, made once in ``runs/speech``.
        val: ``split`` validates on the folder's own validation set or, without one, on a share of the
            training set. ``test`` validates, and chooses the best epoch, on the test set: the authors'
            protocol for SHD, whose numbers are too good for that.
        val_share: That share, of every class.
        batch_size: Recordings per device and update.
        num_workers: Processes that read recordings.
        frames: Length of all recordings, by silence after the end. By default as long as the longest of a
            batch (the authors'), so that what a network says depends a little on the batch.
        frame: Length of a frame in seconds, for events.
        units: Units of the recordings, for events.
        group: Neighbouring units that are added up to a channel.
        binning: ``grid`` or ``events``, as the published results; see ``dcls_models.spikes.Binning``.
        longest: Recordings of more frames are taken for damaged; of arrays, the file is refused.
        front_end: Sounds become ``spikes`` or ``logmel`` (1 s, 80 bands).
    """

    unit = "recordings"

    def __init__(
        self,
        root: str | None = None,
        val: Literal["split", "test"] = "split",
        val_share: ShareInside = 0.1,
        batch_size: Count = 128,
        num_workers: CountOrNone = 0,
        frames: Count | None = None,
        frame: Positive = 0.01,
        units: Count = 700,
        group: Count = 5,
        binning: Literal["grid", "events"] = "grid",
        longest: Count = 1000,
        front_end: Literal["spikes", "logmel"] = "spikes",
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.save_hyperparameters()
        check_ranges("data", self, self.hparams)
        folder = spoken_digits(Path("runs/speech")) if root is None else Path(root)
        self.collate = partial(padded, frames=frames)
        sources = {
            split: open_recordings(folder, split, Binning(frame, units, group, binning, longest), front_end)
            for split in SPLITS
        }
        train, test = sources["train"], sources["test"]
        if train is None:
            raise FileNotFoundError(f"there is no train.npz, train.h5 or train/<class>/ in {folder}")
        if val == "test" and test is None:
            raise FileNotFoundError(f"data.val is test, but there are no recordings to test on in {folder}")
        if val == "test":
            _logger.warning("validating on the test set, as the authors: its best epoch is chosen on it")
        self.train_set, self.test_set = Recordings(train), Recordings(test) if test is not None else None
        self.channels = train.channels
        self.class_names = train.class_names or None
        self.num_classes = len(train.class_names) or int(train.labels.max()) + 1
        if self.num_classes < 2:
            raise ValueError(
                f"{train.name(0)} and all others are of one class: there is nothing to tell apart"
            )
        for source in sources.values():
            self._check(source, train)
        self.val_set = self.test_set
        if val == "split" and sources["val"] is not None:
            self.val_set = Recordings(sources["val"])
        elif val == "split":
            names = train.class_names or [str(i) for i in range(self.num_classes)]
            files = ClassFolders(str(folder), [""] * len(train.labels), train.labels.tolist(), names)
            kept, held = files.hold_out(val_share)
            self.train_set, self.val_set = Recordings(train, kept), Recordings(train, held)

    def _check(self, source: Any, train: Any) -> None:
        if source is None:
            return
        if source.channels != train.channels:
            raise ValueError(
                f"{source.name(0)} has {source.channels} channels, the training set {train.channels}"
            )
        if source.class_names and list(source.class_names) != list(train.class_names):
            others = some(sorted(set(source.class_names) ^ set(train.class_names)))
            raise ValueError(f"{source.name(0)} has other classes than the training: {others}")
        if source.labels.max(initial=0) >= self.num_classes:
            at = int(source.labels.argmax())
            raise ValueError(
                f"{source.name(at)} has label {source.labels[at]}, but the labels of the training set end at "
                f"{self.num_classes - 1}"
            )

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test set, in order and complete.

        Raises:
            ValueError: If there is none.
        """
        if self.test_set is None:
            raise ValueError("there are no recordings to test on: add test.npz, test.h5 or test/<class>/")
        return DataLoader(self.test_set, **self.loader_kwargs())

    def unreadable(self) -> list[str]:
        """A line for each split with recordings that could not be read."""
        sets = {id(s): s for s in (self.train_set, self.val_set, self.test_set) if s is not None}
        return [line for line in (s.report() for s in sets.values()) if line]


def spoken_digits(root: Path) -> Path:
    """The folder of spoken digits; they are made by a process of their own if they are not there.

    Raises:
        ValueError: If they cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not all((root / f"{split}.npz").is_file() for split in SPLITS):
        with locked(root / ".lock", f"another process makes the spoken digits in {root}: wait for its end"):
            _logger.info("making spoken digits in %s", root)
            command = [sys.executable, "-m", "train.speech", str(root), "--spikes"]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError((done.stderr.strip() or "train.speech failed").removeprefix("error: "))
    return root
