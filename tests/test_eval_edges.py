"""Evaluation at the edges: real folders, names, locales, disks, and images that a training has seen."""

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dcls_models import CheckpointError, LogMel
from dcls_models._timm import save_for_hf
from dcls_models.pictures import write_picture
from eval.classification.predict import draw_predictions
from eval.cli import main
from eval.store import claim
from hub.cli import main as hub_main
from hub.export import export
from tests.training import write_images
from train.command import main as train_main
from train.data import Images

ROOT = Path(__file__).parent.parent
FEW = ["--workers", "0", "--img-size", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a model with three nameless classes, for ``--model``."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    export(timm.create_model("test_convnext_dcls", num_classes=3).eval(), folder)
    return f"local-dir:{folder}"


def write(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (80 * i % 256, 50, 200)).save(root / name)
    return root


def accuracy(model: str, data: Path, output: Path, *more: str) -> dict[str, object]:
    main(["accuracy", "--model", model, "--data", str(data), "--output", str(output), *FEW, *more])
    return json.loads(output.read_text(encoding="utf-8"))


def test_turned_as_exif_says_if_asked_for(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The numbers are then those of images that were turned before."""
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:20, :, 0] = pixels[:, :10, 1] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("plain", "tagged", "turned"):
        for name in "abc":
            (tmp_path / kind / name).mkdir(parents=True)
            image = Image.fromarray(np.rot90(pixels, 3 * (kind == "turned")).copy())
            image.save(tmp_path / kind / name / "1.png", **({"exif": exif} if kind == "tagged" else {}))

    def said(kind: str, *more: str) -> tuple[object, str]:
        losses = accuracy(model, tmp_path / kind, tmp_path / f"{kind}{len(more)}.json", *more)["loss"]
        capsys.readouterr()
        main(["predict", "--model", model, str(tmp_path / kind / "a"), *more])
        return losses, capsys.readouterr().out.rpartition(": ")[2]

    assert said("tagged") == said("plain") != said("turned")
    assert said("tagged", "--exif") == said("turned")


def test_photos_are_turned_wherever_they_are_read(model: str, tmp_path: Path) -> None:
    """As if they had been turned before; human maps are as large as the turned photo."""
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("tagged", "turned"):
        for name in ("images", "maps"):
            (tmp_path / kind / name).mkdir(parents=True)
        image = Image.fromarray(np.rot90(pixels, 3 * (kind == "turned")).copy())
        image.save(tmp_path / kind / "images" / "a.png", **({"exif": exif} if kind == "tagged" else {}))
        np.save(tmp_path / kind / "maps" / "a.npy", np.random.default_rng(1).random((50, 30)))
    options = ["--model", model, "--device", "cpu", "--workers", "0", "--output", str(tmp_path / "r.json")]

    def said(kind: str, *more: str) -> list[object]:
        found = []
        for command, key in ((["erf", "--img-size", "64"], "share_of_area"), (["gradcam"], "spearman")):
            data = tmp_path / kind / ("images" if command[0] == "erf" else "")
            main([*command, *options, "--data", str(data), *more])
            result = json.loads((tmp_path / "r.json").read_text())
            found.append(result[key])
            assert result["exif"] is bool(more)
        return found

    assert said("tagged", "--exif") == said("turned")
    with pytest.raises(ValueError, match=r"a\.npy has 30 x 50 pixels, expected 50 x 30"):
        said("tagged")


class TestHeldOut:
    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
        """A folder of classes, a checkpoint that was trained on it, and its export."""
        folder = tmp_path_factory.mktemp("trained")
        data = write_images(folder, val=0) / "train"
        options = {"data.root": data, "data.img_size": 32, "data.batch_size": 8, "data.num_workers": 0}
        options |= {"data.val_share": 0.3, "model.name": "test_convnext_dcls", "model.pretrained": "false"}
        options |= {"trainer.max_epochs": 1, "trainer.default_root_dir": folder / "run"}
        options |= {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
        train_main(["fit", *(str(word) for k, v in options.items() for word in (f"--{k}", v))])
        checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
        hub_main(["export", "--checkpoint", str(checkpoint), "--out", str(folder / "export")])
        return data, checkpoint, folder / "export"

    @pytest.mark.parametrize("which", ["checkpoint", "export"])
    def test_the_images_that_were_held_out_are_those_of_the_training(
        self, trained: tuple[Path, Path, Path], tmp_path: Path, which: str
    ) -> None:
        data, checkpoint, exported = trained
        flags = ["--checkpoint", str(checkpoint)] if which == "checkpoint" else []
        flags = flags or ["--model", f"local-dir:{exported}"]
        output, table = tmp_path / "r.json", tmp_path / "p.csv"
        files = ["--output", str(output), "--predictions", str(table)]
        main(["accuracy", *flags, "--data", str(data), "--held-out", *FEW, *files])
        validation = Images(str(data), img_size=32, val_share=0.3).val_set
        expected = {validation.filename(i) for i in range(len(validation))}
        seen = {row["path"] for row in csv.DictReader(table.open())}
        assert seen == expected and 0 < len(seen) < len(list(data.rglob("*.png")))
        result = json.loads(output.read_text())
        assert result["held_out"] is True and result["n"] == len(expected)

    def test_the_training_images_are_said_to_be_such_and_make_no_card(
        self, trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data, _, exported = trained
        result = accuracy(f"local-dir:{exported}", data, tmp_path / "r.json")
        said = capsys.readouterr().out
        assert "was trained on these images" in said and "--held-out" in said and result["trained_on"] is True
        card = ["card", str(exported), "--repo", "ada/zoo", "--license", "mit"]
        with pytest.raises(RuntimeError, match=r"r\.json .*images that the model was trained on.*--held-out"):
            hub_main([*card, "--results", str(tmp_path / "r.json")])

    def test_a_folder_that_has_changed_is_refused(
        self, trained: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        _, checkpoint, _ = trained
        other = write_images(tmp_path, train=9, val=0) / "train"
        flags = ["--checkpoint", str(checkpoint), *FEW, "--held-out"]
        with pytest.raises(ValueError, match="does not hold the images of the training, or some were added"):
            main(["accuracy", *flags, "--data", str(other)])

    def test_without_a_record_of_the_training(self, model: str, tmp_path: Path) -> None:
        write(tmp_path, *(f"{c}/{i}.png" for c in "abc" for i in range(3)))
        with pytest.raises(ValueError, match=r"--held-out needs a record of the training: give --checkpoint"):
            accuracy(model, tmp_path, tmp_path / "r.json", "--held-out")


class TestNames:
    @pytest.mark.parametrize("names", [("1", "01", "2"), ("Cat", "cat", "dog"), ("²", "٣", "x")])
    def test_classes_have_one_order_and_none_is_another(
        self, model: str, tmp_path: Path, names: tuple[str, ...]
    ) -> None:
        write(tmp_path, *(f"{name}/a.png" for name in names))
        result = accuracy(model, tmp_path, tmp_path / "r.json", "--per-class", str(tmp_path / "c.csv"))
        rows = list(csv.DictReader((tmp_path / "c.csv").open(encoding="utf-8")))
        assert (
            sorted(row["class"] for row in rows) == sorted(names) and [row["n"] for row in rows] == ["1"] * 3
        )
        assert result["classes"] == 3

    @pytest.mark.parametrize("name", ["$5_$10", "a_b%|<c>", "夏の 'ñ' [été]", "\\frac{1}{2}", "x" * 120])
    def test_any_name_is_drawn_and_written(
        self, model: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = write(tmp_path / "data", f"{name}/a.png", "other/b.png", "third/c.png")
        folder = tmp_path / "model"
        named = timm.create_model("test_convnext_dcls", num_classes=3)
        named.pretrained_cfg["label_names"] = [name, "other", "third"]
        export(named.eval(), folder)
        picture = tmp_path / "p.png"
        main(["predict", "--model", f"local-dir:{folder}", str(data), "--picture", str(picture)])
        assert name in capsys.readouterr().out and Image.open(picture).width > 100
        result = accuracy(f"local-dir:{folder}", data, tmp_path / "r.json")
        main(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / "r.html"), "--title", name])
        assert result["n"] == 3 and (tmp_path / "r.html").stat().st_size > 1000

    @pytest.mark.parametrize(
        "locale",
        [
            {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
            pytest.param({"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.slow),
        ],
        ids=lambda locale: locale["PYTHONIOENCODING"],
    )
    def test_a_console_without_letters(self, model: str, tmp_path: Path, locale: dict[str, str]) -> None:
        write(tmp_path, "夏/a.png", "été/b.png", "x/c.png")
        raw = os.fsencode(tmp_path / "x") + b"/not\xff utf-8.png"
        Path(os.fsdecode(raw)).write_bytes(b"no image")
        output, table = tmp_path / "r.json", tmp_path / "p.csv"
        command = [sys.executable, "-m", "eval", "accuracy", "--model", model, "--data", str(tmp_path), *FEW]
        done = subprocess.run(
            [*command, "--output", str(output), "--predictions", str(table)],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, **locale},
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        assert b"top-1" in done.stdout and rb"not\udcff utf-8.png" in done.stdout
        result = json.loads(output.read_text(encoding="utf-8"))
        assert result["n"] == 3 and len(result["unreadable"]) == 1
        assert "夏" in table.read_text(encoding="utf-8")


class TestImages:
    def test_every_kind_is_read_and_of_an_animation_the_first_frame(
        self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
        for suffix in ("png", "jpg", "jfif", "webp", "bmp", "tif", "avif"):
            red.save(tmp_path / f"{suffix}.{suffix}", format={"jfif": "JPEG"}.get(suffix))
        red.save(tmp_path / "gif.gif", save_all=True, append_images=[blue], duration=100)
        red.quantize(8).save(tmp_path / "palette.png")
        red.convert("RGBA").save(tmp_path / "alpha.png")
        main(["predict", "--model", model, str(tmp_path)])
        answers = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
        assert len(answers) == 10 and len({answer.split()[0] for answer in answers}) == 1

    @pytest.fixture
    def bad(self, tmp_path: Path) -> dict[str, Path]:
        deep, bomb = tmp_path / "bad" / "b" / "deep.png", tmp_path / "bad" / "b" / "bomb.png"
        write(tmp_path / "bad", "a/a.png", "b/b.png", "c/c.png")
        Image.fromarray(np.full((40, 40), 40000, dtype=np.uint16)).save(deep)
        Image.new("1", (20000, 10000)).save(bomb)
        return {"more than 8 bits": deep, "decompression bomb": bomb}

    def test_what_no_reader_takes_is_named(
        self, model: str, bad: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = accuracy(model, tmp_path / "bad", tmp_path / "r.json")
        assert result["n"] == 3 and len(result["unreadable"]) == 2
        for reason, file in bad.items():
            assert any(str(file) in line and reason in line for line in result["unreadable"])
            with pytest.raises(ValueError, match=rf"{file.name} cannot be read as an image: .*{reason}"):
                main(["predict", "--model", model, str(file)])
            folder = file.parent.parent / file.stem
            (folder / "images").mkdir(parents=True)
            (folder / "images" / file.name).write_bytes(file.read_bytes())
            command = ["erf", "--model", model, "--data", str(folder / "images"), "--device", "cpu"]
            with pytest.raises(ValueError, match=rf"{file.name} cannot be read as an image: .*{reason}"):
                main([*command, "--workers", "0"])
            (folder / "maps").mkdir()
            Image.new("L", (40, 40)).save(folder / "maps" / f"{file.stem}.png")
            command = ["gradcam", "--model", model, "--data", str(folder), "--device", "cpu"]
            with pytest.raises(ValueError, match=rf"{file.name} cannot be read as an image: .*{reason}"):
                main([*command, "--workers", "0"])
        assert "Traceback" not in capsys.readouterr().out


class TestNothingIsLost:
    def test_a_picture_that_cannot_be_drawn_is_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        image = write(tmp_path, "a.png") / "a.png"

        def draw() -> plt.Figure:
            return draw_predictions([image, tmp_path / "gone.png"], [[("a", 1.0)], [("b", 1.0)]])

        assert not write_picture(tmp_path / "p.png", draw)
        assert "p.png could not be drawn" in caplog.text
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]

    def test_a_result_is_there_although_its_picture_is_not(
        self, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plt, "subplots", None)  # whatever it is that fails
        files = ["--output", str(tmp_path / "k.json"), "--picture", str(tmp_path / "k.png")]
        main(["kernels", "--model", model, *files])
        assert json.loads((tmp_path / "k.json").read_text())["pictures"] == []

    @pytest.mark.parametrize("option", ["--output", "--predictions", "--per-class", "--results-csv"])
    def test_a_place_that_takes_no_file_is_refused_before_the_work(
        self, model: str, tmp_path: Path, option: str
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        places = ("file/r.json", "/proc/nowhere/r.json", "x" * 250 + ".json")
        for place in (tmp_path / place for place in places):
            command = ["accuracy", "--model", "local-dir:is-not-even-looked-at", "--data", "nowhere"]
            with pytest.raises(ValueError, match=rf"{option} .*r?\.json cannot be written .*another place"):
                main([*command, option, str(place)])
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_an_error_leaves_nothing_where_nothing_was_computed(self, model: str, tmp_path: Path) -> None:
        data = write(tmp_path / "data", *(f"{c}/a.png" for c in "abc"))
        before = {path: path.read_bytes() for path in data.rglob("*.png")}
        for file in before:
            file.write_bytes(b"no image")
        with pytest.raises(ValueError, match="none of the 3 images can be read"):
            accuracy(model, data, tmp_path / "r.json")
        assert [p.name for p in tmp_path.iterdir()] == ["data"]
        claim(tmp_path / "r.json.parts", {"left by": "a kill before the first batch"})
        for file, content in before.items():
            file.write_bytes(content)
        assert accuracy(model, data, tmp_path / "r.json")["n"] == 3

    def test_an_image_that_was_mended_counts_when_the_evaluation_goes_on(
        self, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = write(tmp_path / "data", *(f"{c}/{i}.png" for c in "abc" for i in "01"))
        whole, good = (data / "a" / "0.png").read_bytes(), accuracy(model, data, tmp_path / "good.json")
        (data / "a" / "0.png").write_bytes(b"no image")
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr("eval.classification.accuracy.write_result", lambda *_: Path().read_bytes())
            accuracy(model, data, tmp_path / "r.json", "--batch-size", "2")
        assert len(list((tmp_path / "r.json.parts").glob("*.pt"))) == 2
        (data / "a" / "0.png").write_bytes(whole)
        result = accuracy(model, data, tmp_path / "r.json", "--batch-size", "2")
        assert (result["n"], result["unreadable"], result["top1"]) == (6, [], good["top1"])

    @pytest.mark.parametrize(
        ("command", "end", "status"),
        [("eval predict --model {model} {image}", "| true", "141"), ("hub verify {folder}", ">&-", "0")],
    )
    def test_nobody_reads_what_is_printed(
        self, model: str, tmp_path: Path, command: str, end: str, status: str
    ) -> None:
        """A pipe to a command that has ended, and a console that was closed, are no tracebacks."""
        names = {"model": model, "image": tmp_path / "a.png", "folder": model.removeprefix("local-dir:")}
        write(tmp_path, "a.png")
        words = [word.format(**names) for word in f"{sys.executable} -m {command}".split()]
        script = f"set -o pipefail; {shlex.join(words)} {end}; echo $?"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert (done.stderr, done.stdout.strip()) == ("", status)

    @pytest.mark.parametrize("package", ["eval", "hub"])
    def test_an_interruption_while_torch_is_imported_is_one_line(self, tmp_path: Path, package: str) -> None:
        (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", package, "--help"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode != 0 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and "interrupted" in done.stderr


class TestModels:
    def test_weights_with_nan_are_not_measured(self, model: str, tmp_path: Path) -> None:
        broken = timm.create_model("test_convnext_dcls", num_classes=3)
        torch.nn.init.constant_(broken.head.fc.weight, float("nan"))
        save_for_hf(broken, str(tmp_path / "broken"), safe_serialization=True)
        write(tmp_path, *(f"data/{c}/a.png" for c in "abc"))
        with pytest.raises(CheckpointError, match=r"head\.fc\.weight has NaN"):
            accuracy(f"local-dir:{tmp_path / 'broken'}", tmp_path / "data", tmp_path / "r.json")

    def test_logits_that_are_nan_are_no_result(self, model: str, tmp_path: Path) -> None:
        huge = timm.create_model("test_convnext_dcls", num_classes=3).eval()
        with torch.no_grad():
            huge.head.norm.weight.fill_(1e38)
            huge.head.fc.weight.fill_(1e30)
        huge.pretrained_cfg["input_size"] = (3, 32, 32)
        save_for_hf(huge, str(tmp_path / "huge"), safe_serialization=True)
        write(tmp_path, *(f"data/{c}/a.png" for c in "abc"))
        with pytest.raises(ValueError, match="the model gives NaN"):
            accuracy(f"local-dir:{tmp_path / 'huge'}", tmp_path / "data", tmp_path / "r.json")
        with pytest.raises(ValueError, match=r"the model gives NaN for .*a\.png"):
            main(["predict", "--model", f"local-dir:{tmp_path / 'huge'}", str(tmp_path / "data")])

    def test_a_model_of_sounds_sees_no_images(self, tmp_path: Path) -> None:
        model = timm.create_model("test_convnext_dcls", num_classes=3, in_chans=1).eval()
        model.pretrained_cfg["input_size"] = (1, 32, 51)
        model.front_end = LogMel(8000, 256, 80, 32, 50.0, 3900.0, -18.0, 30.0, 0.5)
        export(model, tmp_path / "model")
        write(tmp_path, *(f"data/{c}/a.png" for c in "abc"))
        with pytest.raises(ValueError, match="is a model of sounds: see python -m eval audio"):
            accuracy(f"local-dir:{tmp_path / 'model'}", tmp_path / "data", tmp_path / "r.json")

    @pytest.mark.parametrize("config", ["[]", "{", '{"architecture": "test_convnext_dcls"}', "{}"])
    @pytest.mark.parametrize("command", ["accuracy", "throughput", "predict", "kernels"])
    def test_a_config_that_is_none_is_one_line(self, tmp_path: Path, command: str, config: str) -> None:
        (tmp_path / "config.json").write_text(config)
        name = f"local-dir:{tmp_path}"
        flags = {"accuracy": ["--data", "."], "predict": ["x.png"]}.get(command, [])
        given = ["--models" if command == "throughput" else "--model", name]
        with pytest.raises(ValueError, match=r"config\.json is (no JSON|not the config of a model)"):
            main([command, *given, *flags])

    @pytest.mark.parametrize(("command", "option"), [("throughput", "--models"), ("layers", "--models")])
    def test_an_unknown_model_is_one_line_for_timings_too(self, command: str, option: str) -> None:
        with pytest.raises(ValueError, match=r"timm knows no model 'convnext_dcls_tyni'; timm\.list_models"):
            main([command, option, "convnext_dcls_tyni"])

    def test_no_top_5_of_five_classes(
        self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = accuracy(
            model, write(tmp_path, *(f"data/{c}/a.png" for c in "abc")) / "data", tmp_path / "r.json"
        )
        said = capsys.readouterr().out
        assert "top-1" in said and "top-5" not in said and result["top5"] == 100.0


def test_a_folder_is_predicted_as_its_images_are(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a/10.png", "a/9.png", "b/deep/x.png", ".hidden/y.png", "__MACOSX/z.png")
    main(["predict", "--model", model, str(tmp_path)])
    shown = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == [str(tmp_path / name) for name in ("a/9.png", "a/10.png", "b/deep/x.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*empty"):
        main(["predict", "--model", model, str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("command", "option", "given"),
    [
        ("kernels", "--model", "convnext_dcls_tiny"),
        ("kernels", "--baseline", "test_resnet.r160_in1k"),
        ("kernels", "--model", "hf-hub:ada/zoo"),
        ("predict", "--model", "hf-hub:ada/zoo"),
    ],
)
def test_a_download_that_fails_says_what_to_give_instead(
    model: str, command: str, option: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before the Hub's client tries again
    names = {"--model": model, option: given}
    words = [command, *(word for pair in names.items() for word in pair)]
    with pytest.raises(
        ValueError, match=rf"^{option} {given}: its weights .*: {option} local-dir:FOLDER"
    ) as error:
        main([*words, *(["x.png"] if command == "predict" else [])])
    assert "pretrained_cfg_overlay" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--img-size", "nan"], "--img-size: must be a whole number from 1 to 4096, got 'nan'"),
        (["--img-size", "100000"], "--img-size: must be a whole number from 1 to 4096, got '100000'"),
        (["--batch-size", "1e3"], "--batch-size: must be a whole number of at least 1, got '1e3'"),
        (["--workers", "-1"], "--workers: must be a whole number from 0 to 1024, got '-1'"),
        (["--crop-pct", "1e-9"], "--crop-pct: must be a number from 0.05 to 1, got '1e-9'"),
        (["--crop-pct", "nan"], "--crop-pct: must be a number from 0.05 to 1, got 'nan'"),
        (["--amp", "x"], "--amp: invalid choice: 'x'"),
        (["--output", "x.txt"], "--output: must end in .json, got 'x.txt'"),
    ],
)
def test_an_option_out_of_range_is_one_line(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["accuracy", *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument {words}") and line.endswith("--help explains every option")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--device", "gpu"],
            "--device gpu: torch has no such device here; expected cpu, cuda or cuda:NUMBER",
        ),
        (["--device", "meta"], "--device meta: torch has no such device here"),
        (["--device", ""], "--device : torch has no such device here"),
        (["--img-size", "1"], "ConvNeXtDcls takes no images of 1 pixels: see --img-size"),
        (["--split", "tset"], "--split tset: there is no folder .*tset with folders of classes"),
    ],
)
def test_what_this_machine_or_model_does_not_take(
    model: str, tmp_path: Path, flags: list[str], words: str
) -> None:
    write(tmp_path / "data", *(f"{c}/a.png" for c in "abc"))
    options = ["--model", model, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "r.json")]
    with pytest.raises((ValueError, OSError), match=words):
        main(["accuracy", "--workers", "0", *options, *flags])
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_the_home_folder(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave ``~`` as it is in ``--model=local-dir:~/x`` and ``--output=~/x``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(model.removeprefix("local-dir:"))
    write_images(tmp_path / "images", classes=3)
    options = ["--model=local-dir:~/model", "--data=~/images", "--output=~/result.json", *FEW]
    main(["accuracy", *options])
    assert (tmp_path / "result.json").is_file()
    hub_main(["verify", "~/model"])
