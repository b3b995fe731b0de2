"""Options: their ranges, what may change when a training goes on, paths, and Lightning's own ones."""

import csv
import importlib.util
import inspect
import json
import logging
import shutil

import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

from dcls_models import CheckpointError
from dcls_models.provenance import RESULT_KEYS
from tests.training import RANDOM, SMALL_DATA, TINY, callback, fit, last, same, write_images
from train.audio.data import Sounds
from train.audio.module import Tagger
from train.command import main
from train.data import Images
from train.delays.data import SpikeData
from train.delays.module import SpikingClassifier
from train.dense.detection import DetectionData, Detector
from train.dense.segmentation import SegmentationData, Segmenter
from train.launch import run
from train.module import Classifier
from train.ranges import Range, ranges_of

RESUME = ["--ckpt_path", "last"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit(images, folder, *RANDOM, "--trainer.max_epochs", "1")
    return folder


def refused(images, folder, *flags):
    """What is said about flags that are wrong."""
    where = ["--data.root", str(images), "--trainer.default_root_dir", str(folder)]
    with pytest.raises(SystemExit) as exited:
        run(["fit", *TINY, *SMALL_DATA, *where, *flags], command=main)
    message = str(exited.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: expected sections"),
        (b"- a\n", "holds a list: expected sections"),
        ("model: {}".encode("utf-16"), "is not text in UTF-8"),
        (b"model:\n\tname: x\n", "is not YAML: while scanning"),
        (b"model: {}\ntrainer:\n", "the section trainer is empty"),
    ],
)
def test_a_config_that_is_none_is_named(content, said, images, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    for given in (["--config", str(file)], [f"--config={file}"]):
        message = refused(images, tmp_path / "run", *given)
        assert str(file) in message and said in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_a_checkpoint_of_another_task_is_refused(command, images, whole, tmp_path):
    stored = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("cutmix", "class_names"):
        del stored["hyper_parameters"][key]
    torch.save(stored, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt is of another task"):
        fit(images, whole, *RANDOM, "--ckpt_path", str(tmp_path / "other.ckpt"), command=command)


def test_a_dollar_sign_in_the_name_of_the_folder_is_no_variable(images, tmp_path):
    fit(images, tmp_path / "my$HOME", "--trainer.max_epochs", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["my$HOME"]
    assert any((tmp_path / "my$HOME" / "tensorboard").iterdir())


class TestRanges:
    @pytest.mark.parametrize(
        ("allowed", "inside", "outside"),
        [
            (Range(0), (0, 1e9), (-1e-9, float("nan"), float("inf"))),
            (Range(0, 1, above=True), (1e-9, 1), (0, 1.1)),
            (Range(0, 1, below=True), (0, 0.999), (1, float("nan"))),
            (Range(1), ((1, 2), [3]), ((0, 2), "1", (1, None))),
        ],
    )
    def test_what_is_in_a_range(self, allowed, inside, outside):
        assert all(value in allowed for value in inside)
        assert not any(value in allowed for value in outside)

    @pytest.mark.parametrize(
        "part",
        [
            *(Classifier, Images, Segmenter, SegmentationData, Detector, DetectionData),
            *(Tagger, Sounds, SpikingClassifier, SpikeData),
        ],
    )
    def test_every_number_has_one(self, part):
        """Of every option whose type is or holds a number; a new option without a range fails here."""
        for base in part.__mro__[: part.__mro__.index(pl.LightningModule) if issubclass(
            part, pl.LightningModule) else part.__mro__.index(pl.LightningDataModule)]:  # fmt: skip
            for name, parameter in inspect.signature(base).parameters.items():
                words = str(parameter.annotation)
                if ("int" in words or "float" in words) and "dict" not in words:
                    assert name in ranges_of(part), f"{part.__name__}: {name}"

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--model.mixup", ".nan"], "model.mixup must be at least 0, got nan"),
            (["--model.label_smoothing", "2"], "model.label_smoothing must be at least 0 and below 1, got 2"),
            (["--model.ema_decay", "1.5"], "model.ema_decay must be"),
            (["--model.warmup_epochs", "-1"], "model.warmup_epochs must be at least 0"),
            (["--model.layer_decay", "0"], "model.layer_decay must be above 0 and at most 1"),
            (["--model.lr", ".inf"], "model.lr must be"),
            (["--data.scale", "[0, 2]"], "data.scale must be above 0 and at most 1 each"),
            (["--data.scale", "[0.9, 0.2]"], "a range begins with its lower end"),
            (["--data.hflip", "1.5"], "data.hflip must be at least 0 and at most 1"),
            (["--data.re_prob", "-0.1"], "data.re_prob must be"),
            (["--data.crop_pct", "0"], "data.crop_pct must be above 0"),
            (["--data.std", "[1, 1, 0]"], "data.std must be above 0 each"),
            (["--keep_last.every_n_updates", "0"], "keep_last.every_n_updates must be at least 1"),
            (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val must be at least 0, got -1"),
            (
                ["--trainer.accumulate_grad_batches", "0"],
                "trainer.accumulate_grad_batches must be at least 1",
            ),
            (["--trainer.val_check_interval", "0.0"], "trainer.val_check_interval must be above 0"),
            (["--positions.every_n_epochs", "0"], "positions.every_n_epochs must be at least 1"),
            (
                ["--model.model_kwargs", "{drop_path_rate: .nan}"],
                "model.model_kwargs.drop_path_rate must be at least 0 and below 1, got nan",
            ),
            (["--model.model_kwargs.drop_path_rate", "1.5"], "model.model_kwargs.drop_path_rate must be"),
            (["--model.opt_kwargs", "{betas: [0.9, .inf]}"], "model.opt_kwargs.betas[1] must be finite"),
            (["--model.opt_kwargs", "{eps: -1}"], "Invalid epsilon value: -1"),
            (["--model.sched_kwargs", "{decay_rate: .nan}"], "model.sched_kwargs.decay_rate must be finite"),
            (
                ["--model.sched", "step", "--model.sched_kwargs", "{decay_epochs: 0}"],
                "model.sched_kwargs.decay_epochs must be above 0, got 0",
            ),
            (["--model.mixup", "1", "--model.mixup_kwargs.prob", "2"], "model.mixup_kwargs.prob must be"),
            (
                ["--data.crop_pct", "1e-9"],
                "data.img_size 32 and data.crop_pct 1e-09 do not fit (signed integer",
            ),
            (["--data.re_prob", "0.1", "--data.re_mode", "foo"], "data.re_mode 'foo' (AssertionError)"),
            (["--data.root", ""], "data.root is empty: give a value, or leave the option out"),
            (["--ckpt_path", ""], "ckpt_path is empty"),
            (["--data.names", "[a, b]"], "data.names is for predict: give data.root"),
            (
                ["--trainer.check_val_every_n_epoch", "0"],
                "trainer.check_val_every_n_epoch must be at least 1",
            ),
            (["--trainer.devices", "foo"], "`devices` selected with `CPUAccelerator` should be an int > 0"),
            (["--model.compile", "foo"], "model.compile must be one of cudagraphs, inductor"),
            (["--model.opt_kwargs", "{lr: 3}"], "give model.lr, not model.opt_kwargs.lr"),
            (["--model.model_kwargs", "{num_classes: 3}"], "give model.num_classes, not model.model_kwargs."),
            (
                ["--model.model_kwargs", "{depths: [1, 1]}"],
                "model.model_kwargs do not fit: list index out of",
            ),
            (["--data.img_size", "1"], "does not take images of 3 x 1 x 1: choose another data.img_size"),
            (
                ["--model.model_kwargs", "{in_chans: 1}"],
                "does not take images of 3 x 32 x 32: choose another data.img_size or other model.model_kw",
            ),
        ],
    )
    def test_a_number_outside_is_refused_before_anything_is_written(self, images, tmp_path, flags, said):
        message = refused(images, tmp_path / "run", *flags)
        assert said in message
        assert "TRAIN_TRACEBACK" not in message, "the message says all"
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("option", "source"),
        [
            ("model.class_names", "data.class_names"),
            ("checkpoint.dirpath", "trainer.default_root_dir"),
            ("data.like", "model.name"),
        ],
    )
    def test_an_option_that_follows_from_another_says_from_which(
        self, images, tmp_path, capsys, option, source
    ):
        with pytest.raises(SystemExit):
            fit(images, tmp_path, f"--{option}=x")
        assert f"error: {option} follows from {source} and cannot be given; " in capsys.readouterr().err

    def test_the_help_says_them(self, capsys):
        with pytest.raises(SystemExit):
            main(["fit", "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "float, at least 0 and below 1" in said.rpartition("--model.ema_decay EMA_DECAY")[2][:400]


class TestChanged:
    """When a training goes on, an option that has changed is applied, or refused by its name."""

    def groups(self, folder):
        return last(folder)["optimizer_states"][0]["param_groups"]

    def test_the_optimizers_options_are_applied(self, images, whole, tmp_path, caplog):
        resume = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]
        options = ["--model.weight_decay", "0.3", "--model.opt_kwargs", "{betas: [0.8, 0.9]}"]
        fit(images, tmp_path, *RANDOM, *resume, *options, "--model.positions_lr_scale", "2")
        assert "model.weight_decay was 0.05, now it is 0.3" in caplog.text
        assert {g["weight_decay"] for g in self.groups(tmp_path)} == {0.0, 0.3}
        assert {tuple(g["betas"]) for g in self.groups(tmp_path)} == {(0.8, 0.9)}
        rates = {g["name"]: g["initial_lr"] for g in self.groups(tmp_path)}
        assert rates["positions"] == pytest.approx(2 * rates["decay"])

    @pytest.mark.parametrize(
        ("flags", "option"),
        [
            (["--model.head_only", "true"], "model.head_only was False, now it is True"),
            (["--model.layer_decay", "0.7"], "model.layer_decay was None, now it is 0.7"),
            (["--model.opt", "sgd"], "model.opt was 'adamw', now it is 'sgd'"),
            (["--model.ema_decay", "null"], "model.ema_decay was 0.9, now it is None"),
            (["--data.val_share", "0.5"], "data.val_share was 0.2, now it is 0.5"),
        ],
    )
    def test_what_cannot_be_applied_is_refused(self, images, whole, tmp_path, flags, option):
        resume = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]
        message = refused(images, tmp_path, *RANDOM, *resume, *flags)
        assert "a training cannot" in message
        assert option in message

    def test_a_data_option_is_applied_and_said(self, images, whole, tmp_path, caplog):
        resume = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]
        fit(images, tmp_path, *RANDOM, *resume, "--data.re_prob", "0.9")
        assert "data.re_prob was 0.3, now it is 0.9" in caplog.text

    def test_another_batch_size_between_epochs_ends_the_schedule_at_the_end(self, images, whole, tmp_path):
        resume = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt"), "--data.batch_size", "4"]
        fit(images, tmp_path, *RANDOM, *resume)
        checkpoint = last(tmp_path)
        assert checkpoint["global_step"] == 6 + 12
        rates = {g["name"]: g["lr"] for g in checkpoint["optimizer_states"][0]["param_groups"]}
        assert rates["decay"] < 2e-5, "of 1e-3, at the end of a cosine"


