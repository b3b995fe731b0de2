"""Robustness: each part is what ``accuracy`` measures on the same images; subsets, means, made images."""

import json
import shutil
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from eval.classification import corruptions
from eval.classification.corruptions import ALEXNET, C_BAR, Corruption
from eval.classification.robustness import over_corruptions
from eval.cli import main
from tests.test_eval_accuracy import save_model, validate, write_folder

SYNSETS = ImageNetInfo().label_names()
SOME = [SYNSETS[i] for i in (6, 11, 13, 500)]
FLAGS = ["--workers", "0", "--batch-size", "8", "--img-size", "32"]


def indices(name):
    return [
        int(i) for i in (files("timm.data") / "_info" / f"imagenet_{name}_indices.txt").read_text().split()
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), "test_convnext_dcls", classes=1000)


def measure(task, output, model, data, *more):
    main([task, "--model", model, "--data", str(data), "--output", str(output), *FLAGS, *more])
    return json.loads(output.read_text())


def write_benchmark(root, names, severities=range(1, 6)):
    """Images of 32 pixels in CORRUPTION/SEVERITY/CLASS, brighter with the severity."""
    write_folder(root / "clean", SOME, count=2, side=48)
    for name in names:
        for number, severity in enumerate(severities, 1):
            for file in (root / "clean").rglob("*.png"):
                to = root / name / str(severity) / file.parent.name / file.name
                to.parent.mkdir(parents=True, exist_ok=True)
                image = Image.open(file).resize((32, 32))
                image.point(lambda p, n=number: min(255, p + 30 * n)).save(to)
    return root


def test_imagenet_c_as_published(model, tmp_path):
    root = write_benchmark(tmp_path / "c", ALEXNET)
    result = measure("robustness", tmp_path / "r.json", model, root, "--benchmark", "c")
    assert [(r["corruption"], r["severity"]) for r in result["rows"]] == [
        (name, severity) for name in ALEXNET for severity in range(1, 6)
    ]
    assert result["source"] == "published" and result["crop_pct"] == 1.0, "those images are cropped already"
    row = result["rows"][7]
    one = measure("accuracy", tmp_path / "a.json", model, root / "shot_noise" / "3", "--crop-pct", "1")
    assert {k: row[k] for k in ("top1", "top5", "loss", "ece", "n")} == {
        k: one[k] for k in row.keys() & one.keys() - {"unreadable"}
    }
    assert result["n"] == 75 * one["n"] and result["state_dict_sha256"] == one["state_dict_sha256"]
    errors = {
        name: np.mean([100 - r["top1"] for r in result["rows"] if r["corruption"] == name])
        for name in ALEXNET
    }
    assert result["mce"] == pytest.approx(np.mean([100 * errors[n] / ALEXNET[n] for n in ALEXNET]), abs=1e-3)
    assert result["mce_normalised_by"].startswith("AlexNet")
    assert not list(tmp_path.glob("*.parts"))


def test_mean_corruption_error_of_alexnet_is_100():
    rows = [{"corruption": k, "severity": 1, "top1": 100 - v, "n": 1} for k, v in ALEXNET.items()]
    assert over_corruptions(rows, 1000)["mce"] == 100
    assert "mce" not in over_corruptions(rows, 10) and "mce" not in over_corruptions(rows[1:], 1000)
    published = [88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7]
    assert list(ALEXNET.values()) == pytest.approx(published, abs=0.0501)  # table 1 of arXiv:1903.12261


def test_c_bar_has_severities_of_its_own(model, tmp_path):
    root = write_benchmark(tmp_path / "c", C_BAR[:2], severities=(2.35, 3.2, 4.9, 6.6, 10.15))
    flags = ["--benchmark", "c-bar", "--corruptions", *C_BAR[:2]]
    result = measure("robustness", tmp_path / "r.json", model, root, *flags)
    last = measure("accuracy", tmp_path / "a.json", model, root / C_BAR[0] / "10.15", "--crop-pct", "1")
    assert result["rows"][4]["severity"] == 5 and result["rows"][4]["loss"] == last["loss"]
    assert result["errors"].keys() == set(C_BAR[:2]) and "mce" not in result
    with pytest.raises(
        FileNotFoundError, match=f"no folder .*{C_BAR[2]}: expected CORRUPTION/SEVERITY/CLASS"
    ):
        measure("robustness", tmp_path / "r.json", model, root, "--benchmark", "c-bar")


@pytest.mark.parametrize("name", ["a", "r"])
def test_only_the_outputs_of_the_subset_count(model, tmp_path, name):
    chosen = indices(name)
    assert len(chosen) == 200
    root = write_folder(tmp_path / name, [SYNSETS[i] for i in chosen], count=1, side=40)
    result = measure("robustness", tmp_path / "r.json", model, root, "--benchmark", name)
    assert (result["top1"], result["top5"]) == validate(model, root, img_size=32, valid=chosen)[:2]
    assert result["benchmark"] == f"imagenet-{name}"
    (root / SYNSETS[500]).mkdir()
    shutil.copy(next(root.rglob("*.png")), root / SYNSETS[500] / "a.png")
    with pytest.raises(ValueError, match=f"has classes that are not evaluated: {SYNSETS[500]}"):
        measure("robustness", tmp_path / "r.json", model, root, "--benchmark", name)


