import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcls_models.layers import SCHEMES, Dcls1d, Dcls2_1d, Dcls2d, Dcls3d, DclsNd, dense_kernel
from dcls_models.layers.interpolation import gaussian

VERSIONS = ["v0", "v1", "max", "gauss"]
SIZES = [(5,), (6,), (5, 9), (9, 4), (6, 6), (3, 5, 7), (6, 3, 4)]
LAYERS = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}


def bump(version: str, distance: float, sigma: float) -> float:
    if version == "gauss":
        return math.exp(-0.5 * (distance / (abs(sigma) + 0.27)) ** 2)
    half_width = abs(sigma) + 1.0 if version == "max" else 1.0
    return max(0.0, half_width - abs(distance))


def obvious_kernel(layer: DclsNd) -> torch.Tensor:
    """The formulas of the papers, one element and one pixel at a time."""
    weight, positions = layer.weight.detach(), layer.positions.detach()
    sigma = torch.zeros_like(positions) if layer.sigma is None else layer.sigma.detach()
    size = layer.dilated_kernel_size
    kernel = torch.zeros(*weight.shape[:2], *size, dtype=torch.float64)
    for out_ch, in_ch, n in itertools.product(*map(range, weight.shape)):
        pixels = {}
        for pixel in itertools.product(*map(range, size)):
            pixels[pixel] = 1.0
            for axis, index in enumerate(pixel):
                centre = size[axis] // 2 + float(positions[axis, out_ch, in_ch, n])
                pixels[pixel] *= bump(layer.version, index - centre, float(sigma[axis, out_ch, in_ch, n]))
        total = 1.0 if layer.version == "v0" else sum(pixels.values()) + 1e-7
        for pixel, share in pixels.items():
            kernel[(out_ch, in_ch, *pixel)] += float(weight[out_ch, in_ch, n]) * share / total
    return kernel


