"""From sound to what the audio models take: normalised log-mel spectrograms (arXiv:2309.13972)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MEAN, STD = -18.2696, 30.5735  # of AudioSet's balanced training set in dB, as the authors' weights expect
FLOOR = 1e-10  # of the power, so that silence has a level: -100 dB


class LogMel(nn.Module):
    """Waveforms ``(N, samples)`` to spectrograms ``(N, 1, mels, frames)``, in float32 whatever surrounds it.

    As torchaudio's ``MelSpectrogram`` and ``AmplitudeToDB`` with the authors' settings (HTK scale, triangles
    of height 1, no lower limit but 100 dB below full scale), then ``(dB - mean) / std``. It has no
    parameters and nothing in the state dict.

    Args:
        sample_rate: Samples per second of the waveforms.
        n_fft: Samples per window (Hann, centred, reflected at the ends).
        hop: Samples from window to window; there are ``samples // hop + 1`` frames.
        mels: Number of mel bands.
        low: Lower end of the lowest band, in Hz.
        high: Upper end of the highest band, in Hz.
        mean: What is subtracted, in dB.
        std: What is divided by, in dB.
        seconds: Length of the clips that the model was trained on; waveforms may be of another length.
        device: Where to compute; ``to`` moves it.

    Raises:
        ValueError: If the bands do not lie between 0 and half of the sample rate, or one is impossible.
    """

    __jit_unused_properties__ = ("samples", "input_size")  # a script reads every property
    window: torch.Tensor
    filters: torch.Tensor

    def __init__(
        self,
        sample_rate: int = 32000,
        n_fft: int = 1024,
        hop: int = 320,
        mels: int = 128,
        low: float = 50.0,
        high: float = 14000.0,
        mean: float = MEAN,
        std: float = STD,
        seconds: float = 10.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        finite = all(map(math.isfinite, (mean, std, seconds)))
        small = min(sample_rate, n_fft, hop, mels) < 1 or min(std, seconds) <= 0
        if small or not finite or max(n_fft, 16 * mels) > 2**16:
            raise ValueError(
                "sample_rate, n_fft, hop, mels, std and seconds must be positive, mean finite, n_fft at "
                f"most 65536 and mels 4096, got {sample_rate=}, {n_fft=}, {hop=}, {mels=}, {mean=}, {std=}, "
                f"{seconds=}"
            )
        if not 0 <= low < high <= sample_rate / 2:
            raise ValueError(
                f"the bands lie between 0 and half of the sample rate: got {low=}, {high=} Hz at "
                f"{sample_rate} Hz"
            )
        self.settings: dict[str, Any] = {
            "sample_rate": sample_rate,
            "n_fft": n_fft,
            "hop": hop,
            "mels": mels,
            "low": low,
            "high": high,
            "mean": mean,
            "std": std,
            "seconds": seconds,
        }
        self._fill(device)

    @torch.jit.unused  # a model that carries it can be scripted
    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """The spectrogram ``(N, 1, mels, frames)`` of waveforms ``(N, samples)``, full scale being 1.

        Raises:
            ValueError: If the waveforms have another shape or are shorter than half a window.
        """
        return self.from_linear(self.linear(waveform))

    @torch.jit.unused
    def linear(self, waveform: torch.Tensor) -> torch.Tensor:
        """The power at each frequency, ``(N, n_fft // 2 + 1, frames)``: where the recipe erases.

        Raises:
            ValueError: As ``forward``.
        """
        n_fft = self.settings["n_fft"]
        if waveform.ndim != 2 or not waveform.is_floating_point() or waveform.shape[1] <= n_fft // 2:
            raise ValueError(
                f"expected waveforms (N, samples) of floating point, with more than {n_fft // 2} samples, "
                f"got {tuple(waveform.shape)}, {waveform.dtype}"
            )
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(), n_fft, self.settings["hop"], window=self.window, return_complex=True
            )
            return spectrum.abs().square()

    @torch.jit.unused
    def from_linear(self, power: torch.Tensor) -> torch.Tensor:
        """The spectrogram ``(N, 1, mels, frames)`` of what ``linear`` gives."""
        with torch.autocast(power.device.type, enabled=False):
            decibels = 10 * (self.filters @ power.float()).clamp(min=FLOOR).log10()
            return ((decibels - self.settings["mean"]) / self.settings["std"])[:, None]

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return round(self.settings["seconds"] * self.settings["sample_rate"])

    @property
    def input_size(self) -> tuple[int, int, int]:
        """The shape of a clip's spectrogram, ``(1, mels, frames)``."""
        return 1, self.settings["mels"], self.samples // self.settings["hop"] + 1

    def extra_repr(self) -> str:
        """The settings."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._fill(
            self.window.device
        )  # ``half`` would round them, and ``to_empty`` leave them without values
        return self

    def _fill(self, device: torch.device | str | None) -> None:
        s = self.settings
        window = torch.hann_window(s["n_fft"], device=device, dtype=torch.float32)
        self.register_buffer("window", window, persistent=False)
        filters = mel_filters(s["sample_rate"], s["n_fft"], s["mels"], s["low"], s["high"])
        self.register_buffer("filters", filters.to(window.device), persistent=False)


def mel_filters(sample_rate: int, n_fft: int, mels: int, low: float, high: float) -> torch.Tensor:
    """Triangles on the HTK scale, ``(mels, n_fft // 2 + 1)``, equal to torchaudio's to the last bit.

    The ends are computed in double precision and the rest in float32, on the CPU, as there.
    """
    lowest, highest = (2595.0 * math.log10(1.0 + f / 700.0) for f in (low, high))
    edges = 700.0 * (10.0 ** (torch.linspace(lowest, highest, mels + 2, device="cpu") / 2595.0) - 1.0)
    frequencies = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1, device="cpu")
    widths, slopes = edges[1:] - edges[:-1], edges[None] - frequencies[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0).T.contiguous()
