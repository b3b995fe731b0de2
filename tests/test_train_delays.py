"""python -m train.delays: it learns, goes on exactly, leaves pictures and a model, and says what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dcls_models.layers import narrowed
from dcls_models.spiking import DelayNet
from tests.test_spikes import write_events, write_wav
from tests.training import callback, last, same
from train.delays import study
from train.delays.command import main
from train.delays.data import SpikeData
from train.delays.module import SpikingClassifier, half_cosine, one_cycle
from train.delays.report import draw_raster
from train.launch import run
from train.signals import Stopped

CONFIGS = Path(__file__).parent.parent / "configs" / "delays"
QUIET = [
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
]
TINY = [*QUIET, "--model.hidden", "[12]", "--model.max_delay", "6", "--data.batch_size", "16"]
EPOCHS = ["--trainer.max_epochs", "2"]


def write_arrays(root, channels=6, classes=3, train=48, test=12, frames=20):
    """Class c fires its two channels with a lag of 2 c frames: only delays tell the classes apart."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        spikes = (random.random((count, channels, frames)) < 0.02).astype(np.uint8)
        for i, label in enumerate(labels):
            start = random.integers(0, frames - 2 * classes)
            spikes[i, 0, start] = spikes[i, 1, start + 2 * label] = 1
        names = np.array([f"lag {2 * c}" for c in range(classes)])
        np.savez(root / f"{split}.npz", spikes=spikes, labels=labels, class_names=names)
    return root


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("arrays"))


def fit(root, folder, *more, command="fit"):
    main([command, *TINY, "--data.root", str(root), "--trainer.default_root_dir", str(folder), *more])


@pytest.fixture(scope="module")
def whole(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit(arrays, folder, *EPOCHS)
    return folder


def test_what_a_run_leaves(whole):
    for name in ("delays.png", "raster.png", "curves.png", "logs/metrics.csv", "checkpoints/best.ckpt"):
        assert (whole / name).stat().st_size > 100
    config = json.loads((whole / "config.json").read_text())
    assert config["class_names"] == ["lag 0", "lag 2", "lag 4"]
    assert config["model"]["sizes"] == [6, 12, 3]
    saved = last(whole)["state_dict"]
    net = DelayNet.load(whole)
    assert all(torch.equal(value, saved[f"model.{key}"]) for key, value in net.state_dict().items())


def test_an_epoch_that_was_cut_short_has_no_point_on_the_curve_of_validation(arrays, tmp_path, capsys):
    fit(arrays, tmp_path, *EPOCHS, "--trainer.max_steps", "3", "--report.pictures", "false")
    said = capsys.readouterr().err
    assert "% (in epoch 1, 1 update before the end); the model is saved in" in said
    history = last(tmp_path)["callbacks"]["DelaysReport"]["history"]
    assert [("val/top1" in row, "train/top1" in row) for row in history] == [(True, True), (False, True)]


def test_the_raster_says_what_was_said_and_what_was_answered():
    net = DelayNet([6, 8, 3], 6).eval()
    with torch.no_grad():
        net.synapses[1].conv.weight.zero_()  # all classes alike: the first one is the answer
    figure = draw_raster(net, torch.ones(6, 20), 2, ["no", "$a_b$", "yes"])
    title = figure.get_suptitle()
    assert title.startswith('"yes", and the network answers "no" (wrong, score 33%)')
    assert [t.get_text() for t in figure.axes[-1].get_legend().get_texts()] == ["right: yes", "answered: no"]
    assert all(axis.get_ylabel() for axis in figure.axes) and figure.axes[-1].get_xlabel() == "time (frames)"


def test_sigma_is_a_function_of_the_epoch(whole):
    assert narrowed(1, 2, 3.0) == pytest.approx(0.23)
    assert last(whole)["state_dict"]["model.synapses.0.conv.sigma"].unique().tolist() == pytest.approx([0.23])


@pytest.mark.parametrize(("epoch", "batch", "stage"), [(1, 0, "train"), (0, 0, "val")])
def test_a_stopped_training_goes_on_exactly(whole, arrays, tmp_path, epoch, batch, stage):
    with pytest.raises(Stopped):
        fit(arrays, tmp_path, *EPOCHS, *callback("SignalAt", epoch=epoch, batch=batch, stage=stage))
    assert not same(last(tmp_path), last(whole))
    fit(arrays, tmp_path, *EPOCHS, "--ckpt_path", "last")
    assert same(last(tmp_path), last(whole))


def test_a_trained_model_is_tested(whole, arrays, capsys):
    fit(arrays, whole, "--ckpt_path", "last", command="test")
    assert "test/top1" in capsys.readouterr().out


def test_schedules_are_torchs():
    weights, positions = (torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr) for lr in (5e-3, 0.1))
    cycle = torch.optim.lr_scheduler.OneCycleLR(weights, 5e-3, total_steps=40)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(positions, 40)
    for (rate, beta), share in zip(one_cycle(40), half_cosine(40), strict=True):
        assert 5e-3 * rate == pytest.approx(weights.param_groups[0]["lr"])
        assert beta == pytest.approx(weights.param_groups[0]["betas"][0])
        assert 0.1 * share == pytest.approx(positions.param_groups[0]["lr"], abs=1e-12)
        for optimizer, schedule in ((weights, cycle), (positions, cosine)):
            optimizer.step(), schedule.step()
    assert 5e-3 * one_cycle(150)[0][0] == pytest.approx(2e-4)


