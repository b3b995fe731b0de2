"""What a name means, and checkpoints of the trainer taken apart."""

import json
import os
import random
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import dcls_models
from dcls_models.checkpoint import CheckpointError, check_values, read
from dcls_models.loading import config_of, load_model, read_run

NAME = "test_convnext_dcls"
TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}


def write_config(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    model = timm.create_model(NAME, num_classes=3)
    weights = {f"model.{k}": v for k, v in model.state_dict().items()}
    weights |= {f"ema.module.{k}": v + 1 for k, v in model.state_dict().items()}
    data = {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "img_size": 32,
    }
    run = {"name": NAME, "num_classes": 3, "class_names": ["a", "b", "c"], "model_kwargs": {}}
    checkpoint = {"hyper_parameters": run, "datamodule_hyper_parameters": data, "state_dict": weights}
    path = tmp_path_factory.mktemp("checkpoints") / "last.ckpt"
    torch.save({**checkpoint, "epoch": 2, "global_step": 40}, path)
    return path


def test_a_trained_model_is_tested_at_the_size_of_its_training(trained, tmp_path):
    kept = torch.load(trained, weights_only=False)
    kept["hyper_parameters"] |= {"name": "convnext_tiny", "model_kwargs": TINY}
    model = timm.create_model("convnext_tiny", num_classes=3, **TINY)
    assert model.pretrained_cfg["test_input_size"] == (3, 288, 288)
    kept["state_dict"] = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save(kept, tmp_path / "dense.ckpt")
    config = resolve_model_data_config(load_model(checkpoint=tmp_path / "dense.ckpt"), use_test_size=True)
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)


def test_a_name_means_a_config(tmp_path):
    assert config_of("convnext_dcls_tiny")["input_size"] == (3, 224, 224)
    assert config_of("resnet18.a1_in1k")["hf_hub_id"] == "timm/resnet18.a1_in1k"
    content = {"architecture": NAME, "num_classes": 7, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    cfg = config_of(write_config(tmp_path, json.dumps({**content, "label_names": list("abcdefg")})))
    assert (cfg["num_classes"], cfg["input_size"], cfg["label_names"]) == (7, [3, 32, 32], list("abcdefg"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnext_dcls_tny", "timm knows no model 'convnext_dcls_tny'; timm.list_models"),
        ("convnext_dcls_tiny.foo", "convnext_dcls_tiny has no weights 'foo'; published are: .*dcls_in1k"),
        ("http://x", "expected a timm name, local-dir:FOLDER or hf-hub:USER/NAME"),
        (__file__, "is a file, not a name"),
        (str(Path(__file__).parent), "is a folder, not a name: give local-dir:"),
        ("local-dir:/nowhere", "/nowhere has no config.json: python -m hub export"),
        ("hf-hub:not a name", r"cannot get the config of hf-hub:not a name \(HFVal"),
    ],
)
def test_what_is_no_name_is_said_in_one_line(name, words):
    for use in (config_of, load_model):
        with pytest.raises(ValueError, match=words) as error:
            use(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "expected a dictionary with architecture"),
        ("{", "is no JSON"),
        ('{"architecture": "resnet18"}', "expected a dictionary with architecture"),
        ('{"architecture": "resnet18", "pretrained_cfg": []}', "pretrained_cfg and model_args"),
        ('{"pretrained_cfg": {}}', "expected a dictionary with architecture"),
        ('{"architecture": "resnet18", "pretrained_cfg": {}, "model_args": 3}', "expected a dictionary"),
        ('{"architecture": "resnet_18", "pretrained_cfg": {}}', "architecture 'resnet_18', which timm"),
        (
            '{"architecture": "resnet18", "pretrained_cfg": {"std": [0]}}',
            "std must be numbers above 0, got .0",
        ),
        (
            '{"architecture": "resnet18", "pretrained_cfg": {}, "model_args": {"features_only": true}}',
            "would tell timm how to load, not what: features_only",
        ),
    ],
)
def test_a_config_that_is_none_is_said_in_one_line(tmp_path, text, words):
    name = write_config(tmp_path, text)
    for use in (config_of, load_model):
        with pytest.raises(ValueError, match=words) as error:
            use(name)
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_the_trainer_is_taken_apart(trained):
    run = read_run(trained)
    assert (run.model["name"], run.data["img_size"], run.epoch, run.global_step) == (NAME, 32, 2, 40)
    assert run.weights() is run.weights(True) is run.averaged and run.weights(False) is run.raw
    key = "head.fc.weight"
    assert torch.equal(run.averaged[key], run.raw[key] + 1)
    model = load_model(checkpoint=trained, ema=False)
    assert torch.equal(model.state_dict()[key], run.raw[key])
    assert model.pretrained_cfg["label_names"] == ["a", "b", "c"]


