"""Dilated convolution with learnable spacings (DCLS), as drop-in replacements of ``nn.ConvNd``.

Source: Khalfaoui-Hassani et al., "Dilated Convolution with Learnable Spacings", arXiv:2112.03740, and
"... beyond bilinear interpolation", arXiv:2306.00817.
"""

import copy
import math
from typing import Any

import torch
from timm.layers import Conv2dSame, register_notrace_module, to_ntuple
from timm.layers.conv2d_same import conv2d_same
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .depthwise import depthwise_conv2d
from .interpolation import SCHEMES, dense_kernel
from .positions import Holder, hold, inside, project_, track
from .trimming import trim as trim_convolutions

torch.fx.wrap("dense_kernel")
torch.fx.wrap("inside")
torch.fx.wrap("depthwise_conv2d")


def sizes(size: int | tuple[int, ...], axes: int, name: str) -> tuple[int, ...]:
    """One size per axis, or an error that names the argument."""
    found: tuple[int, ...] = to_ntuple(axes)(size)
    if len(found) != axes or not all(isinstance(k, int) and k >= 1 for k in found):
        raise ValueError(
            f"{name} must be a whole number of at least 1, one for each of {axes} axes, got {size!r}"
        )
    return found


def _are_plain(tensors: list[torch.Tensor]) -> bool:
    """Whether these are parameters with numbers, whose writes are counted, and nothing is being recorded."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return all(type(t) is nn.Parameter and not t.is_inference() for t in tensors)


def _same_values(tensors: list[torch.Tensor], earlier: list[torch.Tensor]) -> bool:
    return all(not t.is_cpu or torch.equal(t, e) for t, e in zip(tensors, earlier, strict=True))


class DclsNd(_ConvNd):
    """What all the layers share: parameters, kernel construction, loading and fusing.

    The parameters are ``weight`` ``(out_channels, in_channels // groups, [dense axes,] kernel_count)``,
    ``positions`` ``(learned axes, *weight.shape)`` in pixels of the dilated kernel, 0 = its centre (index
    ``K // 2``), row d moving along learned axis d, ``sigma`` (versions ``max`` and ``gauss``), shaped as
    ``positions``, and ``bias``. ``load_state_dict`` also takes the authors' keys and row orders.

    Args:
        in_channels: Channels of the input ``(N, in_channels, *spatial)``.
        out_channels: Channels of the output.
        kernel_count: Elements per kernel.
        stride: As for ``nn.ConvNd``, like the others that are not explained.
        padding: A size, one per axis, or ``"same"``.
        dilated_kernel_size: Size of the kernel that the elements move in, in pixels.
        groups: As for ``nn.ConvNd``.
        bias: As for ``nn.ConvNd``.
        padding_mode: As for ``nn.ConvNd``.
        version: ``v0`` (bilinear), ``v1`` (triangle), ``max`` (triangle of learned width) or ``gauss``.
        dilation: Of the dense kernel that the elements make.
        device: Device of the parameters.
        dtype: Type of the parameters.
        dense_kernel_size: For subclasses: sizes of axes, before the learned ones, that stay dense.
        kernel_size: For subclasses: shape of the dense kernel, where not simply all the sizes in order.

    Attributes:
        kernel_size: Size of the dense kernel, as for ``nn.ConvNd``.
        dilated_kernel_size: Its learned axes only.

    Raises:
        ValueError: If an argument is out of range.
    """

    _scripted_kernel: torch.Tensor
    _cache: tuple[list[Any], list[torch.Tensor], list[torch.Tensor], torch.Tensor] | None = None
    dense_class: Any
    learned_axes: int
    sigma_offset: float | None = None  # replaces the version's own

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilated_kernel_size: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        dilation: int | tuple[int, ...] = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        dense_kernel_size: tuple[int, ...] = (),
        kernel_size: tuple[int, ...] | None = None,
    ) -> None:
        if version not in SCHEMES:
            raise ValueError(f"version must be one of {', '.join(SCHEMES)}, got {version=}")
        if not isinstance(kernel_count, int) or kernel_count < 1:
            raise ValueError(f"kernel_count must be a whole number of at least 1, got {kernel_count=}")
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"channels must be at least 1, got {in_channels=}, {out_channels=}")
        learned_size = sizes(dilated_kernel_size, self.learned_axes, "dilated_kernel_size")
        kernel_size = kernel_size or (*dense_kernel_size, *learned_size)
        conv_args: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        conv_args |= {"groups": groups, "bias": bias, "padding_mode": padding_mode}
        # on meta, because nn.ConvNd would make and fill a dense weight
        super().__init__(in_channels, out_channels, kernel_size, **conv_args, device="meta")
        self.kernel_count = kernel_count
        self.dilated_kernel_size = learned_size
        self.version = version
        self._shared: tuple[nn.Module] | None = None  # in a tuple, so that it is not registered as a child

        shape = (out_channels, in_channels // groups, *dense_kernel_size, kernel_count)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        positions = nn.Parameter(torch.empty(len(learned_size), *shape, device=device, dtype=dtype))
        learns_sigma = SCHEMES[version].sigma_offset is not None
        hold(
            self,
            positions,
            nn.Parameter(torch.empty_like(positions)) if learns_sigma else None,
            learned_size,
        )
        track(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fills all parameters as the authors do (shared positions too)."""
        if not hasattr(self, "kernel_count"):
            return  # called from nn.ConvNd's constructor, before there is anything to fill
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        self._reset_positions()
        if self.sigma is not None:
            nn.init.constant_(self.sigma, SCHEMES[self.version].sigma_init)

    def _reset_positions(self) -> None:
        nn.init.normal_(self.positions, std=0.5)
        project_(self.holder())

    def holder(self) -> Holder:
        """The module that registers the positions: this layer, or a container that it shares them with."""
        return self if self._shared is None else self._shared[0]

    def read_from(self, holder: nn.Module) -> None:
        """Drops the layer's own positions and sigma and reads them from ``holder`` from now on."""
        del self.positions, self.sigma
        self._shared = (holder,)

    def clamp_parameters(self) -> None:
        """Clamps the positions, for training loops of the authors; every optimizer step does it, too."""
        project_(self.holder())

    def __getattr__(self, name: str) -> Any:
        """Shared positions read as if they were the layer's own."""
        shared = self.__dict__.get("_shared")
        if shared is not None and name in ("positions", "sigma") and name not in self._parameters:
            return getattr(shared[0], name)
        return super().__getattr__(name)

    def kernel(self) -> torch.Tensor:
        """The dense kernel, ``(out_channels, in_channels // groups, *kernel_size)``, differentiable."""
        return self._kernel(self.positions, self.sigma)

    def _kernel(self, positions: torch.Tensor, sigma: torch.Tensor | None) -> torch.Tensor:
        size, offset = self.dilated_kernel_size, self.sigma_offset
        if self.holder().positions_kept_at is None:
            positions = inside(positions, size)
        kernel = dense_kernel(self.weight, positions, sigma, size, self.version, offset)
        return kernel.reshape(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Shows shared positions to an FX tracer, which keeps only the parameters that it sees used."""
        if self._shared is not None and len(args) == 1 and isinstance(args[0], torch.fx.Proxy):
            args = (*args, self.positions, self.sigma)
        return super().__call__(*args, **kwargs)

    def forward(
        self,
        input: torch.Tensor,
        positions: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Convolves ``input`` ``(N, in_channels, *spatial)`` with the kernel, as ``nn.ConvNd`` does."""
        if torch.jit.is_scripting():
            assert not self.training, (
                "a scripted DCLS layer has a fixed kernel: script the model in eval mode"
            )
            return self._conv_forward(input, self._scripted_kernel.to(input), self.bias)
        else:
            if self.training and not torch.compiler.is_compiling():  # there, the optimizer's hook does it
                project_(self.holder())
            if positions is not None:
                return self._convolve(input, self._kernel(positions, sigma))
            return self._convolve(input, self._cached_kernel())

    def _cached_kernel(self) -> torch.Tensor:
        """The kernel; in eval mode without gradients it is built once and kept.

        It is built again after ``train()`` or ``eval()``, a step of an optimizer, a load, cast or move, and
        when a parameter was replaced or written to. On a CPU the values themselves are compared; elsewhere
        that would wait for the device, and writes that torch does not count (through ``.data``) are not seen
        before ``eval()``. Parameters made in inference mode count none: with them nothing is kept, nor in
        what is traced, compiled, exported or captured.
        """
        sources = [t for t in (self.weight, self.positions, self.sigma) if t is not None]
        if self.training or torch.is_grad_enabled() or not _are_plain(sources):
            return self.kernel()
        state = [(id(t), t._version, t.data_ptr()) for t in sources]
        cache = self._cache  # another thread may drop it meanwhile
        if cache is None or cache[0] != state or not _same_values(sources, cache[2]):
            # with the sources, so that no id is used again
            values = [t.detach().clone() if t.is_cpu else t for t in sources]
            self._cache = cache = (state, sources, values, self.kernel())
        return cache[3]

    def drop_cache(self) -> None:
        """Builds the kernel anew at the next forward."""
        self._cache = None

    def train(self, mode: bool = True) -> "DclsNd":
        """As ``nn.Module.train``."""
        self.drop_cache()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "DclsNd":
        self.drop_cache()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop_cache()  # FSDP2 loads into shards, which does not count as a write to the whole
        super()._load_from_state_dict(*args, **kwargs)

    def _convolve(self, input: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, kernel, self.bias)

    def __prepare_scriptable__(self) -> "DclsNd":
        """``torch.jit.script`` cannot reach a holder: it gets the kernel as it is now."""
        self._scripted_kernel = self.kernel().detach()
        return self

    @torch.no_grad()
    def fuse(self, trim: bool = False, tolerance: float = 0.0) -> _ConvNd:
        """The equivalent plain ``nn.ConvNd`` (the protocol of ``timm.utils.model.reparameterize_model``).

        Args:
            trim: Whether to cut the empty borders of the kernel: see ``trim``, which does it for a model.
            tolerance: The largest absolute weight that counts as empty; with 0 the outputs stay the same.
        """
        # timm's Conv2dSame does not take a padding_mode
        mode = {} if self.padding_mode == "zeros" else {"padding_mode": self.padding_mode}
        conv = self.dense_class(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            **mode,
            device="meta",
        ).train(self.training)
        conv.weight = nn.Parameter(self.kernel(), requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.clone(), requires_grad=self.bias.requires_grad)
        if trim:
            trim_convolutions(conv, tolerance)
        return conv

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        words = [f"{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}"]
        if hasattr(self, "dense_axes"):
            words.append(f"dense_kernel_size={self.kernel_size[: self.dense_axes]}")
        words.append(f"dilated_kernel_size={self.dilated_kernel_size}, version={self.version!r}")
        words.append(f"stride={self.stride}, padding={self.padding!r}")
        plain = {"dilation": (1,) * len(self.dilation), "groups": 1, "padding_mode": "zeros"}
        words += [f"{k}={getattr(self, k)!r}" for k, v in plain.items() if getattr(self, k) != v]
        if hasattr(self, "flat_dim"):
            words.append(f"flat_dim={self.flat_dim}")
        return ", ".join([*words, *([] if self.bias is not None else ["bias=False"])])

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_scripted_kernel", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copied or unpickled layer is known to the optimizer hook as well."""
        super().__setstate__(state)
        track(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DclsNd":
        """Copied without its holder, a layer takes positions of its own along."""
        state = self.__getstate__()
        if self._shared is not None and id(self._shared[0]) not in memo:
            own = {"positions": self.positions, "sigma": self.sigma}
            state |= {
                "_parameters": {**self._parameters, **own},
                "_shared": None,
                "positions_kept_at": self._shared[0].positions_kept_at,
            }
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(state, memo))
        return new


@register_notrace_module
class Dcls1d(DclsNd, nn.Conv1d):
    """``nn.Conv1d`` with learned positions; see ``DclsNd`` for the arguments."""

    dense_class = nn.Conv1d
    learned_axes = 1


@register_notrace_module
class Dcls2d(DclsNd, nn.Conv2d):
    """``nn.Conv2d`` with learned positions; see ``DclsNd`` for the arguments.

    >>> Dcls2d(8, 8, kernel_count=26, dilated_kernel_size=23, padding=11, groups=8).kernel().shape
    torch.Size([8, 1, 23, 23])
    """

    dense_class = nn.Conv2d
    learned_axes = 2

    def _convolve(self, input: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        depthwise = self.groups == self.in_channels == self.out_channels
        plain = self.stride == self.dilation == (1, 1) and self.padding_mode == "zeros"
        padding = self.padding
        if padding == "same" and all(k % 2 for k in self.kernel_size):
            padding = tuple(k // 2 for k in self.kernel_size)
        usual = type(self)._conv_forward is nn.Conv2d._conv_forward  # so also where torch changed the class
        if usual and depthwise and plain and isinstance(padding, tuple):
            return depthwise_conv2d(input, kernel, self.bias, padding)
        return super()._convolve(input, kernel)


@register_notrace_module
class Dcls2dSame(Dcls2d):
    """``Dcls2d`` for timm's ``Conv2dSame``: TensorFlow's padding, which depends on the size of the input."""

    dense_class = Conv2dSame

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        return conv2d_same(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@register_notrace_module
class Dcls3d(DclsNd, nn.Conv3d):
    """``nn.Conv3d`` with learned positions; see ``DclsNd`` for the arguments."""

    dense_class = nn.Conv3d
    learned_axes = 3
