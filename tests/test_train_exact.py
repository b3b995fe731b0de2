"""Whatever is trained, on whatever data: what was killed and resumed ends with the weights of what was not.

``kill -9`` is an exception that nothing saves at; each moment is the last thing that a process does.
"""

import json
import shutil
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch

from tests.training import RANDOM, TINY, Kill, Killed, callback, last, same, write_images
from train.checkpoints import KeepLast
from train.command import ClassifierCLI
from train.command import main as classify
from train.data import Images
from train.dense import detection, segmentation
from train.launch import launch
from train.module import Classifier
from train.study.tasks import Tensors

# What is killed when; six batches an epoch. Every update is saved, and the best after each validation.
MOMENTS: dict[str, Kill | None] = {
    "first batch": Kill("batch", 0, 1),
    "middle": Kill("batch", 1, 2),
    "last batch": Kill("batch", 0, 5),
    "in validation": Kill("validation", 0),
    "after validation": Kill("end", 0),
    "between epochs": Kill("epoch", 1),
    "made longer": None,
}
ALWAYS = ["--keep_last.every_n_updates", "1", "--trainer.log_every_n_steps", "1", "--trainer.logger", "false"]
LENGTH = ["--trainer.max_epochs", "2"]
# a schedule that does not depend on the length of the training
STEP = ("--model.sched", "step", "--model.sched_kwargs", "{decay_epochs: 1, decay_rate: 0.5}")


class Passing(Images):
    """Images whose workers end with each epoch."""

    def loader_kwargs(self) -> dict[str, Any]:
        return {**super().loader_kwargs(), "persistent_workers": False}


def passing(args: list[str]) -> None:
    """``python -m train``, with such workers."""
    launch(ClassifierCLI, Classifier, Passing, {"prog": "python -m train"}, args)


FLAGS = {
    classify: [*TINY, *RANDOM, "--data.batch_size", "8"],
    passing: [*TINY, *RANDOM, "--data.batch_size", "8"],
    segmentation.main: [
        *("--model.name", "test_convnext_dcls", "--model.decoder_channels", "16"),
        *("--model.model_kwargs.drop_path_rate", "0.2", "--positions.kernels", "0"),
    ],
    detection.main: [
        *("--model.name", "test_convnext_dcls", "--model.channels", "16", "--positions.kernels", "0"),
        *("--model.min_size", "[48, 64]", "--model.max_size", "64"),
        *("--model.rcnn_kwargs", json.dumps({"box_batch_size_per_image": 8, "rpn_post_nms_top_n_train": 20})),
    ],
}
DENSE = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--data.scenes", "12", "--data.val_scenes", "2"),
    *("--data.scene_side", "48", "--data.batch_size", "2", "--data.num_workers", "0"),
]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.batch_size", "4"]


STOPPED = {"first batch": (0, 0), "middle": (1, 2), "between epochs": (0, 5)}  # epoch, batch


class Case(NamedTuple):
    """A training, where it is killed, and how it is gone on with."""

    moment: str
    task: Any = classify
    source: str = "folder"
    workers: int = 0
    later: int | None = None  # workers after the resumption, if others
    flags: tuple[str, ...] = ()
    first: tuple[str, ...] = ()  # flags of the first part only

    def __str__(self) -> str:
        name = getattr(self.task, "__module__", "study").rpartition(".")[2]
        then = "" if self.later is None else f" then {self.later}"
        more = " ".join(self.flags).replace("--trainer.", "")
        return f"{name}, {self.source}, {self.workers}{then} workers, {self.moment} {more}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The flags of each kind of data set."""
    images = write_images(tmp_path_factory.mktemp("images"))
    shards = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 4), ("val", 2)):
        files = sorted((images / split).rglob("*.png"))
        for shard in range(count):
            with tarfile.open(shards / f"{split}-{shard}.tar", "w") as tar:
                for i, file in enumerate(files[shard::count]):
                    (shards / "label").write_text(file.parent.name[-1])
                    tar.add(file, f"{shard}_{i:03}.png")
                    tar.add(shards / "label", f"{shard}_{i:03}.cls")
    (shards / "classes.txt").write_text("".join(f"class_{i}\n" for i in range(4)))
    splits = ["--data.train_split", "train-{0..3}.tar|48", "--data.val_split", "val-{0..1}.tar|20"]
    splits += ["--data.classes", str(shards / "classes.txt")]
    return {
        "folder": ["--data.root", str(images)],
        "hfds": ["--data.root", str(images.parent / "cache"), "--data.dataset", f"hfds/{images}"],
        "wds": ["--data.root", str(shards), "--data.dataset", "wds/", *splits],
    }