def test_flipped_bits_anywhere_in_the_weights_are_noticed(trained, tmp_path):
    content, random_numbers = trained.read_bytes(), random.Random(0)
    start = content.index(b"data.pkl")
    read_run(trained)
    for _ in range(20):
        damaged = bytearray(content)
        storage = read_run(trained).raw["head.fc.weight"]
        place = content.index(storage.numpy().tobytes()) + random_numbers.randrange(storage.nbytes)
        damaged[place] ^= 1 << random_numbers.randrange(8)
        (tmp_path / "last.ckpt").write_bytes(damaged)
        for reader in (read_run, read, lambda path: load_model(checkpoint=path)):
            with pytest.raises(
                CheckpointError, match=r"last.ckpt is damaged, .*not what was written"
            ) as error:
                reader(tmp_path / "last.ckpt")
            assert "\n" not in str(error.value)
    for cut in (start, len(content) // 2, len(content) - 10):
        (tmp_path / "last.ckpt").write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"last.ckpt is "):
            read_run(tmp_path / "last.ckpt")


def test_the_checkpoint_before_is_offered_if_it_is_whole(trained, tmp_path):
    content = bytearray(trained.read_bytes())
    for age, name in enumerate(("epoch=3.ckpt", "epoch=2.ckpt")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (2000 - age, 2000 - age))
    content[content.index(read_run(trained).raw["head.fc.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"The one before it that is whole is .*epoch=3.ckpt$"):
        read_run(tmp_path / "last.ckpt")
    (tmp_path / "epoch=3.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"The one before it that is whole is .*epoch=2.ckpt$"):
        read_run(tmp_path / "last.ckpt")
    (tmp_path / "epoch=2.ckpt").unlink()
    with pytest.raises(CheckpointError, match="There is no other checkpoint in"):
        load_model(checkpoint=tmp_path / "last.ckpt")


def test_a_checkpoint_of_another_task_is_no_classifier(trained, tmp_path):
    stored = torch.load(trained, weights_only=True)
    del stored["hyper_parameters"]["class_names"]
    torch.save(stored, tmp_path / "dense.ckpt")
    assert read_run(tmp_path / "dense.ckpt").model["name"] == NAME
    with pytest.raises(CheckpointError, match=r"is not of a classifier .*'class_names'"):
        load_model(checkpoint=tmp_path / "dense.ckpt")
    torch.save(stored["state_dict"], tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="is not a checkpoint of python -m train"):
        read_run(tmp_path / "weights.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), complex(0, 1)])
def test_weights_that_are_not_real_and_finite_are_refused(trained, tmp_path, value):
    stored = torch.load(trained, weights_only=True)
    weights = {k.removeprefix("model."): v for k, v in stored["state_dict"].items() if k.startswith("model.")}
    broken = (
        weights["head.fc.bias"] * value if isinstance(value, complex) else weights["head.fc.bias"] + value
    )
    weights["head.fc.bias"] = broken
    torch.save(weights, tmp_path / "weights.pth")
    words = "head.fc.bias (is complex|has NaN or infinite values)"
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 3}
    with pytest.raises(CheckpointError, match=words):
        timm.create_model(NAME, pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    stored["state_dict"] = {f"model.{k}": v for k, v in weights.items()}
    torch.save(stored, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=words):
        load_model(checkpoint=tmp_path / "last.ckpt")


def test_numbers_of_every_type_are_looked_at():
    good = {"a": torch.ones(2, dtype=torch.float8_e4m3fn), "b": torch.ones(1, dtype=torch.int64)}
    check_values({**good, "c": torch.ones(2, dtype=torch.bfloat16), "d": torch.tensor(True)}, "these")
    for dtype in (torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(CheckpointError, match="these: x has NaN"):
            check_values({**good, "x": torch.tensor([1.0, float("nan")]).to(dtype)}, "these")
    with pytest.raises(CheckpointError, match="these: x has NaN or infinite"):
        check_values({**good, "x": torch.tensor([1e300], dtype=torch.float64)}, "these")  # as float32
    for odd in (torch.eye(2).to_sparse(), torch.ones(2, device="meta")):
        with pytest.raises(CheckpointError, match="these: x is sparse, quantized, nested or empty of values"):
            check_values({**good, "x": odd}, "these")
    for nothing in ({}, {"a": 1}):
        with pytest.raises(dcls_models.CheckpointError, match="these holds no weights"):
            check_values(nothing, "these")


def test_what_timm_cannot_build_is_one_line(tmp_path):
    config = {
        "architecture": NAME,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
        "model_args": {"dims": True},
    }
    with pytest.raises(ValueError, match=r"timm cannot build local-dir:.* \(TypeError: "):
        load_model(write_config(tmp_path, json.dumps(config)))
    with pytest.raises(ValueError, match="convnext_dcls_atto has no published weights: give a checkpoint"):
        load_model("convnext_dcls_atto")


def test_a_checkpoint_with_other_weights_than_its_options_say(trained, tmp_path):
    kept = torch.load(trained, weights_only=False)
    kept["state_dict"].popitem()
    torch.save(kept, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt has other weights than .*: Missing key") as error:
        load_model(checkpoint=tmp_path / "other.ckpt")
    assert "\n" not in str(error.value)
