"""The DataModule: sounds from folders, AudioSet's CSV files, PANNs' HDF5 files or Hugging Face data sets."""

import logging
from typing import Any

from torch.utils.data import DataLoader

from dcls_models.files import some
from dcls_models.loading import front_end_settings
from dcls_models.sounds import Clips, FolderSounds
from train.audio.augment import Perturbation
from train.audio.sources import open_sounds
from train.loaders import TaskData
from train.ranges import Count, CountOrNone, Positive, Share, ShareInside, check_ranges
from train.samplers import EvalSampler, Keyed

_logger = logging.getLogger(__name__)


class Sounds(TaskData):
    """Sounds with any number of labels each.

    Args:
        root: A folder with ``train/<class>/`` and ``val/<class>/``, or with one folder per class, of which
            every class is then split, always in the same way. Where ``train`` names CSV files, the folder of
            their sounds, ``YTID.wav`` or the like, at any depth; for ``hfds/`` the cache.
        train: A CSV file of AudioSet or an HDF5 file of PANNs to train on, or several.
        val: Likewise to validate on.
        labels: AudioSet's ``class_labels_indices.csv``; by default that beside the CSV or HDF5 file.
        dataset: ``hfds/NAME`` for a Hugging Face data set.
        train_split: Its split to train on.
        val_split: Its split to validate on.
        audio_column: Its column of sounds.
        label_column: Its column of classes, one or a list of them.
        like: Name of the model whose front end is taken where it is not given; the command line gives
            ``model.name``.
        front_end: Settings of ``dcls_models.LogMel`` that differ from those of the model (``sample_rate``,
            ``n_fft``, ``hop``, ``mels``, ``low``, ``high``, ``mean``, ``std``).
        seconds: Length of a clip; the model's own by default. In training a random part of a longer sound is
            taken, otherwise its beginning; a shorter one is padded with silence.
        val_share: Share of the sounds to validate on, where ``root`` has no ``val``.
        roll: Whether training clips are shifted circularly.
        speed_prob: Probability that a training clip's speed is changed.
        speed: Range of the factor on its length.
        batch_size: Sounds per step and device.
        total_batch_size: Sounds per update over all devices, reached by accumulating gradients.
        num_workers: Processes that read sounds, per device.

    Raises:
        OSError: If a file or folder is missing.
        ValueError: If something does not fit, or there are fewer than two classes.
    """

    unit = "sounds"

    def __init__(
        self,
        root: str | None = None,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        labels: str | None = None,
        dataset: str = "",
        train_split: str = "train",
        val_split: str = "validation",
        audio_column: str = "audio",
        label_column: str = "label",
        like: str | None = None,
        front_end: dict[str, Any] | None = None,
        seconds: Positive | None = None,
        val_share: ShareInside = 0.2,
        roll: bool = True,
        speed_prob: Share = 0.5,
        speed: tuple[Positive, Positive] = (0.5, 1.5),
        batch_size: Count = 64,
        total_batch_size: Count | None = None,
        num_workers: CountOrNone = 2,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.save_hyperparameters(ignore=["front_end"])  # which the model has
        check_ranges("data", self, self.hparams)
        if speed[0] > speed[1]:
            raise ValueError(f"data.speed is a range, the lower factor first: got {speed}")
        length = {} if seconds is None else {"seconds": seconds}
        self.front_end = front_end_settings(like, {**(front_end or {}), **length})
        train_sounds, val_sounds, train_indices, val_indices = open_sounds(self.hparams)
        self.class_names, self.one_label = list(train_sounds.names), train_sounds.one_label
        if len(self.class_names) < 2:
            raise ValueError(
                f"{root or dataset or train} has fewer than two classes ({', '.join(self.class_names)}): "
                "expected a folder for each"
            )
        if isinstance(train_sounds, FolderSounds):  # so that an evaluation knows which sounds were trained on
            self.hparams["files_sha256"] = train_sounds.fingerprint()
        self.hparams["held_out"] = len(val_indices or ())
        rate = self.front_end["sample_rate"]
        perturb = Perturbation(roll, speed_prob, (speed[0], speed[1]))
        self.train_set = Clips(train_sounds, rate, self.front_end["seconds"], train_indices, perturb)
        self.val_set = Clips(val_sounds, rate, self.front_end["seconds"], val_indices)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def setup(self, stage: str) -> None:
        """Says what there is."""
        super().setup(stage)
        if stage == "fit":
            _logger.info(
                "%d sounds to train on, %d to validate on, as clips of %g s at %d Hz; %d classes: %s",
                len(self.train_set),
                len(self.val_set),
                self.front_end["seconds"],
                self.front_end["sample_rate"],
                self.num_classes,
                some(self.class_names, 10),
            )

    def val_dataloader(self) -> DataLoader:
        """In order and complete, each sound once over all processes."""
        sampler = EvalSampler(self.val_set, *self.rank_and_world())
        return DataLoader(Keyed(self.val_set), sampler=sampler, **self.loader_kwargs())

    def unreadable(self) -> list[str]:
        """What is to be said about sounds that could not be read."""
        sets = {"training": self.train_set, "validation": self.val_set}
        return [f"{name}: {report}" for name, clips in sets.items() if (report := clips.report())]
