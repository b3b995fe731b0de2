import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sound_files import clips

from dcls_models.sounds import EXTENSIONS, fitted, read_sound, seconds_of

CHORD = clips(16000)[1]


def written(path: Path, samples: np.ndarray, rate: int = 16000, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


class TestRead:
    @pytest.mark.parametrize(
        ("subtype", "tolerance"),
        [("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("PCM_32", 1e-6), ("FLOAT", 0), ("DOUBLE", 0)],
    )
    def test_every_depth_of_a_wav(self, tmp_path: Path, subtype: str, tolerance: float) -> None:
        found = read_sound(written(tmp_path / "a.wav", CHORD, subtype=subtype), 16000)
        assert found.dtype == torch.float32
        assert (found - torch.from_numpy(CHORD)).abs().max() <= tolerance

    @pytest.mark.parametrize(("extension", "tolerance"), [("flac", 1e-4), ("ogg", 0.3), ("mp3", 0.3)])
    def test_other_formats(self, tmp_path: Path, extension: str, tolerance: float) -> None:
        found = read_sound(written(tmp_path / f"a.{extension}", CHORD), 16000)
        assert (fitted(found, 16000) - torch.from_numpy(CHORD)).abs().mean() < tolerance / 3
        assert f".{extension}" in EXTENSIONS

    @pytest.mark.parametrize("channels", [2, 6])
    def test_channels_are_averaged(self, tmp_path: Path, channels: int) -> None:
        several = np.stack([CHORD * (i + 1) for i in range(channels)], axis=1) / channels
        found = read_sound(written(tmp_path / "a.wav", several, subtype="FLOAT"), 16000)
        assert torch.allclose(found, torch.from_numpy(several.mean(1)), atol=1e-6)

    @pytest.mark.parametrize("rate", [8000, 11025, 44100, 96000])
    def test_other_rates(self, tmp_path: Path, rate: int) -> None:
        def tone(at: int) -> np.ndarray:
            return 0.5 * np.sin(2 * np.pi * 440 * np.arange(at) / at).astype(np.float32)

        found = read_sound(written(tmp_path / "a.wav", tone(rate), rate, "FLOAT"), 32000, seconds=1.0)
        assert len(found) == 32000
        inside = slice(500, -500)  # a filter rings at the ends
        assert (found - torch.from_numpy(tone(32000)))[inside].abs().max() < 2e-3

    def test_only_the_part_of_an_hour_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "hour.wav"
        with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
            for minute in range(60):
                file.write(np.full(60 * 8000, minute / 100, dtype=np.float32))
        assert seconds_of(path) == 3600
        found = read_sound(path, 8000, seconds=2.0, start=1800.0)
        assert found.shape == (16000,)
        assert torch.allclose(found, torch.tensor(0.3), atol=1e-4)
        assert len(read_sound(path, 8000, seconds=20.0, start=3595.0)) == 40000  # what there is

    def test_bytes_are_as_good_as_a_file(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.wav", CHORD)
        assert torch.equal(read_sound(path.read_bytes(), 16000), read_sound(path, 16000))

    def test_silence_is_a_sound(self, tmp_path: Path) -> None:
        assert not read_sound(written(tmp_path / "a.wav", np.zeros(800)), 16000).any()

    def test_a_truncated_wav_gives_what_is_left(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.wav", CHORD)
        os.truncate(path, path.stat().st_size // 2)
        found = read_sound(path, 16000)
        assert 7900 < len(found) < 8000
        assert torch.allclose(found, torch.from_numpy(CHORD)[: len(found)], atol=1e-4)


def with_nan(path: Path) -> None:
    samples = CHORD.copy()
    samples[100] = np.nan
    written(path, samples, subtype="FLOAT")


def truncated_flac(path: Path) -> None:
    flac = written(path.with_suffix(".flac"), CHORD)
    path.write_bytes(flac.read_bytes()[:40])


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(b""), r"it is empty \(0 bytes\)"),
    (lambda path: path.write_text("no sound at all, " * 100), "it is no sound that libsndfile reads"),
    (lambda path: written(path, np.zeros(0)), "it has no samples"),
    (with_nan, "it has samples that are NaN, infinite or far above full scale"),
    (truncated_flac, "it (is damaged|is no sound|has no samples)"),
    (lambda path: written(path, CHORD, rate=8), "its sample rate is 8 Hz, expected 1000 to 768000"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_is_no_sound_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "a.wav"
    make(path)
    for file in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=message) as error:
            read_sound(file, 16000)
        assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.wav"):
        read_sound(tmp_path / "a.wav", 16000)


def test_fitted() -> None:
    waveform = torch.arange(1.0, 5.0)
    assert fitted(waveform, 3).tolist() == [1, 2, 3]
    assert fitted(waveform, 6).tolist() == [1, 2, 3, 4, 0, 0]
