"""What a model says of an image, where it looks, and what its kernels have learned."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dcls_models.images import label_names, transform_of
from dcls_models.layers import DclsNd

THRESHOLD = 0.3  # of Threshold-Grad-CAM: what lies below is lifted to it


def inputs_of(model: nn.Module, image: Image.Image) -> torch.Tensor:
    """The image ``(1, C, H, W)`` as the model wants it."""
    return transform_of(model)(image.convert("RGB"))[None]


def predict(model: nn.Module, image: Image.Image, best: int = 5) -> dict[str, float]:
    """The most probable classes and their probabilities."""
    with torch.inference_mode():
        scores = model(inputs_of(model, image)).softmax(1)[0]
    names, descriptions = label_names(model), model.pretrained_cfg.get("label_descriptions") or {}
    top = scores.topk(min(best, len(scores)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return {descriptions.get(names[i], names[i]): value for i, value in pairs}


def grad_cam(model: nn.Module, image: Image.Image, threshold: bool = False) -> torch.Tensor:
    """Where the model looks for its most probable class.

    Grad-CAM weights the activations of the last stage (in FastViT of the convolution behind it) with their
    gradients' mean over the image, and rectifies the mean over channels. Threshold-Grad-CAM
    (arXiv:2408.03164) rectifies before the mean, normalises to 0..1 and lifts everything below 0.3 to 0.3.

    Returns:
        ``(H, W)`` of the model's input, in 0..1.
    """
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # what comes next may work in place

    last = "final_conv" if hasattr(model, "final_conv") else model.feature_info[-1]["module"]
    hook = model.get_submodule(last).register_forward_hook(keep)
    inputs = inputs_of(model, image)
    try:
        logits = model(inputs)
    finally:
        hook.remove()
    (activations,) = kept
    (gradients,) = torch.autograd.grad(logits.max(), activations)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        activations, gradients = (x.permute(0, 3, 1, 2) for x in (activations, gradients))
    weighted = activations.detach() * gradients.mean((2, 3), keepdim=True)
    maps = weighted.relu().mean(1) if threshold else weighted.mean(1).relu()
    largest = maps.max() - maps.min()
    maps = (maps - maps.min()) / largest.where(largest > 0, 1)  # a constant map is 0
    if threshold:
        maps = maps.clamp(min=THRESHOLD)
    return F.interpolate(maps[None], inputs.shape[-2:], mode="bilinear")[0, 0]


def overlay(image: Image.Image, heat: torch.Tensor) -> Image.Image:
    """The heat map over the image, at 320 pixels."""
    size = (320, 320)
    coloured = plt.get_cmap("viridis")(heat.clamp(0, 1).numpy())[..., :3]
    mask = Image.fromarray((255 * coloured).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    return Image.blend(image.convert("RGB").resize(size), mask, 0.5)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with learned positions, by name; of others, depthwise or else 3 x 3 ones."""
    named = dict(model.named_modules())
    learned = {name: layer for name, layer in named.items() if isinstance(layer, DclsNd)}
    convs = {name: conv for name, conv in named.items() if isinstance(conv, nn.Conv2d)}
    depthwise = {name: conv for name, conv in convs.items() if conv.groups > 1}
    return learned or depthwise or {name: c for name, c in convs.items() if c.kernel_size == (3, 3)}


def draw_layer(layer: Any) -> Figure:
    """The kernels of a layer, in pixels from their centre.

    All elements where they sit, coloured by their weight; of a dense layer the mean of the absolute weights.
    """
    figure = Figure(figsize=(4, 4), layout="constrained")
    axis = figure.subplots()
    height, width = layer.kernel_size
    extent = (-width / 2, width / 2, height / 2, -height / 2)
    if isinstance(layer, DclsNd):
        positions, weights = layer.positions.detach().flatten(1), layer.weight.detach().flatten()
        limit = weights.abs().quantile(0.99).item()
        colours = {"c": weights, "cmap": "coolwarm", "vmin": -limit, "vmax": limit}
        axis.scatter(positions[1], positions[0], s=4, alpha=0.5, **colours)
        title = f"{len(weights):,} elements, {height} x {width}"
    else:
        axis.imshow(layer.weight.detach().abs().mean((0, 1)).numpy(), extent=extent, cmap="Greys")
        title = f"{layer.weight.numel():,} weights, {height} x {width}"
    axis.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    axis.set(xlabel="pixels", ylabel="pixels", title=title)
    return figure
