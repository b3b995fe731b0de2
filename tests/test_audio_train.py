"""Training on sounds: the authors' augmentation, data of every form, exact resume, every recipe."""

import csv
import math
from pathlib import Path

import datasets
import h5py
import numpy as np
import pyarrow
import pytest
import soundfile
import torch
import yaml
from pyarrow import parquet
from sklearn.metrics import average_precision_score

from dcls_models import CheckpointError
from dcls_models.loading import load_model
from hub.export import export_checkpoint
from tests.audio_files import RATE, TINY, fit, write_sounds
from tests.training import callback, last, same, save_dense
from train.audio.augment import Perturbation, erased, mixed, placed, smoothed, stretched
from train.audio.command import main
from train.audio.metrics import Tagging
from train.launch import run
from train.signals import Stopped

CONFIGS = Path(__file__).parent.parent / "configs" / "audio"
RANDOM = ["--model.ema_decay", "0.9", "--model.lr", "1e-3", "--trainer.max_epochs", "2"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def whole(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    fit(sounds, run, *RANDOM, "--report.pictures", "true")
    return run


class TestAugmentation:
    def test_stretched_is_nearest_samples(self) -> None:
        waveform = torch.arange(10.0)
        assert stretched(waveform, 1.0).tolist() == waveform.tolist()
        assert stretched(waveform, 0.5).tolist() == [0, 2, 4, 6, 8]
        assert len(stretched(waveform, 1.5)) == 15
        assert set(stretched(waveform, 1.5).tolist()) == set(waveform.tolist())

    def test_placed_crops_or_pads_at_random(self) -> None:
        waveform = torch.arange(1.0, 7.0)
        starts = {placed(waveform, 4)[0].item() for _ in range(60)}
        assert starts == {1, 2, 3}
        padded = [placed(waveform, 8) for _ in range(60)]
        assert all(p.sum() == waveform.sum() and len(p) == 8 for p in padded)
        assert {p.argmax().item() for p in padded} == {5, 6, 7}

    def test_roll_is_circular_and_keeps_the_length(self) -> None:
        waveform = torch.arange(50.0)
        rolled = Perturbation(roll=True, speed_prob=0.0, speed=(0.5, 1.5))(waveform)
        assert sorted(rolled.tolist()) == waveform.tolist()
        assert rolled.tolist() != waveform.tolist()
        assert torch.equal(Perturbation(False, 0.0, (0.5, 1.5))(waveform), waveform)
        changed = [Perturbation(True, 1.0, (0.5, 1.5))(waveform) for _ in range(20)]
        assert {len(c) for c in changed} == {50}

    def test_a_tone_gets_longer_and_lower(self) -> None:
        tone = torch.sin(2 * math.pi * 1000 * torch.arange(RATE) / RATE)
        spectrum = torch.fft.rfft(stretched(tone, 1.25)).abs()
        assert spectrum.argmax() == 1000  # as many periods, in 1.25 s: 800 Hz

    def test_one_box_of_the_linear_spectrogram_is_zero(self) -> None:
        power = torch.ones(40, 129, 51)
        untouched = erased(power.clone(), 0.0)
        assert torch.equal(untouched, power)
        found = erased(power.clone(), 1.0)
        for spectrogram in found:
            gone = spectrogram == 0
            rows, columns = gone.any(1), gone.any(0)
            assert 0.015 < gone.float().mean() < 0.34
            assert gone[rows][:, columns].all()
            assert gone.sum() == rows.sum() * columns.sum()
        shares = (erased(power.clone(), 0.25) == 0).flatten(1).any(1)
        assert 0 < shares.sum() < 25

    def test_targets_are_smoothed_then_mixed(self) -> None:
        targets = torch.eye(4)
        soft = smoothed(targets, 0.1)
        assert torch.allclose(soft, 0.9 * targets + 0.1 / 4)
        spectrograms = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
        np.random.seed(1)
        share = np.random.beta(0.8, 0.8)
        np.random.seed(1)
        x, y = mixed(spectrograms, soft, 0.8)
        partners = ((x[:, 0, 0, 0] - share * torch.arange(4.0)) / (1 - share)).round().long()
        assert sorted(partners.tolist()) == [0, 1, 2, 3]
        assert torch.allclose(y, share * soft + (1 - share) * soft[partners])


class TestMetric:
    def test_is_scikit_learns(self) -> None:
        logits, targets = 300 * torch.randn(200, 6), (torch.rand(200, 6) < 0.3).float()
        metric = Tagging(one_label=False)
        for part in range(4):
            metric.update(logits[part * 50 : part * 50 + 50], targets[part * 50 : part * 50 + 50])
        expected = 100 * average_precision_score(targets.numpy(), logits.numpy())
        assert metric.compute()["map"] == pytest.approx(expected, abs=1e-9)

    def test_top1_where_there_is_one_label(self) -> None:
        metric = Tagging(one_label=True)
        metric.update(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        assert metric.compute()["top1"] == 50.0

    def test_of_nothing(self) -> None:
        assert Tagging(one_label=True).compute() == {}


class TestResume:
    @pytest.mark.parametrize(
        ("epoch", "batch", "stage"), [(0, 1, "train"), (0, 0, "val"), (0, 3, "train"), (1, 2, "train")]
    )
    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_a_stopped_training_goes_on_exactly(
        self, whole: Path, sounds: Path, tmp_path: Path, epoch: int, batch: int, stage: str, workers: str
    ) -> None:
        stop = callback("SignalAt", epoch=epoch, batch=batch, stage=stage)
        more = [*RANDOM, "--data.num_workers", workers]
        with pytest.raises(Stopped):
            fit(sounds, tmp_path, *more, *stop)
        assert not same(last(tmp_path), last(whole))
        fit(sounds, tmp_path, *more, "--ckpt_path", "last")
        assert same(last(tmp_path), last(whole))

    def test_other_spectrograms_or_classes_are_refused(
        self, whole: Path, sounds: Path, tmp_path: Path
    ) -> None:
        resume = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]
        with pytest.raises(CheckpointError, match=r"for other spectrograms \(front_end\)"):
            fit(sounds, tmp_path, *RANDOM, *resume, "--data.front_end.hop", "40")
        other = write_sounds(tmp_path / "others", classes=2)
        (other / "tone_0").rename(other / "bell")
        with pytest.raises(CheckpointError, match="for other classes"):
            fit(other, tmp_path / "run", *RANDOM, *resume)

    def test_two_processes_measure_what_one_measures(self, sounds: Path, tmp_path: Path) -> None:
        plain = ["--model.mixup", "0", "--model.erase_prob", "0", "--trainer.max_epochs", "1"]
        fit(sounds, tmp_path / "one", *plain)
        two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.batch_size", "2"]
        fit(sounds, tmp_path / "two", *plain, *two)
        one, other = (rows(tmp_path / name)[0] for name in ("one", "two"))
        assert one["eval_top1"] == other["eval_top1"]
        for key in ("eval_map", "eval_loss"):
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-3)


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "summary.csv").open()))


