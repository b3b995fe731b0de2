"""Randomness that depends only on where the training is: a resumed run draws what it would have drawn.

Nothing of a random generator has to be saved: before every sample and before every step all generators are
seeded from the run's seed, the epoch and the position.
"""

import os
import random

import numpy as np
import torch


def run_seed() -> int:
    """The seed of the run (``seed_everything`` keeps it in the environment), 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def mixed(*numbers: int) -> int:
    """A seed made of non-negative numbers; different numbers, different seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_from(*numbers: int) -> None:
    """Seeds ``random``, numpy and torch from non-negative numbers; different numbers, different streams."""
    seed = mixed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # the same on the CPU; for a GPU that is not in use, torch would note every call with its traceback
        torch.default_generator.manual_seed(seed)
