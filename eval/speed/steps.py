"""What is timed of a model: one training step, or one inference."""

from collections.abc import Callable

import torch
from torch import nn


def step_of(
    model: nn.Module, images: torch.Tensor, mode: str, dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """One training step (mode ``train``: forward, backward, AdamW) or inference; short types by autocast."""
    autocast = torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)
    if mode != "train":

        def infer() -> torch.Tensor:
            with torch.inference_mode(), autocast:
                return model(images)

        return infer

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=images.device.type == "cuda")
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def train() -> None:
        with autocast:
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # at the end: a step leaves no more memory in use than it found

    return train
