"""Memory layouts: which one an output takes over from its input, and which one is the faster."""

import torch

from dcls_models.layers.tracing import is_traced, is_transformed


def layout_of(image: torch.Tensor) -> torch.memory_format:
    """channels_last for images that are in it and not in the other one as well."""
    channels_last = image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not image.is_contiguous() else torch.contiguous_format


def prefers_contiguous(image: torch.Tensor, kernel: torch.Tensor) -> bool:
    """Whether a dense convolution of images in channels_last is faster in the kernel's own layout on a CPU.

    A kernel that was just built is contiguous, and oneDNN would change its layout at every pass; measured for
    ResNet's shapes (``docs/speed.md``), that is the larger loss where the kernel is larger than the images.
    """
    if type(image) is not torch.Tensor or not image.is_cpu:
        return False  # also for what stands for a tensor while FX traces
    if is_traced() or is_transformed(image, kernel):
        return False
    return layout_of(image) == torch.channels_last and kernel.numel() > image.numel()
