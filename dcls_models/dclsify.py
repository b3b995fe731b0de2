"""The only place where a convolution becomes a DCLS layer."""

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .layers import Dcls1d, Dcls2d, Dcls2dSame, Dcls3d, DclsNd
from .layers.dcls import sizes
from .layers.positions import FOLDING, check_shareable, share_positions, start_positions
from .strided import overrunning
from .warm_start import check_counterpart, check_example, warm_start

_logger = logging.getLogger(__name__)

_DCLS_CLASSES: dict[type[_ConvNd], type[DclsNd]] = {
    Conv2dSame: Dcls2dSame,
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
    share: Iterable[nn.Module] | nn.Module = (),
    init: str = "random",
    positions: str | None = None,
    jitter: float = 1e-3,
    example_input: torch.Tensor | None = None,
) -> nn.Module:
    """Replaces convolutions of any model by DCLS layers, in place.

    Stride, groups, dilation, bias, device, type and the size of the output stay as they are (a kernel of
    even size in place of an odd one, or the reverse, can make the output one pixel larger), and what is
    frozen stays frozen. A block that folds its convolutions into one for deployment keeps them apart where
    it holds a DCLS layer.

    Args:
        model: The model to change.
        convs: Which convolutions: a pattern of their qualified names (``"*.conv_dw"``), several, or a
            function of name and module. By default the depthwise ones.
        kernel_count: Elements per kernel.
        dilated_kernel_size: Size of the kernel that the elements move in, in pixels.
        version: ``v0`` (bilinear), ``v1`` (triangle), ``max`` (triangle of learned width) or ``gauss``.
        share: Containers (stages) inside which all replaced layers share their positions, as in the
            authors' models; an ``nn.Sequential`` of stages stands for its children. By default each layer
            has its own.
        init: ``"random"``, the authors' (nothing of the old weights is kept), or ``"dense"``: the elements
            are fitted to the kernels that they replace, and what is lost is logged (see ``warm_start``).
        positions: Where the elements start, for ``init="random"``: ``"spread"``, the default, all over the
            kernel, which learns sooner (docs/study.md), or ``"authors"``, all within two pixels of the
            centre (see ``layers.positions.start_positions``). With ``init="dense"`` the fit decides.
        jitter: As in ``warm_start``, for ``init="dense"``.
        example_input: As in ``warm_start``, for ``init="dense"``.

    Returns:
        The model (the new layer, if the model is itself a convolution that is replaced).

    Raises:
        ValueError: If ``init`` or ``positions`` is another word or they contradict each other, nothing
            matches, a match is more than a convolution or shares parameters with another module, layers
            that are to share positions differ in shape, or (``init="dense"``) a kernel or the example does
            not fit. The model is then as before.

    >>> import timm
    >>> model = dclsify(timm.create_model("mobilenetv3_small_050"), kernel_count=12, dilated_kernel_size=9)
    """
    if init not in ("random", "dense"):
        raise ValueError(f"init must be 'random' or 'dense', got {init=}")
    if init == "dense" and positions is not None:
        raise ValueError(
            f"with init='dense' the fit decides where elements start: leave {positions=} out, or take "
            "init='random'"
        )
    if isinstance(share, nn.Module) and not isinstance(share, Iterable):
        share = [share]
    everything = model.named_modules(remove_duplicate=False)
    old = {m: name for name, m in everything if isinstance(m, _ConvNd) and _selected(name, m, convs)}
    if not old:
        asked = f"convs={getattr(convs, '__name__', None) or repr(convs)}"
        raise ValueError(
            f"no convolution of {type(model).__name__} matches {asked}; model.named_modules() lists the names"
        )
    _check_untied(model, old.values())
    new = {
        conv: _replacement(name, conv, kernel_count, dilated_kernel_size, version, positions)
        for conv, name in old.items()
    }
    shared = [(stage, [new[m] for m in stage.modules() if m in new]) for stage in share]
    for stage, layers in shared:
        check_shareable(stage, layers)
    source = None
    if init == "dense":
        _check_dense_start(model, old, new, example_input)
        source = copy.deepcopy(model)

    model = _swap(model, new)
    for stage, layers in shared:
        own = [layer for layer in layers if layer.holder() is layer]
        if own:
            share_positions(stage, own)
    _freeze(new, warn=init == "random")
    _warn_of_overruns(model)
    if source is not None:
        warm_start(model, source, jitter=jitter, example_input=example_input)
    return model


def _check_untied(model: nn.Module, names: Iterable[str]) -> None:
    owners: dict[nn.Parameter, list[str]] = defaultdict(list)
    for owner, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners[parameter].append(f"{owner}.{key}".lstrip("."))
    chosen = set(names)
    for tied in owners.values():
        if len(tied) > 1 and any(name.rpartition(".")[0] in chosen for name in tied):
            raise ValueError(
                f"{' and '.join(tied)} are one parameter, which DCLS layers would untie; leave these "
                "convolutions out, or use one module in all these places"
            )


