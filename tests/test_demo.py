"""The way of `make demo`, shrunk to seconds: train, export, evaluate, predict, draw."""

import csv
import json

import pytest
import timm
import torch
from filelock import FileLock
from PIL import Image
from timm.data import create_transform, resolve_data_config

from dcls_models import CheckpointError
from dcls_models.layers import DclsNd
from dcls_models.loading import load_model
from eval.classification.data import open_samples
from eval.cli import main as eval_main
from hub.cli import main as hub_main
from train.command import main as train_main
from train.data import Images
from train.digits import write_digits
from train.report import Report

CONFIG = ["fit", "--config", "configs/digits.yaml"]
FEW_STEPS = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "5"]


def fit(root, run, *more):
    where = ["--data.root", str(root), "--trainer.default_root_dir", str(run)]
    train_main([*CONFIG, *where, "--trainer.enable_progress_bar", "false", *more])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    assert write_digits(root) == 1797
    return root


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(digits, folder, "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1")
    hub_main(["export", "--checkpoint", str(folder / "checkpoints" / "last.ckpt"), "--out", str(folder)])
    return folder


def test_digits_are_split_by_class_without_overlap(digits):
    train = {p.name for p in digits.glob("train/*/*.png")}
    val = {p.name for p in digits.glob("val/*/*.png")}
    assert len(train) == 1437 and len(val) == 360 and not train & val
    shares = [len(list((digits / "val" / str(d)).iterdir())) for d in range(10)]
    assert max(shares) - min(shares) <= 2
    assert Image.open(next(digits.glob("train/3/*.png"))).size == (8, 8)


def test_training_leaves_checkpoint_config_log_and_picture(run):
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert "name: convnext_dcls_tiny" in (run / "logs" / "config.yaml").read_text()
    rows = list(csv.DictReader((run / "logs" / "metrics.csv").open()))
    top1 = [float(row["val/top1"]) for row in rows if row.get("val/top1")]
    assert top1 and top1[-1] > 15, "one epoch is already better than chance"
    assert Image.open(run / "positions.png").width > 300


def test_training_moves_the_positions(digits, tmp_path):
    positions = []
    for scale in ("5", "0"):  # with the factor 0 they stay where the seed has put them
        options = ["--model.positions_lr_scale", scale, "--positions.animate_every", "2"]
        fit(digits, tmp_path / scale, *FEW_STEPS, *options)
        trained = load_model(checkpoint=tmp_path / scale / "checkpoints" / "last.ckpt")
        positions.append(trained.stages[0].positions)
    assert (positions[0] - positions[1]).abs().mean() > 1e-4
    with Image.open(tmp_path / "5" / "positions.gif") as film:
        assert film.n_frames == 4, "the start, after 2 updates, after 4, and after all 5"
    assert not list((tmp_path / "5").glob("*positions*.part*"))


def test_pictures_of_predictions_show_all_classes():
    report, labels = Report(), torch.arange(10).repeat_interleave(36)
    for batches in (6, 6, float("inf")):  # shards do not know how many
        for at, batch in enumerate(labels.split(64)):
            report.keep(at, batches, torch.zeros(len(batch), 3, 2, 2), batch, torch.zeros(len(batch), 10))
        assert [len(part) for part in report.seen] == [16, 16, 16]
        assert len(report.seen[1].unique()) >= (9 if batches == 6 else 2)


def test_export_gives_the_checkpoint_back(run):
    trained = load_model(checkpoint=run / "checkpoints" / "last.ckpt")
    exported = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(exported(images), trained(images))
    assert exported.pretrained_cfg["label_names"] == [str(d) for d in range(10)]
    assert resolve_data_config({}, model=exported)["input_size"] == (3, 32, 32)


