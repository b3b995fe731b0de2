"""From sound to spikes: a filter bank whose channels integrate their level and fire, one frame per 10 ms."""

import torch

from dcls_models.spectrogram import mel_filters

RATE = 22050  # samples per second
HOP = 220  # samples per frame: 10 ms
N_FFT = 512
CHANNELS = 40
STEPS = 256  # levels are whole numbers of 1/256, so that spikes do not depend on how a machine rounds
GOLDEN = 0.6180339887498949


def to_spikes(waveforms: torch.Tensor) -> torch.Tensor:
    """Spikes of 40 mel bands between 80 and 8000 Hz.

    The level of a band is its energy in dB, 0 at the median of the recording (all bands and frames) and 1 at
    its 99 % quantile. A channel adds up its level and fires when it passes a whole number; channels start at
    different phases, so that they do not fire together. The sum is exact: the same spikes on every machine.

    Args:
        waveforms: ``(N, samples)`` at 22050 Hz.

    Returns:
        0 and 1, uint8, ``(N, 40, samples // 220)``.
    """
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    padded = waveforms.double()
    power = torch.stft(padded, N_FFT, HOP, window=window, return_complex=True, pad_mode="constant")
    power = power.abs().square()[..., : waveforms.shape[1] // HOP]
    bands = mel_filters(RATE, N_FFT, CHANNELS, 80.0, 8000.0).double() @ power
    decibels = 10 * bands.clamp(min=1e-10).log10()
    low, high = decibels.flatten(1).quantile(torch.tensor([0.5, 0.99], dtype=torch.float64), dim=1)
    low, high = low[:, None, None], high[:, None, None]
    levels = ((decibels - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
    phases = (torch.arange(CHANNELS) * GOLDEN % 1 * STEPS).long()[:, None]
    sums = phases + (levels * STEPS).round().long().cumsum(-1)
    return torch.diff(sums // STEPS, dim=-1, prepend=torch.zeros_like(sums[..., :1])).to(torch.uint8)
