"""What a training does: its parts from timm, its averages, its errors, what it leaves."""

import copy
import csv
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
import yaml
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task.classification import ClassificationTask
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch.nn import functional as F

from dcls_models import CheckpointError
from dcls_models.loading import load_model
from dcls_models.optim import param_groups
from dcls_models.strided import SlicedConv2d, overrunning
from hub.cli import main as hub_main
from tests.training import (
    RANDOM,
    SMALL_DATA,
    TINY,
    fit,
    in_child,
    last,
    same,
    save_dense,
    write_images,
)
from train.checkpoints import KeepLast, NotFiniteError
from train.command import main
from train.data import Images
from train.errors import reason
from train.launch import run
from train.models import build_model, to_memory_layout
from train.module import Classifier
from train.optimizer import build_optimizer
from train.run_folder import put_aside
from train.samplers import Keyed

SMALL = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16], "patch_size": 2, "kernel_count": 5}
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run with pictures."""
    folder = tmp_path_factory.mktemp("whole")
    fit(images, folder, *RANDOM, "--report.pictures", "true", "--positions.kernels", "4")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_dense(tmp_path_factory.mktemp("teacher"), classes=4)


def trainer_for(folder, *callbacks, **kwargs):
    """As somebody would write it in a notebook."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=list(callbacks), **{**quiet, **kwargs}
    )