def layer_of(size, version, groups=1, count=3, dtype=torch.float64) -> DclsNd:
    layer = LAYERS[len(size)](
        4, 2, count, dilated_kernel_size=size, version=version, groups=groups, dtype=dtype
    )
    with torch.no_grad():
        for row, k in zip(layer.positions, size, strict=True):
            row.uniform_(-(k // 2), k // 2)
        if layer.sigma is not None:
            layer.sigma.uniform_(-0.8, 0.8)
    return layer


def one_element(version, size, row_values) -> torch.Tensor:
    """The map of an element of weight 1, sigma 0."""
    positions = torch.tensor(row_values, dtype=torch.float64).reshape(len(size), 1)
    sigma = None if SCHEMES[version].sigma_offset is None else torch.zeros_like(positions)
    return dense_kernel(torch.ones(1, dtype=torch.float64), positions, sigma, size, version)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_kernel_is_that_of_the_obvious_formula(version, size, groups):
    layer = layer_of(size, version, groups)
    expected = obvious_kernel(layer)
    assert expected.shape == (2, 4 // groups, *size)
    torch.testing.assert_close(layer.kernel(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_position_zero_is_index_half_and_row_d_moves_along_axis_d(version, size):
    centre = [k // 2 for k in size]
    for axis in (None, *range(len(size))):
        row_values = [1.0 if row == axis else 0.0 for row in range(len(size))]
        kernel = one_element(version, size, row_values)
        peak = [int(i) for i in torch.unravel_index(kernel.argmax(), size)]
        assert peak == [c + int(v) for c, v in zip(centre, row_values, strict=True)]


# What is left of an element of weight 1 near and beyond the border, as measured on the authors' package.
@pytest.mark.parametrize(
    ("k", "position", "bilinear_mass", "triangle_mass"),
    [
        (7, -3.5, 0.5, 1),
        (7, -3, 1, 1),
        (7, 2.5, 1, 1),
        (7, 3, 1, 1),
        (7, 3.5, 0.5, 1),
        (7, 4, 0, 0),
        (8, -4.5, 0.5, 1),
        (8, -4, 1, 1),
        (8, 3.5, 0.5, 1),
        (8, 4, 0, 0),
        (8, 4.5, 0, 0),
        (8, 5, 0, 0),
    ],
)
def test_mass_at_the_borders(k, position, bilinear_mass, triangle_mass):
    mass = {version: one_element(version, (k,), [position]).sum().item() for version in ("v0", "v1", "max")}
    assert mass == pytest.approx({"v0": bilinear_mass, "v1": triangle_mass, "max": triangle_mass}, abs=1e-6)


@pytest.mark.parametrize(("position", "mass"), [(8.0, 1.0), (9.0, 0.917), (10.0, 0.0)])
def test_the_gaussian_beyond_a_corner_fades_out(position, mass):
    assert one_element("gauss", (17, 17), [position, position]).sum().item() == pytest.approx(mass, abs=1e-3)


@pytest.mark.parametrize(
    ("version", "position", "slope"),
    [("v0", 0.0, 7.0), ("v0", 2.0, 11.0), ("v0", 3.0, -36.0), ("v1", 0.0, 0.0), ("max", -1.0, 0.0)],
)
def test_slope_at_exact_integers_is_that_of_the_authors(version, position, slope):
    """The kernel is weighed with the squared index: c[i + 1] - c[i] is what the bilinear version sees."""
    positions = torch.tensor([[position]], requires_grad=True)
    sigma = torch.zeros_like(positions) if version == "max" else None
    kernel = dense_kernel(torch.ones(1), positions, sigma, (7,), version)
    (kernel * torch.arange(7) ** 2).sum().backward()
    assert positions.grad.item() == pytest.approx(slope, abs=1e-5)


def kernel_arguments(version, size=(4, 5)):
    """Points away from the kinks: positions 0.2 to 0.4 above an integer, widths 1.05 to 1.15."""
    weight = torch.randn(2, 1, 3, dtype=torch.float64)
    positions = torch.randint(-1, 2, (len(size), 2, 1, 3)) + torch.empty(len(size), 2, 1, 3).uniform_(
        0.2, 0.4
    )
    sigma = torch.empty_like(positions).uniform_(0.05, 0.15).double()
    learned = (weight, positions.double(), sigma if version in ("max", "gauss") else None)
    return tuple(t if t is None else t.requires_grad_() for t in learned)


@pytest.mark.parametrize("size", [(6,), (4, 5), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_gradients(version, size):
    arguments = kernel_arguments(version, size)
    assert gradcheck(lambda w, p, s: dense_kernel(w, p, s, size, version), arguments)


def test_second_gradients_of_the_gaussian():
    arguments = kernel_arguments("gauss")
    assert gradgradcheck(lambda w, p, s: dense_kernel(w, p, s, (4, 5), "gauss"), arguments)


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_of_a_layer_with_its_clamp(version):
    layer = Dcls2d(2, 2, 3, padding=1, dilated_kernel_size=(4, 5), version=version, dtype=torch.float64)
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    learned = {"weight": layer.weight, "bias": layer.bias, "positions": layer.positions, "sigma": layer.sigma}
    names = [name for name, value in learned.items() if value is not None]
    with torch.no_grad():
        layer.positions.copy_(torch.randint(-1, 2, layer.positions.shape) + 0.3)

    def call(x, *values):
        return torch.func.functional_call(layer.eval(), dict(zip(names, values, strict=True)), x)

    assert gradcheck(call, (x, *(learned[name] for name in names)))


@pytest.mark.parametrize("version", VERSIONS)
def test_far_outside_the_kernel_there_is_nothing_and_no_nan(version):
    positions = torch.full((2, 1), 1e4, requires_grad=True)
    sigma = None if SCHEMES[version].sigma_offset is None else torch.zeros(2, 1, requires_grad=True)
    kernel = dense_kernel(torch.ones(1), positions, sigma, (5, 7), version)
    kernel.square().sum().backward()
    assert kernel.abs().max() < 1e-9
    assert positions.grad.isfinite().all()
    assert sigma is None or sigma.grad.isfinite().all()


def test_the_gaussian_makes_no_denormal_numbers_which_are_slow():
    factor = gaussian(torch.arange(23) - 11.0, torch.zeros(1, 1), torch.full((1, 1), 0.27))
    assert ((factor == 0) | (factor > 1e-14)).all() and (factor == 0).any()
    assert factor.sum() == pytest.approx(1.0021, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("version", VERSIONS)
def test_half_precision_kernels_are_float32_kernels_rounded_once(version, dtype):
    half = layer_of((17, 17), version, count=20, dtype=dtype)
    single = layer_of((17, 17), version, count=20, dtype=torch.float32)
    single.load_state_dict(half.state_dict())
    assert half.kernel().dtype == dtype
    assert torch.equal(half.kernel(), single.kernel().to(dtype))


@pytest.mark.parametrize("version", VERSIONS)
def test_autocast_leaves_the_kernel_and_its_gradients_in_float32(version):
    layer = layer_of((7, 7), version, dtype=torch.float32)
    expected = layer.kernel()
    expected.square().sum().backward()
    expected_grads = [p.grad.clone() for p in (layer.weight, layer.positions)]
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        kernel = layer.kernel()
        assert layer(torch.randn(1, 4, 9, 9)).dtype == torch.bfloat16
    kernel.square().sum().backward()
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, expected)
    for parameter, grad in zip((layer.weight, layer.positions), expected_grads, strict=True):
        assert torch.equal(parameter.grad, grad)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # until torch 2.6
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mapped", ["weight", "positions"])
def test_vmap_over_one_of_the_arguments(version, mapped):
    layer = layer_of((5, 6), version)
    given = {"weight": layer.weight.detach(), "positions": layer.positions.detach()}
    stacked = torch.stack([given[mapped], 0.5 * given[mapped]])

    def kernel(value):
        return dense_kernel(**given | {mapped: value}, sigma=layer.sigma, size=(5, 6), version=version)

    expected = torch.stack([kernel(value) for value in stacked])
    torch.testing.assert_close(torch.func.vmap(kernel)(stacked), expected)


def test_the_gaussian_of_dcls2_1d_is_one_pixel_wide_at_least():
    layer = Dcls2_1d(1, 1, 1, dense_kernel_size=1, dilated_kernel_size=31, dtype=torch.float64)
    with torch.no_grad():
        layer.positions.zero_()
        layer.weight.fill_(1.0)
        layer.sigma.fill_(0.5)
    pixel = torch.arange(31, dtype=torch.float64) - 15
    gaussian = torch.exp(-0.5 * (pixel / 1.5) ** 2)
    torch.testing.assert_close(layer.kernel().flatten(), gaussian / gaussian.sum(), rtol=0, atol=1e-7)


class LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor) and not t.is_meta]
        self.numel = max(self.numel, *made, 0)
        return result


@pytest.mark.parametrize("version", VERSIONS)
def test_no_tensor_of_kernel_size_squared_times_kernel_count_is_made(version):
    channels, k, count = 8, 23, 26
    with LargestTensor() as at_construction:
        layer = Dcls2d(channels, channels, count, dilated_kernel_size=k, groups=channels, version=version)
    assert at_construction.numel == layer.positions.numel()
    with LargestTensor() as in_use:
        layer.kernel().square().sum().backward()
    assert layer.positions.grad is not None
    assert channels * k * k <= in_use.numel <= 2 * channels * k * count  # two axes at once


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_positions_that_are_not_finite_show_in_the_kernel(version, value):
    """Training that went wrong has to be seen, not hidden by what lies outside the kernel."""
    size = (5, 7)
    rows = [value, 0.0]
    kernel = one_element(version, size, rows)
    if version in ("v0", "v1") or math.isnan(value):
        assert kernel.isnan().any()
    else:
        assert not kernel.any()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("foo", "version must be one of v0, v1, max, gauss, got version='foo'"),
        ("gauss", "version 'gauss' needs sigma, the learned widths, got None"),
        ("max", "version 'max' needs sigma, the learned widths, got None"),
    ],
)
def test_bad_arguments_are_named(version, message):
    with pytest.raises(ValueError, match=message):
        dense_kernel(torch.ones(3), torch.zeros(1, 3), None, (5,), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_product_has_a_bool_factor(version):
    """torch's quantization (pt2e) observes the factors of every product, and takes no bool there."""
    layer = layer_of((5, 7), version, dtype=torch.float32).eval()
    graph = torch.export.export(layer, (torch.randn(1, 4, 9, 9),)).graph
    products = [n for n in graph.nodes if n.op == "call_function" and "mul" in str(n.target)]
    assert products
    for node in products:
        factors = [a.meta["val"] for a in node.args if isinstance(a, torch.fx.Node)]
        assert all(f.dtype != torch.bool for f in factors), node.format_node()
