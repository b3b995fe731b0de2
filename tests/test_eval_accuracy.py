"""The evaluator counts what timm's validate.py counts, over any number of processes and kills."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import timm
import torch
from filelock import FileLock
from PIL import Image
from timm.data import (
    ImageNetInfo,
    RealLabelsImagenet,
    create_dataset,
    create_loader,
    resolve_input_data_config,
)
from timm.layers import apply_test_time_pool
from timm.models import reparameterize_model
from timm.utils import AverageMeter
from timm.utils import accuracy as timm_accuracy

from dcls_models._timm import save_for_hf
from eval.classification import metrics
from eval.classification.classes import match_classes
from eval.classification.data import UNREADABLE, open_samples
from eval.classification.evaluate import evaluate, set_up
from eval.classification.store import Predictions
from eval.cli import main
from eval.store import Store
from tests.training import in_child

CLASSES = 7


def write_folder(root, names=None, count=5, side=40):
    """Coloured noise of different sizes; the classes have different numbers of images."""
    generator = np.random.default_rng(0)
    for c, name in enumerate(names or [f"class_{i}" for i in range(CLASSES)]):
        (root / name).mkdir(parents=True)
        for i in range(count + c % 3):
            coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((side + 3 * i, side + 2 * c)).save(root / name / f"{i}.png")
    return root


def save_model(folder, name, classes=CLASSES):
    model = timm.create_model(name, num_classes=classes)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_for_hf(model, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_folder(root / "val")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("model"), "test_convnext_dcls")


def measure(output, model, data, *more):
    arguments = ["--model", model, "--data", str(data), "--workers", "0", "--output", str(output)]
    main(["accuracy", *arguments, "--batch-size", "8", "--img-size", "32", *more])
    return json.loads(output.read_text())


def numbers(result):
    return {k: v for k, v in result.items() if k not in ("command", "model", "dataset", "split")}


def validate(
    name,
    root,
    amp=None,
    fuse=False,
    layout=torch.contiguous_format,
    pool=False,
    valid=None,
    made=None,
    **asked,
):
    """The arithmetic of timm's validate.py, made of the parts it is made of."""
    model = timm.create_model(name, pretrained=True, **(made or {})).eval()
    model = reparameterize_model(model) if fuse else model
    config, pooled = resolve_input_data_config(model, asked, use_test_size=True), False
    if pool:
        model, pooled = apply_test_time_pool(model, config)
    loader = create_loader(
        create_dataset("", root=str(root), split="validation"),
        input_size=config["input_size"],
        batch_size=8,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=1.0 if pooled else config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=torch.device("cpu"),
    )
    model = model.to(memory_format=layout)
    top1, top5, loss = AverageMeter(), AverageMeter(), AverageMeter()
    with torch.inference_mode():
        for x, y in loader:
            with torch.autocast("cpu", amp) if amp else contextlib.nullcontext():
                logits = model(x.contiguous(memory_format=layout))
                logits = logits if valid is None else logits[:, valid]
                loss.update(torch.nn.functional.cross_entropy(logits.float(), y).item(), len(x))
            for meter, value in zip((top1, top5), timm_accuracy(logits, y, (1, 5)), strict=True):
                meter.update(value.item(), len(x))
    return round(top1.avg, 4), round(top5.avg, 4), loss.avg


OPTIONS = [
    ([], {}),
    (["--crop-pct", "0.7"], {"crop_pct": 0.7}),
    (["--crop-mode", "squash", "--img-size", "40"], {"crop_mode": "squash", "img_size": 40}),
    (
        ["--crop-mode", "border", "--interpolation", "bilinear"],
        {"crop_mode": "border", "interpolation": "bilinear"},
    ),
    (["--amp", "bfloat16"], {"amp": torch.bfloat16}),
    (["--fuse", "--channels-last"], {"fuse": True, "layout": torch.channels_last}),
]


