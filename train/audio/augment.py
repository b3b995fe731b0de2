"""What the authors do to sounds and targets in training, in their order (arXiv:2309.13972).

Waveforms are rolled and changed in speed where they are read; the rest happens to whole batches on the
device: boxes of the linear spectrogram are erased, then normalised log-mels and targets are mixed.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.random_erasing import RandomErasing


@dataclass(frozen=True)
class Perturbation:
    """Rolls a waveform ``(samples,)`` and changes its speed; the length stays.

    Attributes:
        roll: Whether it is shifted circularly, by any number of samples.
        speed_prob: Probability of a change of speed.
        speed: Range of the factor on its length; the pitch changes with it.
    """

    roll: bool
    speed_prob: float
    speed: tuple[float, float]

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """The perturbed waveform."""
        samples = len(waveform)
        if self.roll:
            waveform = waveform.roll(random.randrange(samples))
        if random.random() < self.speed_prob:
            waveform = placed(stretched(waveform, random.uniform(*self.speed)), samples)
        return waveform


def stretched(waveform: torch.Tensor, factor: float) -> torch.Tensor:
    """A waveform so many times as long, of its nearest samples; without a filter, as the authors do it."""
    samples = max(round(len(waveform) * factor), 1)
    nearest = (torch.arange(samples) / factor).round().long().clamp(max=len(waveform) - 1)
    return waveform[nearest]


def placed(waveform: torch.Tensor, samples: int) -> torch.Tensor:
    """A random part of so many samples, or the waveform at a random place among zeros."""
    spare = len(waveform) - samples
    if spare >= 0:
        return waveform[(start := random.randint(0, spare)) : start + samples]
    before = random.randint(0, -spare)
    return torch.nn.functional.pad(waveform, (before, -spare - before))


def erased(power: torch.Tensor, probability: float) -> torch.Tensor:
    """Linear spectrograms ``(N, frequencies, frames)``, in some of which one box is zero.

    Args:
        power: The spectrograms, which are changed.
        probability: How likely each of them is.
    """
    if probability:
        RandomErasing(probability, mode="const", device=str(power.device))(power[:, None])
    return power


def smoothed(targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Targets ``(N, classes)`` of which a share is spread over all classes."""
    return (1 - smoothing) * targets + smoothing / targets.shape[1]


def mixed(
    spectrograms: torch.Tensor, targets: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every sample of a batch mixed with another one, all by one share drawn from Beta(alpha, alpha)."""
    share, partners = float(np.random.beta(alpha, alpha)), torch.randperm(len(targets))
    partners = partners.to(targets.device)
    return (
        share * spectrograms + (1 - share) * spectrograms[partners],
        share * targets + (1 - share) * targets[partners],
    )
