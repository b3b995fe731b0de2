"""A training that was stopped or killed at any moment ends as one that was not."""

import csv
import random
import shutil
import signal
import time

import pytest
import torch

from tests.training import RANDOM, Killed, callback, contents, fit, in_child, last, main, same, write_images
from train.signals import Stopped

RESUME = ["--ckpt_path", "last"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    fit(images, run, *RANDOM)
    return run


def losses(run):
    """The loss of each update, also of the parts that a resumed run has kept."""
    found = {}
    for file in sorted((run / "logs").glob("metrics*.csv"), reverse=True):
        for row in csv.DictReader(file.open()):
            if row.get("train/loss_step"):
                found[int(row["step"])] = float(row["train/loss_step"])
    return found


@pytest.mark.parametrize(
    ("epoch", "batch", "stage"),
    [(0, 0, "train"), (0, 3, "train"), (0, 5, "train"), (1, 2, "train"), (0, 1, "val"), (1, 5, "train")],
)
def test_a_stopped_training_goes_on_as_if_nothing_had_happened(whole, images, tmp_path, epoch, batch, stage):
    ending = (epoch, batch) == (1, 5)  # asked to stop in the last epoch after its last batch: it ends
    stop = callback("SignalAt", epoch=epoch, batch=batch, stage=stage)
    if ending:
        fit(images, tmp_path, *RANDOM, *stop)
    else:
        with pytest.raises(Stopped) as stopped:
            fit(images, tmp_path, *RANDOM, *stop)
        assert stopped.value.code == 128 + signal.SIGTERM
        assert not same(last(tmp_path), last(whole))
        fit(images, tmp_path, *RANDOM, *RESUME)
    assert same(last(tmp_path), last(whole))
    expected = losses(whole)
    assert losses(tmp_path) == {step: expected[step] for step in losses(tmp_path)}
    assert len(expected) - len(losses(tmp_path)) <= 1  # the update that was interrupted may lack its row
    summaries = [list(csv.DictReader((run / "summary.csv").open())) for run in (tmp_path, whole)]
    assert [r["epoch"] for r in summaries[0]] == ["0", "1"]
    for key in ("eval_loss", "eval_top1", "eval_top1_ema", "lr"):
        assert [r[key] for r in summaries[0]] == [r[key] for r in summaries[1]]


def test_losses_are_not_all_the_same(whole):
    assert len(set(losses(whole).values())) == 12


def test_a_signal_that_comes_twice_at_once_is_one(images, tmp_path):
    """As where both a scheduler and torchrun tell a process."""
    with pytest.raises(Stopped):
        twice = callback("SignalAt", epoch=0, batch=2) + callback("SignalAt", epoch=0, batch=2, name="SIGINT")
        fit(images, tmp_path, *RANDOM, *twice)
    assert last(tmp_path)["global_step"] == 3


def test_stopping_waits_for_the_end_of_an_accumulation(images, tmp_path):
    more = [*RANDOM, "--trainer.accumulate_grad_batches", "3"]
    fit(images, tmp_path / "whole", *more)
    with pytest.raises(Stopped):
        fit(images, tmp_path / "stopped", *more, *callback("SignalAt", epoch=1, batch=0))
    assert last(tmp_path / "stopped")["global_step"] == 3
    fit(images, tmp_path / "stopped", *more, *RESUME)
    assert same(last(tmp_path / "stopped"), last(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_workers_change_nothing(whole, images, tmp_path, name):
    """Neither how many there are, nor what they had read ahead when all of them were asked to stop."""
    with pytest.raises(Stopped):
        stop = callback("SignalAt", epoch=1, batch=1, name=name)
        fit(images, tmp_path, *RANDOM, "--data.num_workers", "2", *stop)
    fit(images, tmp_path, *RANDOM, "--data.num_workers", "1", *RESUME)
    assert same(last(tmp_path), last(whole))


@pytest.mark.parametrize(
    "more",
    [
        ["--model.mixup_off_epoch", "1"],
        ["--model.head_only", "true", "--model.name", "test_resnet_dcls", "--model.model_kwargs", "{}"],
    ],
    ids=["mixup_off", "head_only"],
)
def test_what_an_epoch_begins_with_holds_after_a_stop_within_it(images, tmp_path, more):
    fit(images, tmp_path / "whole", *RANDOM, *more)
    with pytest.raises(Stopped):
        fit(images, tmp_path / "stopped", *RANDOM, *more, *callback("SignalAt", epoch=1, batch=2))
    fit(images, tmp_path / "stopped", *RANDOM, *more, *RESUME)
    assert same(last(tmp_path / "stopped"), last(tmp_path / "whole"))


def test_killed_while_writing_a_checkpoint_the_one_before_is_used(whole, images, tmp_path):
    often = [*RANDOM, "--keep_last.every_n_updates", "2"]
    child = in_child(fit, images, tmp_path, *often, *callback("DieWhileSaving", nth=3))
    child.join(250)
    assert child.exitcode == -signal.SIGKILL
    assert last(tmp_path)["global_step"] == 4
    fit(images, tmp_path, *often, *RESUME)
    assert same(last(tmp_path), last(whole))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_training_that_fails_in_validation_does_not_wait_for_its_workers(images, tmp_path):
    """Those of the training are idle then, ignore SIGTERM, and are nobody's whom Lightning tells to end."""
    more = [*RANDOM, "--data.num_workers", "1", *callback("Kill", moment="validation", epoch=0)]
    child = in_child(fit, images, tmp_path, *more)
    child.join(100)
    assert child.exitcode == 1


def test_an_epoch_that_was_cut_short_is_over(images, tmp_path):
    more = [*RANDOM, "--trainer.limit_train_batches", "4"]
    fit(images, tmp_path / "whole", *more)
    child = in_child(
        fit, images, tmp_path / "killed", *more, *callback("DieWhileSaving", nth=3)
    )  # the first is of best.ckpt
    child.join(250)
    assert last(tmp_path / "killed")["global_step"] == 4
    fit(images, tmp_path / "killed", *more, *RESUME)
    assert same(last(tmp_path / "killed"), last(tmp_path / "whole"))


def test_the_last_checkpoint_is_found_or_it_is_an_error(images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*last\.ckpt"):
        fit(images, tmp_path, *RANDOM, *RESUME)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*other\.ckpt"):
        fit(images, tmp_path, *RANDOM, "--ckpt_path", str(tmp_path / "other.ckpt"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [(callback("Kill", moment="batch", epoch=2, batch=0), Killed), (["--model.lr", "-1"], ValueError)],
    ids=["in the first update", "before it"],
)
def test_going_on_with_what_does_not_work_leaves_the_run_as_it_was(whole, images, tmp_path, flags, wrong):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(wrong):
        fit(images, tmp_path, *RANDOM, *flags, "--trainer.max_epochs", "3", *RESUME)
    assert contents(tmp_path) == before


def test_going_on_as_the_last_line_of_a_training_says_keeps_its_metrics(whole, images, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    config = tmp_path / "run" / "logs" / "config.yaml"
    rows = (tmp_path / "run" / "logs" / "metrics.csv").read_bytes()
    command = ["fit", "--config", str(config), *RESUME, "--trainer.max_epochs", "3"]
    main([*command, "--trainer.default_root_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "logs" / "metrics.until_resumed_1.csv").read_bytes() == rows
    new = list(csv.DictReader((tmp_path / "run" / "logs" / "metrics.csv").open()))
    assert {row["epoch"] for row in new} == {"2"}, "in the run's own folder, not in that of the config"


def test_the_checkpoint_of_an_earlier_run_is_named(whole, images, tmp_path):
    shutil.copytree(whole, tmp_path / "earlier_1")
    with pytest.raises(FileNotFoundError, match=r"there are .*earlier_1.checkpoints.last\.ckpt"):
        fit(images, tmp_path, *RANDOM, *RESUME)


def test_a_finished_training_can_be_made_longer(whole, images, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    fit(images, tmp_path, *RANDOM, "--trainer.max_epochs", "3", *RESUME)
    assert last(tmp_path)["global_step"] == 18
    assert not same(last(tmp_path), last(whole))
    assert last(tmp_path)["lr_schedulers"][0]["t_initial"] == 18
    rows = csv.DictReader((tmp_path / "logs" / "metrics.csv").open())
    assert max(float(row["lr"] or 0) for row in rows) > 1e-4, "the schedule is that of three epochs, not over"


def written(path):
    return path.stat().st_mtime_ns if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_random_kills_change_nothing(images, tmp_path):
    """SIGKILL and SIGTERM in turns, at random moments after it has come a little further."""
    long = [*RANDOM, "--trainer.max_epochs", "20", "--keep_last.every_n_updates", "3"]
    fit(images, tmp_path / "whole", *long)
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    moments = random.Random(0)
    for kill in range(10):
        before = written(checkpoint)
        resume = RESUME if before else []
        child = in_child(fit, images, tmp_path / "killed", *long, *resume)
        while written(checkpoint) == before and child.is_alive():
            time.sleep(0.01)
        child.join(moments.uniform(0, 0.3))
        assert child.exitcode is None, "it is not over yet"
        (child.terminate if kill % 2 else child.kill)()
        child.join()
        assert child.exitcode in (-signal.SIGKILL, 128 + signal.SIGTERM)
    fit(images, tmp_path / "killed", *long, *RESUME)
    one, other = last(tmp_path / "killed"), last(tmp_path / "whole")
    assert same(one, other)
    assert one["global_step"] == other["global_step"] == 120
    assert torch.isfinite(next(iter(one["state_dict"].values()))).all()