class TestPlaces:
    def test_a_run_in_its_own_data_is_refused(self, images, tmp_path):
        message = refused(images, images / "train" / "run")
        assert "its pictures would be taken for data" in message
        assert not (images / "train" / "run").exists()

    def test_a_folder_that_cannot_be_written_is_named_at_once(self, images, tmp_path):
        (tmp_path / "file").touch()
        message = refused(images, tmp_path / "file" / "run")
        assert "cannot write to the run's folder" in message and "--trainer.default_root_dir" in message

    def test_the_home_folder(self, images, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "photos").symlink_to(images)
        flags = ["--data.root", "~/photos", "--trainer.default_root_dir", "~/run"]
        main(["fit", *TINY, *SMALL_DATA, *flags, "--trainer.max_steps", "1"])
        assert last(tmp_path / "run")["global_step"] == 1
        main(["validate", *TINY, *SMALL_DATA, *flags, "--ckpt_path", "~/run/checkpoints/last.ckpt"])

    def test_names_that_are_formulas_or_of_other_scripts(self, tmp_path, caplog):
        """The pictures are drawn; the config is UTF-8 whatever the locale."""
        root = write_images(tmp_path / "Фото")
        for split in ("train", "val"):
            for i, name in enumerate(("$5_$10", "猫 [x]", "50% 'a'")):
                (root / split / f"class_{i}").rename(root / split / name)
        fit(root, tmp_path / "run", "--trainer.max_epochs", "1", "--report.pictures", "true")
        assert "could not be drawn" not in caplog.text
        for picture in ("confusion.png", "predictions_val.png"):
            assert Image.open(tmp_path / "run" / picture).width > 300
        config = yaml.safe_load((tmp_path / "run" / "logs" / "config.yaml").read_text(encoding="utf-8"))
        assert config["data"]["root"] == str(root)

    def test_a_picture_that_cannot_be_drawn_costs_a_warning(self, images, tmp_path, caplog):
        draw = ["--report.pictures", "true", "--positions.kernels", "1", "--positions.filename", "no/p.png"]
        fit(images, tmp_path, "--trainer.max_epochs", "1", *draw)
        assert last(tmp_path)["global_step"] == 6
        assert caplog.text.count("could not be drawn") == 1
        assert Image.open(tmp_path / "curves.png").width > 300

    def test_validate_and_test_write_results(self, images, whole, tmp_path, capsys):
        for command in ("validate", "test"):
            output = tmp_path / command / "results.json"
            capsys.readouterr()
            fit(images, whole, *RANDOM, *RESUME, "--output", str(output), command=command)
            said = capsys.readouterr().out
            result = json.loads(output.read_text())
            assert RESULT_KEYS.keys() <= result.keys()
            assert (result["task"], result["n"], result["classes"]) == ("accuracy", 20, 4)
            assert f"top1_ema {result['top1']:.2f} %" in said
            assert "top5" not in said, "of four classes"

    def test_a_result_is_written_though_nobody_reads_what_is_printed(
        self, images, whole, tmp_path, monkeypatch
    ):
        def closed(*_):
            raise BrokenPipeError

        monkeypatch.setattr("train.cli.in_words", closed)
        output = tmp_path / "results.json"
        with pytest.raises(BrokenPipeError):
            fit(images, whole, *RANDOM, *RESUME, "--output", str(output), command="validate")
        assert json.loads(output.read_text())["n"] == 20

    def test_a_result_that_cannot_be_written_is_refused_before_the_work(self, images, whole, tmp_path):
        with pytest.raises(ValueError, match="--output must be a file, got the folder"):
            fit(images, whole, *RANDOM, *RESUME, "--output", str(tmp_path), command="validate")


