"""Sounds for tests, computed from formulas: the same on every machine."""

import numpy as np


def clips(rate: int = 32000) -> np.ndarray:
    """Four clips of a second, float32: a sweep, a chord under noise, a click in silence, silence."""
    t = np.arange(rate) / rate
    sweep = 0.5 * np.sin(2 * np.pi * (100 * t + 6500 * t**2))
    state, noise = np.uint32(1), np.empty(rate)
    for i in range(rate):  # a linear congruential generator
        state = np.uint32((1664525 * int(state) + 1013904223) % 2**32)
        noise[i] = int(state) / 2**31 - 1
    chord = sum(0.2 * np.sin(2 * np.pi * f * t) for f in (220.0, 277.2, 329.6)) + 0.05 * noise
    click = np.zeros(rate)
    click[rate // 3] = 1.0
    return np.stack([sweep, chord, click, np.zeros(rate)]).astype(np.float32)