def _check_dense_start(
    model: nn.Module, old: dict[_ConvNd, str], new: dict[_ConvNd, DclsNd], example_input: torch.Tensor | None
) -> None:
    for conv, name in old.items():
        check_counterpart(name, new[conv], conv)
    check_example(model, example_input)
    larger = [
        name
        for conv, name in old.items()
        if any((k - t) % 2 for k, t in zip(new[conv].kernel_size, conv.kernel_size, strict=True))
    ]
    if larger:
        trial = copy.deepcopy(model)
        there = {trial.get_submodule(name): new[conv] for conv, name in old.items()}
        trial = _swap(trial, there)
        try:
            check_example(trial, example_input)
        except ValueError as error:
            raise ValueError(
                f"{larger[0]}: an even kernel in place of an odd one, or the reverse, makes the output one "
                f"pixel larger, with which the model does not run; choose another dilated_kernel_size "
                f"({error})"
            ) from error


def _freeze(new: dict[_ConvNd, DclsNd], warn: bool) -> None:
    """What was frozen is frozen again; positions are, where all layers that read them are."""
    trainable = {layer.holder() for conv, layer in new.items() if conv.weight.requires_grad}
    for conv, layer in new.items():
        layer.weight.requires_grad_(conv.weight.requires_grad)
        if layer.bias is not None and conv.bias is not None:
            layer.bias.requires_grad_(conv.bias.requires_grad)
        for learned in (layer.positions, layer.sigma):
            if learned is not None:
                learned.requires_grad_(layer.holder() in trainable)
    frozen = sum(not conv.weight.requires_grad for conv in new)
    if frozen and warn:
        _logger.warning(
            "%d of %d DCLS layers are random and frozen, as their convolutions were", frozen, len(new)
        )


def _warn_of_overruns(model: nn.Module) -> None:
    if names := overrunning(model):
        _logger.warning(
            "training %s (a strided 1x1 convolution of few channels) in channels_last on a CPU makes oneDNN "
            "write outside of its memory: call dcls_models.slice_strided(model), which changes no output",
            ", ".join(names),
        )


def _selected(name: str, conv: _ConvNd, convs: Select) -> bool:
    if isinstance(conv, DclsNd) or conv.transposed:
        return False
    if callable(convs):
        return convs(name, conv)
    return any(fnmatch(name, pattern) for pattern in ([convs] if isinstance(convs, str) else convs))


def _replacement(
    name: str,
    conv: _ConvNd,
    kernel_count: int,
    dilated_kernel_size: int | tuple[int, ...],
    version: str,
    positions: str | None,
) -> DclsNd:
    dense_class, dcls_class = next(pair for pair in _DCLS_CLASSES.items() if isinstance(conv, pair[0]))
    hooked = parametrize.is_parametrized(conv) or conv._forward_pre_hooks or conv._forward_hooks
    if type(conv).forward is not dense_class.forward or hooked:
        raise ValueError(
            f"{name} is a {type(conv).__name__} that does more than {dense_class.__name__} (a forward of its "
            "own, hooks or parametrizations), and that would be lost; leave it out"
        )
    size = sizes(dilated_kernel_size, dcls_class.learned_axes, "dilated_kernel_size")
    layer = dcls_class(
        conv.in_channels,
        conv.out_channels,
        kernel_count,
        stride=conv.stride,
        padding=_padding(name, conv, size),
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
    start_positions(layer, "spread" if positions is None else positions)
    return layer.train(conv.training)


def _padding(name: str, conv: _ConvNd, size: tuple[int, ...]) -> str | tuple[int, ...]:
    """Keeps the size of the output (one pixel more where an even kernel replaces an odd one)."""
    if conv.padding == "same" or isinstance(conv, Conv2dSame):
        return conv.padding
    old = (0,) * len(size) if isinstance(conv.padding, str) else conv.padding
    axes = zip(old, size, conv.kernel_size, conv.dilation, strict=True)
    padding = tuple(p + d * ((k - t + 1) // 2) for p, k, t, d in axes)
    if min(padding) < 0:
        raise ValueError(f"{name}: {conv} has too little padding for a kernel as small as {size}")
    return padding


def _swap(model: nn.Module, new: Mapping[Any, DclsNd]) -> nn.Module:
    for parent in list(model.modules()):
        if parent is not model and parent not in new and any(m in new for m in parent.modules()):
            _leave_apart(parent)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out second names
            if child in new:
                setattr(parent, name, new[child])
    return new[model] if isinstance(model, _ConvNd) and model in new else model


def _leave_apart(block: nn.Module) -> None:
    """Keeps a block from folding its convolutions into one: it would read a ``weight`` as dense.

    timm goes on to the children of what it has fused, so DCLS layers in the block are still fused.
    """
    for method in FOLDING:
        if callable(getattr(type(block), method, None)):
            setattr(block, method, partial(_itself, block))


def _itself(block: nn.Module) -> nn.Module:
    return block
