"""Sounds as the audio models take them: one reader for training, evaluation and prediction."""

import io
import math
from pathlib import Path
from typing import Any

import torch

# What soundfile (libsndfile) reads: the extensions that a folder of sounds may hold.
EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")
RATES = (1000, 768_000)  # samples per second that are taken for a sample rate
LOUDEST = 1e12  # full scale is 1; the power of what is louder is no float32


def soundfile() -> Any:
    """The package that decodes sounds.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library is missing
        raise ValueError(f"sounds need a package: pip install soundfile scipy ({error})") from error
    return soundfile


def seconds_of(file: str | Path | bytes) -> float:
    """How long a sound is, as its header says.

    Raises:
        ValueError: If it is no sound.
        OSError: If the file cannot be read.
    """
    with _opened(file) as sound:
        return float(sound.frames / sound.samplerate)


def read_sound(
    file: str | Path | bytes, sample_rate: int, seconds: float | None = None, start: float = 0.0
) -> torch.Tensor:
    """Reads a sound, or a part of it, as one channel, resampled where its rate is another.

    Only that part is read, however long the file is. Channels are averaged.

    Args:
        file: A file, or the bytes of one: WAV, FLAC, OGG, MP3, ...
        sample_rate: Samples per second of the result.
        seconds: How much of it; all by default. A shorter file gives what it has.
        start: Where the part begins, in seconds.

    Returns:
        The waveform ``(samples,)``, float32, full scale being 1.

    Raises:
        ValueError: If it is no sound, is empty, or has samples that are no sound (NaN, infinite, above 1e12).
        OSError: If the file cannot be read.
    """
    with _opened(file) as sound:
        rate = int(sound.samplerate)
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(f"its sample rate is {rate} Hz, expected {RATES[0]} to {RATES[1]}")
        try:
            if start:
                sound.seek(min(round(start * rate), sound.frames))
            frames = -1 if seconds is None else math.ceil(seconds * rate)
            samples = sound.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        except soundfile().SoundFileError as error:
            raise ValueError(f"it is damaged: {error}") from error
    if not len(samples):
        raise ValueError("it has no samples" if not start else f"it has no samples after {start:g} s")
    waveform = torch.from_numpy(samples)
    if not waveform.abs().max() <= LOUDEST:  # so written, NaN is refused too
        raise ValueError("it has samples that are NaN, infinite or far above full scale, which is 1")
    waveform = resampled(waveform, rate, sample_rate)
    return waveform if seconds is None else waveform[: round(seconds * sample_rate)]


def fitted(waveform: torch.Tensor, samples: int) -> torch.Tensor:
    """A waveform of so many samples: cut at its end, or padded with zeros there."""
    return torch.nn.functional.pad(waveform[:samples], (0, max(samples - len(waveform), 0)))


def _opened(file: str | Path | bytes) -> Any:
    sf = soundfile()
    if not isinstance(file, bytes):
        with Path(file).open("rb") as opened:  # for an error that says why
            empty = not opened.read(1)
    else:
        empty = not file
    if empty:
        raise ValueError("it is empty (0 bytes)")
    try:
        return sf.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else str(file))
    except (sf.SoundFileError, TypeError) as error:  # TypeError: .raw, which has no header
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise ValueError(f"it is no sound that libsndfile reads ({reason})") from error


def resampled(waveform: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    """A waveform at another sample rate."""
    if rate == wanted:
        return waveform
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return torch.from_numpy(resample_poly(waveform.numpy(), wanted // common, rate // common))