class TestRun:
    def test_leaves_a_summary_and_pictures(self, whole: Path) -> None:
        assert [r["epoch"] for r in rows(whole)] == ["0", "1"]
        assert {"eval_map", "eval_top1", "eval_map_ema"} <= rows(whole)[0].keys()
        for picture in ("curves.png", "predictions_val.png"):
            assert (whole / picture).stat().st_size > 5000

    def test_starts_from_a_dense_model_of_images(self, sounds: Path, tmp_path: Path) -> None:
        dense = save_dense(tmp_path / "dense", classes=5)
        flags = ["--model.model_kwargs", "{}", "--model.warm_start", dense, "--trainer.max_epochs", "1"]
        fit(sounds, tmp_path / "run", *flags)
        assert last(tmp_path / "run")["state_dict"]["model.stem.0.weight"].shape[1] == 1

    @pytest.mark.parametrize("options", [{}, {"onnx": True}])
    def test_is_exported_and_comes_back(self, whole: Path, tmp_path: Path, options: dict[str, bool]) -> None:
        checkpoint = whole / "checkpoints" / "last.ckpt"
        model = load_model(checkpoint=checkpoint)
        export_checkpoint(checkpoint, tmp_path / "out", **options)
        found = load_model(f"local-dir:{tmp_path / 'out'}")
        assert found.front_end.settings == model.front_end.settings
        assert found.front_end.settings["sample_rate"] == RATE
        assert found.pretrained_cfg["input_size"] == (1, 32, 51)
        waveforms = torch.randn(3, RATE // 2)
        with torch.no_grad():
            expected = model(model.front_end(waveforms))
            assert torch.equal(found(found.front_end(waveforms)), expected)

    def test_learns(self, tmp_path: Path) -> None:
        root = write_sounds(tmp_path / "sounds", count=40)
        easy = ["--model.mixup", "0", "--model.label_smoothing", "0", "--model.erase_prob", "0"]
        easy += ["--data.speed_prob", "0", "--model.lr", "5e-3", "--trainer.max_epochs", "6"]
        fit(root, tmp_path / "run", *easy, "--model.model_kwargs", "{ls_init_value: 1.0}")
        assert float(rows(tmp_path / "run")[-1]["eval_top1"]) == 100.0

    def test_validates_a_checkpoint(
        self, whole: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        where = ["--data.root", str(sounds), "--trainer.default_root_dir", str(whole), "--ckpt_path", "last"]
        main(["validate", *TINY, *RANDOM[:2], *where])
        assert "val/map" in capsys.readouterr().out


class TestData:
    def test_unreadable_sounds_are_left_out_and_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = write_sounds(tmp_path / "sounds")
        for i in (1, 3, 5):
            (root / "tone_0" / f"{i}.wav").write_bytes(b"")
        fit(root, tmp_path / "run", "--trainer.max_epochs", "1")
        assert "sounds could not be read: " in caplog.text
        assert "it is empty (0 bytes)" in caplog.text

    def test_train_and_val_folders_of_other_rates(self, tmp_path: Path) -> None:
        write_sounds(tmp_path / "train", rate=16000, seconds=0.3)
        write_sounds(tmp_path / "val", rate=11025, count=2, seconds=1.0)
        fit(tmp_path, tmp_path / "run", "--trainer.max_epochs", "1")
        assert last(tmp_path / "run")["global_step"] == 5

    def test_audioset_and_panns(self, tmp_path: Path) -> None:
        root = write_sounds(tmp_path / "files", count=6)
        files = sorted(root.rglob("*.wav"))
        table = [
            ["index", "mid", "display_name"],
            [0, "/m/a", "Low, tone"],
            [1, "/m/b", "High"],
            [2, "/m/c", "No"],
        ]
        for file in files:
            file.rename(file.with_stem(f"{file.parent.name}_{file.stem}xxx"))
        with (tmp_path / "class_labels_indices.csv").open("w", newline="") as out:
            csv.writer(out).writerows(table)
        names = sorted(file.stem for file in root.rglob("*.wav"))
        lines = [f'{n}, 0.0, 10.0, "/m/{"a" if "tone_0" in n else "b"}"\n' for n in names]
        (tmp_path / "train.csv").write_text("# a\n# b\n# c\n" + "".join(lines))
        both = ["--data.train", str(tmp_path / "train.csv"), "--data.val", str(tmp_path / "train.csv")]
        fit(root, tmp_path / "csv", *both, "--trainer.max_epochs", "1")
        assert last(tmp_path / "csv")["hyper_parameters"]["class_names"] == ["Low, tone", "High", "No"]
        with h5py.File(tmp_path / "train.h5", "w") as packed:
            packed["audio_name"] = np.array([n.encode() for n in names])
            packed["waveform"] = np.random.default_rng(0).integers(-999, 999, (12, 8000)).astype(np.int16)
            packed["target"] = np.eye(3, dtype=bool)[np.arange(12) % 3]
            packed.attrs["sample_rate"] = RATE
        files_of = f"[{tmp_path / 'train.h5'}, {tmp_path / 'train.h5'}]"
        more = ["--data.train", files_of, "--data.val", str(tmp_path / "train.h5"), "--data.num_workers", "1"]
        fit(root, tmp_path / "h5", *more, "--trainer.max_epochs", "1")
        assert last(tmp_path / "h5")["global_step"] == 6

    def test_a_data_set_of_the_hub(self, sounds: Path, tmp_path: Path) -> None:
        files = sorted(sounds.rglob("*.wav"))
        text = datasets.Value("string")
        features = datasets.Features({"sound": datasets.Audio(decode=False), "kind": text})
        columns = {
            "sound": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
            "kind": [file.parent.name for file in files],
        }
        rows = pyarrow.Table.from_pydict(columns, schema=features.arrow_schema)
        (tmp_path / "set").mkdir()
        for split in ("train", "test"):
            parquet.write_table(rows, tmp_path / "set" / f"{split}-00000-of-00001.parquet")
        flags = ["--data.dataset", f"hfds/{tmp_path / 'set'}", "--data.val_split", "test"]
        flags += ["--data.audio_column", "sound", "--data.label_column", "kind"]
        fit(tmp_path / "cache", tmp_path / "run", *flags, "--trainer.max_epochs", "1")
        assert last(tmp_path / "run")["hyper_parameters"]["class_names"] == ["tone_0", "tone_1"]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--data.root", "nowhere"], "data.root is not a folder: nowhere"),
            (["--data.seconds", "-1"], "data.seconds must be above 0, got -1"),
            (["--data.speed_prob", "2"], "data.speed_prob must be at least 0 and at most 1, got 2"),
            (["--model.label_smoothing", "1"], "model.label_smoothing must be at least 0 and below 1, got 1"),
            (["--data.train", "a.csv"], "give both data.train and data.val"),
            (["--data.dataset", "wds/"], "data.dataset is hfds/NAME, got 'wds/'"),
            (
                ["--data.front_end.high", "9000"],
                "half of the sample rate: got low=50, high=9000 Hz at 8000 Hz",
            ),
            (["--data.batch_size", "99"], "16 training sounds are less than one batch of 99"),
            (
                ["--data.seconds", "0.1"],
                "does not take spectrograms of 32 bands and 11 frames",
            ),
            (["--model.model_kwargs.in_chans", "3"], "or another model.model_kwargs"),
            (["--data.front_end.rate", "3"], "no settings of LogMel"),
        ],
    )
    def test_one_line_says_what_is_wrong(
        self, sounds: Path, tmp_path: Path, flags: list[str], message: str
    ) -> None:
        where = ["--data.root", str(sounds), "--trainer.default_root_dir", str(tmp_path)]
        with pytest.raises(SystemExit) as exited:
            run(["fit", *TINY, *where, *flags], command=main)
        assert message in str(exited.value.code)
        assert "\n" not in str(exited.value.code)

    def test_a_class_of_one_file_and_a_single_class(self, tmp_path: Path) -> None:
        root = write_sounds(tmp_path / "sounds", classes=1)
        with pytest.raises(ValueError, match="fewer than two classes"):
            fit(root, tmp_path / "run")
        soundfile.write(root / "one.wav", np.zeros(100), RATE)
        (root / "bell").mkdir()
        (root / "one.wav").rename(root / "bell" / "one.wav")
        with pytest.raises(ValueError, match=r"two files or more to be split, these have one: bell"):
            fit(root, tmp_path / "run")


