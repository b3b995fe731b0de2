"""Dilated convolution with learnable spacings (DCLS), as drop-in replacements of ``nn.ConvNd``.

Source: Khalfaoui-Hassani et al., "Dilated Convolution with Learnable Spacings", arXiv:2112.03740, and
"... beyond bilinear interpolation", arXiv:2306.00817.
"""

import math
from typing import Any

import torch
from timm.layers import Conv2dSame, register_notrace_module, to_ntuple
from timm.layers.conv2d_same import conv2d_same
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .depthwise import depthwise_conv2d
from .depthwise.layout import layout_of, prefers_contiguous
from .in_range import as_loaded, clamp_positions, forget_loaded, inside
from .interpolation import SCHEMES, dense_kernel
from .kernel_cache import KeptKernel, kept_kernel
from .long_kernels import conv1d
from .positions import ReadsPositions, hold
from .trimming import trim as trim_convolutions

torch.fx.wrap("dense_kernel")
torch.fx.wrap("inside")
torch.fx.wrap("depthwise_conv2d")
torch.fx.wrap("conv1d")


def sizes(size: int | tuple[int, ...], axes: int, name: str) -> tuple[int, ...]:
    """One size per axis, or an error that names the argument."""
    by_axis: tuple[int, ...] = to_ntuple(axes)(size)
    if len(by_axis) != axes or not all(isinstance(k, int) and k >= 1 for k in by_axis):
        raise ValueError(
            f"{name} must be a whole number of at least 1, one for each of {axes} axes, got {size!r}"
        )
    return by_axis


class DclsNd(ReadsPositions, _ConvNd):
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
    _kept: KeptKernel | None = None
    not_copied = ("_scripted_kernel", "_kept")
    dense_class: type[Any]  # TorchScript takes a bare Any for Final on Python 3.10
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
            raise ValueError(
                f"kernel_count must be a whole number of at least 1, got {kernel_count=}; it stands where "
                "nn.ConvNd has the kernel size, so what makes more layers of a layer's class (LoRA on a DCLS "
                "layer, for instance) does not work: leave DCLS layers out there"
            )
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
        self._shared = None

        shape = (out_channels, in_channels // groups, *dense_kernel_size, kernel_count)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        positions = nn.Parameter(torch.empty(len(learned_size), *shape, device=device, dtype=dtype))
        learns_sigma = SCHEMES[version].sigma_offset is not None
        sigma = nn.Parameter(torch.empty_like(positions)) if learns_sigma else None
        hold(self, positions, sigma, learned_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fills all parameters as the authors do (shared positions too)."""
        if not hasattr(self, "kernel_count"):
            return  # called from nn.ConvNd's constructor, before there is anything to fill
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        forget_loaded(self.holder())
        self._reset_positions()
        if self.sigma is not None:
            nn.init.constant_(self.sigma, SCHEMES[self.version].sigma_init)

    def _reset_positions(self) -> None:
        nn.init.normal_(self.positions, std=0.5)
        clamp_positions(self.holder())

    def kernel(self) -> torch.Tensor:
        """The dense kernel, ``(out_channels, in_channels // groups, *kernel_size)``, differentiable."""
        return self._kernel(self.positions, self.sigma)

    def _kernel(self, positions: torch.Tensor, sigma: torch.Tensor | None) -> torch.Tensor:
        size, offset = self.dilated_kernel_size, self.sigma_offset
        if not as_loaded(self.holder()):
            positions = inside(positions, size)
        kernel = dense_kernel(self.weight, positions, sigma, size, self.version, offset)
        return kernel.reshape(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

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
            kernel = kept_kernel(self) if positions is None else self._kernel(positions, sigma)
            return self._convolve(input, kernel)

    def _convolve(self, input: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, kernel, self.bias)

    def __prepare_scriptable__(self) -> "DclsNd":
        """``torch.jit.script`` cannot reach a holder: it gets the kernel as it is now."""
        self._scripted_kernel = self.kernel().detach()
        self.__dict__.pop("_kept", None)  # TorchScript has no type for it
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


@register_notrace_module
class Dcls1d(DclsNd, nn.Conv1d):
    """``nn.Conv1d`` with learned positions; see ``DclsNd`` for the arguments.

    Long kernels are convolved by FFT on a CPU: rounding errors are then relative to the largest values
    nearby, and a sample that is NaN or infinite spoils more than the outputs that see it.
    """

    dense_class = nn.Conv1d
    learned_axes = 1

    def _convolve(self, input: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        plain = self.stride == self.dilation == (1,) and self.padding_mode == "zeros"
        usual = type(self)._conv_forward is nn.Conv1d._conv_forward  # so also where torch changed the class
        if usual and plain:
            return conv1d(input, kernel, self.bias, self.padding, self.groups)
        return super()._convolve(input, kernel)


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
        if self.groups == 1 and prefers_contiguous(input, kernel):
            output = super()._convolve(input.contiguous(), kernel)
            return output.contiguous(memory_format=layout_of(input))
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
