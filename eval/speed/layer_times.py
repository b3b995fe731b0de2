"""Timings of kernel construction and depthwise convolution with their gradients, beside the alternatives."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, product
from typing import Any, NamedTuple

import timm
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from dcls_models.layers import Dcls2d
from dcls_models.layers.depthwise import depthwise_conv2d
from dcls_models.loading import config_of
from eval.speed.peers import authors_layer
from eval.speed.timing import FLUSHED, LAYOUTS, peak_memory, time_in_turns

MODELS = ("convnext_dcls_tiny", "convnext_dcls_gauss_tiny", "convformer_dcls_s18", "fastvit_dcls_sa24")
KERNELS = {"v0": (17, 34), "v1": (17, 34), "max": (23, 26), "gauss": (23, 26)}  # size, elements
KERNEL_SIZES = (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 27, 31)
BATCH_SIZES = (1, 8, 32)
DENSE_WEIGHTS = 2**26  # of the largest dense convolution that is timed
SHOWN = (7, 13, 17, 23)  # kernel sizes in the table, and those that are timed in large batches
LARGE_BATCH = 32


class Shape(NamedTuple):
    """Channels, side of the image and side of the kernel, in pixels."""

    channels: int
    side: int
    kernel: int


def shapes_of(model_name: str) -> list[Shape]:
    """The depthwise DCLS convolutions of stride 1 in a model of the zoo, without doublets.

    Raises:
        ValueError: If there is none, or no such model.
    """
    config_of(model_name)
    model = timm.create_model(model_name)
    shapes: dict[Shape, None] = {}

    def note(layer: Dcls2d, inputs: tuple[torch.Tensor]) -> None:
        if layer.groups == layer.in_channels and layer.stride == (1, 1):
            shapes[Shape(layer.in_channels, inputs[0].shape[-1], layer.kernel_size[0])] = None

    for layer in model.modules():
        if isinstance(layer, Dcls2d):
            layer.register_forward_pre_hook(note)
    model.eval().to("meta")(torch.zeros(1, *model.default_cfg["input_size"], device="meta"))
    if not shapes:
        raise ValueError(f"{model_name} has no depthwise DCLS convolution of stride 1 to time")
    return list(shapes)


def _backward(output: torch.Tensor, grad: torch.Tensor, leaves: Sequence[torch.Tensor]) -> None:
    torch.autograd.grad(output, leaves, grad)


def construction(
    device: str = "cpu", rounds: int = 15, model: str = MODELS[0], authors: bool = True
) -> list[dict[str, Any]]:
    """Times building a kernel and its gradients, of every version.

    So many layers take turns that their parameters are larger than the caches.

    Args:
        device: Where to compute.
        rounds: Runs of each.
        model: A name of the zoo, for the widths of its stages.
        authors: Whether to time the layers of the authors' package as well.

    Returns:
        Per version and width: ``ms`` and ``peak_bytes`` (beyond what was there before; CPU only) by name,
        and ``ratio`` and ``memory_ratio``, theirs by ours.
    """
    rows = []
    widths = dict.fromkeys(shape.channels for shape in shapes_of(model))
    for (version, (size, count)), width in product(KERNELS.items(), widths):
        layers = _layers(width, count, size, version, device)
        grads = torch.randn(len(layers), width, 1, size, size, device=device).unbind()
        calls = {"ours": _in_rotation([layer.kernel for layer in layers], layers, grads)}
        if authors:
            theirs: list[Any] = [authors_layer(layer) for layer in layers]
            kernels = [partial(t.DCK, t.weight, t.P, t.SIG) for t in theirs]
            calls["authors"] = _in_rotation(kernels, theirs, grads)
        row: dict[str, Any] = {"version": version, "channels": width, "kernel": size, "elements": count}
        timings = time_in_turns(calls, device, rounds, flush=False)
        row["ms"] = {name: ms._asdict() for name, ms in timings.items()}
        if device == "cpu":
            row["peak_bytes"] = {name: peak_memory(call) for name, call in calls.items()}
        if authors:
            row["ratio"] = round(timings["authors"].median / timings["ours"].median, 2)
            if device == "cpu":
                row["memory_ratio"] = round(row["peak_bytes"]["authors"] / row["peak_bytes"]["ours"], 2)
        rows.append(row)
    return rows


def _layers(channels: int, count: int, size: int, version: str, device: str) -> list[Dcls2d]:
    """As many as have more parameters than the caches hold."""
    options: dict[str, Any] = {"padding": size // 2, "dilated_kernel_size": size, "version": version}
    layer = Dcls2d(channels, channels, count, groups=channels, **options).to(device)
    copies = FLUSHED // sum(p.numel() for p in layer.parameters())
    return [layer, *(copy.deepcopy(layer) for _ in range(copies))]


def _in_rotation(
    kernels: Iterable[Callable[[], torch.Tensor]],
    layers: Iterable[torch.nn.Module],
    grads: Iterable[torch.Tensor],
) -> Callable[[], None]:
    """Builds the kernel of another layer, and its gradients, at every call."""
    leaves = [[p for name, p in layer.named_parameters() if name != "bias"] for layer in layers]
    turns = cycle(zip(kernels, grads, leaves, strict=True))

    def construct() -> None:
        kernel, grad, parameters = next(turns)
        _backward(kernel(), grad, parameters)

    return construct


def convolution(
    device: str = "cpu",
    rounds: int = 15,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    kernel_sizes: Sequence[int] = KERNEL_SIZES,
    dtype: torch.dtype = torch.float32,
    models: Sequence[str] = MODELS,
) -> list[dict[str, Any]]:
    """Times ``depthwise_conv2d`` with its gradients against ``F.conv2d``.

    At every kernel size on the stages of the first model, and at the layers of the others; in either memory
    layout. In batches of ``LARGE_BATCH`` images or more only the kernel sizes ``SHOWN``.

    Args:
        device: Where to compute.
        rounds: Runs of each.
        batch_sizes: Images per batch.
        kernel_sizes: Sides of the kernels.
        dtype: Type of images and kernels.
        models: Names of the zoo.

    Returns:
        Per shape, batch size and layout: ``ms`` by name and ``ratio``, PyTorch's by ours.
    """
    first, *others = models
    stages = [shape._replace(kernel=k) for shape in shapes_of(first) for k in kernel_sizes]
    shapes = list(dict.fromkeys([*stages, *(shape for name in others for shape in shapes_of(name))]))
    rows = []
    for batch, shape, layout in product(batch_sizes, shapes, LAYOUTS):
        if batch >= LARGE_BATCH and shape.kernel not in SHOWN:
            continue
        images, kernel, grad = _tensors(batch, shape, LAYOUTS[layout], device, dtype)
        padding = (shape.kernel // 2,) * 2
        calls = {
            name: _convolve(function, images, kernel, grad)
            for name, function in {
                "ours": lambda x, w, p=padding: depthwise_conv2d(x, w, None, p),
                "torch": lambda x, w, p=padding: F.conv2d(x, w, None, padding=p, groups=len(w)),
            }.items()
        }
        timings = time_in_turns(calls, device, rounds, seconds=1.0)
        rows.append(
            {"batch": batch, **shape._asdict(), "layout": layout}
            | {"ms": {name: ms._asdict() for name, ms in timings.items()}}
            | {"ratio": round(timings["torch"].median / timings["ours"].median, 3)}
        )
    return rows


def _tensors(
    batch: int, shape: Shape, layout: torch.memory_format, device: str, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    size = (batch, shape.channels, shape.side, shape.side)
    yield torch.randn(size, **like).contiguous(memory_format=layout).requires_grad_()
    yield torch.randn(shape.channels, 1, shape.kernel, shape.kernel, **like).requires_grad_()
    yield torch.randn(size, **like).contiguous(memory_format=layout)


def _convolve(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    kernel: torch.Tensor,
    grad: torch.Tensor,
) -> Callable[[], None]:
    return lambda: _backward(function(images, kernel), grad, (images, kernel))


def peers(
    device: str = "cpu", rounds: int = 5, model: str = MODELS[0], batch: int = 1
) -> list[dict[str, Any]]:
    """Times a whole layer of 34 elements in 17x17, with its gradients, against other ways to see as far.

    Args:
        device: Where to compute.
        rounds: Runs of each.
        model: A name of the zoo, for the shapes of its stages.
        batch: Images.

    Returns:
        Per stage: ``ms`` by name: this layer (with its kernel construction), the same kernel
        as a plain depthwise convolution, a dense convolution of the same size (up to ``DENSE_WEIGHTS``), and
        ``torchvision.ops.deform_conv2d`` of as many elements.
    """
    rows = []
    for shape in shapes_of(model):
        channels, side, k = shape
        layer = Dcls2d(channels, channels, 34, padding=k // 2, dilated_kernel_size=k, groups=channels).to(
            device
        )
        images, kernel, grad = _tensors(batch, shape, torch.channels_last, device, torch.float32)
        elements = torch.randn(channels, 1, 1, 34, device=device, requires_grad=True)
        offsets = torch.randn(batch, 68, side, side + 1, device=device, requires_grad=True)
        padding = (k // 2, k // 2)
        calls = {
            "dcls": lambda f=layer, x=images, g=grad: _backward(f(x), g, (x, *f.parameters())),
            "depthwise": _convolve(
                lambda x, w, p=padding: depthwise_conv2d(x, w, None, p), images, kernel, grad
            ),
            "deformable": lambda x=images, w=elements, o=offsets, g=grad: _backward(
                deform_conv2d(x, o, w, padding=(0, 17))[..., :-1], g, (x, w, o)
            ),
        }
        if channels**2 * k**2 <= DENSE_WEIGHTS:
            dense = torch.randn(channels, channels, k, k, device=device, requires_grad=True)
            calls["dense"] = _convolve(
                lambda x, w, p=padding: F.conv2d(x, w, None, padding=p), images, dense, grad
            )
        timings = time_in_turns(calls, device, rounds)
        rows.append({"batch": batch, **shape._asdict(), "ms": {n: ms._asdict() for n, ms in timings.items()}})
    return rows
