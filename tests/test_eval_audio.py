"""How well sounds are tagged: scikit-learn's numbers, exact over processes and kills, from every source."""

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow
import pytest
import soundfile
import timm
import torch
from pyarrow import parquet
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from dcls_models import LogMel
from dcls_models.loading import takes_sounds
from dcls_models.sounds import Clips, open_folder
from eval.audio.metrics import Tags, per_class, summary
from eval.audio.predict import predict
from eval.audio.tagging import tag
from eval.cli import main
from eval.report import read_results, write_report
from hub.card import write_card
from hub.export import export
from tests.audio_files import RATE, fit, write_sounds

ROOT = Path(__file__).parent.parent
NAMES = ["tone_0", "tone_1", "tone_2"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"), classes=3, count=5)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(1)
    cfg = {"input_size": (1, 32, 51), "label_names": NAMES, "mean": (-18.0,), "std": (30.0,)}
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3, "in_chans": 1}
    model = timm.create_model(
        "test_convnext_dcls", pretrained_cfg_overlay=cfg, ls_init_value=1.0, **small
    ).eval()
    model.head.fc.weight.data.normal_(std=20.0)
    model.front_end = LogMel(RATE, 256, 80, 32, 50.0, 3900.0, -18.0, 30.0, 0.5)
    return model


@pytest.fixture(scope="module")
def name(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "out"
    export(model, folder)
    return f"local-dir:{folder}"


def evaluate(output: Path, name: str, *more: Any) -> dict[str, Any]:
    flags = ["--device", "cpu", "--workers", "0", "--batch-size", "4", "--output", str(output)]
    main(["audio", "--model", name, *flags, *map(str, more)])
    return json.loads(output.read_text())


class TestNumbers:
    def tags(self, logits: torch.Tensor, targets: torch.Tensor) -> Tags:
        return Tags(torch.arange(len(logits)), targets, logits, torch.ones(len(logits), dtype=torch.bool))

    @pytest.mark.parametrize("scale", [1.0, 300.0])
    def test_are_scikit_learns_also_of_large_logits(self, scale: float) -> None:
        logits, targets = scale * torch.randn(300, 8) + scale, torch.rand(300, 8) < 0.2
        rows = per_class(targets.numpy(), logits.numpy())
        found = summary(self.tags(logits, targets), rows, one_label=False)
        expected = average_precision_score(targets.numpy(), logits.numpy())
        assert found["map"] == pytest.approx(100 * expected, abs=1e-4)
        areas = roc_auc_score(targets.numpy(), logits.numpy(), average=None)
        assert found["auc"] == pytest.approx(areas.mean(), abs=1e-6)
        assert found["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(areas).mean(), abs=1e-4)
        assert "top1" not in found
        saturated = average_precision_score(targets.numpy(), logits.sigmoid().numpy())
        assert (abs(saturated - expected) > 1e-3) == (scale > 1)  # why logits are ranked

    def test_a_class_without_sounds_counts_zero_and_is_told(self) -> None:
        targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]]).bool()
        logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [1.0, 3.0, 0]])
        rows = per_class(targets.numpy(), logits.numpy())
        found = summary(self.tags(logits, targets), rows, one_label=True)
        assert found["map"] == round(100 * (1 + 0.5 + 0) / 3, 4)
        assert found["map_present"] == 75.0
        assert (found["classes_without_sounds"], found["n"]) == (1, 3)
        assert found["top1"] == round(200 / 3, 4)
        assert found["d_prime"] is None  # an area is 1


