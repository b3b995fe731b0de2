"""Spoken digits: the same in every run, held-out voices, as spikes and as sounds."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dcls_models.sounds import read_sound
from dcls_models.spikes import HOP, RATE, to_spikes
from train.speech import CLASSES, VOICES

pytest.importorskip("espeakng_loader")
SMALL = "import sys, train.speech as s; s.COUNTS.update(train=60, val=20, test=40); s.main(sys.argv[1:])"


def make(out, *flags, threads="1"):
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    subprocess.run([sys.executable, "-c", SMALL, str(out), *flags], check=True, env=environment)
    return out


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return make(tmp_path_factory.mktemp("speech"), "--spikes", "--wav")


def test_every_run_makes_the_same_files(speech, tmp_path):
    make(tmp_path, "--spikes", threads="2")
    for split in ("train", "val", "test"):
        one, other = ((folder / f"{split}.npz").read_bytes() for folder in (speech, tmp_path))
        assert one == other


def test_on_every_machine(speech):
    digest = hashlib.sha256()
    for split in ("train", "val", "test"):
        digest.update(np.load(speech / f"{split}.npz")["spikes"].tobytes())
    assert digest.hexdigest() == "518763f521140c01fba4c29fed2c76c848d505cf141f733e9b0f6587b05059a6"


def test_what_is_in_them(speech):
    for split, count in (("train", 60), ("val", 20), ("test", 40)):
        data = np.load(speech / f"{split}.npz")
        assert data["spikes"].shape == (count, 40, 80) and data["spikes"].max() == 1
        assert 0.05 < data["spikes"].mean() < 0.25
        assert (np.bincount(data["labels"]) == count // 20).all()
        assert tuple(data["class_names"]) == CLASSES
        assert set(data["voices"]) <= set(VOICES[split].split())


def test_voices_are_of_one_split():
    voices = [voice for names in VOICES.values() for voice in names.split()]
    assert len(voices) == len(set(voices)) == 53


def test_sounds_and_spikes_are_the_same_words(speech):
    data = np.load(speech / "val.npz")
    for number in (0, 7, 19):
        (path,) = (speech / "val" / CLASSES[data["labels"][number]]).glob(f"{number:04}_*.wav")
        spikes = to_spikes(read_sound(path, RATE)[None])
        assert torch.equal(spikes[0], torch.from_numpy(data["spikes"][number]))
    assert len(list(speech.glob("train/*/*.wav"))) == 60


def test_a_tone_excites_its_band():
    times = torch.arange(RATE) / RATE
    spikes = to_spikes(torch.stack([torch.sin(2 * torch.pi * f * times) for f in (300.0, 3000.0)]))
    assert spikes.shape == (2, 40, RATE // HOP)
    low, high = spikes.sum(-1).float().argmax(1).tolist()
    assert low < 12 and high > 22
    assert to_spikes(torch.zeros(1, RATE)).sum() == 0


def test_the_package_is_asked_for(tmp_path):
    code = "import runpy, sys; sys.modules['espeakng_loader'] = None; "
    code += "runpy.run_module('train.speech', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: spoken digits need a package: pip install espeakng-loader\n"
    assert not (tmp_path / "out").exists()
