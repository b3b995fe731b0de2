"""The only place where a convolution becomes a DCLS layer."""

import copy
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch

import torch
from timm.layers import Conv2dSame, to_ntuple
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .layers import Dcls1d, Dcls2d, Dcls3d, DclsNd
from .layers.positions import share_positions
from .warm_start import warm_start

_DCLS_CLASSES: dict[type[_ConvNd], type[DclsNd]] = {
    nn.Conv1d: Dcls1d,
    nn.Conv2d: Dcls2d,
    nn.Conv3d: Dcls3d,
}

Select = str | Sequence[str] | Callable[[str, _ConvNd], bool]


def is_depthwise(name: str, conv: _ConvNd) -> bool:
    """Selects depthwise convolutions larger than one pixel."""
    return conv.groups == conv.in_channels == conv.out_channels > 1 and max(conv.kernel_size) > 1


def dclsify(
    model: nn.Module,
    convs: Select = is_depthwise,
    *,
    kernel_count: int = 34,
    dilated_kernel_size: int | tuple[int, ...] = 17,
    version: str = "v1",
    share: Iterable[nn.Module] = (),
    init: str = "random",
    jitter: float = 1e-3,
    example_input: torch.Tensor | None = None,
) -> nn.Module:
    """Replaces convolutions of any model by DCLS layers, in place.

    Stride, groups, dilation, bias, device, type and the size of the output stay as they are.

    Args:
        model: The model to change.
        convs: Which convolutions: a pattern of their qualified names (``"*.conv_dw"``), several, or a
            function of name and module. By default the depthwise ones.
        kernel_count: Elements per kernel.
        dilated_kernel_size: Size of the kernel that the elements move in, in pixels.
        version: ``v0`` (bilinear), ``v1`` (triangle), ``max`` (triangle of learned width) or ``gauss``.
        share: Containers (stages) inside which all replaced layers share their positions, as in the
            authors' models. By default each layer has its own.
        init: ``"random"``, the authors' (nothing of the old weights is kept), or ``"dense"``: the elements
            are fitted to the kernels that they replace, and what is lost is logged (see ``warm_start``).
        jitter: As in ``warm_start``, for ``init="dense"``.
        example_input: As in ``warm_start``, for ``init="dense"``.

    Returns:
        The model (the new layer, if the model is itself a convolution that is replaced).

    Raises:
        ValueError: If nothing matches, or layers that are to share positions differ in shape.

    >>> import timm
    >>> model = dclsify(timm.create_model("mobilenetv3_small_050"), kernel_count=12, dilated_kernel_size=9)
    """
    if init not in ("random", "dense"):
        raise ValueError(f"init must be 'random' or 'dense', got {init=}")
    old = [m for name, m in model.named_modules() if isinstance(m, _ConvNd) and _selected(name, m, convs)]
    if not old:
        raise ValueError(
            f"no convolution of {type(model).__name__} matches {convs=}; model.named_modules() lists "
            "the names"
        )
    source = copy.deepcopy(model) if init == "dense" else None
    new = {conv: _replacement(conv, kernel_count, dilated_kernel_size, version) for conv in old}
    if model in new:
        model = new[model]
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in new:
                setattr(parent, name, new[child])
    for container in share:
        inside = [m for m in container.modules() if isinstance(m, DclsNd) and m.holder() is m]
        if inside:
            share_positions(container, inside)
    if source is not None:
        warm_start(model, source, jitter=jitter, example_input=example_input)
    return model


def _selected(name: str, conv: _ConvNd, convs: Select) -> bool:
    if isinstance(conv, DclsNd) or conv.transposed:
        return False
    if callable(convs):
        return convs(name, conv)
    return any(fnmatch(name, pattern) for pattern in ([convs] if isinstance(convs, str) else convs))


def _replacement(
    conv: _ConvNd, kernel_count: int, dilated_kernel_size: int | tuple[int, ...], version: str
) -> DclsNd:
    dcls_class = next(dcls for dense, dcls in _DCLS_CLASSES.items() if isinstance(conv, dense))
    size = to_ntuple(dcls_class.learned_axes)(dilated_kernel_size)
    layer = dcls_class(
        conv.in_channels,
        conv.out_channels,
        kernel_count,
        stride=conv.stride,
        padding=_padding(conv, size),
        dilated_kernel_size=size,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        version=version,
        dilation=conv.dilation,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer.train(conv.training)


def _padding(conv: _ConvNd, size: tuple[int, ...]) -> str | tuple[int, ...]:
    """Keeps the size of the output (one pixel more where an even kernel replaces an odd one)."""
    if isinstance(conv.padding, str):
        return conv.padding
    axes = list(zip(size, conv.kernel_size, conv.dilation, strict=True))
    if isinstance(conv, Conv2dSame):  # pads in its forward
        return tuple(d * (k // 2) for k, _, d in axes)
    return tuple(p + d * ((k - old + 1) // 2) for p, (k, old, d) in zip(conv.padding, axes, strict=True))