@pytest.mark.parametrize(
    ("flags", "options"), OPTIONS, ids=lambda o: " ".join(o) if isinstance(o, list) else ""
)
def test_numbers_are_those_of_validate(model, images, tmp_path, flags, options):
    result = measure(tmp_path / "r.json", model, images, *flags)
    top1, top5, loss = validate(model, images, **{"img_size": 32, **options})
    assert (result["top1"], result["top5"]) == (top1, top5)
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert 0 < result["top1"] < result["top5"] < 100 and result["n"] == len(list(images.rglob("*.png")))


@pytest.mark.parametrize("name", ["test_resnet_dcls", "test_convformer_dcls", "test_fastvit_dcls"])
def test_numbers_are_those_of_validate_for(name, images, tmp_path):
    saved = save_model(tmp_path / "model", name)
    result = measure(tmp_path / "r.json", saved, images, "--img-size", "64")
    assert (result["top1"], result["top5"]) == validate(saved, images, img_size=64)[:2]


def test_a_model_of_fixed_size_is_made_for_the_size(images, tmp_path):
    saved = save_model(tmp_path / "model", "test_vit")
    config = tmp_path / "model" / "config.json"
    stored = json.loads(config.read_text())
    stored["pretrained_cfg"]["fixed_input_size"] = True  # which timm does not save
    config.write_text(json.dumps(stored))
    result = measure(tmp_path / "r.json", saved, images)
    made = {"img_size": 32}
    assert (result["top1"], result["top5"]) == validate(saved, images, made=made, img_size=32)[:2]
    assert result["param_count"] == sum(
        p.numel() for p in timm.create_model("test_vit", num_classes=CLASSES, img_size=32).parameters()
    )


def test_test_time_pooling(images, tmp_path):
    saved = save_model(tmp_path / "model", "test_resnet_dcls")
    result = measure(tmp_path / "r.json", saved, images, "--img-size", "192", "--test-pool")
    assert result["test_pool"] and result["crop_pct"] == 1.0
    assert (result["top1"], result["top5"]) == validate(saved, images, img_size=192, pool=True)[:2]


@pytest.mark.skipif(
    "TIMM_VALIDATE" not in os.environ, reason="TIMM_VALIDATE must be the path of timm's validate.py"
)
@pytest.mark.parametrize(
    "flags", [[], ["--crop-pct", "0.7"], ["--crop-mode", "squash"], ["--amp"], ["--test-pool"]]
)
def test_validate_itself(model, images, tmp_path, flags):
    """Timm's script is in its repository, not in its package."""
    table = tmp_path / "theirs.csv"
    size = ["--img-size", "192" if "--test-pool" in flags else "32"]
    argv = [
        "--data-dir",
        str(images),
        "--model",
        model,
        "--pretrained",
        "--device",
        "cpu",
        "-b",
        "8",
        "-j",
        "0",
    ]
    argv += ["--results-file", str(table), "--amp-dtype", "bfloat16", *size, *flags]
    run = "import dcls_models, runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", run, os.environ["TIMM_VALIDATE"], *argv]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    ours = tmp_path / "ours.csv"
    flags = [f for flag in flags for f in ([flag, "bfloat16"] if flag == "--amp" else [flag])]
    measure(tmp_path / "r.json", model, images, *size, *flags, "--results-csv", str(ours))
    assert list(csv.reader(ours.open())) == list(csv.reader(table.open()))


