"""Numbers of the Triton kernels, against float64. ``test_triton.py`` runs this file in a process of its own.

With TRITON_INTERPRET=1 the kernels run in Triton's interpreter on the CPU, otherwise compiled on the GPU.
"""

import os

import pytest
import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from dcls_models.layers.depthwise import gpu as module
from dcls_models.layers.depthwise import operators
from eval.speed.passes import PASSES, _calls

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = {  # N, C, H, W, kernel, padding
    "odd": (3, 2, 19, 17, (17, 17), (8, 8)),
    "even": (2, 1, 20, 22, (16, 18), (8, 9)),
    "many tiles": (2, 1, 37, 70, (13, 13), (6, 6)),
    "kernel not square": (2, 1, 25, 40, (13, 31), (6, 11)),
    "image smaller than kernel": (2, 2, 14, 14, (31, 31), (15, 15)),
    "many small images": (70, 1, 7, 7, (17, 17), (8, 8)),
    "groups of images": (30, 1, 7, 24, (13, 13), (6, 6)),
    "no padding": (1, 1, 30, 31, (23, 23), (0, 0)),
    "full padding": (1, 1, 16, 19, (13, 15), (12, 14)),
    "one row": (1, 1, 1, 90, (17, 17), (8, 8)),
    "one column": (4, 1, 50, 1, (23, 13), (11, 6)),
    "smallest kernel": (3, 2, 30, 14, (9, 10), (4, 5)),
    "windows of 48 columns": (1, 1, 9, 60, (13, 31), (6, 15)),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which computes what has one channel only


def tensors(shape, dtype=torch.float32):
    n, c, h, w, kernel, padding = SHAPES[shape]
    input = torch.randn(n, c, h, w, device=DEVICE, dtype=dtype)
    weight = torch.randn(c, 1, *kernel, device=DEVICE, dtype=dtype)
    grad = torch.randn(
        n, c, *(i + 2 * p - k + 1 for i, k, p in zip((h, w), kernel, padding, strict=True)), device=DEVICE
    )
    assert module.supports(input, weight, padding)
    return input, weight, grad.to(dtype), padding


def reference(input, weight, padding):
    return F.conv2d(input.double(), weight.double(), padding=padding, groups=len(weight))


def weight_gradient(input, grad, size, padding):
    channels = input.shape[1]
    return conv2d_weight(
        input.double(), (channels, 1, *size), grad.double(), padding=padding, groups=channels
    )


def assert_rounded(ours, expected, dtype, bits_of_bfloat16=1.0):
    """Within float32's rounding of long sums, and then once rounded to ``dtype``."""
    assert ours.dtype == dtype and ours.shape == expected.shape
    scale = expected.abs().max() if expected.numel() else 0.0
    slack = (0.5 if dtype != torch.bfloat16 else bits_of_bfloat16) * torch.finfo(dtype).eps
    bound = 4e-6 * scale + (slack * expected.abs() if dtype != torch.float32 else 0.0)
    assert ((ours.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_both_gradients(shape, dtype):
    input, weight, grad, padding = tensors(shape, dtype)
    size = weight.shape[2:]
    half = 1.0 if INTERPRETED else 0.5  # the interpreter cuts bfloat16 off where a GPU rounds it
    output = module.convolution(input, weight, padding)
    assert_rounded(output, reference(input, weight, padding), dtype, half)

    outer = tuple(k - 1 - p for k, p in zip(size, padding, strict=True))
    of_input = module.convolution(grad, weight.flip(-2, -1), outer)
    wanted = conv2d_input(input.shape, weight.double(), grad.double(), padding=padding, groups=len(weight))
    assert_rounded(of_input, wanted, dtype, half)

    of_weight = module.correlation(input, grad, size, padding)
    assert_rounded(of_weight, weight_gradient(input, grad, size, padding), dtype, 0.5)
    assert torch.equal(of_weight, module.correlation(input, grad, size, padding)), "the same at every run"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_memory_layouts_give_the_same_numbers(dtype):
    input, weight, grad, padding = tensors("odd", dtype)
    bias = torch.randn(len(weight), device=DEVICE, dtype=dtype)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (input, grad)]
    output, other = (module.convolution(x, weight, padding, bias) for x in (last[0], input))
    assert output.is_contiguous(memory_format=torch.channels_last) and other.is_contiguous()
    assert torch.equal(output, other)
    with_bias = reference(input, weight, padding) + bias.double()[:, None, None]
    assert_rounded(output, with_bias, dtype, 1.0 if INTERPRETED else 0.5)
    size = weight.shape[2:]
    found, wanted = (module.correlation(*pair, size, padding) for pair in (last, (input, grad)))
    assert torch.equal(found, wanted)


def test_views():
    whole, weight, _, padding = tensors("many tiles")
    input = whole.expand(2, 3, 37, 70)[:, 1:2].transpose(2, 3)[:, :, ::2]
    kernel = weight.expand(1, 1, 13, 13).transpose(2, 3)
    assert_rounded(
        module.convolution(input, kernel, padding), reference(input, kernel, padding), torch.float32
    )
    grad = torch.ones((), device=DEVICE).expand(input.shape)  # as backward of a sum gives it
    found = module.correlation(input, grad, (13, 13), padding)
    assert_rounded(found, weight_gradient(input, grad, (13, 13), padding), torch.float32)


def test_no_images():
    input, weight, grad, padding = tensors("odd")
    assert not module.supports(input[:0], weight, padding)
    assert module.convolution(input[:0], weight, padding).shape == (0, *grad.shape[1:])
    found = module.correlation(input[:0], grad[:0], weight.shape[2:], padding)
    assert torch.equal(found, torch.zeros_like(weight))


@pytest.mark.parametrize("shape", ["many small images", "groups of images"])
@pytest.mark.parametrize("programs", [1, 8])
def test_programs_that_sum_over_several_groups_of_images(shape, programs, monkeypatch):
    monkeypatch.setattr(module, "PROGRAMS", programs)
    input, weight, _, padding = tensors(shape)
    grad = torch.randn_like(input)
    found = module.correlation(input, grad, weight.shape[2:], padding)
    assert_rounded(found, weight_gradient(input, grad, weight.shape[2:], padding), torch.float32)


def test_what_is_supported():
    input, weight, _, padding = tensors("odd")
    for size in (9, 31):
        assert module.supports(input, torch.ones(2, 1, size, size, device=DEVICE), (6, 7))
    no = {
        "small kernel": (input, weight[..., :8, :], (0, 0)),
        "large kernel": (input, torch.ones(2, 1, 33, 33, device=DEVICE), (16, 16)),
        "more padding than kernel": (input, weight, (17, 8)),
        "less than no padding": (input, weight, (-1, 8)),
        "nothing left": (input[..., :5], weight, (8, 1)),
        "two dtypes": (input.half(), weight, padding),
        "float64": (input.double(), weight.double(), padding),
        "no batch": (input[0], weight, padding),
        "not depthwise": (input[:, :1], weight, padding),
        "another device": (input, weight.to("meta"), padding),
        "not a plain tensor": (input.as_subclass(Mine), weight, padding),
    }
    for why, arguments in no.items():
        assert not module.supports(*arguments), why


class Mine(torch.Tensor):
    pass


def test_chosen_when_asked_for_or_measured(monkeypatch, caplog):
    input, weight, _, padding = tensors("odd", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU of ours")
    module._is_measured.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.delenv("DCLS_TRITON", raising=False)
    assert not module.chosen(input, weight, padding), "too little work"
    monkeypatch.setattr(module, "TRAINING_FROM", input.numel() * 17 * 17)
    assert not module.chosen(input, weight, padding), "nothing is trained"
    assert module.chosen(input, weight.clone().requires_grad_(), padding), "measured there"
    monkeypatch.setattr(module, "INFERENCE_FROM", input.numel() * 17 * 17)
    assert module.chosen(input, weight, padding)
    assert not module.chosen(input, weight[..., :8, :8], padding)
    monkeypatch.setenv("DCLS_TRITON", "0")
    assert not module.chosen(input, weight, padding) and not caplog.text

    module._is_measured.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    monkeypatch.delenv("DCLS_TRITON")
    assert not any(module.chosen(input, weight, padding) for _ in range(3)), "nobody measured there"
    assert caplog.text.count("were not measured on a GPU of ours") == 1 and "DCLS_TRITON=1" in caplog.text
    monkeypatch.setenv("DCLS_TRITON", "1")
    assert module.chosen(input, weight, padding)
    module._is_measured.cache_clear()


def test_float32_is_ours_for_the_weight_gradient_only(monkeypatch):
    monkeypatch.setenv("DCLS_TRITON", "1")
    input, weight, _, padding = tensors("odd")
    assert not module.chosen(input, weight, padding), "nothing is trained"
    assert module.chosen(input, weight.requires_grad_(), padding)
    with torch.no_grad():
        assert not module.chosen(input, weight, padding)


def test_compiled_code_calls_the_operator_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("DCLS_TRITON", "1")
    monkeypatch.setitem(operators.DEVICES, DEVICE, module)
    input, weight, _, padding = tensors("odd", torch.bfloat16)
    graphs = []

    def note(graph_module, inputs):
        graphs.append([str(n.target) for n in graph_module.graph.nodes if n.op == "call_function"])
        return graph_module

    function = torch.compile(
        lambda x, w: operators.depthwise_conv2d(x, w, None, padding), backend=note, fullgraph=True
    )
    assert_rounded(function(input, weight), reference(input, weight, padding), torch.bfloat16)
    assert graphs == [["dcls.depthwise_conv2d.default"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_timed_of_each_pass_is_the_same_pass(dtype):
    images, kernel, grads, _ = tensors("many small images", dtype)
    found = []
    for name, ours, theirs in _calls(images, kernel, grads):
        results = theirs()
        expected = results if name == PASSES[0] else next(t for t in results if t is not None)
        assert (ours().double() - expected.double()).norm() <= 2e-2 * expected.double().norm()
        found.append(name)
    assert tuple(found) == PASSES
