"""Spoken digits in English and German, made on the spot by espeak-ng: ``python -m train.speech OUT``.

The words of 2000 training utterances are spoken by 33 voices, those of 400 to validate and 1000 to test by 7
and 13 others; speed, pitch, accent, loudness of noise and start vary. The files are the same in every run:
espeak-ng (1.52, in the optional package espeakng-loader, GPL) keeps state between words, so the whole set is
made in one order by a process of its own, this one; nothing else imports it. Its voices with breath (f2,
caleb, ...) are random and not used.
"""

import argparse
import ctypes
import shutil
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dcls_models.files import one_line, replaced
from dcls_models.spikes import HOP, RATE, to_spikes

FRAMES = 80  # 0.8 s
ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GERMAN = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
WORDS = (*ENGLISH, *GERMAN)
CLASSES = tuple(word.replace("ü", "ue") for word in WORDS)  # names of folders
ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029")
VOICES = {
    "train": "f1 f4 m1 m2 m3 m5 m6 m8 Michael adam anika antonio aunty belinda benjamin boris david ed "
    "edward2 fast gustave ian iven iven3 john kaukovalta klatt klatt2 klatt5 marcelo max michel miguel",
    "val": "Andrea m4 Andy paul iven2 klatt4 mike2",
    "test": "steph2 m7 Alex Annie Gene Jacky Mario edward linda klatt3 quincy steph zac",
}
COUNTS = {"train": 2000, "val": 400, "test": 1000}
SPEED, PITCH, PITCH_RANGE = 1, 3, 4  # espeak's numbers for them
AUDIO = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Utterance(NamedTuple):
    """A word, who says it, and its samples (16 bit at 22050 Hz)."""

    label: int
    voice: str
    samples: np.ndarray


class Espeak:
    """The synthesizer.

    Raises:
        ValueError: If it is not installed.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ValueError("spoken digits need a package: pip install espeakng-loader") from error
        self.library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        self.chunks: list[bytes] = []
        self._callback = AUDIO(self._receive)  # kept: the library has only its address
        rate = self.library.espeak_Initialize(
            2, 0, espeakng_loader.get_data_path().encode(), 0
        )  # synchronous
        if rate != RATE:
            raise ValueError(f"espeak-ng gives {rate} samples per second, expected {RATE}")
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, word: str, voice: str, **parameters: int) -> np.ndarray:
        """The samples of a word, int16.

        Raises:
            ValueError: If there is no such voice.
        """
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice}: install espeakng-loader 0.2.4")
        numbers = {"speed": SPEED, "pitch": PITCH, "pitch_range": PITCH_RANGE}
        for name, value in parameters.items():
            self.library.espeak_SetParameter(numbers[name], value, 0)
        text = word.encode()
        self.chunks.clear()
        self.library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, 1, None, None)
        return np.frombuffer(b"".join(self.chunks), dtype="<i2")


def utterances(split: str, espeak: Espeak) -> Iterator[Utterance]:
    """All utterances of a split, in their order."""
    voices = VOICES[split].split()
    for number in range(COUNTS[split]):
        random = np.random.default_rng([list(COUNTS).index(split), number])
        label = number % len(WORDS)
        voice = voices[random.integers(len(voices))]
        accent = ACCENTS[random.integers(len(ACCENTS))] if label < len(ENGLISH) else "de"
        speed, pitch, pitch_range = (int(random.integers(*ends)) for ends in ((110, 191), (25, 76), (20, 81)))
        said = espeak.say(
            WORDS[label], f"{accent}+{voice}", speed=speed, pitch=pitch, pitch_range=pitch_range
        )
        yield Utterance(label, voice, recorded(said, random))


def recorded(said: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """0.8 s with the word up to 0.1 s after the start, and white noise 10 to 30 dB below the word."""
    start, decibels = int(random.integers(RATE // 10)), random.uniform(10, 30)
    clip = np.zeros(FRAMES * HOP)
    heard = said[: len(clip) - start]
    clip[start : start + len(heard)] = heard
    loudness = np.sqrt(np.mean(np.square(said, dtype=np.float64)))
    clip += random.standard_normal(len(clip)) * loudness * 10 ** (-decibels / 20)
    return np.clip(np.round(clip), -32768, 32767).astype("<i2")


def write_spikes(path: Path, spoken: list[Utterance]) -> None:
    """One ``.npz`` as ``train.delays`` reads it: spikes ``(N, channels, frames)``, labels, names, voices."""
    waveforms = torch.from_numpy(np.stack([u.samples for u in spoken])) / 32768
    spikes = torch.cat([to_spikes(chunk) for chunk in waveforms.split(200)])
    labels = np.array([u.label for u in spoken])
    voices = np.array([u.voice for u in spoken])
    with replaced(path) as part, part.open("wb") as file:
        np.savez_compressed(
            file, spikes=spikes.numpy(), labels=labels, class_names=np.array(CLASSES), voices=voices
        )


def write_wav(folder: Path, spoken: list[Utterance]) -> None:
    """``<class>/<number>_<voice>.wav``, in a folder that appears whole."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name in CLASSES:
        (part / name).mkdir(parents=True)
    for number, utterance in enumerate(spoken):
        path = part / CLASSES[utterance.label] / f"{number:04}_{utterance.voice}.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(utterance.samples.tobytes())
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def main(args: list[str] | None = None) -> None:
    """Writes the set."""
    parser = argparse.ArgumentParser(
        prog="python -m train.speech", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder for train, val and test")
    parser.add_argument("--spikes", action="store_true", help="write <split>.npz (the default)")
    parser.add_argument("--wav", action="store_true", help="<split>/<class>/*.wav")
    options = parser.parse_args(args)
    espeak = Espeak()
    spoken = {split: list(utterances(split, espeak)) for split in COUNTS}
    options.out.mkdir(parents=True, exist_ok=True)
    for split, words in spoken.items():
        if options.wav:
            write_wav(options.out / split, words)
        if options.spikes or not options.wav:
            write_spikes(options.out / f"{split}.npz", words)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {one_line(error)}")
