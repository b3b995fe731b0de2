"""Layers along time with long kernels: by FFT where that pays, and the same as torch's convolution."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from dcls_models.layers import Dcls1d, fft_convolution, long_kernels

SHAPES = {  # I, O, groups, T, K, padding
    "dense": (3, 5, 1, 90, 9, (4, 4)),
    "depthwise": (4, 4, 4, 90, 9, (4, 4)),
    "grouped": (4, 6, 2, 90, 8, (3, 4)),
    "one group of one channel": (1, 1, 1, 50, 7, (3, 3)),
    "depthwise with a multiplier": (3, 6, 3, 50, 7, (3, 3)),
    "no padding": (2, 2, 1, 70, 9, (0, 0)),
    "causal": (2, 2, 1, 70, 9, (8, 0)),
    "more padding than kernel": (2, 2, 2, 20, 5, (9, 6)),
    "shorter than the kernel": (2, 3, 1, 5, 31, (15, 15)),
    "one output": (2, 3, 1, 9, 9, (0, 0)),
}


def tensors(shape, batch=2, dtype=torch.float64):
    inputs, outputs, groups, length, size, _ = SHAPES[shape]
    x = torch.randn(batch, inputs, length, dtype=dtype, requires_grad=True)
    return x, torch.randn(outputs, inputs // groups, size, dtype=dtype, requires_grad=True)


def reference(x, kernel, padding, groups):
    return F.conv1d(F.pad(x, padding), kernel, groups=groups)


@pytest.fixture
def by_fft(monkeypatch):
    """Counts what is computed by FFT, which here always pays."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return fft_convolution(*arguments)

    monkeypatch.setattr(long_kernels, "fft_convolution", counted)
    monkeypatch.setattr(long_kernels, "fft_pays", lambda *_: True)
    return calls


@pytest.mark.parametrize("short", [0, 512], ids=["in blocks", "in one block"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_plain_convolution(shape, batch, short, monkeypatch):
    monkeypatch.setattr(long_kernels, "SHORT", short)
    padding, groups = SHAPES[shape][-1], SHAPES[shape][2]
    x, kernel = tensors(shape, batch)
    found, expected = fft_convolution(x, kernel, padding, groups), reference(x, kernel, padding, groups)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, (x, kernel), cotangent) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", ["dense", "depthwise", "grouped"])
def test_in_float32_errors_are_those_of_rounding(shape):
    padding, groups = SHAPES[shape][-1], SHAPES[shape][2]
    x, kernel = tensors(shape, dtype=torch.float32)
    found, expected = fft_convolution(x, kernel, padding, groups), reference(x, kernel, padding, groups)
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("shape", ["dense", "depthwise", "grouped"])
def test_gradients_of_gradients(shape):
    inputs, outputs, groups, *_ = SHAPES[shape]
    x = torch.randn(1, inputs, 13, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(outputs, inputs // groups, 2, dtype=torch.float64, requires_grad=True)

    def function(x, kernel):
        return fft_convolution(x, kernel, (1, 1), groups)

    assert gradcheck(function, (x, kernel)) and gradgradcheck(function, (x, kernel))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("version", ["v1", "gauss"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("padding", ["same", "valid", 6, 0])
@pytest.mark.parametrize("size", [13, 12])
def test_a_layer_trains_as_with_the_plain_convolution(size, padding, groups, version, by_fft, monkeypatch):
    words = {"groups": groups, "padding": padding, "dilated_kernel_size": size, "version": version}
    layer, x = Dcls1d(4, 4, 3, **words).double(), torch.randn(2, 4, 60).double().requires_grad_()
    outputs = [layer(x)]
    monkeypatch.setattr(long_kernels, "fft_pays", lambda *_: False)
    outputs.append(layer(x))
    assert len(by_fft) == 1
    gradients = [torch.autograd.grad(y.square().sum(), (x, *layer.parameters())) for y in outputs]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "words", [{"stride": 2}, {"dilation": 2}, {"padding_mode": "circular", "padding": 3}], ids=str
)
def test_layers_that_are_not_plain_are_left_to_torch(words, by_fft):
    layer, x = Dcls1d(4, 4, 3, dilated_kernel_size=9, **words), torch.randn(2, 4, 60)
    layer(x)
    assert not by_fft


def test_inputs_that_are_left_to_torch(by_fft):
    layer, x = Dcls1d(4, 4, 3, dilated_kernel_size=9), torch.randn(2, 4, 60)
    layer(x)
    assert len(by_fft) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer(x[0])
    assert layer(x[:0]).shape == (0, 4, 52)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        layer(x[..., :8])
    layer.to(torch.bfloat16)(x.bfloat16())
    layer.float().to("meta")(x.to("meta"))
    assert len(by_fft) == 1


@pytest.mark.filterwarnings("ignore")
def test_recorded_code_has_aten_only(by_fft):
    layer, x = Dcls1d(4, 4, 3, dilated_kernel_size=9).eval(), torch.randn(2, 4, 60)
    expected = layer(x).detach()
    by_fft.clear()
    for program in (
        torch.compile(layer, backend="aot_eager", fullgraph=True),
        torch.export.export(layer, (x,)).module(),
        torch.jit.trace(layer, x, check_trace=False),  # the check calls the layer itself
        torch.jit.script(layer),
    ):
        torch.testing.assert_close(program(x).detach(), expected)
    assert not by_fft
    calls_the_same = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    torch.testing.assert_close(calls_the_same(x).detach(), expected)
    assert len(by_fft) == 1


def test_functions_of_functions(by_fft):
    layer, x = Dcls1d(4, 4, 3, dilated_kernel_size=9).double(), torch.randn(3, 4, 60).double()
    parameters = dict(layer.named_parameters())

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample[None],)).square().sum()

    per_sample = vmap(grad(loss), (None, 0))(parameters, x)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), parameter.grad)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, slope = jvp(lambda p: loss(p, x[0]), (parameters,), (tangents,))
    expected = sum((per_sample[name][0] * t).sum() for name, t in tangents.items())
    torch.testing.assert_close(slope, expected)
    assert len(by_fft) == 3


def test_gradients_in_batches(by_fft):
    """``is_grads_batched`` is the older vmap, of a graph that is there already."""
    layer, x = (
        Dcls1d(4, 4, 3, dilated_kernel_size=9).double(),
        torch.randn(1, 4, 30).double().requires_grad_(),
    )
    output = layer(x)
    cotangents = torch.randn(3, *output.shape).double()
    (found,) = torch.autograd.grad(output, x, cotangents, retain_graph=True, is_grads_batched=True)
    for cotangent, one in zip(cotangents, found, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(output, x, cotangent, retain_graph=True)[0])


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_other_channels_are_refused_as_by_torch(channels):
    layer = Dcls1d(4, 4, 5, dilated_kernel_size=101, groups=4)
    with pytest.raises(RuntimeError, match=f"to have 4 channels, but got {channels} channels"):
        layer(torch.randn(1, channels, 900))