def test_a_damaged_checkpoint_is_not_exported(tmp_path, run):
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt"):
        hub_main(["export", "--checkpoint", str(damaged), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_accuracy_counts_what_a_plain_loop_counts(run, digits, tmp_path, capsys):
    output, predictions = tmp_path / "results.json", tmp_path / "predictions.csv"
    args = ["accuracy", "--model", f"local-dir:{run}", "--data", str(digits), "--workers", "0"]
    eval_main([*args, "--output", str(output), "--predictions", str(predictions)])
    result = json.loads(output.read_text())
    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    right = []
    for file in sorted(digits.glob("val/*/*.png")):
        with Image.open(file) as image, torch.no_grad():
            logits = model(transform(image.convert("RGB"))[None])[0]
        right.append((file, logits.argmax().item() == int(file.parent.name)))
    assert result["n"] == 360
    assert result["top1"] == round(100 * sum(r for _, r in right) / 360, 4)
    assert result["top5"] >= result["top1"]
    assert {"model", "command", "versions", "date"} <= result.keys()
    rows = list(csv.DictReader(predictions.open()))
    assert {(r["path"], r["label"] == r["prediction"]) for r in rows} == {(str(f), r) for f, r in right}
    assert f"top-1 {result['top1']} %" in capsys.readouterr().out


def test_accuracy_takes_a_checkpoint_too(run, digits, tmp_path):
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    both = []
    for which in (["--checkpoint", checkpoint], ["--model", f"local-dir:{run}"]):
        output = tmp_path / "out" / "r.json"
        eval_main(["accuracy", *which, "--data", str(digits), "--workers", "0", "--output", str(output)])
        both.append(json.loads(output.read_text())["top1"])
    assert both[0] == both[1]


def test_kernels_and_predictions_are_drawn(run, digits, tmp_path, capsys):
    eval_main(["kernels", "--model", f"local-dir:{run}", "--picture", str(tmp_path / "k.png")])
    assert Image.open(tmp_path / "k.png").width > 300
    files = [str(f) for f in sorted(digits.glob("val/7/*.png"))[:3]]
    eval_main(["predict", "--model", f"local-dir:{run}", *files, "--picture", str(tmp_path / "p.png")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(digits))]
    assert [line.split(":")[0] for line in lines] == files
    assert Image.open(tmp_path / "p.png").width > 100


def test_a_picture_cut_short_is_named(run, digits, tmp_path, capsys):
    whole = sorted(digits.glob("val/7/*.png"))[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    files = [str(tmp_path / "cut.png"), str(sorted(digits.glob("val/7/*.png"))[0])]
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as an image"):
        eval_main(["predict", "--model", f"local-dir:{run}", *files])
    assert f"\n{files[1]}: " in "\n" + capsys.readouterr().out, "the others are predicted"


def test_a_model_without_dcls_has_no_kernels_to_draw(tmp_path, run):
    model = timm.create_model("test_convnext", num_classes=10)
    assert not any(isinstance(m, DclsNd) for m in model.modules())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="python -m train"):
        eval_main(
            ["kernels", "--checkpoint", str(tmp_path / "plain.ckpt"), "--picture", str(tmp_path / "k.png")]
        )


def test_a_folder_of_classes_is_split_always_in_the_same_way(digits):
    first, second = (Images(str(digits / "val"), img_size=32) for _ in range(2))
    assert first.val_set.indices == second.val_set.indices
    assert len(first.val_set) == 72 and len(first.train_set) == 288
    assert not set(first.val_set.indices) & set(first.train_set.indices)
    assert first.class_names == [str(d) for d in range(10)]


def make_folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "a.png")


def test_data_says_what_is_wrong(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        Images(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in"):
        Images(str(tmp_path / "empty"))
    make_folders(tmp_path / "single", ["cat", "dog"])
    with pytest.raises(ValueError, match="cat, dog"):
        Images(str(tmp_path / "single"))
    make_folders(tmp_path / "half" / "train", ["cat", "dog"])
    with pytest.raises(FileNotFoundError, match="no folder val"):
        Images(str(tmp_path / "half"))
    make_folders(tmp_path / "half" / "val", ["cat", "cow"])
    with pytest.raises(ValueError, match="cow"):
        Images(str(tmp_path / "half"))
    model = load_model(f"local-dir:{run}")
    with pytest.raises(ValueError, match=r"does not have: cat, dog"):
        open_samples(str(tmp_path / "single"), model)
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_samples(str(tmp_path / "nowhere"), model)


def test_a_missing_class_in_val_keeps_the_labels(tmp_path):
    make_folders(tmp_path / "train", ["a", "b", "c"])
    make_folders(tmp_path / "val", ["c"])
    data = Images(str(tmp_path), img_size=32)
    assert data.class_names == ["a", "b", "c"]
    assert data.val_set[0][1] == 2


def test_load_model_refuses_a_checkpoint_of_another_name(run):
    with pytest.raises(CheckpointError, match="holds a convnext_dcls_tiny, not a resnet50_dcls"):
        load_model("resnet50_dcls", run / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_model(checkpoint=run / "nothing.ckpt")
    with pytest.raises(ValueError, match="name of a model, or a checkpoint"):
        load_model()
    with pytest.raises(ValueError, match=r"last.ckpt is a file, not a name: .*--checkpoint"):
        load_model(str(run / "checkpoints" / "last.ckpt"))
    with pytest.raises(ValueError, match="timm knows no model 'convnext_dcls_tny'"):
        load_model("convnext_dcls_tny")
    with pytest.raises(ValueError, match=r"checkpoints has no config.json: python -m hub export"):
        load_model(f"local-dir:{run / 'checkpoints'}")


def test_two_trainings_do_not_share_a_folder(digits, tmp_path):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match=r"another training is running in .*default_root_dir"),
    ):
        fit(digits, tmp_path, *FEW_STEPS)
    assert not (tmp_path / "checkpoints").exists()
    fit(digits, tmp_path, *FEW_STEPS)


def test_a_folder_to_predict_must_be_there(digits, run, tmp_path):
    last = [
        "--ckpt_path",
        str(run / "checkpoints" / "last.ckpt"),
        "--data.predict_root",
        str(tmp_path / "nope"),
    ]
    with pytest.raises(FileNotFoundError, match=r"data\.predict_root is not a folder: .*nope"):
        train_main(["predict", *CONFIG[1:], "--trainer.default_root_dir", str(run), *last])


def test_an_unknown_option_is_an_error(capsys):
    with pytest.raises(SystemExit):
        train_main([*CONFIG, "--model.nonsense", "1"])
    assert "nonsense" in capsys.readouterr().err


def test_a_second_run_into_the_same_folder_replaces_the_first(digits, tmp_path):
    weights = []
    for seed in ("0", "1"):
        fit(digits, tmp_path, *FEW_STEPS, "--seed_everything", seed)
        assert [p.name for p in (tmp_path / "checkpoints").glob("last*")] == ["last.ckpt"]
        weights.append(load_model(checkpoint=tmp_path / "checkpoints" / "last.ckpt").head.fc.weight)
    assert not torch.equal(*weights)


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    make_folders(tmp_path / "train", ["a", "b"])
    make_folders(tmp_path / "val", ["a", "b"])
    with pytest.raises(ValueError, match="2 training images are less than one batch of 64"):
        fit(tmp_path, tmp_path / "run")


def test_the_schedule_ends_with_the_training(digits, tmp_path):
    for limit, updates in ((["--trainer.max_steps", "3", "--trainer.max_epochs", "-1"], 3), (FEW_STEPS, 5)):
        fit(digits, tmp_path, *limit)
        state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        rates = {g["name"]: g["lr"] for g in state["optimizer_states"][0]["param_groups"]}
        assert state["global_step"] == updates
        assert state["lr_schedulers"][0]["t_initial"] == updates
        assert rates["positions"] == pytest.approx(25 * rates["decay"], rel=1e-2)


def test_a_training_that_started_from_a_file_can_be_loaded(run, tmp_path):
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["model_kwargs"]["pretrained_cfg_overlay"] = {"file": "gone.pth"}
    torch.save(checkpoint, tmp_path / "tuned.ckpt")
    tuned, plain = load_model(checkpoint=tmp_path / "tuned.ckpt"), load_model(checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), plain.parameters(), strict=True))


def test_patterns_of_files_are_expanded_where_the_shell_does_not(run, digits, capsys):
    eval_main(["predict", "--model", f"local-dir:{run}", str(digits / "val" / "7" / "*5.png")])
    assert len(capsys.readouterr().out.splitlines()) == len(list(digits.glob("val/7/*5.png"))) > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_reaches_its_accuracy_over_three_seeds(digits, tmp_path):
    top1 = []
    for seed in range(3):
        run = tmp_path / str(seed)
        fit(digits, run, "--seed_everything", str(seed))
        output = tmp_path / "r.json"
        checkpoint = str(run / "checkpoints" / "last.ckpt")
        eval_main(["accuracy", "--checkpoint", checkpoint, "--data", str(digits), "--output", str(output)])
        top1.append(json.loads(output.read_text())["top1"])
    assert sum(top1) / 3 >= 98.5, top1