class Weights(pl.Callback):
    """The weights before training and after each update."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self._note(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self._note(pl_module)

    def _note(self, pl_module):
        self.seen.append({k: v.clone() for k, v in pl_module.model.state_dict().items()})


class TestAverages:
    @pytest.mark.parametrize("warmup", [True, False])
    @pytest.mark.parametrize("name", ["test_convnext_dcls", "test_resnet_dcls"])
    def test_everything_is_averaged_once_and_counters_are_copied(self, images, tmp_path, name, warmup):
        weights = Weights()
        module = Classifier(name, num_classes=4, lr=1e-2, ema_decay=0.7, ema_warmup=warmup)
        data = Images(str(images), batch_size=16, num_workers=0, img_size=32)
        trainer_for(tmp_path, weights, max_steps=3, limit_val_batches=0).fit(module, data)
        expected = {k: v.double() for k, v in weights.seen[1].items()}  # the first update is taken as it is
        for step, seen in enumerate(weights.seen[2:], 2):
            decay = min(0.7, 1 - step ** (-2 / 3)) if warmup else 0.7
            expected = {k: decay * v + (1 - decay) * seen[k] for k, v in expected.items()}
        found = module.ema.module.state_dict()
        assert found.keys() == expected.keys()
        shared = [k for k in found if k.endswith("positions")]
        assert len(shared) == 4
        for key, value in found.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, expected[key].float(), rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(value, weights.seen[-1][key])
        assert any((weights.seen[-1][k] - weights.seen[1][k]).abs().max() > 1e-3 for k in shared)

    def test_both_are_measured_saved_and_exported(self, whole, tmp_path):
        rows = list(csv.DictReader((whole / "summary.csv").open()))
        assert list(rows[0]) == [
            *("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5"),
            *("eval_loss_ema", "eval_top1_ema", "eval_top5_ema", "lr"),
        ]
        assert rows[-1]["eval_loss"] != rows[-1]["eval_loss_ema"]
        checkpoint = whole / "checkpoints" / "last.ckpt"
        raw, averaged = load_model(checkpoint=checkpoint, ema=False), load_model(checkpoint=checkpoint)
        assert not torch.equal(raw.stages[0].positions, averaged.stages[0].positions)
        stored = last(whole)["state_dict"]
        assert torch.equal(raw.head.fc.weight, stored["model.head.fc.weight"])
        assert torch.equal(averaged.head.fc.weight, stored["ema.module.head.fc.weight"])
        hub_main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path)])
        exported = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert torch.equal(exported.head.fc.weight, averaged.head.fc.weight)
        assert exported.pretrained_cfg["label_names"] == [f"class_{i}" for i in range(4)]

    def test_measured_are_what_a_plain_loop_measures(self, whole, images):
        rows = list(csv.DictReader((whole / "summary.csv").open()))
        data = Images(str(images), batch_size=7, num_workers=0, img_size=32, like="test_convnext_dcls")
        for ema, end in ((False, ""), (True, "_ema")):
            model = load_model(checkpoint=whole / "checkpoints" / "last.ckpt", ema=ema)
            with torch.no_grad():
                found = [(model(image[None]), torch.tensor([label])) for image, label in data.val_set]
            logits, labels = (torch.cat(part) for part in zip(*found, strict=True))
            top1 = 100 * (logits.argmax(1) == labels).float().mean()
            assert float(rows[-1][f"eval_top1{end}"]) == pytest.approx(top1.item())
            loss = F.cross_entropy(logits, labels).item()
            assert float(rows[-1][f"eval_loss{end}"]) == pytest.approx(loss, rel=1e-4)

    def test_a_checkpoint_without_averages_says_so(self, images, tmp_path):
        fit(images, tmp_path, *SHORT)
        with pytest.raises(CheckpointError, match="no averaged weights"):
            load_model(checkpoint=tmp_path / "checkpoints" / "last.ckpt", ema=True)


class TestParts:
    def test_all_options_of_timm_together(self, images, teacher, tmp_path):
        options = [
            "--model.loss",
            "bce",
            "--model.mixup",
            "0.8",
            "--model.cutmix",
            "1",
            "--model.agc",
            "0.01",
        ]
        options += ["--model.mixup_kwargs", "{mode: elem, switch_prob: 0.3}", "--model.teacher", teacher]
        options += ["--model.layer_decay", "0.7", "--model.grad_checkpointing", "true", "--model.opt", "lamb"]
        options += ["--model.sched", "step", "--model.sched_kwargs", "{decay_epochs: 1, decay_rate: 0.5}"]
        options += [
            "--model.ema_decay",
            "0.9",
            "--model.repulsive_from_epoch",
            "0",
            "--model.compile",
            "eager",
        ]
        options += ["--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2"]
        options += ["--trainer.gradient_clip_val", "1", "--data.auto_augment", "augmix-m5-w2-d1"]
        options += ["--data.repeats", "3", "--data.re_prob", "0.5", "--model.mixup_off_epoch", "1"]
        fit(images, tmp_path, *options, "--trainer.max_epochs", "2")
        checkpoint = last(tmp_path)
        assert checkpoint["global_step"] == 6
        assert not [k for k in checkpoint["state_dict"] if "teacher" in k]
        rates = [g["lr"] for g in checkpoint["optimizer_states"][0]["param_groups"]]
        assert len({round(r, 12) for r in rates}) > 4

    def test_one_line_says_what_a_kind_of_parameters_gets(self, caplog):
        groups = param_groups(timm.create_model("test_convnext_dcls"), lr=1e-3, layer_decay=0.7)
        with caplog.at_level(logging.INFO):
            build_optimizer(groups, "adamw", 1e-3, 0.05, None)
        lines = [record.getMessage() for record in caplog.records if record.name == "train.optimizer"]
        assert [line.split()[2] for line in lines] == ["decay", "no_decay", "positions"]
        for line, name in zip(lines, ("decay", "no_decay", "positions"), strict=True):
            rates = [group["lr"] for group in groups if group["name"] == name]
            assert f" lr {min(rates):.3g} to {max(rates):.3g} " in line
            numbers = sum(p.numel() for g in groups if g["name"] == name for p in g["params"])
            assert line.endswith(f" {numbers} numbers")

    @pytest.mark.parametrize("policy", ["3a", "rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2"])
    def test_augmentation_depends_on_its_seed_only(self, images, policy):
        data = Images(str(images), img_size=32, auto_augment=policy, re_prob=0.5)
        one, again, other = (Keyed(data.train_set)[(3, seeds)] for seeds in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
        assert torch.equal(one[0], again[0])
        assert not torch.equal(one[0], other[0])
        for position in range(40):  # posterize to no bits, which Pillow 13 refuses, comes up
            assert Keyed(data.train_set)[(3, (0, 0, position))][0].isfinite().all()

    def test_the_teachers_share_of_the_loss(self, images, teacher, tmp_path):
        module = Classifier("test_convnext", num_classes=4, teacher=teacher, teacher_temperature=2.0)
        data = Images(str(images), batch_size=8, num_workers=0, img_size=32, mean=(0.5, 0.4, 0.3))
        trainer_for(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
        batch = next(iter(data.val_dataloader()))
        student = module.model(batch[0])
        mean, std = (torch.tensor(data.hparams[k]).view(-1, 1, 1) for k in ("mean", "std"))
        cfg = load_model(teacher).pretrained_cfg
        as_teacher = (batch[0] * std + mean - torch.tensor(cfg["mean"]).view(-1, 1, 1)) / torch.tensor(
            cfg["std"]
        ).view(-1, 1, 1)
        wanted = (load_model(teacher)(as_teacher) / 2).log_softmax(1)
        found = (student / 2).log_softmax(1)
        expected = 4 * (wanted.exp() * (wanted - found)).sum(1).mean()
        inputs = (batch[0], student, data.hparams["mean"], data.hparams["std"])
        torch.testing.assert_close(module.teacher.distance(*inputs), expected)

        module.teacher.kind = "hard"
        expected = -student.log_softmax(1)[torch.arange(len(student)), wanted.argmax(1)].mean()
        torch.testing.assert_close(module.teacher.distance(*inputs), expected)

    def test_several_versions_of_an_image(self, images):
        how = {"img_size": 32, "auto_augment": "augmix-m5-w4-d2"}
        versions, label = Keyed(Images(str(images), augment_splits=3, **how).train_set)[(3, (0, 1, 2))]
        clean, same_label = Keyed(Images(str(images), img_size=32, color_jitter=0).train_set)[(3, (0, 1, 2))]
        assert versions.shape == (3, 3, 32, 32)
        assert torch.equal(versions[0], clean)
        assert label == same_label
        assert not torch.equal(versions[1], clean)
        assert not torch.equal(versions[1], versions[2])

    def test_all_versions_are_to_be_alike(self, images, tmp_path):
        seen = []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                seen.append((batch, outputs["loss"]))

        how = {"auto_augment": "augmix-m5-w4-d2", "augment_splits": 3, "num_workers": 0, "img_size": 32}
        module = Classifier(
            "test_convnext", num_classes=4, loss="jsd", augment_splits=3, lr=0.0, warmup_lr=0.0
        )
        data = Images(str(images), batch_size=6, **how)
        trainer_for(tmp_path, Watch(), max_steps=1, limit_val_batches=0).fit(module, data)
        (versions, labels), loss = seen[0]
        found = module.model(versions.flatten(0, 1)).log_softmax(1).unflatten(0, (6, 3))
        smooth = 0.9 * found[torch.arange(6), 0, labels] + 0.1 * found[:, 0].mean(1)
        mixture = found.exp().mean(1, keepdim=True).log()
        divergence = (found.exp() * (found - mixture)).sum(-1).mean()
        torch.testing.assert_close(loss, 12 * divergence - smooth.mean())

    def test_versions_and_a_hard_teacher_from_the_command_line(self, images, teacher, tmp_path):
        options = [
            "--model.loss",
            "jsd",
            "--data.augment_splits",
            "2",
            "--data.auto_augment",
            "augmix-m5-w4-d2",
        ]
        fit(images, tmp_path, *SHORT, *options, "--model.teacher", teacher, "--model.teacher_loss", "hard")
        assert last(tmp_path)["global_step"] == 6

    def test_synchronised_batch_norm_keeps_the_activations_in_it(self, images, tmp_path, monkeypatch):
        trainers = []
        launch = "pytorch_lightning.trainer.trainer.call._call_and_handle_interrupt"
        monkeypatch.setattr(launch, lambda trainer, *args, **kwargs: trainers.append(trainer))
        fit(images, tmp_path, "--trainer.sync_batchnorm", "true", "--trainer.strategy", "ddp_fork")
        model = timm.create_model("test_efficientnet").eval()
        x = torch.randn(2, 3, 64, 64)
        expected = model(x)
        synced = trainers[0].strategy._layer_sync.apply(model)
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in synced.modules())
        torch.testing.assert_close(synced(x), expected)

    def test_head_only_leaves_the_rest(self, images, tmp_path):
        options = ["--model.head_only", "true", "--model.lr", "0.1", "--model.model_kwargs", "{}"]
        fit(images, tmp_path, *SHORT, *options, "--model.name", "test_resnet_dcls")
        pl.seed_everything(0)
        before = Classifier("test_resnet_dcls", num_classes=4).model.state_dict()
        after = {k.removeprefix("model."): v for k, v in last(tmp_path)["state_dict"].items()}
        assert {k for k in before if not torch.equal(before[k], after[k])} == {"fc.weight", "fc.bias"}

    def test_a_model_without_weights_starts_from_random_ones_and_says_so(self, caplog):
        with caplog.at_level(logging.WARNING):
            Classifier("test_convnext_dcls", pretrained=True, num_classes=4)
        assert "RANDOM" in caplog.text

    def test_preprocessing_is_the_models_unless_it_is_given(self, images):
        data = Images(str(images), like="fastvit_dcls_sa24", crop_pct=0.5)
        assert (data.hparams["img_size"], data.hparams["crop_pct"]) == (256, 0.5)
        assert data.train_set[0][0].shape == (3, 256, 256)

    def test_preprocessing_of_an_exported_model(self, images, whole, tmp_path):
        hub_main(["export", "--checkpoint", str(whole / "checkpoints" / "last.ckpt"), "--out", str(tmp_path)])
        data = Images(str(images), like=f"local-dir:{tmp_path}")
        assert data.hparams["img_size"] == 32
        module = Classifier(f"local-dir:{tmp_path}", pretrained=True, num_classes=4)
        stored = last(whole)["state_dict"]["ema.module.stages.0.positions"]
        assert torch.equal(module.model.stages[0].positions, stored)

    def test_the_total_batch_size_is_reached_by_accumulating(self, images, tmp_path):
        fit(images, tmp_path, *SHORT, "--data.total_batch_size", "24")
        assert last(tmp_path)["global_step"] == 2
        with pytest.raises(ValueError, match="no multiple of 8"):
            fit(images, tmp_path, *SHORT, "--data.total_batch_size", "20")


class TestAgainstTimm:
    """The same batches through the loop of timm's own ``train.py``, written with timm's parts."""

    @pytest.mark.parametrize("loss", ["ce", "bce"])
    def test_losses_and_weights(self, images, tmp_path, loss):
        batches, losses = [], []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                batches.append(batch)
                losses.append(outputs["loss"].item())

        pl.seed_everything(0)
        how = {"opt": "lamb", "lr": 1e-2, "weight_decay": 0.1}
        module = Classifier(
            "test_convnext_dcls",
            num_classes=4,
            model_kwargs=SMALL,
            loss=loss,
            positions_lr_scale=1.0,  # timm does not know it
            warmup_epochs=1,
            ema_decay=0.9,
            ema_warmup=False,
            channels_last=False,
            **how,
        )
        model = copy.deepcopy(module.model).train()
        data = Images(str(images), batch_size=8, num_workers=0, img_size=32)
        clip = {"gradient_clip_val": 0.5, "limit_val_batches": 0, "max_epochs": 2}
        trainer_for(tmp_path, Watch(), **clip).fit(module, data)

        task = ClassificationTask(
            model, criterion_kwargs={"loss_type": loss, "smoothing": 0.1}, verbose=False
        )
        optimizer = create_optimizer_v2(model, **how)
        schedule = {"num_epochs": 2, "warmup_epochs": 1, "warmup_lr": 1e-6, "min_lr": 1e-6}
        scheduler, _ = create_scheduler_v2(optimizer, **schedule, step_on_epochs=False, updates_per_epoch=6)
        ema = ModelEmaV3(model, decay=0.9)
        for step, batch in enumerate(batches, 1):
            result = task(*batch)["loss"]
            assert result.item() == pytest.approx(losses[step - 1], rel=1e-6)
            optimizer.zero_grad()
            result.backward()
            dispatch_clip_grad(model.parameters(), 0.5)
            optimizer.step()
            ema.update(model, step=step)
            scheduler.step_update(step)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(module.model.state_dict()[key], value, msg=key)
        for key, value in ema.module.state_dict().items():
            torch.testing.assert_close(module.ema.module.state_dict()[key], value, msg=key)


class TestRun:
    def test_it_leaves_something_to_look_at(self, whole):
        for name in ("curves", "confusion", "predictions_val", "positions"):
            with Image.open(whole / f"{name}.png") as picture:
                assert picture.width > 300
                assert len(np.unique(np.asarray(picture.convert("L")))) > 10
        assert list((whole / "tensorboard").glob("events.*"))
        rows = list(csv.DictReader((whole / "logs" / "metrics.csv").open()))
        moved = [float(r["positions/moved_0"]) for r in rows if r.get("positions/moved_0")]
        assert len(moved) == 2
        assert 0 < moved[0] < moved[1]
        assert {p.name for p in (whole / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
        config = yaml.safe_load((whole / "logs" / "config.yaml").read_text())
        assert config["model"]["model_kwargs"]["drop_path_rate"] == 0.2

    def test_validate_and_test_measure_what_fit_measured(self, whole, images, tmp_path, capsys):
        config = ["--config", str(whole / "logs" / "config.yaml"), "--ckpt_path", "last"]
        logged = (whole / "logs" / "metrics.csv").read_text()
        top1 = list(csv.DictReader((whole / "summary.csv").open()))[-1]["eval_top1"]
        for command, name in (("validate", "val/top1"), ("test", "test/top1")):
            capsys.readouterr()
            main([command, *config])
            said = re.search(rf"{name} (\d+\.\d+) %", capsys.readouterr().out)
            assert float(said[1]) == pytest.approx(float(top1), rel=1e-3)
        assert (whole / "logs" / "metrics.csv").read_text() == logged

    def test_test_takes_its_own_folder(self, images, tmp_path):
        shutil.copytree(images, tmp_path, dirs_exist_ok=True)
        shutil.copytree(images / "train", tmp_path / "test")
        assert len(Images(str(tmp_path), img_size=32).test_dataloader().dataset) == 48
        assert len(Images(str(images), img_size=32).test_dataloader().dataset) == 20

    def test_predict_writes_a_row_per_image(self, whole, images):
        config = ["--config", str(whole / "logs" / "config.yaml"), "--ckpt_path", "last"]
        without = ["--data.root", "nowhere"]  # the training images are not needed
        main(["predict", *config, *without, "--data.predict_root", str(images / "val")])
        rows = list(csv.DictReader((whole / "predictions.csv").open()))
        assert [r["path"] for r in rows] == [str(p) for p in sorted((images / "val").rglob("*.png"))]
        model = load_model(checkpoint=whole / "checkpoints" / "last.ckpt")
        data = Images(str(images), img_size=32, like="test_convnext_dcls")
        with torch.no_grad():
            best = [model(image[None]).softmax(1).max(1) for image, _ in data.val_set]
        assert [r["prediction"] for r in rows] == [f"class_{int(b.indices)}" for b in best]
        assert float(rows[3]["probability"]) == pytest.approx(float(best[3].values), abs=1e-4)

    @pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
    def test_help_explains_every_option(self, command, capsys):
        with pytest.raises(SystemExit) as exited:
            main([command, "--help"])
        assert exited.value.code == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "Name of a timm model" in said
        assert "--data.total_batch_size" in said
        assert "--ckpt_path" in said

    def test_print_config_gives_a_config(self, images, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(
                ["fit", *TINY, *SMALL_DATA, "--data.root", str(images), "--model.lr", "0.5", "--print_config"]
            )
        (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
        where = ["--trainer.default_root_dir", str(tmp_path), *SHORT]
        main(["fit", "--config", str(tmp_path / "printed.yaml"), *where])
        assert last(tmp_path)["hyper_parameters"]["lr"] == 0.5

    def test_the_parts_work_without_the_command_line(self, images, tmp_path):
        class Mine(Classifier):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx) * 2

        module = Mine("test_convnext_dcls", num_classes=4, model_kwargs=SMALL)
        data = Images(str(images), batch_size=8, num_workers=0, img_size=32)
        trainer_for(tmp_path, KeepLast(), max_epochs=1).fit(module, data)
        assert load_model(checkpoint=tmp_path / "checkpoints" / "last.ckpt").num_classes == 4

    def test_with_a_loader_of_ones_own(self, tmp_path):
        module = Classifier("test_convnext_dcls", num_classes=3, model_kwargs=SMALL, warmup_epochs=1)
        pairs = torch.utils.data.TensorDataset(torch.randn(20, 3, 32, 32), torch.arange(20) % 3)
        loader = torch.utils.data.DataLoader(pairs, batch_size=4)
        trainer = trainer_for(tmp_path, max_epochs=2, accumulate_grad_batches=2)
        trainer.fit(module, loader, loader)
        assert trainer.global_step == 6
        assert module.lr_schedulers().t_initial == 6


def with_little_space(images, root, options):
    """Trains where no file may grow over 60 kB, and writes down what was said."""
    import resource

    log = (root / "said.txt").open("w")
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    try:
        where = ["--data.root", str(images), "--trainer.default_root_dir", str(root)]
        resume = ["--trainer.logger", "false", *options, "--ckpt_path", "last"]
        run(["fit", *TINY, *SMALL_DATA, *where, *resume], command=main)
    except SystemExit as exited:
        log.write(str(exited.code))
        log.close()
        raise


class TestErrors:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--model.name", "convnext_dlcs_tiny"], "timm knows no model 'convnext_dlcs_tiny'"),
            (["--model.model_kwargs", "{kernel_cuont: 3}"], "kernel_cuont"),
            (["--data.root", "nowhere"], "data.root is not a folder: nowhere"),
            (["--model.opt", "adamv"], "model.opt 'adamv'"),
            (["--model.sched", "plateau"], "model.sched 'plateau'"),
            (["--model.lr", "1e30"], "the loss is not finite"),
            (["--data.batch_size", "500"], "choose a smaller data.batch_size"),
            (["--data.batch_size", "0"], "data.batch_size must be at least 1, got 0"),
            (["--data.total_batch_size", "0"], "data.total_batch_size must be at least 1, got 0"),
            (["--data.dataset", "hfds//nowhere/at/all"], "hfds"),
            (["--data.img_size", "4"], "Kernel size"),
            (["--data.batch_size", "7", "--model.mixup", "0.8"], "an even data.batch_size, got 7"),
            (["--model.loss_kwargs", "{bce_sums: true}"], "model.loss_kwargs"),
            (["--model.mixup", "0.8", "--model.mixup_kwargs", "{probe: 1}"], "model.mixup_kwargs"),
            (["--model.loss", "jsd"], "data.augment_splits"),
            (["--data.augment_splits", "2", "--model.cutmix", "1"], "mixup and cutmix would mix them"),
            (["--data.auto_augment", "rnd-m9"], "data.auto_augment 'rnd-m9'"),
            (["--data.interpolation", "cubic"], "data.interpolation 'cubic'"),
        ],
    )
    def test_one_line_says_what_is_wrong(self, images, tmp_path, flags, said):
        where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path)]
        with pytest.raises(SystemExit) as exited:
            run(["fit", *TINY, *SMALL_DATA, *where, *SHORT, *flags], command=main)
        message = str(exited.value.code)
        assert message.startswith("error: ")
        assert said in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--data.rot", "x"], "nrecognized arguments: --data.rot x (did you mean --data.root?)"),
            (["--model.lr", "much"], "Got value: much"),
            (["--config", "nowhere.yaml"], "nowhere.yaml"),
        ],
    )
    def test_a_mistyped_option_is_one_line_too(self, flags, said, capsys):
        with pytest.raises(SystemExit) as exited:
            main(["fit", *TINY, *flags])
        assert exited.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert line.endswith("python -m train fit --help explains every option")

    def test_a_wrong_checkpoint(self, whole, images, tmp_path):
        (tmp_path / "damaged.ckpt").write_bytes((whole / "checkpoints" / "last.ckpt").read_bytes()[:3000])
        other = ["--model.model_kwargs", "{depths: [1, 1, 1, 1], dims: [8, 8, 8, 24], patch_size: 2}"]
        other += ["--model.ema_decay", "0.9"]
        cases = [(tmp_path / "damaged.ckpt", []), (whole / "checkpoints" / "last.ckpt", other)]
        for path, flags in cases:
            with pytest.raises(SystemExit) as exited:
                where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path)]
                run(
                    ["fit", *TINY, *SMALL_DATA, *where, *SHORT, *flags, "--ckpt_path", str(path)],
                    command=main,
                )
            message = str(exited.value.code)
            assert message.startswith(f"error: {path}")
            assert "\n" not in message
            assert len(message) < 500

    def test_what_has_changed_since_the_checkpoint_is_said(self, whole, images, tmp_path, caplog):
        resume = [*RANDOM, "--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]
        fit(images, tmp_path, *resume)
        assert "changed since" not in caplog.text
        fit(images, tmp_path, *resume, "--model.weight_decay", "0.3")
        assert "changed since the checkpoint: model.weight_decay was 0.05, now it is 0.3" in caplog.text
        with pytest.raises(ValueError, match=r"another optimizer: .*'adamw', now it is 'sgd'"):
            fit(images, tmp_path, *resume, "--model.opt", "sgd")

    def test_a_checkpoint_for_other_classes(self, whole, images, tmp_path):
        shutil.copytree(images, tmp_path / "images")
        for split in ("train", "val"):
            (tmp_path / "images" / split / "class_3").rename(tmp_path / "images" / split / "class_4")
        checkpoint = whole / "checkpoints" / "last.ckpt"
        with pytest.raises(CheckpointError, match=r"other classes .*class_0"):
            fit(tmp_path / "images", tmp_path / "run", *RANDOM, "--ckpt_path", str(checkpoint))

    def test_a_loss_that_is_no_number_leaves_a_usable_checkpoint(self, images, tmp_path):
        class Break(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if trainer.global_step == 5:
                    pl_module.model.head.fc.weight.data.fill_(float("nan"))

        module = Classifier("test_convnext_dcls", num_classes=4, model_kwargs=SMALL)
        data = Images(str(images), batch_size=8, num_workers=0, img_size=32)
        trainer = trainer_for(tmp_path, KeepLast(every_n_updates=2), Break(), max_epochs=2)
        with pytest.raises(NotFiniteError, match="update 5"):
            trainer.fit(module, data)
        assert last(tmp_path)["global_step"] == 4
        assert all(v.isfinite().all() for v in last(tmp_path)["state_dict"].values())

    def test_a_full_disk_leaves_the_checkpoint_before(self, images, tmp_path):
        pytest.importorskip("resource")
        often = [*RANDOM, "--keep_last.every_n_updates", "2"]
        fit(images, tmp_path, *often, "--trainer.max_steps", "2")
        before = last(tmp_path)
        child = in_child(with_little_space, images, tmp_path, often)
        child.join(100)
        assert child.exitcode == 1
        said = (tmp_path / "said.txt").read_text()
        assert said.startswith("error: cannot write")
        assert "File too large" in said
        assert same(last(tmp_path), before)
        assert not list((tmp_path / "checkpoints").glob(".*"))

    def test_what_a_worker_raises_is_one_line_too(self):
        error = RuntimeError(
            "Caught DataError in worker 0.\nTraceback (most recent call last):\nDataError: no images"
        )
        assert reason(error) == "no images"

    def test_a_failing_callback_costs_nothing(self, images, tmp_path):
        class Fail(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if trainer.global_step == 3:
                    raise KeyError("mine")

        module = Classifier("test_convnext_dcls", num_classes=4, model_kwargs=SMALL)
        data = Images(str(images), batch_size=8, num_workers=0, img_size=32)
        with pytest.raises(KeyError):
            trainer_for(tmp_path, KeepLast(), Fail(), max_epochs=1).fit(module, data)
        assert last(tmp_path)["global_step"] == 3

    def test_the_process_itself_ends_with_a_code(self, tmp_path):
        command = [sys.executable, "-m", "train", "fit", "--data.root", str(tmp_path / "nowhere")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: data.root is not a folder")

    def test_measuring_random_weights_is_refused(self, images):
        with pytest.raises(ValueError, match="ckpt_path"):
            main(["validate", *TINY, "--data.root", str(images)])

    def test_measuring_a_random_head_is_refused(self, images, tmp_path):
        start = ["validate", *TINY, "--data.root", str(images), "--model.model_kwargs", "{}"]
        start += ["--model.pretrained", "true", "--model.name"]
        with pytest.raises(ValueError, match="for 5 classes, the data have 4"):
            main([*start, save_dense(tmp_path / "five", classes=5)])
        main([*start, save_dense(tmp_path / "four", classes=4)])

    def test_measuring_a_model_without_published_weights_is_refused(self, tmp_path):
        root = write_images(tmp_path, classes=1000, train=1, val=1, side=2)
        start = ["validate", *TINY, "--data.root", str(root), "--model.pretrained", "true"]
        with pytest.raises(ValueError, match="random weights"):
            main(start)


def test_what_earlier_runs_have_left_is_kept(images, tmp_path, caplog):
    for name in ("notes.txt", "model.safetensors"):
        (tmp_path / name).touch()
    pictures = ["--report.pictures", "true", "--positions.kernels", "1"]
    fit(images, tmp_path, *SHORT, *pictures)
    first = last(tmp_path)
    fit(images, tmp_path, *SHORT, *pictures, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert "an earlier run" not in caplog.text
    second = last(tmp_path)
    left = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()}
    for number in (1, 2):
        fit(images, tmp_path, *SHORT, "--seed_everything", str(number))
        assert f"earlier_{number}" in caplog.text
    kept = tmp_path / "earlier_1"
    stay = {"notes.txt", ".lock"}
    assert all((kept / p).read_bytes() == content for p, content in left.items() if p.name not in stay)
    assert (tmp_path / "notes.txt").exists()
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1, "one training, one curve"
    assert same(last(kept), second)
    assert not same(first, second)
    assert not same(last(tmp_path), last(tmp_path / "earlier_2"))


def test_an_earlier_run_that_was_deleted_leaves_a_free_number(tmp_path):
    (tmp_path / "earlier_2").mkdir()
    for number in (1, 3):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").touch()
        put_aside(tmp_path)
        assert (tmp_path / f"earlier_{number}" / "checkpoints" / "last.ckpt").is_file()


def test_a_model_that_goes_on_needs_no_published_weights(images, tmp_path, caplog):
    published = save_dense(tmp_path / "published", classes=4)
    start = [*SHORT, "--model.model_kwargs", "{}", "--model.pretrained", "true", "--model.name", published]
    fit(images, tmp_path / "run", *start)
    (tmp_path / "published" / "model.safetensors").unlink()
    for command in ("fit", "validate"):
        fit(images, tmp_path / "run", *start, "--ckpt_path", "last", command=command)
    assert last(tmp_path / "run")["hyper_parameters"]["pretrained"] is True
    saved = yaml.safe_load((tmp_path / "run" / "logs" / "config.yaml").read_text())
    assert saved["model"]["pretrained"] is True
    assert saved["ckpt_path"] is None, "a training with this config starts afresh"
    with pytest.raises(RuntimeError):
        fit(images, tmp_path / "run", *start)


@pytest.mark.parametrize("limit", ["0.9", "3"])
def test_the_schedule_ends_with_a_limited_training(images, tmp_path, limit):
    fit(images, tmp_path, *SHORT, "--trainer.limit_train_batches", limit)
    updates = {"0.9": 5, "3": 3}[limit]  # of 6 batches
    assert last(tmp_path)["global_step"] == updates
    assert last(tmp_path)["lr_schedulers"][0]["t_initial"] == updates


def test_a_confusion_matrix_of_very_many_classes_is_left_out(images, tmp_path, monkeypatch):
    monkeypatch.setattr("train.report.COUNTED", 3)
    fit(images, tmp_path, *SHORT, "--report.pictures", "true")
    assert (tmp_path / "curves.png").is_file()
    assert not (tmp_path / "confusion.png").exists()


def test_fast_dev_run_leaves_an_earlier_run_as_it_is(images, tmp_path, caplog):
    fit(images, tmp_path, *SHORT)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    fit(images, tmp_path, *SHORT, "--trainer.fast_dev_run", "true")
    assert "an earlier run" not in caplog.text
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_foreign_model_whose_training_would_overrun_memory_is_made_safe():
    model = build_model("fastvit_t8", False, None, 2, {})
    assert isinstance(model.get_submodule("stem.0.conv_scale.conv"), SlicedConv2d) and not overrunning(model)
    images = torch.randn(2, 3, 32, 32)
    assert to_memory_layout(images, True).is_contiguous(memory_format=torch.channels_last)
    assert to_memory_layout(images.to(memory_format=torch.channels_last), False).is_contiguous()