class TestCommand:
    def test_a_folder(self, model: torch.nn.Module, name: str, sounds: Path, tmp_path: Path) -> None:
        tables = ["--per-class", tmp_path / "classes.csv", "--predictions", tmp_path / "sounds.csv"]
        result = evaluate(tmp_path / "out.json", name, "--data", sounds, *tables)
        clips = Clips(open_folder(sounds, NAMES), RATE, 0.5)
        with torch.no_grad():
            logits = torch.cat([model(model.front_end(clips[i][0][None])) for i in range(15)])
        targets = np.eye(3)[np.repeat(np.arange(3), 5)]
        assert result["map"] == pytest.approx(
            100 * average_precision_score(targets, logits.numpy()), abs=1e-4
        )
        assert result["top1"] == pytest.approx(
            100 * (logits.argmax(1).numpy() == targets.argmax(1)).mean(), abs=1e-4
        )
        assert (result["n"], result["classes"], result["task"]) == (15, 3, "audio")
        assert not (tmp_path / "out.json.parts").exists()
        rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
        assert [row["class"] for row in rows] == NAMES
        assert 100 * np.mean([float(row["ap"]) for row in rows]) == pytest.approx(result["map"], abs=1e-4)
        rows = list(csv.DictReader((tmp_path / "sounds.csv").open()))
        assert rows[0]["path"] == str(sounds / "tone_0" / "0.wav")
        assert rows[14]["classes"] == "tone_2"
        assert rows[0]["tag1"] == NAMES[int(logits[0].argmax())]

    def test_batches_autocast_and_fusing_change_little(
        self, model: torch.nn.Module, name: str, sounds: Path, tmp_path: Path
    ) -> None:
        clips = Clips(open_folder(sounds, NAMES), RATE, 0.5)
        batches = [list(range(i, min(i + 4, 15))) for i in range(0, 15, 4)]
        exact = torch.cat([part.logits for part in tag(model, clips, batches)])
        rounded = torch.cat([part.logits for part in tag(model, clips, batches, amp="bfloat16")])
        assert 0 < (exact - rounded).abs().max() < 0.05 * (exact.max() - exact.min())
        plain = evaluate(tmp_path / "a.json", name, "--data", sounds)
        assert evaluate(tmp_path / "b.json", name, "--data", sounds, "--fuse")["map"] == plain["map"]
        assert evaluate(tmp_path / "c.json", name, "--data", sounds, "--workers", 1)["map"] == plain["map"]

    def test_a_killed_evaluation_goes_on(
        self, name: str, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = evaluate(tmp_path / "whole.json", name, "--data", sounds)
        read, seen = Clips.waveform, []

        def dies(self: Clips, index: int) -> torch.Tensor:
            seen.append(index)
            if len(seen) == 10:
                raise KeyboardInterrupt
            return read(self, index)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Clips, "waveform", dies)
            evaluate(tmp_path / "out.json", name, "--data", sounds)
        with pytest.raises(ValueError, match="another amp"):
            evaluate(tmp_path / "out.json", name, "--data", sounds, "--amp", "bfloat16")
        seen.clear()
        monkeypatch.setattr(Clips, "waveform", lambda self, i: (seen.append(i), read(self, i))[1])
        result = evaluate(tmp_path / "out.json", name, "--data", sounds)
        assert sorted(seen) == list(range(8, 15))
        assert [result[k] for k in ("map", "auc", "top1")] == [whole[k] for k in ("map", "auc", "top1")]

    def test_what_cannot_be_read_is_left_out_and_named(self, name: str, sounds: Path, tmp_path: Path) -> None:
        root = tmp_path / "sounds"
        shutil.copytree(sounds, root)
        (root / "tone_0" / "bad.wav").write_text("text")
        result = evaluate(tmp_path / "out.json", name, "--data", root)
        assert result["n"] == 15
        assert result["map"] == evaluate(tmp_path / "b.json", name, "--data", sounds)["map"]
        (line,) = result["unreadable"]
        assert line.startswith(f"{root / 'tone_0' / 'bad.wav'}: it is no sound")

    def test_what_could_not_be_read_is_tried_again(self, name: str, sounds: Path, tmp_path: Path) -> None:
        root = tmp_path / "sounds"
        shutil.copytree(sounds, root)
        for file in root.rglob("*.wav"):
            file.write_bytes(b"")
        with pytest.raises(ValueError, match="none of the first 10 sounds can be read"):
            evaluate(tmp_path / "out.json", name, "--data", root)
        assert not (tmp_path / "out.json.parts").exists()
        shutil.copytree(sounds, root, dirs_exist_ok=True)
        assert evaluate(tmp_path / "out.json", name, "--data", root)["n"] == 15

    def test_panns_csv_and_hub(self, name: str, sounds: Path, tmp_path: Path) -> None:
        plain = evaluate(tmp_path / "plain.json", name, "--data", sounds)
        files = sorted(sounds.rglob("*.wav"))
        waveforms = [soundfile.read(file, dtype="int16")[0] for file in files]
        labels = np.repeat(np.arange(3), 5)
        with h5py.File(tmp_path / "eval.h5", "w") as packed:
            packed["audio_name"] = np.array([str(file).encode() for file in files])
            packed["waveform"], packed["target"] = np.stack(waveforms), np.eye(3, dtype=bool)[labels]
            packed.attrs["sample_rate"] = RATE
        assert evaluate(tmp_path / "h5.json", name, "--data", tmp_path / "eval.h5")["map"] == plain["map"]
        with (tmp_path / "class_labels_indices.csv").open("w") as table:
            table.write(
                "index,mid,display_name\n" + "".join(f"{i},/m/{i},{n}\n" for i, n in enumerate(NAMES))
            )
        (tmp_path / "files").mkdir()
        for i, file in enumerate(files):
            shutil.copyfile(file, tmp_path / "files" / f"{i:011}.wav")
        rows = "".join(f'{i:011}, 0.0, 10.0, "/m/{label}"\n' for i, label in enumerate(labels))
        (tmp_path / "eval.csv").write_text(rows)
        of_csv = ["--data", tmp_path / "eval.csv", "--sounds", tmp_path / "files"]
        result = evaluate(tmp_path / "csv.json", name, *of_csv)
        assert result["map"] == plain["map"]
        assert "top1" not in result
        features = datasets.Features(
            {"audio": datasets.Audio(decode=False), "label": datasets.Value("string")}
        )
        columns = {
            "audio": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
            "label": [NAMES[i] for i in labels],
        }
        (tmp_path / "hub").mkdir()
        table = pyarrow.Table.from_pydict(columns, schema=features.arrow_schema)
        parquet.write_table(table, tmp_path / "hub" / "test-00000-of-00001.parquet")
        of_hub = ["--dataset", f"hfds/{tmp_path / 'hub'}", "--split", "test", "--data", tmp_path / "cache"]
        assert evaluate(tmp_path / "hub.json", name, *of_hub)["map"] == plain["map"]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ([], "say where the sounds are"),
            (["--data", "nowhere"], "neither a folder nor a .csv or .h5 file: nowhere"),
            (["--dataset", "wds/x"], "--dataset is hfds/NAME"),
            (["--data", "{other}"], "classes that are not known: bell"),
            (["--data", "{sounds}", "--held-out"], "--held-out needs --checkpoint"),
            (
                ["--data", "{sounds}", "--split", "test"],
                "--split test: there is no folder .*test with folders",
            ),
            (["--data", "{other}.csv", "--sounds", "{sounds}"], r"other\.csv is no CSV of AudioSet: .*utf-8"),
            (["--data", "{other}.h5"], r"other\.h5 is not packed as PANNs does"),
            (["--data", "{sounds}", "--labels", "{other}.csv"], r"other\.csv is no table with the columns"),
        ],
    )
    def test_one_line_says_what_is_wrong(
        self, name: str, sounds: Path, tmp_path: Path, flags: list[str], message: str
    ) -> None:
        other = tmp_path / "other"
        (other / "bell").mkdir(parents=True)
        shutil.copyfile(sounds / "tone_0" / "0.wav", other / "bell" / "0.wav")
        for suffix in (".csv", ".h5"):
            other.with_suffix(suffix).write_bytes(b"index\xff\x00")
        (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/a,bell\n")
        given = [flag.format(other=other, sounds=sounds) for flag in flags]
        with pytest.raises((ValueError, OSError), match=message):
            evaluate(tmp_path / "out.json", name, *given)
        assert not list(tmp_path.glob("out.json*"))

    def test_a_model_of_images_is_refused(self, sounds: Path, tmp_path: Path) -> None:
        export(timm.create_model("test_convnext_dcls", num_classes=3), tmp_path / "images")
        with pytest.raises(ValueError, match="is no model of sounds: it has no front end"):
            evaluate(tmp_path / "out.json", f"local-dir:{tmp_path / 'images'}", "--data", sounds)

    def test_two_processes_find_what_one_finds(self, name: str, sounds: Path, tmp_path: Path) -> None:
        one = evaluate(tmp_path / "one.json", name, "--data", sounds)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        flags = [
            "--device",
            "cpu",
            "--workers",
            "0",
            "--batch-size",
            "4",
            "--output",
            str(tmp_path / "two.json"),
        ]
        command += ["-m", "eval", "audio", "--model", name, "--data", str(sounds), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        two = json.loads((tmp_path / "two.json").read_text())
        assert [two[k] for k in ("map", "auc", "n")] == [one[k] for k in ("map", "auc", "n")]


class TestOfATraining:
    def test_what_was_held_out(self, sounds: Path, tmp_path: Path) -> None:
        fit(sounds, tmp_path / "run", "--trainer.max_epochs", "1")
        checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
        flags = ["--device", "cpu", "--workers", "0", "--output", str(tmp_path / "out.json")]
        main(["audio", "--checkpoint", str(checkpoint), "--data", str(sounds), "--held-out", *flags])
        result = json.loads((tmp_path / "out.json").read_text())
        assert result["n"] == 3
        row = list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))[-1]
        assert result["map"] == pytest.approx(float(row["eval_map"]), abs=1e-3)
        assert takes_sounds(None, checkpoint)
        other = write_sounds(tmp_path / "other", classes=3, count=6)
        with pytest.raises(ValueError, match="was trained on another folder of sounds"):
            main(["audio", "--checkpoint", str(checkpoint), "--data", str(other), "--held-out", *flags])