# Every option of Lightning's Trainer: flags to try, and how many of 12 updates they make; or why it
# is not tried here.
TRAINER = {
    "accelerator": "TINY sets it",
    "strategy": "tests/test_train_distributed.py",
    "devices": "tests/test_train_distributed.py",
    "num_nodes": "tests/test_train_distributed.py",
    "precision": (["--trainer.precision", "bf16-mixed"], 12),
    "logger": (["--trainer.logger", "false"], 12),
    "callbacks": (["--trainer.callbacks+=LearningRateMonitor", "--model.layer_decay", "0.7"], 12),
    "fast_dev_run": "tests/test_train.py",
    "max_epochs": (["--trainer.max_epochs", "0"], None),
    "min_epochs": (["--trainer.min_epochs", "1"], 12),
    "max_steps": (["--trainer.max_steps", "7"], 7),
    "min_steps": (["--trainer.min_steps", "3"], 12),
    "max_time": (["--trainer.max_time", "{hours: 1}"], 12),
    "limit_train_batches": (["--trainer.limit_train_batches", "2"], 4),
    "limit_val_batches": (["--trainer.limit_val_batches", "0"], 12),
    "limit_test_batches": (["--trainer.limit_test_batches", "1"], 12),
    "limit_predict_batches": (["--trainer.limit_predict_batches", "1"], 12),
    "overfit_batches": (["--trainer.overfit_batches", "2"], 4),
    "val_check_interval": (["--trainer.val_check_interval", "0.5"], 12),
    "check_val_every_n_epoch": (["--trainer.check_val_every_n_epoch", "2"], 12),
    "num_sanity_val_steps": (["--trainer.num_sanity_val_steps", "1"], 12),
    "log_every_n_steps": (["--trainer.log_every_n_steps", "2"], 12),
    "enable_checkpointing": (["--trainer.enable_checkpointing", "false"], None),
    "enable_progress_bar": "TINY sets it",
    "enable_model_summary": (["--trainer.enable_model_summary", "true"], 12),
    "accumulate_grad_batches": (["--trainer.accumulate_grad_batches", "4"], 4),
    "gradient_clip_val": (["--trainer.gradient_clip_val", "0.5"], 12),
    "gradient_clip_algorithm": (
        ["--trainer.gradient_clip_val", "0.5", "--trainer.gradient_clip_algorithm", "value"], 12),
    "deterministic": (["--trainer.deterministic", "warn"], 12),
    "benchmark": (["--trainer.benchmark", "true"], 12),
    "inference_mode": (["--trainer.inference_mode", "false"], 12),
    "use_distributed_sampler": (["--trainer.use_distributed_sampler", "false"], 12),
    "profiler": (["--trainer.profiler", "simple"], 12),
    "detect_anomaly": (["--trainer.detect_anomaly", "true"], 12),
    "barebones": (["--trainer.barebones", "true"], None),
    "plugins": "train.cli adds its own to those that are given",
    "sync_batchnorm": "tests/test_train.py",
    "reload_dataloaders_every_n_epochs": (["--trainer.reload_dataloaders_every_n_epochs", "1"], 12),
    "default_root_dir": "every test sets it",
    "enable_autolog_hparams": (["--trainer.enable_autolog_hparams", "false"], 12),
    "model_registry": "needs an account",
}  # fmt: skip
TRIED = {name: trial for name, trial in TRAINER.items() if not isinstance(trial, str)}


