"""What the tests of audio share: small folders of sounds, a small model, a short training."""

from pathlib import Path

import numpy as np
import soundfile

from train.audio.command import main

RATE = 8000
FRONT_END = "{sample_rate: 8000, n_fft: 256, hop: 80, mels: 32, low: 50, high: 3900}"
TINY = [
    *("--model.name", "test_convnext_dcls", "--data.num_workers", "0", "--data.batch_size", "4"),
    *("--model.model_kwargs", "{depths: [1, 1, 1, 1], dims: [8, 8, 8, 16], patch_size: 2, kernel_count: 5}"),
    *("--data.front_end", FRONT_END, "--data.seconds", "0.5"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.accelerator", "cpu", "--report.pictures", "false", "--positions.kernels", "0"),
]


def write_sounds(
    root: Path, classes: int = 2, count: int = 10, seconds: float = 0.6, rate: int = RATE
) -> Path:
    """Tones under noise, of another pitch per class, in ``root/<class>/``."""
    generator = np.random.default_rng(0)
    t = np.arange(round(seconds * rate)) / rate
    for label in range(classes):
        folder = root / f"tone_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            tone = 0.3 * np.sin(2 * np.pi * 500 * (label + 1) * t + generator.uniform(0, 6))
            soundfile.write(folder / f"{i}.wav", tone + 0.05 * generator.standard_normal(len(t)), rate)
    return root


def fit(root: Path, run: Path, *more: str) -> None:
    """Trains a tiny model on a folder of sounds."""
    main(["fit", *TINY, "--data.root", str(root), "--trainer.default_root_dir", str(run), *more])
