"""Seeding before every sample and step: torch's own numbers, and nothing that grows."""

import torch

from train.seeding import mixed, seed_from


def test_the_numbers_are_torchs():
    seed_from(3, 5, 7)
    numbers = torch.rand(4)
    torch.manual_seed(mixed(3, 5, 7))
    assert torch.equal(torch.rand(4), numbers)


def test_an_unused_gpu_notes_nothing():
    before = len(torch.cuda._queued_calls)
    for i in range(5):
        seed_from(i)
    assert torch.cuda.is_initialized() or len(torch.cuda._queued_calls) == before