class TestLightning:
    def test_no_option_is_overlooked(self):
        assert set(inspect.signature(pl.Trainer).parameters) == set(TRAINER)

    @pytest.mark.parametrize("option", TRIED)
    def test_option(self, images, tmp_path, option):
        flags, updates = TRIED[option]
        where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path)]
        main(["fit", *TINY, *SMALL_DATA, *where, "--trainer.max_epochs", "2", *flags])
        checkpoint = tmp_path / "checkpoints" / "last.ckpt"
        assert checkpoint.is_file() == (updates is not None)
        if updates:
            assert last(tmp_path)["global_step"] == updates

    def test_validation_every_so_many_batches(self, images, tmp_path):
        often = ["--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"]
        seen = callback("CountValidations")
        fit(images, tmp_path, "--trainer.max_epochs", "2", *often, *seen)
        assert (tmp_path / "validations.txt").read_text() == "6"

    @pytest.mark.parametrize(
        "flags", [["--trainer.max_steps", "8"], ["--trainer.check_val_every_n_epoch", "2"]]
    )
    def test_an_epoch_without_a_validation_has_no_numbers_of_one(self, images, tmp_path, capsys, flags):
        """Neither those of the epoch before it."""
        often = ["--trainer.max_epochs", "2", *flags]
        fit(images, tmp_path, *often)
        measured = [bool(r["eval_loss"]) for r in csv.DictReader((tmp_path / "summary.csv").open())]
        assert measured == ([True, False] if "8" in flags else [False, True])
        said = capsys.readouterr().err
        assert ("% (in epoch 1, 2 updates before the end)." in said) == ("8" in flags)

    def test_averaged_at_the_end(self, images, tmp_path):
        """The weights of Lightning's StochasticWeightAveraging are those of the checkpoint."""
        average = "--trainer.callbacks+=StochasticWeightAveraging"
        flags = [average, "--trainer.callbacks.swa_lrs=1e-3", "--trainer.callbacks.swa_epoch_start=1"]
        fit(images, tmp_path / "plain", *RANDOM, "--trainer.max_epochs", "3")
        fit(images, tmp_path / "averaged", *RANDOM, "--trainer.max_epochs", "3", *flags)
        plain, averaged = (last(tmp_path / name)["state_dict"] for name in ("plain", "averaged"))
        assert not torch.equal(plain["model.head.fc.weight"], averaged["model.head.fc.weight"])

    @pytest.mark.parametrize(
        ("name", "said"), [("LearningRateFinder", "model.lr"), ("BatchSizeFinder", "data.batch_size")]
    )
    def test_finders_are_refused_in_a_line(self, images, tmp_path, name, said):
        message = refused(images, tmp_path / "run", f"--trainer.callbacks+={name}")
        assert f"{name} does not work here" in message and said in message

    def test_a_callback_that_lacks_something_says_what(self, images, tmp_path, capsys):
        if importlib.util.find_spec("rich") is None:
            message = refused(images, tmp_path / "run", "--trainer.callbacks+=RichProgressBar")
            assert message.endswith("requires `rich` >= 10.2.2. Install it by running `pip install -U rich`.")
        with pytest.raises(SystemExit):
            fit(images, tmp_path / "run", "--trainer.callbacks+=EarlyStopping")
        said = capsys.readouterr().err.strip()
        assert "the following arguments are required: monitor" in said and len(said) < 300
        assert "; add --trainer.callbacks.monitor=VALUE after it" in said

    def test_a_timer_stops_a_training(self, images, tmp_path):
        """One of its arguments is an enum, which YAML has no word for."""
        timer = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:00:01"]
        fit(images, tmp_path, "--trainer.max_epochs", "9999", *timer)
        assert 0 < last(tmp_path)["global_step"] < 9999
        assert "interval: step" in (tmp_path / "logs" / "config.yaml").read_text()

    def test_what_fails_in_the_validation_at_its_end_costs_no_epoch(self, images, whole, tmp_path):
        one = [*RANDOM, "--trainer.max_epochs", "1"]
        message = refused(images, tmp_path, *one, "--checkpoint.monitor", "foo")
        assert "could not find the monitored key" in message
        assert same(last(tmp_path), last(whole))
        fit(images, tmp_path, *one, *RESUME)
        assert last(tmp_path)["global_step"] == 6

    def test_what_a_callback_fails_with_is_one_line(self, images, tmp_path):
        message = refused(images, tmp_path / "run", "--trainer.callbacks+=BackboneFinetuning")
        assert "AttributeError: 'Classifier' object has no attribute 'backbone' (TRAIN_TRACEBACK=1" in message

    def test_a_bar_of_ones_own_is_kept(self, images, tmp_path):
        on = ["--trainer.enable_progress_bar", "true", *callback("MyBar")]
        fit(images, tmp_path, "--trainer.max_epochs", "1", *on)
        assert (tmp_path / "bar.txt").read_text() == "mine"


