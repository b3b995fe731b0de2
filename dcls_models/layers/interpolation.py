"""From learned positions to a dense kernel: the whole of DCLS, as pure functions.

Every element of a kernel spreads its weight over the pixels near its position. The interpolation map
of one element is a product of one factor per axis, so a kernel is a batched matrix product of
``(kernel_count, K)`` factors and no ``K x K x kernel_count`` tensor is ever made.

Shape letters: ``...`` any leading dimensions (out_channels, in_channels // groups, and the dense
axes of the ``N_1d`` layers), ``n`` kernel_count, ``k`` the size of one axis.

Sources: bilinear, Khalfaoui-Hassani et al. 2021 (arXiv:2112.03740); triangle and Gaussian, 2023
(arXiv:2306.00817).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.nn import functional as F

GAUSS_FLOOR = 1e-13  # smaller shares count as nothing: far below EPSILON, which they are compared with
EPSILON = 1e-7  # keeps the normaliser of an element that lies far outside the kernel away from zero


def bilinear(pixel: torch.Tensor, position: torch.Tensor, width: torch.Tensor | None) -> torch.Tensor:
    """Shares one unit between the two pixels around the position; at an integer it slopes right."""
    left = position.floor()
    right_share = position - left
    offset = pixel - left
    share = torch.where(offset == 0, 1 - right_share, right_share)
    return torch.where((offset == 0) | (offset == 1), share, 0)


def triangle(pixel: torch.Tensor, position: torch.Tensor, width: torch.Tensor | None) -> torch.Tensor:
    """A triangle of half-width ``width`` around the position (1 where the version learns no width)."""
    distance = (pixel - position).abs()
    return ((1 if width is None else width) - distance).relu()


def gaussian(pixel: torch.Tensor, position: torch.Tensor, width: torch.Tensor | None) -> torch.Tensor:
    """A Gaussian of standard deviation ``width`` around the position."""
    z = (pixel - position) * (0.5**0.5 / width)
    share = torch.exp((z * -z).clamp(min=-32))
    return F.threshold(share, GAUSS_FLOOR, 0.0)  # tails and their gradients would be denormal numbers: slow


class Scheme(NamedTuple):
    """One way to spread an element over its neighbouring pixels.

    Attributes:
        factor: ``(pixel (k,), position (..., n, 1), width (..., n, 1) or None) -> (..., n, k)``.
        normalised: Whether the map of an element is divided by its sum over the whole kernel.
        sigma_offset: The width is ``|sigma| + sigma_offset`` pixels; None where nothing is learned.
        sigma_init: What ``sigma`` starts from.
    """

    factor: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    normalised: bool
    sigma_offset: float | None = None
    sigma_init: float = 0.0


SCHEMES: dict[str, Scheme] = {
    "v0": Scheme(bilinear, normalised=False),
    "v1": Scheme(triangle, normalised=True),
    "max": Scheme(triangle, normalised=True, sigma_offset=1.0, sigma_init=0.0),
    "gauss": Scheme(gaussian, normalised=True, sigma_offset=0.27, sigma_init=0.23),
}


def dense_kernel(
    weight: torch.Tensor,
    positions: torch.Tensor | Sequence[torch.Tensor],
    sigma: torch.Tensor | None,
    size: Sequence[int],
    version: str,
    sigma_offset: float | None = None,
) -> torch.Tensor:
    """Builds the dense kernel of a DCLS layer, differentiable in everything.

    Args:
        weight: Weights of the elements, ``(..., n)``.
        positions: One row per axis, ``(len(size), ..., n)``, in pixels of the dilated kernel; 0 is its
            centre (index ``k // 2``).
        sigma: Learned widths before absolute value and offset, shaped as ``positions``, in pixels;
            None for the versions without (``v0``, ``v1``).
        size: Size of the dilated kernel along each learned axis.
        version: A key of ``SCHEMES``.
        sigma_offset: Replaces the version's own offset of the width.

    Returns:
        The kernel, ``(..., *size)``, in the dtype of ``weight``; computed in float32 at least.
    """
    scheme = SCHEMES[version]
    offset = (scheme.sigma_offset or 0.0) if sigma_offset is None else sigma_offset
    dtype = torch.promote_types(weight.dtype, torch.float32)
    factors = []
    for axis, k in enumerate(size):
        pixel = torch.arange(k, device=weight.device, dtype=dtype) - k // 2
        width = None if sigma is None else sigma[axis].to(dtype).abs().unsqueeze(-1) + offset
        factors.append(scheme.factor(pixel, positions[axis].to(dtype).unsqueeze(-1), width))

    left = weight.to(dtype).unsqueeze(-1)  # ... n 1
    if scheme.normalised:
        total = factors[0].sum(-1, keepdim=True)
        for factor in factors[1:]:
            total = total * factor.sum(-1, keepdim=True)
        left = left / (total + EPSILON)
    for factor in factors[:-1]:
        left = (left.unsqueeze(-1) * factor.unsqueeze(-2)).flatten(-2)  # ... n (product of sizes)
    with _without_autocast(weight.device.type):
        kernel = left.transpose(-1, -2) @ factors[-1]  # ... (product of sizes) k
    return kernel.reshape(*weight.shape[:-1], *size).to(weight.dtype)


def _without_autocast(device_type: str) -> torch.autocast | nullcontext[None]:
    """Autocast would make the matrix product bfloat16; the context is entered only where it is on."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
