"""Every recipe starts: its own file, a tiny model of its family, a few images."""

import os
import subprocess
from pathlib import Path

import pytest
import timm
import torch
import yaml

import dcls_models  # noqa: F401
from tests.training import last, save_dense, write_images
from train.command import main

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(
    p for p in CONFIGS.rglob("*.yaml") if p.parent.name not in ("dense", "audio", "delays")
)  # their own tests
FAMILIES = ("convnext", "convformer", "caformer", "fastvit", "resnet")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), classes=3, train=6, val=2)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save_dense(tmp_path_factory.mktemp("dense"), classes=5)


def shrunk(recipe, dense):
    """What makes a recipe small without changing what it does."""
    config = yaml.safe_load(recipe.read_text())
    family = next(f for f in FAMILIES if config["model"]["name"].startswith(f))
    flags = ["--model.name", f"test_{family}_dcls", "--data.img_size", "64", "--data.batch_size", "4"]
    if recipe.name == "digits.yaml":
        flags = ["--data.batch_size", "4"]
    if "total_batch_size" in config["data"]:
        flags += ["--data.total_batch_size", "8"]
    if config["trainer"].get("precision") == "16-mixed":
        flags += ["--trainer.precision", "bf16-mixed"]  # no float16 on a CPU
    if "warm_start" in config["model"]:
        flags += ["--model.warm_start", dense]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    short = ["--trainer.max_epochs", "25", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"]
    return [*flags, *quiet, *short, *cpu, "--report.pictures", "false", "--positions.kernels", "0"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_recipe_starts(recipe, images, dense, tmp_path):
    where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path)]
    main(["fit", "--config", str(recipe), *shrunk(recipe, dense), *where])
    assert last(tmp_path)["global_step"] == 2
    saved = yaml.safe_load((tmp_path / "logs" / "config.yaml").read_text())
    config = yaml.safe_load(recipe.read_text())
    for key in ("lr", "weight_decay", "warmup_epochs", "mixup", "ema_decay", "repulsive_from_epoch"):
        if key in config["model"]:
            assert saved["model"][key] == config["model"][key]


@pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("imagenet/*.yaml")), ids=lambda p: p.stem)
def test_recipe_is_for_the_model_of_its_name(recipe):
    config = yaml.safe_load(recipe.read_text())
    name = config["model"]["name"]
    assert name == recipe.stem
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.has_weights, "the model is published"
    assert (config["data"]["img_size"], config["data"]["crop_pct"]) == (cfg.input_size[-1], cfg.crop_pct)
    kwargs = config["model"]["model_kwargs"]
    with torch.device("meta"):
        with_rate = timm.create_model(name, **kwargs)
    rates = [m.drop_prob for m in with_rate.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(kwargs["drop_path_rate"])


@pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("imagenet/*.yaml")), ids=lambda p: p.stem)
def test_recipe_begins_with_its_command_length_and_expected_accuracy(recipe):
    head = recipe.read_text().splitlines()[:4]
    command = f"python -m train fit --config configs/imagenet/{recipe.name} --data.root /data/imagenet"
    assert head[1] == f"# Command:  {command}"
    config = yaml.safe_load(recipe.read_text())
    length = f"{config['trainer']['max_epochs']} epochs at {config['data']['img_size']} pixels"
    assert head[2].startswith(f"# Length:   {length}")
    assert head[3].startswith("# Expected: ")


def test_every_published_vision_model_has_a_recipe():
    published = {
        name
        for name in timm.list_models("*dcls*")
        if timm.get_pretrained_cfg(name).has_weights and "audio" not in name
    }
    assert published == {p.stem for p in CONFIGS.glob("imagenet/*.yaml")}


class TestSlurm:
    """The script as it is, with commands that stand in for the cluster's: no SLURM can be had here."""

    def submit(self, tmp_path, code):
        for name, body in (("srun", f'printf "%s\\n" "$@" > {tmp_path}/srun.txt; exit {code}'),
                           ("scontrol", f'echo "$@" > {tmp_path}/scontrol.txt')):  # fmt: skip
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        job = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "42"}
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        script = [
            "bash",
            str(CONFIGS / "slurm.sh"),
            str(CONFIGS / "digits.yaml"),
            "data",
            str(tmp_path / "run"),
        ]
        done = subprocess.run(script, env={**os.environ, **job, **path}, capture_output=True, text=True)
        assert not done.stderr
        return done.returncode, (tmp_path / "srun.txt").read_text().splitlines()

    def test_a_stopped_job_queues_again(self, tmp_path):
        code, command = self.submit(tmp_path, 143)
        assert code == 143
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 42\n"
        assert "--ckpt_path" not in command

    def test_and_goes_on(self, tmp_path):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
        code, command = self.submit(tmp_path, 0)
        assert code == 0
        assert not (tmp_path / "scontrol.txt").exists()
        assert command[-2:] == ["--ckpt_path", "last"]

    def test_a_failed_job_does_not(self, tmp_path):
        assert self.submit(tmp_path, 1)[0] == 1
        assert not (tmp_path / "scontrol.txt").exists()

    def test_the_trainer_takes_its_options(self, tmp_path, capsys):
        _, command = self.submit(tmp_path, 0)
        assert command[:3] == ["python", "-m", "train"]
        with pytest.raises(SystemExit) as exited:
            main([*command[3:], "--print_config"])
        assert exited.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert (config["trainer"]["num_nodes"], config["trainer"]["devices"]) == (2, "8")
        assert config["data"]["root"] == "data"
