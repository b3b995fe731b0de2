"""The folder of a run: an earlier run stays until a new one begins; what is in the way is named."""

import csv
import re
from pathlib import Path

import pytest

from tests import audio_files, test_train_delays, training
from tests.test_train_exact import DENSE, FLAGS
from tests.training import Killed, callback, contents, write_images
from train.audio.command import main as tag
from train.command import main as classify
from train.delays.command import main as spike
from train.dense import detection, segmentation
from train.report import add_row
from train.run_folder import put_aside

EARLIER = (
    *("checkpoints/last.ckpt", "logs/metrics.csv", "logs/config.yaml", "tensorboard/events.out.tfevents.1"),
    *("summary.csv", "results.json", "curves.png", "model.safetensors", "positions.gif"),
)
ONE = ["--trainer.max_epochs", "1"]


def write_earlier(folder: Path) -> dict[str, bytes]:
    """What an earlier run has left."""
    for name in EARLIER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"epoch,of an earlier run\n0,{name}\n")
    return contents(folder)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """What each command needs to train a little."""
    images = write_images(tmp_path_factory.mktemp("images"))
    sounds = audio_files.write_sounds(tmp_path_factory.mktemp("sounds"))
    arrays = test_train_delays.write_arrays(tmp_path_factory.mktemp("arrays"))
    return {
        classify: [*training.TINY, *training.SMALL_DATA, "--data.root", str(images)],
        segmentation.main: [*FLAGS[segmentation.main], *DENSE],
        detection.main: [*FLAGS[detection.main], *DENSE],
        tag: [*audio_files.TINY, "--data.root", str(sounds)],
        spike: [*test_train_delays.TINY, "--data.root", str(arrays)],
    }


COMMANDS = pytest.mark.parametrize(
    "command", [classify, segmentation.main, detection.main, tag, spike], ids=lambda main: main.__module__
)


@COMMANDS
def test_a_training_that_fails_in_its_first_update_leaves_all_as_it_was(command, flags, tmp_path):
    before = write_earlier(tmp_path / "earlier")
    fail = callback("Kill", moment="batch", epoch=0, batch=0)
    for name in ("earlier", "new"):
        with pytest.raises(Killed):
            where = ["--trainer.default_root_dir", str(tmp_path / name)]
            command(["fit", *flags[command], *ONE, *where, *fail])
    assert contents(tmp_path / "earlier") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "wrong", [["--model.opt", "foo"], ["--data.batch_size", "999"], ["--trainer.max_epochs", "0"]]
)
def test_so_does_one_that_cannot_begin(wrong, flags, tmp_path):
    before = write_earlier(tmp_path)
    start = ["fit", *flags[classify], *ONE, "--trainer.default_root_dir", str(tmp_path)]
    if "0" in wrong:
        classify([*start, *wrong])
    else:
        with pytest.raises(ValueError, match=r"model\.opt|data\.batch_size"):
            classify([*start, *wrong])
    assert contents(tmp_path) == before


def test_an_earlier_run_is_aside_as_a_whole(flags, tmp_path):
    before = write_earlier(tmp_path)
    classify(["fit", *flags[classify], *ONE, "--trainer.default_root_dir", str(tmp_path)])
    assert contents(tmp_path / "earlier_1") == before
    for file in EARLIER[:5]:
        if not file.startswith("tensorboard"):
            assert b"of an earlier run" not in (tmp_path / file).read_bytes()
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1


@pytest.mark.parametrize("moved", [1, 3, 7])
def test_an_earlier_run_stays_in_one_place_whenever_its_moving_is_killed(moved, tmp_path, monkeypatch):
    before, left = write_earlier(tmp_path), iter(range(moved))
    rename = Path.rename

    def killed(self, target):
        if next(left, None) is None:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", killed)
        put_aside(tmp_path)
    put_aside(tmp_path)
    assert contents(tmp_path) == {f"earlier_1/{name}": content for name, content in before.items()}


def test_an_earlier_run_that_has_only_its_best_checkpoint_is_put_aside_as_well(flags, tmp_path):
    write_earlier(tmp_path)
    best = (tmp_path / "checkpoints" / "last.ckpt").rename(tmp_path / "checkpoints" / "best.ckpt")
    start = ["fit", *flags[classify], *ONE, "--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match=re.escape(f"last.ckpt (there are {best})")):
        classify([*start, "--ckpt_path", "last"])
    classify(start)
    assert (tmp_path / "earlier_1" / "checkpoints" / "best.ckpt").read_bytes().startswith(b"epoch,of an ear")


def test_what_a_killed_process_was_writing_is_gone_with_the_next_training(flags, tmp_path):
    parts = ("checkpoints/.last.ckpt.7.part", "logs/.config.yaml.7.part", ".positions.gif.7.part.gif")
    for part in (*parts, ".results.json.7.part", ".somebody.elses.part"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).touch()
    classify(["fit", *flags[classify], *ONE, "--trainer.default_root_dir", str(tmp_path)])
    assert [p.name for p in tmp_path.rglob(".*")] == [".somebody.elses.part"]


@pytest.mark.parametrize("summary", ["", "epoch,train_l", "epoch,loss\n0,1.2\n,,\n1,2,3,4\nfoo,7\n", "\0\0"])
def test_a_summary_that_is_damaged_costs_no_epoch(summary, tmp_path):
    (tmp_path / "summary.csv").write_text(summary)
    for epoch in (1, 2):
        add_row(tmp_path / "summary.csv", {"epoch": epoch, "loss": 0.5})
    rows = [["0", "1.2"]] * ("1.2" in summary) + [["1", "0.5"], ["2", "0.5"]]
    assert list(csv.reader((tmp_path / "summary.csv").open())) == [["epoch", "loss"], *rows]


def test_a_training_that_goes_on_in_the_folder_of_another_run_puts_it_aside(flags, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    start = ["fit", *flags[classify], "--trainer.default_root_dir"]
    classify([*start, str(one), *ONE])
    before = write_earlier(other)
    last = ["--ckpt_path", str(one / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "2"]
    classify([*start, str(other), *last])
    assert contents(other / "earlier_1") == before
    assert (other / "checkpoints" / "last.ckpt").stat().st_size > 100
    assert (other / "summary.csv").read_text().count("\n") == 2  # its head and the epoch that was added


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("logs", "file", "folder"),
        ("checkpoints", "file", "folder"),
        ("tensorboard", "link to nothing", "folder"),
        ("summary.csv", "folder", "file"),
        ("results.json", "folder", "file"),
        ("confusion.png", "folder", "file"),
        ("logs/metrics.csv", "folder", "file"),
        ("checkpoints/last.ckpt", "folder", "file"),
        (".", "file", "folder"),
        (".", "link to nothing", "folder"),
    ],
)
def test_what_is_in_the_way_is_named(name, kind, wanted, flags, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=rf"{path.name} is a {kind}, but a training has a {wanted} there"):
        classify(["fit", *flags[classify], *ONE, "--trainer.default_root_dir", str(tmp_path / "run")])


def test_a_list_of_predictions_that_cannot_be_written_is_refused_first(flags, tmp_path):
    where = ["--trainer.default_root_dir", str(tmp_path)]
    classify(["fit", *flags[classify], *ONE, *where])
    (tmp_path / "predictions.csv").mkdir()
    predict = ["--ckpt_path", "last", "--data.predict_root", str(tmp_path)]
    with pytest.raises(ValueError, match=r"list of predictions must be a file, got the folder"):
        classify(["predict", *flags[classify], *where, *predict])
