"""Grad-CAM and Threshold-Grad-CAM (arXiv:2408.03164), in batches, for any timm model with maps."""

import torch
from torch import nn
from torch.nn import functional as F

from eval.interpretability.features import channels_first, output_of, stage_of

THRESHOLD = 0.3  # of Threshold-Grad-CAM: what lies below is lifted to it


def layer_of(model: nn.Module) -> str:
    """The layer that the study looks at: the last before the pooling.

    That is the last stage, or in FastViT the expanding convolution behind it (timm's ``final_conv``), as in
    ``models/*/*_gradCAM.py`` of the study's code.

    Raises:
        ValueError: If the model does not say what its stages are.
    """
    last = stage_of(model)
    return "final_conv" if hasattr(model, "final_conv") else last


def weighted_activations(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor | None = None, layer: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations times the mean of their gradients over the image, what both methods start from.

    Args:
        model: In eval mode.
        inputs: ``(N, C, H, W)``, as the model wants them.
        targets: ``(N,)`` classes whose logits are differentiated; by default the best of each image.
        layer: Name of the layer; by default that of ``layer_of``.

    Returns:
        ``(N, channels, h, w)`` without gradient, and the logits ``(N, num_classes)``.
    """
    with torch.enable_grad(), output_of(model, layer or layer_of(model), detach=True) as kept:
        logits = model(inputs)
    targets = logits.argmax(1) if targets is None else targets
    (activations,) = kept
    (gradients,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), activations)
    activations, gradients = (channels_first(model, x) for x in (activations.detach(), gradients))
    return activations * gradients.mean((2, 3), keepdim=True), logits.detach()


def normalise(maps: torch.Tensor) -> torch.Tensor:
    """Maps ``(N, h, w)`` from 0 to 1 each; a constant one is 0."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    largest = maps.amax((1, 2), keepdim=True)
    return maps / largest.where(largest > 0, 1)


def grad_cam(weighted: torch.Tensor) -> torch.Tensor:
    """Grad-CAM: the mean over channels, rectified. ``(N, channels, h, w)`` to ``(N, h, w)``."""
    return weighted.mean(1).relu()


def threshold_grad_cam(weighted: torch.Tensor) -> torch.Tensor:
    """Threshold-Grad-CAM: rectified before the mean over channels, from 0 to 1, then at least 0.3."""
    return normalise(weighted.relu().mean(1)).clamp(min=THRESHOLD)


METHODS = {"grad-cam": grad_cam, "threshold-grad-cam": threshold_grad_cam}


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps ``(N, h, w)`` at another size, bilinear.

    What lies at a map's lowest value stays exactly there: a ranking must not see differences that are nothing
    but the rounding of the interpolation.
    """
    lowest = maps.amin((1, 2), keepdim=True)
    return F.interpolate((maps - lowest)[:, None], size, mode="bilinear")[:, 0] + lowest