class TestRecipes:
    @pytest.fixture(scope="class")
    def long(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_sounds(tmp_path_factory.mktemp("long"), seconds=1.4, rate=RATE)

    @pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
    def test_starts(self, recipe: Path, long: Path, tmp_path: Path) -> None:
        config = yaml.safe_load(recipe.read_text())
        small = {
            "convnext": "{depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}",
            "convformer": "{depths: [1, 1, 1, 1]}",
        }
        small["fastvit"] = "{layers: [1, 1, 1, 1]}"
        family = next((f for f in small if config["model"]["name"].startswith(f)), None)
        shrunk = {**config["model"].get("model_kwargs", {}), **yaml.safe_load(small.get(family, "{}"))}
        flags = ["--model.model_kwargs", yaml.safe_dump(shrunk, default_flow_style=True, width=9999).strip()]
        flags += ["--model.pretrained", "false"] if config["model"].get("pretrained") else []
        flags += ["--data.total_batch_size", "4"] if "total_batch_size" in config["data"] else []
        flags += ["--data.seconds", "1.3"] if config["data"]["seconds"] == 10 else []
        short = ["--trainer.max_epochs", "25", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
        where = ["--data.root", str(long), "--trainer.default_root_dir", str(tmp_path)]
        quiet = [*TINY[-10:], "--data.num_workers", "0", "--data.batch_size", "2"]
        main(["fit", "--config", str(recipe), *quiet, *short, *where, *flags])
        assert last(tmp_path)["global_step"] == 2
        saved = yaml.safe_load((tmp_path / "logs" / "config.yaml").read_text())
        for key in ("lr", "weight_decay", "warmup_epochs", "mixup", "label_smoothing", "erase_prob"):
            if key in config["model"]:
                assert saved["model"][key] == config["model"][key]

    @pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("audioset_*.yaml")), ids=lambda p: p.stem)
    def test_of_audioset_is_the_authors(self, recipe: Path) -> None:
        config = yaml.safe_load(recipe.read_text())
        model, data = config["model"], config["data"]
        assert (model["lr"], model["weight_decay"], model["warmup_epochs"]) == (4e-3, 0.05, 20)
        assert (model["mixup"], model["label_smoothing"], model["erase_prob"]) == (0.8, 0.1, 0.25)
        assert model["opt"] == ("lamb" if "convformer" in recipe.stem else "adamw")
        assert model["model_kwargs"]["drop_path_rate"] == 0.4
        assert (data["total_batch_size"], data["seconds"], data["speed"]) == (4096, 10.0, [0.5, 1.5])
        assert config["trainer"]["max_epochs"] == 60
