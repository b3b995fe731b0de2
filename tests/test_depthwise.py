import pytest
import timm
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from dcls_models.layers import Dcls2d, Dcls2dSame, dcls
from dcls_models.layers.depthwise import cpu, depthwise_conv2d
from dcls_models.layers.depthwise import operators as module

operator = module.convolution
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = {  # C, H, W, kernel, padding
    "small": (3, 9, 11, (7, 9), (3, 4)),
    "slow in channels_last": (3, 20, 21, (13, 12), (6, 5)),
    "image smaller than kernel": (3, 7, 7, (17, 17), (8, 8)),
    "large": (2, 20, 16, (15, 17), (7, 8)),
    "even": (2, 22, 20, (16, 16), (8, 8)),
    "no padding": (2, 30, 30, (17, 17), (0, 0)),
    "full padding": (2, 19, 19, (15, 15), (14, 14)),
    "one image at a time": (2, 21, 21, (17, 17), (8, 8)),
}


def tensors(shape, dtype=torch.float64, layout=torch.contiguous_format, batch=3):
    channels, height, width, kernel, padding = SHAPES[shape]
    x = torch.randn(batch, channels, height, width, dtype=dtype).contiguous(memory_format=layout)
    w = torch.randn(channels, 1, *kernel, dtype=dtype)
    return (
        x.requires_grad_(),
        w.requires_grad_(),
        torch.randn(channels, dtype=dtype, requires_grad=True),
        padding,
    )


def reference(x, w, b, padding):
    return F.conv2d(x, w, b, padding=padding, groups=len(w))


def convolve(x, w, b, padding):
    """What depthwise_conv2d does with the tensors that it takes on, in any precision."""
    return module.convolution(x, w, padding, b)


def is_ours(x, w, padding=(0, 0)):
    return module._admitted(x, w, None, padding) is not None


@pytest.fixture(params=["AVX-512", "AVX2"], autouse=True)
def processor(request, monkeypatch):
    """The rules of either kind of processor; both are right on any."""
    first = request.param == "AVX-512"
    for name, value in {
        "OURS_FROM": 7 if first else 9,
        "NCHW_PADDING": 6 if first else 4,
        "NHWC_SLOW": (12, 13) if first else (),
        "_CAPABILITY": request.param,
    }.items():
        monkeypatch.setattr(cpu, name, value)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_output_and_gradients_equal_the_plain_convolution(shape, layout, dtype, monkeypatch):
    if shape.startswith("one image"):
        monkeypatch.setattr(cpu, "CHUNK", 1)
    x, w, b, padding = tensors(shape, dtype, layout)
    ours, expected = convolve(x, w, b, padding), reference(*(t.double() for t in (x, w, b)), padding)
    assert ours.dtype == dtype and ours.is_contiguous(memory_format=layout)
    cotangent = torch.randn_like(expected)
    found = [ours, *torch.autograd.grad(ours, (x, w, b), cotangent.to(dtype))]
    wanted = [expected, *torch.autograd.grad(expected, (x, w, b), cotangent)]
    for a, e in zip(found, wanted, strict=True):
        error = (a.double() - e.double()).norm() / e.double().norm()
        assert error < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("size", [7, 15])
def test_gradients_of_gradients(size):
    x = torch.randn(1, 2, 14, 15, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 1, size, size, dtype=torch.float64, requires_grad=True)
    padding = (size // 2, size // 2)
    b = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, w, b: convolve(x, w, b, padding), (x, w, b), fast_mode=True)
    assert gradgradcheck(lambda x, w, b: convolve(x, w, b, padding), (x, w, b), fast_mode=True)


@pytest.mark.parametrize("needs", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_only_the_gradients_that_are_needed(needs):
    x, w, _, padding = tensors("large", torch.float32)
    x, w = x.detach().requires_grad_(needs[0]), w.detach().requires_grad_(needs[1])
    out = depthwise_conv2d(x, w, None, padding)
    assert out.requires_grad == any(needs)
    if any(needs):
        out.sum().backward()
    assert [x.grad is not None, w.grad is not None] == list(needs)


def test_views_and_expanded_gradients():
    x, w, b, padding = tensors("large")  # float64
    view = x.transpose(2, 3)[:, :, ::2]
    ours, expected = (f(view, w, b, padding) for f in (convolve, reference))
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(y.sum(), (x, w)) for y in (ours, expected)]  # the gradient is an expanded 1
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch):
    x, w, b, padding = tensors("large", torch.float32, batch=batch)
    out = depthwise_conv2d(x, w, b, padding)
    assert out.shape[0] == batch
    out.sum().backward()
    assert w.grad.abs().sum() > 0 if batch else w.grad.abs().sum() == 0


