"""The memory layout that an output takes over from its input."""

import torch


def layout_of(image: torch.Tensor) -> torch.memory_format:
    """channels_last for images that are in it and not in the other one as well."""
    channels_last = image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not image.is_contiguous() else torch.contiguous_format