def test_frozen_positions_stay_while_they_narrow(arrays, tmp_path):
    fit(arrays, tmp_path, *EPOCHS, "--model.positions_lr_scale", "0", "--report.pictures", "false")
    torch.manual_seed(0)
    state = last(tmp_path)["state_dict"]
    before = last(tmp_path)["callbacks"]["DelaysReport"]["before"]
    now = (3 - state["model.synapses.0.conv.positions"][0].round()).long()
    assert torch.equal(before[0], now)
    assert not (tmp_path / "delays.png").exists()


def write_heidelberg(root, name, *splits):
    """Files as SHD's and SSC's: 20 words, all with a pause of 0.2 s."""
    times = np.concatenate((np.linspace(0, 0.3, 30), np.linspace(0.5, 0.8, 30)))
    recordings = [(times, np.arange(60) * 10)] * 20
    for split in splits:
        write_events(root / f"{name}_{split}.h5", recordings, np.array([0, 1] * 10, np.uint16), ["a", "b"])


@pytest.mark.parametrize(("binning", "frames"), [("grid", 80), ("events", 60)])
def test_heidelberg_sets_are_split_and_binned(tmp_path, caplog, binning, frames):
    write_heidelberg(tmp_path, "shd", "train", "test")
    data = SpikeData(str(tmp_path), binning=binning)
    assert [len(data.train_set), len(data.val_set), len(data.test_set)] == [18, 2, 20]
    counts = data.train_set[0][0]
    assert len(counts) == 140 and counts.sum() == 60 and counts.shape[1] == pytest.approx(frames, abs=2)
    assert "on the test set" not in caplog.text
    data = SpikeData(str(tmp_path), val="test", binning=binning)
    assert len(data.train_set) == 20 and data.val_set is data.test_set
    assert "validating on the test set, as the authors" in caplog.text
    write_heidelberg(tmp_path, "ssc", "valid")
    data = SpikeData(str(tmp_path), binning=binning)
    assert len(data.train_set) == len(data.val_set) == 20
    assert data.val_set.source.path.name == "ssc_valid.h5"


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        *(pytest.param(path, [], id=path.stem) for path in sorted(CONFIGS.glob("*.yaml"))),
        (CONFIGS / "shd.yaml", ["--data.binning", "events", "--data.val", "test"]),
    ],
)
def test_recipe_starts(recipe, more, tmp_path):
    """Its own file, the form of its data, small layers."""
    if recipe.stem in ("shd", "ssc"):
        write_heidelberg(tmp_path, recipe.stem, "train", "test", *["valid"] * (recipe.stem == "ssc"))
    elif recipe.stem == "gsc":
        for name in ("no", "yes"):
            (tmp_path / name).mkdir()
            for i in range(6):
                write_wav(tmp_path / name / f"{i}.wav", torch.rand(8000) - 0.5, 8000)
        (tmp_path / "validation_list.txt").write_text("no/4.wav\nyes/4.wav\n")
        (tmp_path / "testing_list.txt").write_text("no/5.wav\nyes/5.wav\n")
    else:
        write_arrays(tmp_path, channels=40, frames=80)
    small = ["--model.hidden", "[8]", "--data.batch_size", "4", "--data.num_workers", "0", *QUIET]
    short = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--report.pictures", "false"]
    where = ["--data.root", str(tmp_path), "--trainer.default_root_dir", str(tmp_path / "run")]
    main(["fit", "--config", str(recipe), *small, *short, *where, *more])
    assert last(tmp_path / "run")["global_step"] == 2
    model = yaml.safe_load(recipe.read_text())["model"]
    assert last(tmp_path / "run")["hyper_parameters"]["tau"] == model["tau"]