class TestSaid:
    def test_a_download_that_fails_names_the_option(self, images, tmp_path):
        url = ["--model.model_kwargs.pretrained_cfg_overlay.url", "http://127.0.0.1:9/weights.pth"]
        message = refused(images, tmp_path / "run", "--model.pretrained", "true", *url)
        assert message.startswith("error: model.pretrained: the weights of test_convnext_dcls cannot be down")
        assert "give --model.pretrained false" in message

    def test_validating_a_run_that_was_moved_says_nothing_of_it(self, images, whole, tmp_path, recwarn):
        shutil.copytree(whole, tmp_path / "moved")
        fit(images, tmp_path / "moved", *RANDOM, *RESUME, command="validate")
        assert not [w for w in recwarn if "dirpath" in str(w.message)]

    def test_a_process_that_has_lost_another_one_says_that(self):
        def killed(args):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:3162")

        with pytest.raises(
            SystemExit, match=r"^error: another process of this training has ended.*--ckpt_path"
        ):
            run([], command=killed)

    def test_going_on_from_the_checkpoint_of_another_folder_says_nothing_of_it(
        self, images, whole, tmp_path, recwarn
    ):
        fit(images, tmp_path, *RANDOM, "--ckpt_path", str(whole / "checkpoints" / "last.ckpt"))
        assert not [w for w in recwarn if "dirpath" in str(w.message)]

    def test_what_fails_on_a_full_disk_is_said(self, images, tmp_path, caplog):
        with pytest.raises(RuntimeError, match="what failed first"):
            fit(images, tmp_path, "--trainer.max_epochs", "1", *callback("FailsOnAFullDisk"))
        assert "cannot write" in caplog.text

    def test_one_summary_and_one_line_an_epoch(self, images, tmp_path, caplog, capsys):
        with caplog.at_level(logging.INFO):
            fit(images, tmp_path, *RANDOM, "--trainer.enable_progress_bar", "true")
        lines = [r.getMessage() for r in caplog.records if r.name.startswith("train.")]
        (model,) = [line for line in lines if line.startswith("test_convnext_dcls: ")]
        parameters = sum(v.numel() for k, v in last(tmp_path)["state_dict"].items() if k.startswith("model."))
        assert f"{parameters:,} parameters" in model, "without those of the average"
        assert "GMACs at 32 x 32, 4 classes" in model
        assert any("12 updates, 6 an epoch" in line for line in lines)
        epochs = [line for line in lines if line.startswith("epoch ")]
        assert [line.partition(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
        assert all("val/top1_ema" in line and "top5" not in line for line in epochs)
