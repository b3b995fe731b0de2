"""timm's own train.py, unmodified, trains our models as well as ours does.

timm's packages do not hold it: ``TIMM_TRAIN=path/to/train.py pytest -m slow tests/test_timm_train.py``.
"""

import csv
import os
import statistics
import subprocess
import sys

import pytest

from tests.test_demo import fit
from train.digits import write_digits

SEEDS = range(3)
AS_DIGITS_YAML = [
    *("--model", "convnext_dcls_tiny", "--num-classes", "10", "--img-size", "32", "--crop-pct", "1.0"),
    *("--model-kwargs", "depths=(1,1,2,1)", "dims=(24,32,48,64)", "patch_size=2", "kernel_count=16"),
    *("dilated_kernel_size=9", "ls_init_value=1.0", "--opt", "adamw", "--lr", "2e-3"),
    *("--weight-decay", "0.05", "--sched", "cosine", "--sched-on-updates", "--epochs", "30"),
    *("--warmup-epochs", "3", "--warmup-lr", "1e-6", "--min-lr", "1e-6", "--cooldown-epochs", "0"),
    *("--batch-size", "64", "--smoothing", "0.1", "--hflip", "0", "--color-jitter", "0"),
    *("--scale", "0.75", "1.0", "--ratio", "0.85", "1.18", "--train-interpolation", "bicubic"),
    *("--device", "cpu", "--no-prefetcher", "--workers", "1", "--channels-last"),
]


def last_top1(summary):
    return float(list(csv.DictReader(summary.open()))[-1]["eval_top1"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("TIMM_TRAIN" not in os.environ, reason="say where timm's train.py is: TIMM_TRAIN=FILE")
def test_accuracy_is_ours_within_noise(tmp_path):
    write_digits(tmp_path / "digits")
    theirs, ours = [], []
    for seed in map(str, SEEDS):
        where = ["--data-dir", str(tmp_path / "digits"), "--output", str(tmp_path), "--experiment", seed]
        command = [sys.executable, os.environ["TIMM_TRAIN"], "--device-modules", "dcls_models", *where]
        done = subprocess.run([*command, *AS_DIGITS_YAML, "--seed", seed], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        theirs.append(last_top1(tmp_path / seed / "summary.csv"))
        fit(tmp_path / "digits", tmp_path / "ours" / seed, "--seed_everything", seed)
        ours.append(last_top1(tmp_path / "ours" / seed / "summary.csv"))
    assert statistics.mean(theirs) == pytest.approx(statistics.mean(ours), abs=1.0), (theirs, ours)
