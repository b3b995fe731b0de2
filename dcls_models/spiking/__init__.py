"""Spiking networks with learned delays (arXiv:2306.17670)."""

from .network import DelayNet
from .neurons import leaky, lif, lif_reference, lif_step, summed_softmax, surrogate

__all__ = ["DelayNet", "leaky", "lif", "lif_reference", "lif_step", "summed_softmax", "surrogate"]