def test_hugging_face_and_shards_give_what_the_folder_gives(model, images, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = measure(tmp_path / "r.json", model, images)
    hub = measure(tmp_path / "h.json", model, tmp_path / "cache", "--dataset", f"hfds/{images}")
    for k in ("top1", "top5", "n"):
        assert hub[k] == folder[k]
    assert hub["confused"] == folder["confused"]
    files = sorted((images / "val").rglob("*.png"))
    for shard in range(3):
        with tarfile.open(tmp_path / f"val-{shard}.tar", "w") as tar:
            for i, file in enumerate(files[shard::3]):
                (tmp_path / "label").write_text(file.parent.name[-1])
                tar.add(file, f"{shard}_{i:03}.png")
                tar.add(tmp_path / "label", f"{shard}_{i:03}.cls")
    flags = ["--dataset", "wds/", "--split", "val-{0..2}.tar", "--predictions", str(tmp_path / "p.csv")]
    shards = measure(tmp_path / "s.json", model, tmp_path, *flags)
    for k in ("top1", "top5", "n"):
        assert shards[k] == folder[k]
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert rows[0]["path"] == f"{tmp_path / 'val-0.tar'}:0_000" and len(rows) == len(files)
    with pytest.raises(FileNotFoundError, match=r"no shard .*val-3\.tar"):
        measure(tmp_path / "s.json", model, tmp_path, "--dataset", "wds/", "--split", "val-{2..3}.tar")


def as_rank(rank, world, port, argv):
    """What ``torchrun`` does for a process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    main(argv)


def over(world, argv):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [in_child(as_rank, rank, world, port, argv) for rank in range(world)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * world


@pytest.mark.parametrize("world", [2, 3])
def test_many_processes_find_what_one_finds(model, images, tmp_path, world):
    alone = measure(tmp_path / "one.json", model, images, "--predictions", str(tmp_path / "one.csv"))
    flags = [
        "--model",
        model,
        "--data",
        str(images),
        "--workers",
        "0",
        "--img-size",
        "32",
        "--batch-size",
        "8",
    ]
    predictions = ["--predictions", str(tmp_path / "many.csv")]
    over(world, ["accuracy", *flags, *predictions, "--output", str(tmp_path / "many.json")])
    assert numbers(json.loads((tmp_path / "many.json").read_text())) == numbers(alone)
    assert (tmp_path / "many.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert not list(tmp_path.glob("*.parts"))
    (tmp_path / "many.csv").unlink()
    over(world, ["accuracy", *flags, *predictions])  # without --output, what they share is elsewhere
    assert (tmp_path / "many.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


@pytest.mark.slow
def test_torchrun(model, images, tmp_path):
    alone = measure(tmp_path / "one.json", model, images)
    flags = [
        "--model",
        model,
        "--data",
        str(images),
        "--workers",
        "0",
        "--img-size",
        "32",
        "--batch-size",
        "8",
    ]
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "eval",
    ]
    command = [*start, "accuracy", *flags, "--output", str(tmp_path / "two.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("top-1") == 1
    assert numbers(json.loads((tmp_path / "two.json").read_text())) == numbers(alone)


def test_a_killed_evaluation_goes_on(model, tmp_path):
    root = write_folder(tmp_path / "images" / "val", count=30).parent
    whole = measure(tmp_path / "whole.json", model, root, "--batch-size", "2")
    output = tmp_path / "killed.json"
    child = in_child(measure, output, model, root, "--batch-size", "2")
    parts = tmp_path / "killed.json.parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.pt"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not output.exists() and len(list(parts.glob("*.pt"))) >= 3
    with pytest.raises(
        ValueError, match=r"beginning of an evaluation with another img_size.*another --output"
    ):
        measure(output, model, root, "--batch-size", "2", "--img-size", "48")
    sorted(root.rglob("*.png"))[0].write_bytes(b"")  # it must not be read again
    assert numbers(measure(output, model, root, "--batch-size", "2")) == numbers(whole)
    assert not parts.exists()


def test_one_evaluation_at_a_time_writes_a_file(model, images, tmp_path):
    with FileLock(tmp_path / "r.json.lock"), pytest.raises(ValueError, match="another evaluation is writing"):
        measure(tmp_path / "r.json", model, images)
    measure(tmp_path / "r.json", model, images)
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_what_was_left_half_written_is_not_read(model, images, tmp_path):
    whole = measure(tmp_path / "whole.json", model, images)
    parts = tmp_path / "r.json.parts"
    parts.mkdir()
    (parts / "000000000.part").write_bytes(b"PK")
    assert numbers(measure(tmp_path / "r.json", model, images)) == numbers(whole)


class TooLarge(torch.nn.Module):
    """Asks for more memory than there is for more than three images."""

    def __init__(self, model):
        super().__init__()
        self.model, self.sizes = model, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > 3:
            torch.empty(2**60)
        return self.model(x)


def arguments(model, *more):
    from eval.cli import parser

    return parser().parse_args(["accuracy", "--model", model, "--img-size", "32", "--device", "cpu", *more])


def test_batches_shrink_until_memory_suffices(model, images, capsys):
    setup = set_up(arguments(model))
    samples = open_samples(str(images), setup.original)
    samples.transform = setup.transform()
    expected = evaluate(setup, samples, batch_size=3, workers=0)
    setup.model = TooLarge(setup.model)
    found = evaluate(setup, samples, batch_size=8, workers=0)
    assert setup.model.sizes[:4] == [8, 6, 4, 3] and set(setup.model.sizes[3:-1]) == {3}
    assert torch.equal(found.labels, expected.labels) and torch.equal(found.logits, expected.logits)
    assert "out of memory with 8 images at a time: going on with 6" in capsys.readouterr().out
    setup.model = torch.nn.Linear(3, 3)  # an error that fewer images do not cure
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate(setup, samples, batch_size=8, workers=0)


def test_a_model_evaluated_twice_has_one_hash(model, images, tmp_path):
    one, fused = (measure(tmp_path / "r.json", model, images, *f) for f in ([], ["--fuse"]))
    assert one["state_dict_sha256"] == fused["state_dict_sha256"]
    other = measure(tmp_path / "r.json", save_model(tmp_path / "m", "test_convnext_dcls"), images)
    assert other["state_dict_sha256"] != one["state_dict_sha256"]


class TestBadImages:
    @pytest.fixture
    def damaged(self, tmp_path):
        root = write_folder(tmp_path / "images")
        files = sorted(root.rglob("*.png"))
        files[1].write_bytes(files[1].read_bytes()[:60])
        files[9].write_text("this is no image")
        return root, [str(files[i]) for i in (1, 9)]

    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_are_named_and_counted(self, model, damaged, tmp_path, capsys, workers):
        root, bad = damaged
        table = tmp_path / "p.csv"
        result = measure(tmp_path / "r.json", model, root, "--predictions", str(table), "--workers", workers)
        files = list(root.rglob("*.png"))
        assert result["n"] == len(files) - 2
        assert [line.partition(": ")[0] for line in result["unreadable"]] == bad
        assert f"unreadable: {bad[1]}: cannot identify image file" in capsys.readouterr().out
        rows = list(csv.DictReader(table.open()))
        assert [r["path"] for r in rows if not r["prediction"]] == bad and len(rows) == len(files)
        right = sum(r["label"] == r["prediction"] for r in rows if r["prediction"])
        assert result["top1"] == round(100 * right / result["n"], 4)

    def test_all_of_them(self, model, tmp_path):
        for i in range(CLASSES):
            (tmp_path / "images" / f"class_{i}").mkdir(parents=True)
            (tmp_path / "images" / f"class_{i}" / "a.png").write_bytes(b"")
        with pytest.raises(
            ValueError, match=r"none of the 7 images can be read, the first: .*class_0/a\.png"
        ):
            measure(tmp_path / "r.json", model, tmp_path / "images")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --data: a folder of class folders"),
        (["--data", "{images}", "--dataset", "tfds/x"], "--dataset tfds/x: expected hfds/NAME or wds/"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "{empty}"], "no images in .*: expected one folder per class"),
        (["--data", "{two}"], "has 2 classes, the model 7"),
        (["--data", "{images}", "--class-map", "nowhere.txt"], "there is no class map nowhere.txt"),
        (
            ["--data", "{images}", "--class-map", "{names}", "--workers", "1"],
            r"^\S*/class_6/0\.png has the label 7, which is none of the 7 classes",
        ),
        (["--data", "{images}", "--valid-labels", "{two}/class_0/0.txt"], "one output of the model a line"),
        (["--data", "{images}", "--real-labels"], "needs all 1000 classes of ImageNet, not 7"),
        (["--data", "{images}", "--results-csv", "{table}"], "is not a table of results"),
        (
            ["--data", "{images}", "--dataset", "hfds//nowhere"],
            "cannot read the split 'validation' of hfds//nowhere",
        ),
    ],
)
def test_one_error_says_what_is_wrong(model, images, tmp_path, flags, said, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    two = write_folder(tmp_path / "two", ["class_0", "class_1"])
    (two / "class_0" / "0.txt").write_text("3\nfour\n")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "n.txt").write_text("\n".join(["more", *(f"class_{i}" for i in range(CLASSES))]))
    where = {"empty": tmp_path / "empty", "two": two, "images": images, "table": tmp_path / "t.csv"}
    where["names"] = tmp_path / "n.txt"
    flags = [f.format(**where) for f in flags]
    with pytest.raises((OSError, ValueError), match=said):
        main(["accuracy", "--model", model, "--workers", "0", "--img-size", "32", *flags])


def test_what_timm_asserts_is_one_line(images, tmp_path):
    model = save_model(tmp_path, "test_vit")
    command = [sys.executable, "-m", "eval", "accuracy", "--model", model, "--data", str(images)]
    found = subprocess.run([*command, "--img-size", "33", "--workers", "0"], capture_output=True, text=True)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "Input height (33) should be divisible by patch size (16)" in found.stderr


class TestClasses:
    class Model(torch.nn.Module):
        def __init__(self, num_classes, names=None):
            super().__init__()
            self.num_classes, self.pretrained_cfg = num_classes, {"label_names": names}

    def match(self, names, model, outputs=None):
        return match_classes(names, model, outputs or range(model.num_classes), "data")

    def test_by_the_models_names(self):
        found, names = self.match(["dog", "ape"], self.Model(3, ["ape", "cat", "dog"]))
        assert found == {"dog": 2, "ape": 0} and names == ["ape", "cat", "dog"]
        with pytest.raises(ValueError, match="classes that the model does not have: cow"):
            self.match(["cow", "ape", "cat"], self.Model(3, ["ape", "cat", "dog"]))

    def test_by_wordnet_id(self):
        synsets = ImageNetInfo().label_names()
        found, names = self.match([synsets[7], synsets[999]], self.Model(1000))
        assert found == {synsets[7]: 7, synsets[999]: 999} and names == synsets

    def test_by_number_as_imagenet_v2(self):
        assert self.match(["2", "10"], self.Model(1000))[0] == {"2": 2, "10": 10}

    def test_by_order(self):
        found, names = self.match(["ape", "cat"], self.Model(2))
        assert found == {"ape": 0, "cat": 1} and names == ["ape", "cat"]
        assert self.match(["ape", "cat"], self.Model(9), [3, 5])[0] == {"ape": 3, "cat": 5}
        with pytest.raises(ValueError, match="data has 2 classes, the model 3"):
            self.match(["ape", "cat"], self.Model(3))


def test_some_outputs_count_as_in_validate(images, tmp_path):
    saved = save_model(tmp_path / "model", "test_convnext_dcls", classes=20)
    valid = [1, 4, 6, 9, 11, 15, 19]
    (tmp_path / "valid.txt").write_text("\n".join(map(str, valid)))
    result = measure(tmp_path / "r.json", saved, images, "--valid-labels", str(tmp_path / "valid.txt"))
    assert (result["top1"], result["top5"]) == validate(saved, images, img_size=32, valid=valid)[:2]
    assert result["classes"] == 7


def random_outputs(n, classes):
    logits = 3 * torch.randn(n, classes)
    labels = torch.randint(classes, (n,))
    return Predictions(torch.arange(n), labels, logits, logits.topk(5, 1, True, True).indices)


def test_real_labels_are_those_of_timm():
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 50_001)]
    ranked = torch.randint(300, (50_000, 5))  # cheap, and right often enough
    real = RealLabelsImagenet(names)
    labels = [real.real_labels[name] for name in names]
    ranked[:20_000, 0] = torch.tensor([(of_it or [0])[0] for of_it in labels[:20_000]])
    logits = torch.zeros(50_000, 300 + 700).scatter_(1, ranked, torch.arange(5.0, 0, -1).expand(50_000, 5))
    ranked = logits.topk(5, 1, True, True).indices
    real.add_result(logits)
    known = metrics.real_labels(names, logits.shape[1], None)
    found = metrics.real_accuracy(Predictions(torch.arange(50_000), ranked[:, 0], logits, ranked), known)
    assert found["real_top1"] == round(real.get_accuracy(1), 4) > 30
    assert found["real_top5"] == round(real.get_accuracy(5), 4)
    assert found["real_n"] == len(real.is_correct[1]) == 46_837
    with pytest.raises(ValueError, match=r"0\.png is not an image of ImageNet's validation set"):
        metrics.real_labels(["0.png"], 1000, None)


def test_calibration_error_and_likelihood_are_their_definitions():
    found = random_outputs(500, 10)
    result = metrics.summary(found)
    probabilities = found.logits.double().softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == found.labels.numpy()
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(15)]
    assert result["ece"] == pytest.approx(100 * sum(gaps) / 500, abs=1e-3)
    likelihood = probabilities[np.arange(500), found.labels.numpy()]
    assert result["loss"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)


def test_tables_of_classes_and_confusions(tmp_path):
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    ranked = torch.tensor([[0, 1], [1, 0], [1, 2], [1, 0], [0, 1], [0, 1]])
    found = Predictions(torch.arange(6), labels, torch.zeros(6, 4), ranked)
    assert metrics.confusions(found, "abcd", most=2) == [
        {"label": "a", "prediction": "b", "n": 2, "share": 66.6667},
        {"label": "b", "prediction": "a", "n": 1, "share": 50.0},
    ]
    metrics.write_per_class(tmp_path / "c.csv", found, "abcd")
    rows = list(csv.reader((tmp_path / "c.csv").open()))
    assert rows[1:] == [
        ["a", "3", "33.3333", "66.6667", "3", "33.3333"],
        ["b", "2", "50.0", "100.0", "3", "33.3333"],
        ["c", "1", "0.0", "0.0", "0", ""],
        ["d", "0", "", "", "0", ""],
    ]


def test_the_table_of_results_is_timms(model, images, tmp_path):
    table = tmp_path / "results.csv"
    table.write_text(
        "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation\n"
        "best,99.0,1.0,100.0,0.0,0.5,224,0.9,bicubic\nworst,0.0,100.0,1.0,99.0,0.5,224,0.9,bicubic\n"
    )
    for _ in range(2):
        result = measure(tmp_path / "r.json", model, images, "--results-csv", str(table))
    rows = list(csv.DictReader(table.open()))
    assert [r["model"] for r in rows] == ["best", model, "worst"]
    assert rows[1]["top1_err"] == str(round(100 - result["top1"], 4)) and rows[1]["img_size"] == "32"


def test_a_store_that_misses_images_says_so(tmp_path):
    store = Store(Predictions, tmp_path)
    store.add(random_outputs(3, 6))
    assert store.done() == {0, 1, 2}
    with pytest.raises(RuntimeError, match="3 results arrived for 5 samples"):
        store.whole(5)
    assert UNREADABLE not in range(1000)