@pytest.mark.parametrize(("name", "classes"), [("sketch", SOME), ("v2", ["6", "11", "13", "500"])])
def test_all_outputs_count(model, tmp_path, name, classes):
    root = write_folder(tmp_path / name, classes, count=3)
    result = measure("robustness", tmp_path / "r.json", model, root, "--benchmark", name)
    same = measure("accuracy", tmp_path / "a.json", model, root)
    assert result["loss"] == same["loss"] and result["n"] == same["n"] == 15


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    pytest.importorskip("imagecorruptions")
    return save_model(tmp_path_factory.mktemp("few"), "test_resnet_dcls", classes=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clean") / "images", list("abcd"), count=2, side=60)


class TestGenerated:
    def test_all_corruptions(self, few, images, tmp_path):
        pair = []
        for workers in ("0", "2"):
            flags = ["--benchmark", "c", "--generate", "--workers", workers]
            only = [] if workers == "0" else ["--corruptions", "fog", "glass_blur"]
            pair.append(measure("robustness", tmp_path / "r.json", few, images, *flags, *only))
        result, again = pair
        assert len(result["rows"]) == 75 and result["source"].startswith(
            "generated by imagecorruptions-imaug 1."
        )
        assert "mce" not in result, "AlexNet's errors are for ImageNet's classes"
        assert again["rows"] == [r for r in result["rows"] if r["corruption"] in ("fog", "glass_blur")]
        assert len({r["loss"] for r in result["rows"]}) == 75, "each is another set of images"

    def test_the_same_images_as_files(self, few, images, tmp_path):
        """What is made in passing gives what a folder of it gives, cropped, corrupted and saved by itself."""
        for file in images.rglob("*.png"):
            side = Image.open(file).convert("RGB").resize((32, 32))
            for severity in range(1, 6):
                to = tmp_path / "c" / "snow" / str(severity) / file.parent.name / file.name
                to.parent.mkdir(parents=True, exist_ok=True)
                Corruption("snow", severity)(side).save(to)
            side.save(file)
        flags = ["--benchmark", "c", "--corruptions", "snow"]
        made = measure(
            "robustness", tmp_path / "m.json", few, images, *flags, "--generate", "--crop-pct", "1"
        )
        found = measure("robustness", tmp_path / "f.json", few, tmp_path / "c", *flags)
        assert made["rows"] == found["rows"]

    def test_corruption_grows_with_severity_and_is_repeatable(self):
        image = Image.effect_mandelbrot((48, 48), (-3, -2.5, 2, 2.5), 50).convert("RGB")
        for name in ("gaussian_noise", "contrast", "defocus_blur", "glass_blur", "impulse_noise", "frost"):
            pixels = [np.asarray(Corruption(name, s)(image), float) for s in (1, 5)]
            distance = [np.abs(p - np.asarray(image)).mean() for p in pixels]
            assert 0 < distance[0] < distance[1], name
            assert np.array_equal(pixels[1], np.asarray(Corruption(name, 5)(image)))


def test_a_killed_run_goes_on_with_the_next_part(model, tmp_path):
    root = write_benchmark(tmp_path / "c", ["fog"])
    flags = ["--benchmark", "c", "--corruptions", "fog"]
    whole = measure("robustness", tmp_path / "w.json", model, root, *flags)
    last = next((root / "fog" / "5").rglob("*.png"))
    shutil.move(last.parents[1], tmp_path / "away")
    (root / "fog" / "5" / SOME[0]).mkdir(parents=True)
    output = tmp_path / "r.json"
    with pytest.raises(FileNotFoundError, match=r"no images in .*fog/5"):
        measure("robustness", output, model, root, *flags)
    assert len(list((tmp_path / "r.json.parts").glob("*/row.json"))) == 4
    shutil.rmtree(root / "fog" / "5")
    shutil.move(tmp_path / "away", root / "fog" / "5")
    for file in (root / "fog" / "2").rglob("*.png"):
        file.write_bytes(b"")  # must not be read again
    assert measure("robustness", output, model, root, *flags)["rows"] == whole["rows"]
    assert not (tmp_path / "r.json.parts").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--benchmark", "a", "--model", "{few}"],
            "imagenet-a needs a model with ImageNet's 1000 classes, not 4",
        ),
        (["--benchmark", "v2", "--generate"], "--generate makes the corruptions of --benchmark c, not of v2"),
        (
            ["--benchmark", "c"],
            "no folder .*gaussian_noise: expected .*, or give clean images and --generate",
        ),
        (["--benchmark", "c", "--generate", "--img-size", "16"], "needs colour images of 32 pixels"),
        (["--benchmark", "c", "--corruptions", "rain"], "c has no rain; its corruptions: gaussian_noise, "),
        (
            ["--benchmark", "c", "--corruptions", "fog"],
            "fog has 2 folders, expected one for each of 5 severities",
        ),
        (["--benchmark", "c", "--corruptions", "snow"], "is not a severity: expected folders 1 to 5"),
        (["--benchmark", "sketch", "--data", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_one_error_says_what_is_wrong(model, tmp_path, flags, said):
    few = save_model(tmp_path / "few", "test_resnet_dcls", classes=4)
    for folder in ("fog/1", "fog/2", "snow/high"):
        (tmp_path / folder).mkdir(parents=True)
    flags = [f.format(few=few) for f in flags]
    with pytest.raises((OSError, ValueError), match=said):
        main(["robustness", "--model", model, "--data", str(tmp_path), *FLAGS, *flags])


def test_the_corruptions_are_those_of_the_library():
    names = pytest.importorskip("imagecorruptions").get_corruption_names()
    assert set(names) == corruptions.ALEXNET.keys()