class TestPredict:
    def test_prints_the_best_tags(
        self,
        model: torch.nn.Module,
        name: str,
        sounds: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        picture = tmp_path / "tags.png"
        file = sounds / "tone_1" / "3.wav"
        main(["predict", "--model", name, str(file), str(sounds / "tone_2"), "--picture", str(picture)])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 6
        answers, spectrogram = predict(model, file, NAMES)
        assert spectrogram.shape == (32, 51)
        said = ", ".join(f"{label} {probability:.1%}" for label, probability in answers)
        assert lines[0] == f"{file}: {said}"
        assert picture.stat().st_size > 5000

    def test_names_what_it_cannot_read(
        self, name: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "bad.wav").write_bytes(b"")
        with pytest.raises(ValueError, match=r"bad\.wav cannot be read as a sound: it is empty \(0 bytes\)"):
            main(["predict", "--model", name, str(tmp_path / "bad.wav"), str(sounds / "tone_0" / "1.wav")])
        assert "1.wav: " in capsys.readouterr().out

    def test_patterns_and_many_that_cannot_be_read(
        self, name: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["predict", "--model", name, str(sounds / "tone_1" / "[12].wav")])
        assert len(capsys.readouterr().out.splitlines()) == 2
        for i in range(3):
            (tmp_path / f"{i}.wav").write_bytes(b"")
        with pytest.raises(ValueError, match=r"^3 of 3 files cannot be read, the first: .*0\.wav cannot be"):
            main(["predict", "--model", name, str(tmp_path)])
        assert capsys.readouterr().out.count("unreadable: ") == 3

    def test_which_models_take_sounds(self, name: str) -> None:
        assert takes_sounds(name)
        assert takes_sounds("convnext_dcls_audio_tiny")
        assert takes_sounds("fastvit_dcls_audio_sa24.dcls_as2m")
        assert not takes_sounds("convnext_dcls_tiny")
        assert not takes_sounds(None)


def test_report_and_card_know_the_results(name: str, sounds: Path, tmp_path: Path) -> None:
    result = evaluate(tmp_path / "out.json", name, "--data", sounds)
    write_report(read_results([tmp_path / "out.json"]), tmp_path / "report.md", "Sounds")
    page = (tmp_path / "report.md").read_text()
    assert "## Audio tagging" in page
    assert f"{result['map']:.2f}" in page
    folder = Path(name.removeprefix("local-dir:"))
    card = write_card(folder, [tmp_path / "out.json"], None, "mit", "me/tones").read_text()
    assert "audio-classification" in card
    assert f"mean average precision | {result['map']} % | 15 |" in card
    assert "model.front_end(" in card