def test_what_is_left_to_torch():
    x, w, _, padding = tensors("large", torch.float32)
    assert is_ours(x, w)
    assert not is_ours(x.to(torch.bfloat16), w.to(torch.bfloat16))
    assert not is_ours(x[0], w)
    assert not is_ours(x.to("meta"), w.to("meta"))
    assert not is_ours(x.double(), w.double())
    small = w[..., :9, :9]
    assert is_ours(x, small) and not is_ours(x, small.detach()), "inference with a small kernel"
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_ours(x, w)
    best = x.detach().contiguous(memory_format=torch.channels_last)
    assert is_ours(x.detach(), w.detach(), padding)
    assert not is_ours(best, w.detach(), padding), "as it is best"
    assert is_ours(best.requires_grad_(), w.detach(), padding), "a gradient of the input alone"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_ours(x.double(), w.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half", [False, True], ids=["float32 input", "short input"])
def test_under_autocast_only_inputs_and_outputs_are_short(dtype, half):
    x, w, _, padding = tensors("large", torch.float32)
    bias = torch.randn(len(w), requires_grad=True)
    x = x.detach().to(dtype if half else torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        assert is_ours(x, w)
        output = depthwise_conv2d(x, w, bias, padding)
    exact = F.conv2d(x.double(), w.double(), bias.double(), padding=padding, groups=len(w))
    assert output.dtype == dtype
    torch.testing.assert_close(output, exact.to(dtype), rtol=1e-2, atol=1e-3)
    grad = torch.randn_like(output)
    found = torch.autograd.grad(output, (x, w, bias), grad)
    expected = torch.autograd.grad(exact, (x, w, bias), grad.double())
    for a, t, e in zip(found, (x, w, bias), expected, strict=True):
        assert a.dtype == t.dtype
        assert (a.double() - e).norm() <= (1e-2 if a.dtype == dtype else 1e-5) * e.norm()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_layer_trains_as_with_the_plain_convolution(layout, monkeypatch):
    layer = Dcls2d(6, 6, 10, padding=8, dilated_kernel_size=17, groups=6, version="gauss")
    x = torch.randn(2, 6, 20, 20).contiguous(memory_format=layout)

    def gradients():
        layer.zero_grad()
        layer(x).square().sum().backward()
        return [p.grad.clone() for p in layer.parameters()]

    calls = []
    monkeypatch.setattr(module, "convolution", lambda *a: calls.append(1) or operator(*a))
    ours = gradients()
    assert calls
    monkeypatch.setattr(module, "_admitted", lambda *_: None)
    torch.testing.assert_close(ours, gradients(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "words",
    [
        {"stride": 2},
        {"dilation": 2},
        {"padding_mode": "circular"},
        {"padding": "same", "dilated_kernel_size": 16},
        {"groups": 2},
    ],
    ids=str,
)
def test_layers_that_are_not_plain_are_left_alone(words, monkeypatch):
    monkeypatch.setattr(module, "convolution", None)
    args = {"padding": 8, "groups": 4, "dilated_kernel_size": 17, **words}
    layer = Dcls2d(4, 4, 5, **args)
    layer(torch.randn(1, 4, 33, 33)).sum().backward()
    assert layer.weight.grad is not None


def test_the_same_padding_of_an_odd_kernel_is_a_plain_one(monkeypatch):
    layer = Dcls2d(4, 4, 5, padding="same", dilated_kernel_size=(17, 9), groups=4)
    x = torch.randn(1, 4, 20, 21)
    given = []
    monkeypatch.setattr(dcls, "depthwise_conv2d", lambda *a: given.append(a[-1]) or depthwise_conv2d(*a))
    torch.testing.assert_close(layer(x), layer._conv_forward(x, layer.kernel(), layer.bias))
    assert given == [(8, 4)]


def test_a_layer_with_a_parametrization_is_a_plain_one(monkeypatch):
    layer = weight_norm(Dcls2d(4, 4, 5, padding=8, dilated_kernel_size=17, groups=4))
    assert type(layer) is not Dcls2d
    monkeypatch.setattr(dcls, "depthwise_conv2d", lambda *_: "fast")
    assert layer(torch.randn(1, 4, 20, 20)) == "fast"
    assert torch.is_tensor(Dcls2dSame(4, 4, 5, dilated_kernel_size=17, groups=4)(torch.randn(1, 4, 20, 20)))


def test_training_a_gauss_model_meets_no_denormal_numbers():
    model = timm.create_model("test_convnext_dcls", version="gauss", dilated_kernel_size=23, kernel_count=26)
    layer = model.stages[0].blocks[0].conv_dw
    kernel = layer.kernel().detach()
    tiny = torch.finfo(torch.float32).tiny
    assert ((kernel != 0) & (kernel.abs() < tiny)).sum() == 0
    assert (kernel == 0).any(), "tails are nothing at all"


def test_gradients_per_sample_and_forward_derivatives():
    layer = Dcls2d(3, 3, 5, padding=8, dilated_kernel_size=17, groups=3)
    x, parameters = torch.randn(4, 3, 20, 20), dict(layer.named_parameters())

    def loss(values, image):
        return torch.func.functional_call(layer, values, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    layer(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-4, atol=1e-4)
    _, tangent = torch.func.jvp(layer.eval(), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, layer(torch.ones_like(x)) - layer.bias[:, None, None])


@pytest.mark.parametrize("version", ["v0", "gauss"])
def test_models_side_by_side_in_one_vmap(version):
    layers = [Dcls2d(3, 3, 5, padding=8, dilated_kernel_size=17, groups=3, version=version) for _ in "abc"]
    parameters, _ = torch.func.stack_module_state(layers)
    x = torch.randn(1, 3, 20, 20)
    together = torch.func.vmap(lambda p: torch.func.functional_call(layers[0], p, (x,)))(parameters)
    torch.testing.assert_close(together, torch.stack([layer(x) for layer in layers]), rtol=1e-4, atol=1e-5)


def test_gradients_per_sample_of_a_model_in_training_mode():
    model = timm.create_model("test_convnext_dcls").train()
    x = torch.randn(2, 3, 64, 64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values, image):
        return torch.func.functional_call(model, values, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    sum(loss(dict(model.named_parameters()), image) for image in x).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert (each[name].sum(0) - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-5


def test_gradients_in_batches():
    x, w, _, _ = tensors("small", torch.float32, batch=1)
    cotangents = torch.randn(4, 1, 3, 9, 11)

    def found(function):
        first = torch.autograd.grad(function(x, w).pow(3), (x, w), cotangents, is_grads_batched=True)
        of_first = torch.autograd.grad(function(x, w).pow(3).sum(), w, create_graph=True)[0]
        second = torch.autograd.grad(of_first, (x, w), torch.randn(4, *w.shape), is_grads_batched=True)
        return [*first, *second]

    torch.manual_seed(0)
    ours = found(lambda x, w: convolve(x, w, None, (3, 4)))
    torch.manual_seed(0)
    for a, e in zip(ours, found(lambda x, w: reference(x, w, None, (3, 4))), strict=True):
        assert (a - e).norm() <= 1e-5 * e.norm()


def test_a_backward_pass_under_autocast_stays_in_float32():
    x, w, _, padding = tensors("large", torch.float32)
    output = depthwise_conv2d(x, w, None, padding)
    plain = torch.autograd.grad(output.sum(), (x, w), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(output.sum(), (x, w))
    assert all(torch.equal(a, e) for a, e in zip(found, plain, strict=True))


def test_more_padding_than_kernel_is_left_to_torch():
    layer = Dcls2d(3, 3, 4, dilated_kernel_size=17, padding=17, groups=3)
    layer(torch.randn(1, 3, 20, 20)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_gpu_where_it_is_asked_for(layout, autocast, monkeypatch):
    layer = Dcls2d(6, 6, 10, padding=8, dilated_kernel_size=17, groups=6, version="v1").cuda()
    x = torch.randn(2, 6, 28, 28).cuda().contiguous(memory_format=layout)
    calls = []
    monkeypatch.setattr(module, "convolution", lambda *a: calls.append(a[0].dtype) or operator(*a))

    def gradients(wish):
        monkeypatch.setenv("DCLS_TRITON", wish)
        layer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            layer(x).float().square().sum().backward()
        return [p.grad.clone() for p in layer.parameters()]

    plain = gradients("0")
    assert not calls
    ours = gradients("1")
    assert calls and calls[0] == (torch.bfloat16 if autocast else torch.float32)
    tolerance = 3e-2 if autocast else 1e-4
    for a, e in zip(ours, plain, strict=True):
        assert (a - e).norm() <= tolerance * e.norm()
