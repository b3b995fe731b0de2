"""Recordings of spikes as people have them, for training and evaluation of ``dcls_models.spiking``."""

from .binning import Binning, binned
from .cochlea import HOP, RATE, to_spikes
from .recordings import Arrays, Batch, Recordings, open_recordings, padded

__all__ = [
    "HOP",
    "RATE",
    "Arrays",
    "Batch",
    "Binning",
    "Recordings",
    "binned",
    "open_recordings",
    "padded",
    "to_spikes",
]