@pytest.fixture(scope="module")
def undisturbed(sources: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains a case that nothing happens to; equal ones once."""

    @cache
    def trained(case: Case) -> dict[str, Any]:
        run = tmp_path_factory.mktemp("undisturbed")
        start(case, run, sources)
        return last(run)

    return trained


def start(case: Case, run: Path, sources: dict[str, list[str]], *more: str, kill: Kill | None = None) -> None:
    if case.task is Tensors:
        return study(run, case, more, kill)
    data = sources[case.source] if case.task in (classify, passing) else DENSE
    flags = [*FLAGS[case.task], *data, *ALWAYS, *LENGTH, "--trainer.default_root_dir", str(run)]
    if kill is not None:
        at = {"moment": kill.moment, "epoch": kill.at[0], "batch": kill.at[1]}
        flags += ["--trainer.callbacks+=tests.training.Kill"]
        flags += [f"--trainer.callbacks.{k}={v}" for k, v in at.items()]
    case.task(["fit", *flags, "--data.num_workers", str(case.workers), *case.flags, *more])


def study(run: Path, case: Case, more: tuple[str, ...], kill: Kill | None) -> None:
    """As ``train.study`` trains, with checkpoints."""
    pl.seed_everything(0, verbose=False)
    small = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16], "patch_size": 2, "drop_path_rate": 0.2}
    module = Classifier("test_convnext_dcls", num_classes=4, model_kwargs=small, lr=1e-3)
    train, val = ((torch.randn(n, 3, 32, 32), torch.arange(n) % 4) for n in (48, 8))
    resume = run / "checkpoints" / "last.ckpt" if "--ckpt_path" in more else None
    trainer = pl.Trainer(
        default_root_dir=run,
        accelerator="cpu",
        callbacks=[KeepLast(1), *([kill] if kill else [])],
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Tensors(train, val, batch_size=8), ckpt_path=resume)


def check(case: Case, sources: dict[str, list[str]], undisturbed: Any, run: Path) -> None:
    kill, resume = MOMENTS[case.moment], ["--ckpt_path", "last"]
    if TWO[0] in case.flags:  # they are asked to stop: of two processes that are killed, torch waits for one
        epoch, batch = STOPPED[case.moment]
        with pytest.raises(torch.multiprocessing.ProcessExitedException):
            start(case, run, sources, *callback("SignalAt", epoch=epoch, batch=batch))
    elif kill is None:
        start(case, run, sources, *case.first)
    else:
        with pytest.raises(Killed):
            start(case, run, sources, kill=kill)
    if case.moment == "after validation":
        shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")
    whole = undisturbed(case._replace(moment="", later=None, first=()))
    assert last(run)["global_step"] < whole["global_step"], "it was killed before its end"
    assert not same(last(run), whole)
    if case.later is not None:
        resume += ["--data.num_workers", str(case.later)]
    start(case, run, sources, *resume)
    assert last(run)["global_step"] == whole["global_step"]
    assert last(run)["epoch"] == whole["epoch"]
    assert same(last(run), whole)


ONE_EPOCH = ("--trainer.max_epochs", "1")
BY_UPDATES = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "12")
CASES = [
    Case("first batch", workers=2),
    Case("middle", source="wds", workers=1),
    Case("last batch", source="hfds"),
    Case("in validation", workers=1),
    Case("after validation"),
    Case("between epochs", workers=2),
    Case("between epochs", later=2),
    Case("between epochs", source="hfds", workers=1),
    Case("between epochs", source="wds"),
    Case("between epochs", source="wds", workers=2),
    Case("between epochs", workers=1, flags=("--trainer.accumulate_grad_batches", "2")),
    Case("between epochs", workers=1, flags=("--trainer.reload_dataloaders_every_n_epochs", "1")),
    Case("between epochs", workers=1, flags=("--trainer.max_steps", "12")),
    Case("between epochs", flags=BY_UPDATES),
    Case("last batch", flags=(*BY_UPDATES, "--trainer.check_val_every_n_epoch", "null",
                              "--trainer.val_check_interval", "4")),
    Case("made longer", workers=1, flags=(*STEP, "--trainer.max_epochs", "2"), first=ONE_EPOCH),
    Case("made longer", flags=(*STEP, *BY_UPDATES), first=("--trainer.max_steps", "6")),
    Case("made longer", flags=(*STEP, *BY_UPDATES), first=("--trainer.max_steps", "8")),
    Case("middle", segmentation.main, workers=1),
    Case("between epochs", segmentation.main, flags=BY_UPDATES),
    Case("middle", detection.main),
    Case("between epochs", detection.main, workers=1),
    Case("middle", passing, workers=2),
    Case("between epochs", passing, workers=1),
    Case("middle", Tensors),
    Case("between epochs", Tensors),
    pytest.param(Case("between epochs", workers=1, flags=tuple(TWO)), marks=pytest.mark.slow),
    pytest.param(Case("middle", source="wds", flags=tuple(TWO)), marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_killed_training_ends_as_an_undisturbed_one(
    case: Case, sources: Any, undisturbed: Any, tmp_path: Path
) -> None:
    if TWO[0] in case.flags and sys.platform != "linux":
        pytest.skip("needs fork")
    check(case, sources, undisturbed, tmp_path)


EVERY = [
    Case(moment, task, source, workers, None, flags, ONE_EPOCH)
    for moment in MOMENTS
    for task in (*FLAGS, Tensors)
    for source in (("folder", "hfds", "wds") if task in (classify, passing) else ("folder",))
    for workers in {Tensors: (0,), passing: (1, 2)}.get(task, (0, 1, 2))
    for flags in (((), tuple(TWO)) if task is classify else ((),))
    if not (task is Tensors and moment in ("made longer", "after validation"))
    if not flags or moment in STOPPED
]


@pytest.mark.slow
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_moment(case: Case, sources: Any, undisturbed: Any, tmp_path: Path) -> None:
    if case.moment == "made longer":
        case = case._replace(flags=(*case.flags, *STEP))
    check(case, sources, undisturbed, tmp_path)