class TestErrors:
    def said(self, capsys, *args):
        with pytest.raises(SystemExit) as exited:
            run([*args], command=main)
        return str(exited.value.code) + capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--model.max_delay", "0"], "max_delay must be an even number of frames"),
            (["--model.max_delay", "40"], "model.max_delay is 40 frames, but the recordings"),
            (["--data.frames", "10"], "a recording has 20 frames, more than data.frames 10"),
            (["--data.batch_size", "100"], "less than one batch of 100"),
            (["--model.dropout", "1"], "model.dropout must be at least 0 and below 1"),
            (["--data.val_share", "0"], "data.val_share must be above 0 and below 1"),
            (["--narrow.until", "2"], "narrow.until from 0 to 1"),
        ],
    )
    def test_options(self, arrays, tmp_path, capsys, flags, message):
        where = ["--data.root", str(arrays), "--trainer.default_root_dir", str(tmp_path)]
        assert message in self.said(capsys, "fit", *TINY, *where, *EPOCHS, *flags)

    def test_data_that_are_not_there(self, tmp_path, capsys):
        where = ["--data.root", str(tmp_path), "--trainer.default_root_dir", str(tmp_path)]
        assert "there is no train.npz, train.h5" in self.said(capsys, "fit", *TINY, *where)

    def test_splits_that_differ(self, tmp_path, capsys):
        write_arrays(tmp_path)
        np.savez(tmp_path / "val.npz", spikes=np.zeros((2, 5, 9), dtype=np.uint8), labels=[0, 1])
        where = ["--data.root", str(tmp_path), "--trainer.default_root_dir", str(tmp_path)]
        assert "has 5 channels, the training set 6" in self.said(capsys, "fit", *TINY, *where)

    def test_labels_that_the_training_does_not_know(self, tmp_path, capsys):
        write_arrays(tmp_path)
        for split in ("train", "test"):
            with np.load(tmp_path / f"{split}.npz") as data:
                labels = data["labels"] + (split == "test")
                np.savez(tmp_path / f"{split}.npz", spikes=data["spikes"], labels=labels)
        where = ["--data.root", str(tmp_path), "--trainer.default_root_dir", str(tmp_path)]
        error = self.said(capsys, "fit", *TINY, *where)
        assert "test.npz [2] has label 3, but the labels of the training set end at 2" in error

    def test_one_class(self, tmp_path):
        np.savez(tmp_path / "train.npz", spikes=np.ones((9, 5, 9)), labels=np.zeros(9, dtype=int))
        with pytest.raises(ValueError, match=r"train.npz \[0\] and all others are of one class"):
            SpikeData(str(tmp_path))

    def test_another_models_checkpoint(self, whole, arrays, tmp_path, capsys):
        where = [
            "--data.root",
            str(arrays),
            "--trainer.default_root_dir",
            str(whole),
            "--model.hidden",
            "[13]",
        ]
        error = self.said(capsys, "fit", *TINY, *where, "--model.hidden", "[13]", "--ckpt_path", "last")
        assert "does not fit the model that is configured" in error


class TestStudy:
    def test_the_docs_say_what_was_measured(self):
        docs = CONFIGS.parent.parent / "docs"
        content = json.loads((docs / "delays_study.json").read_text())
        assert {run["epochs"] for run in content["runs"]} == {40}
        assert study.summary(content["runs"]) == content["results"]
        assert study.markdown(content["results"]) in (docs / "delays.md").read_text()

    def test_numbers_are_equal_where_they_should_be(self):
        table = {name: study.numbers(name) for name in study.CONDITIONS}
        assert {row["synapses"] for name, row in table.items() if "wide" not in name} == {5184}
        assert table["learned delays"]["trained"] == 10368
        assert table["fixed delays, wide"]["trained"] == table["no delays, wide"]["trained"] == 10336
        assert table["narrowing, frozen"]["trained"] == 5184

    def test_it_goes_on_where_it_was(self, tmp_path, monkeypatch, capsys):
        speech = tmp_path / "speech"
        speech.mkdir()
        write_arrays(speech, channels=40, train=128, frames=40)
        np.savez(speech / "val.npz", spikes=np.zeros((1, 40, 40)), labels=[0])
        two = {k: study.CONDITIONS[k] for k in ("no delays", "learned delays")}
        monkeypatch.setattr(study, "CONDITIONS", two)
        study.main(["--out", str(tmp_path), "--seeds", "1", "--epochs", "1"])
        assert capsys.readouterr().out.count("seed 0") == 2
        study.main(["--out", str(tmp_path), "--seeds", "2", "--epochs", "1"])
        assert capsys.readouterr().out.count("seed 1") == 2
        content = json.loads((tmp_path / "delays_study.json").read_text())
        assert content["task"] == "delays_study" and len(content["runs"]) == 4
        assert content["results"]["learned delays"]["seeds"] == [0, 1]
        assert (tmp_path / "delays_study.png").stat().st_size > 1000


@pytest.mark.slow
def test_delays_are_worth_it(tmp_path):
    """Wide margins, seed 0: measured in docs/delays_study.json."""
    pytest.importorskip("espeakng_loader")
    from train.delays.data import spoken_digits

    root = spoken_digits(tmp_path)
    top1 = {name: study.train_one(name, 0, root, 40)["top1"] for name in list(study.CONDITIONS)[:3]}
    assert top1["learned delays"] - top1["no delays"] >= 10
    assert top1["fixed delays"] - top1["no delays"] >= 5


def test_a_classifier_scores_recordings():
    module = SpikingClassifier(inputs=6, num_classes=3, hidden=[8], max_delay=6)
    assert module(torch.zeros(2, 6, 20)).shape == (2, 3)
