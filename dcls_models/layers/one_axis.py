"""Layers of two or three axes whose elements learn their place along one of them."""

import torch
from timm.layers import register_notrace_module
from torch import nn

from .dcls import DclsNd, sizes


class _DclsN_1d(DclsNd):  # noqa: N801 (N and 1 are the authors' naming)
    """Elements at every place of the first axes, whose positions along the last axis are learned."""

    learned_axes = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dense_kernel_size: int | tuple[int, ...] = 1,
        dilated_kernel_size: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        dilation: int | tuple[int, ...] = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            dilated_kernel_size,
            groups,
            bias,
            padding_mode,
            version,
            dilation=dilation,
            device=device,
            dtype=dtype,
            dense_kernel_size=sizes(dense_kernel_size, self.dense_axes, "dense_kernel_size"),
        )

    dense_axes: int

    def _reset_positions(self) -> None:
        limit = self.dilated_kernel_size[0] // 2
        nn.init.uniform_(self.positions, -limit, limit)


@register_notrace_module
class Dcls2_1d(_DclsN_1d, nn.Conv2d):  # noqa: N801
    """``nn.Conv2d``, dense along H (``dense_kernel_size``), with learned positions along W.

    Its Gaussian has a standard deviation of ``|sigma| + 1.0`` pixels, as the authors' class of this name.
    """

    dense_class = nn.Conv2d
    dense_axes = 1
    sigma_offset = 1.0


@register_notrace_module
class Dcls3_1d(_DclsN_1d, nn.Conv3d):  # noqa: N801
    """``nn.Conv3d``, dense along D and H (``dense_kernel_size``), with learned positions along W."""

    dense_class = nn.Conv3d
    dense_axes = 2


@register_notrace_module
class Dcls2dK1d(DclsNd, nn.Conv2d):
    """``nn.Conv2d`` with a kernel of one row or column and learned positions along it.

    ``flat_dim`` is 0 for a ``(K, 1)`` kernel, learned along H, and 1 for ``(1, K)``, learned along W;
    ``dilated_kernel_size`` is one number. The other arguments are those of ``DclsNd``.
    """

    dense_class = nn.Conv2d
    learned_axes = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilated_kernel_size: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "v1",
        flat_dim: int = 0,
        *,
        dilation: int | tuple[int, ...] = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if flat_dim not in (0, 1):
            raise ValueError(f"flat_dim must be 0 (a column) or 1 (a row), got {flat_dim=}")
        (k,) = sizes(dilated_kernel_size, 1, "dilated_kernel_size")
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            stride,
            padding,
            k,
            groups,
            bias,
            padding_mode,
            version,
            dilation=dilation,
            device=device,
            dtype=dtype,
            kernel_size=(k, 1) if flat_dim == 0 else (1, k),
        )
        self.flat_dim = flat_dim
