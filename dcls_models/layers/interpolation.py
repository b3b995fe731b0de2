"""From learned positions to a dense kernel: the whole of DCLS, as pure functions.

Every element of a kernel spreads its weight over the pixels near its position. The interpolation map of one
element is a product of one factor per axis, and no ``K x K x kernel_count`` tensor is ever made: a learned
width may reach every pixel, so the factors are dense, ``(kernel_count, K)``, and a kernel is their batched
matrix product; without one, an element reaches two pixels per axis, and its shares are added in their places.

Shape letters: ``...`` any leading dimensions (out_channels, in_channels // groups, and the dense
axes of the ``N_1d`` layers), ``n`` kernel_count, ``k`` the size of one axis.

Sources: bilinear, Khalfaoui-Hassani et al. 2021 (arXiv:2112.03740); triangle and Gaussian, 2023
(arXiv:2306.00817).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .in_parts import in_parts

GAUSS_TAIL = math.log(1e-13)  # smaller shares count as nothing: far below EPSILON, to which they are added
EPSILON = 1e-7  # keeps the normaliser of an element that lies far outside the kernel away from zero


def triangle(pixel: torch.Tensor, position: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """A triangle of half-width ``width`` around the position."""
    return (width - (position - pixel).abs()).relu()


def gaussian(pixel: torch.Tensor, position: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """A Gaussian of standard deviation ``width`` around the position."""
    exponent = (position - pixel).square() * (-0.5 / width.square())
    return F.threshold(exponent, GAUSS_TAIL, -math.inf).exp()  # the tail would be denormal numbers: slow


class Scheme(NamedTuple):
    """One way to spread an element over its neighbouring pixels.

    Attributes:
        normalised: Whether the map of an element is divided by its sum over the whole kernel.
        slope_on_pixel: Without a learned width: whether a position on a pixel has a gradient (to the right).
        factor: With one: ``(pixel (k,), position (..., n, 1), width (..., n, 1)) -> (..., n, k)``.
        sigma_offset: The width is ``|sigma| + sigma_offset`` pixels; None where nothing is learned.
        sigma_init: What ``sigma`` starts from.
    """

    normalised: bool
    slope_on_pixel: bool = False
    factor: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    sigma_offset: float | None = None
    sigma_init: float = 0.0


SCHEMES: dict[str, Scheme] = {
    "v0": Scheme(normalised=False, slope_on_pixel=True),  # bilinear
    "v1": Scheme(normalised=True),  # a triangle of half-width 1
    "max": Scheme(normalised=True, factor=triangle, sigma_offset=1.0, sigma_init=0.0),
    "gauss": Scheme(normalised=True, factor=gaussian, sigma_offset=0.27, sigma_init=0.23),
}


def dense_kernel(
    weight: torch.Tensor,
    positions: torch.Tensor,
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

    Raises:
        ValueError: If the version is unknown, or learns widths and gets no ``sigma``.
    """
    scheme = SCHEMES.get(version)
    if scheme is None:
        raise ValueError(f"version must be one of {', '.join(SCHEMES)}, got {version=}")
    if scheme.factor is not None and sigma is None:
        raise ValueError(f"version {version!r} needs sigma, the learned widths, got None")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if scheme.factor is None or sigma is None:
        build = partial(_add_in_place, size=size, scheme=scheme)
        kernel = in_parts(build, weight.to(dtype), positions.to(dtype))
    else:
        offset = (scheme.sigma_offset or 0.0) if sigma_offset is None else sigma_offset
        widths = sigma.to(dtype).abs() + offset
        kernel = _multiply_factors(weight.to(dtype), positions.to(dtype), widths, size, scheme)
    return kernel.reshape(*weight.shape[:-1], *size).to(weight.dtype)


def per_axis(size: Sequence[int], rows: torch.Tensor) -> int | torch.Tensor:
    """The size of every row of ``rows``, to calculate with: one number where all axes have the same."""
    if len(set(size)) == 1:
        return size[0]
    return torch.stack([torch.full_like(rows[0], k, dtype=torch.long) for k in size])


def _add_in_place(
    weight: torch.Tensor, positions: torch.Tensor, size: Sequence[int], scheme: Scheme
) -> torch.Tensor:
    """Adds the shares of the ``2**len(size)`` pixels around every element to a kernel of zeros."""
    left = positions.detach().nan_to_num().floor()  # axes ... n; NaN needs a valid index too
    right_share = positions - left
    if not scheme.slope_on_pixel:
        right_share = right_share.relu()  # without a slope at 0
    k = per_axis(size, left)
    place = torch.stack((left, left + 1)) + k // 2  # 2 axes ... n
    inside = place.clamp(min=0).clamp(max=k - 1)
    within = (inside == place).to(positions.dtype)  # quantization takes no product with a bool
    parts = (torch.stack((1 - right_share, right_share)) * within).unbind(1)
    places = inside.unbind(1)
    if scheme.normalised:
        weight = weight / (reduce(torch.mul, [part.sum(0) for part in parts]) + EPSILON)
    share, index = parts[0] * weight, places[0]  # (product of twos) ... n
    for part, place, length in zip(parts[1:], places[1:], size[1:], strict=True):
        share = (share.unsqueeze(1) * part).flatten(0, 1)
        index = (index.unsqueeze(1) * length + place).flatten(0, 1)
    kernel = share.new_zeros(*weight.shape[:-1], math.prod(size))  # of ``share``: it may be vmapped alone
    for pixels, shares in zip(index.long().unbind(), share.unbind(), strict=True):
        kernel.scatter_add_(-1, pixels, shares)
    return kernel


def _multiply_factors(
    weight: torch.Tensor, positions: torch.Tensor, widths: torch.Tensor, size: Sequence[int], scheme: Scheme
) -> torch.Tensor:
    """The matrix product of all axes but the last with the last; one element is one step of its sum."""
    assert scheme.factor is not None
    positions, widths = positions.unsqueeze(-1), widths.unsqueeze(-1)
    if len(set(size)) == 1:  # all axes at once
        factors = scheme.factor(_pixels(size[0], weight), positions, widths).unbind(0)
    else:
        axes = zip(size, positions.unbind(0), widths.unbind(0), strict=True)
        factors = tuple(scheme.factor(_pixels(k, weight), *axis) for k, *axis in axes)
    left = weight.unsqueeze(-1)  # ... n 1
    if scheme.normalised:
        left = left / (reduce(torch.mul, [f.sum(-1, keepdim=True) for f in factors]) + EPSILON)
    for factor in factors[:-1]:
        left = (left.unsqueeze(-1) * factor.unsqueeze(-2)).flatten(-2)  # ... n (product of sizes)
    with without_autocast(weight.device.type):
        return left.transpose(-1, -2) @ factors[-1]  # ... (product of sizes) k


def _pixels(k: int, like: torch.Tensor) -> torch.Tensor:
    """The pixels of an axis, counted from its centre."""
    return torch.arange(-(k // 2), k - k // 2, device=like.device, dtype=like.dtype)


def without_autocast(device_type: str) -> torch.autocast | nullcontext[None]:
    """Autocast would compute what is inside in a short type; the context is entered only where it is on."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
