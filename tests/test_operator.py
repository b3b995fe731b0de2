"""The depthwise convolution as an operator of torch: when it is called, compiled, and left out of graphs."""

import copy

import pytest
import timm
import torch
from functorch.compile import aot_function, make_boxed_func
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dcls_models.layers import Dcls2d, tracing
from dcls_models.layers.depthwise import cpu, depthwise_conv2d, operators
from dcls_models.layers.positions import share_positions

LAYOUTS = [torch.contiguous_format, torch.channels_last]
OURS = ["dcls.depthwise_conv2d.default"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A fast processor, whatever this one is, and nothing compiled before."""
    torch._dynamo.reset()
    for name, value in {
        "OURS_FROM": 7,
        "NCHW_PADDING": 6,
        "NHWC_SLOW": (12, 13),
        "_CAPABILITY": "AVX512",
    }.items():
        monkeypatch.setattr(cpu, name, value)


def layer_of(version="v1", **words) -> Dcls2d:
    return Dcls2d(4, 4, 5, padding=8, dilated_kernel_size=17, groups=4, version=version, **words)


def image(*shape, layout=torch.contiguous_format) -> torch.Tensor:
    return torch.randn(*(shape or (2, 4, 20, 21))).contiguous(memory_format=layout)


def convolutions(graph_module) -> list[str]:
    targets = [n.target for n in graph_module.graph.nodes if n.op == "call_function"]
    return [str(t) if "dcls" in str(t) else "aten" for t in targets if "conv" in str(t)]


class Recorder:
    """A backend that runs graphs as they are, and notes their convolutions."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def __call__(self, graph_module, inputs):
        self.graphs.append(convolutions(graph_module))
        return graph_module


def compiled(function, *arguments):
    """The convolutions of the one graph that is compiled, and what it computes."""
    recorder = Recorder()
    output = torch.compile(function, backend=recorder, fullgraph=True)(*arguments)
    (graph,) = recorder.graphs
    return graph, output


def assert_close(found, expected):
    for a, e in zip(
        torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert (a - e).norm() <= 1e-5 * e.norm()


# --- the operators themselves ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("size", "padding", "layout"),
    [
        ((17, 17), (8, 8), torch.channels_last),
        ((17, 17), (8, 8), torch.contiguous_format),
        ((13, 12), (6, 5), torch.channels_last),
        ((16, 16), (8, 8), torch.contiguous_format),
    ],
    ids=str,
)
def test_opcheck(size, padding, layout):
    x = image(2, 3, 14, 15, layout=layout).requires_grad_()
    weight, bias = (torch.randn(s, requires_grad=True) for s in ((3, 1, *size), (3,)))
    torch.library.opcheck(operators.convolution, (x, weight, padding, bias))
    torch.library.opcheck(operators.convolution, (x, weight, padding, None))
    output = operators.convolution(x, weight, padding, bias).detach().requires_grad_()
    torch.library.opcheck(operators.correlation, (x, output, size, padding))


@pytest.mark.parametrize(
    "view",
    [lambda x: x.transpose(2, 3), lambda x: x[:, :, ::2], lambda x: x[:, 1:2], lambda x: x[:, :, :1, :1]],
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_the_compiler_is_told_of_the_layout_is_true(layout, view):
    x = view(image(2, 4, 26, 27, layout=layout))
    weight = torch.randn(x.shape[1], 1, 13, 13)
    output = operators.convolution(x, weight, (6, 6), None)
    torch.testing.assert_close(output, F.conv2d(x, weight, padding=6, groups=len(weight)))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = operators.convolution(mode.from_tensor(x), mode.from_tensor(weight), (6, 6), None)
    strides = [(a, b) for a, b, n in zip(output.stride(), fake.stride(), output.shape, strict=True) if n > 1]
    assert output.shape == fake.shape and all(a == b for a, b in strides)


def test_one_kernel_per_device():
    for name in ("dcls::depthwise_conv2d", "dcls::depthwise_conv2d_weight"):
        for key in ("CPU", "CUDA", "Autograd", "Meta"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


# --- where torch.compile compiles ---


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_compiled_training_calls_it_forward_and_backward(layout):
    graphs = []

    def note(graph_module, inputs):
        graphs.append(convolutions(graph_module))
        return make_boxed_func(graph_module.forward)

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=note, bw_compiler=note)
    layer, x = layer_of(), image(layout=layout).requires_grad_()
    layer(x).square().sum().backward()
    expected = [x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    torch.compile(layer, backend=backend, fullgraph=True)(x).square().sum().backward()
    assert_close([x.grad, *(p.grad for p in layer.parameters())], expected)
    assert graphs == [OURS, ["dcls.depthwise_conv2d.default", "dcls.depthwise_conv2d_weight.default"]]


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
@pytest.mark.parametrize("training", [True, False])
def test_layers_of_all_versions_in_one_graph(version, training):
    layer, x = layer_of(version).train(training), image()
    graph, output = compiled(layer, x)
    assert graph == OURS
    assert_close(output, layer(x))


def test_compiled_inference_is_left_to_the_compiler():
    """It chooses channels_last by itself, in which ATen is fast."""
    layer, x = layer_of().eval(), image()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            graph, output = compiled(layer, x)
            assert graph == ["aten"]
            assert_close(output, layer(x))
    slow = Dcls2d(4, 4, 5, padding=6, dilated_kernel_size=13, groups=4)
    with torch.no_grad():
        assert compiled(slow, x)[0] == OURS, "where channels_last is slow"


@pytest.mark.parametrize("how", ["device", "processor", "oneDNN", "float64"])
def test_where_nothing_was_measured_to_be_faster_compiled_code_has_aten(how, monkeypatch):
    layer, x = layer_of(), image()
    if how == "device":
        monkeypatch.delitem(operators.DEVICES, "cpu")
    elif how == "processor":
        monkeypatch.setattr(cpu, "_CAPABILITY", "NEON")
    elif how == "float64":
        layer, x = layer.double(), x.double()
    with torch.backends.mkldnn.flags(enabled=how != "oneDNN"):
        assert compiled(layer, x)[0] == ["aten"]


@pytest.mark.parametrize(("layout", "dynamic"), list(zip(LAYOUTS, (None, True), strict=True)), ids=str)
def test_sizes_are_dynamic_without_compiling_each(layout, dynamic):
    """As often as nn.Conv2d: once for each that begins to change; not at all where it is told beforehand.

    What the first sizes take is not counted: building a kernel may take two compilations there.
    """
    counts = []
    for module in (layer_of(), nn.Conv2d(4, 4, 17, padding=8, groups=4)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        function = torch.compile(module, backend=counter, dynamic=dynamic, fullgraph=True)
        for n, h, w in ((2, 20, 21), (3, 20, 21), (4, 24, 20), (5, 28, 31), (2, 33, 40), (7, 50, 22)):
            x = image(n, 4, h, w, layout=layout)
            output = function(x)
            assert_close(output, module(x))
            output.sum().backward()
            counts += [counter.frame_count] * (n == 2 and h == 20)
        counts[-1] = counter.frame_count - counts[-1]
    assert counts[0] == counts[1] == (0 if dynamic else 2)


def test_autocast():
    layer, x = layer_of(), image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
        graph, output = compiled(layer, x)
    assert graph == OURS
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), expected.float())


class Stage(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(layer_of("gauss"), nn.GELU(), layer_of("gauss"))
        share_positions(self, [self[0], self[2]])


def test_a_compiled_stage_reads_its_shared_positions():
    stage, x = Stage(), image()
    function = torch.compile(stage, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(stage.parameters(), lr=1e-2)
    for _ in range(2):
        expected = torch.autograd.grad(stage(x).square().sum(), stage.positions)
        assert_close(torch.autograd.grad(function(x).square().sum(), stage.positions), expected)
        function(x).square().sum().backward()
        optimizer.step()
    stage.load_state_dict({k: v.clone() for k, v in Stage().state_dict().items()}, assign=True)
    assert_close(function(x), stage(x))
    other = copy.deepcopy(stage)
    with torch.no_grad():
        other.positions.add_(0.5)
    assert_close(torch.compile(other, backend="aot_eager", fullgraph=True)(x), other(x))
    assert_close(function(x), stage(x))
    for layer in (stage[0], stage[2]):
        layer.version = "max"
    assert_close(function(x), stage(x))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_inductor(version, mode):
    model = timm.create_model("test_convnext_dcls", dilated_kernel_size=17, version=version)
    x = torch.randn(2, 3, 64, 64)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    function = torch.compile(model, mode=mode, fullgraph=True)
    function(x).square().sum().backward()
    for a, e in zip([p.grad for p in model.parameters() if p.grad is not None], expected, strict=True):
        assert (a - e).norm() <= 1e-3 * e.norm() + 1e-5
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(function(x), model(x), rtol=1e-3, atol=1e-4)


# --- where code leaves the machine ---


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_exported_program_has_aten_only(strict, training):
    program = torch.export.export(layer_of().train(training), (image(),), strict=strict)
    assert convolutions(program.graph_module) == ["aten"]


@pytest.mark.filterwarnings("ignore")
def test_traced_code_has_aten_only():
    layer, x = layer_of(), image()
    assert convolutions(make_fx(layer)(x)) == ["aten"]
    graphs = []

    def note(graph_module, inputs):
        graphs.append(convolutions(graph_module))
        return make_boxed_func(graph_module.forward)

    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    aot_function(function, fw_compiler=note, bw_compiler=note)(x, *layer.parameters()).sum().backward()
    assert graphs == [["aten"], ["aten"]]
    assert "dcls::" not in str(torch.jit.trace(layer, x).inlined_graph)


def test_a_torch_that_cannot_tell_export_from_compile_compiles_aten(monkeypatch):
    """torch 2.6 has no ``torch.compiler.is_exporting``."""
    monkeypatch.setattr(tracing, "is_exporting", lambda: True)
    assert compiled(layer_of(), image())[0] == ["aten"]


def test_a_counter_of_operations_sees_the_convolution():
    layer, x = layer_of(), image()
    with FlopCounterMode(display=False) as ours:
        layer(x)
    with FlopCounterMode(display=False) as plain:
        F.conv2d(x, layer.kernel(), padding=8, groups=4)
    assert ours.get_total_flops() == plain.get_total_flops() > 0


# --- transforms of functions, around and inside compiled code ---


def loss_of(layer):
    return lambda values, x: functional_call(layer, values, (x[None],)).square().sum()


TRANSFORMS = {
    "vmap of grad": lambda layer, x, p: vmap(grad(loss_of(layer)), in_dims=(None, 0))(p, x),
    "grad": lambda layer, x, p: grad(loss_of(layer))(p, x[0]),
    "jvp": lambda layer, x, p: jvp(lambda q: loss_of(layer)(q, x[0]), (p,), (p,))[1],
    "models": lambda layer, x, p: vmap(lambda q: functional_call(layer, q, (x,)))(
        {name: torch.stack([v, 2 * v]) for name, v in p.items()}
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_inside_compiled_code(name):
    layer, x = layer_of(), image()
    values = {n: p.detach() for n, p in layer.named_parameters()}
    transform = TRANSFORMS[name]
    expected = transform(layer, x, values)
    graph, output = compiled(lambda x, p: transform(layer, x, p), x, values)
    assert graph == ["aten"]
    assert_close(output, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_transforms_around_compiled_code(backend):
    layer, x = layer_of(), image()
    function = torch.compile(layer, backend=backend)
    function(x)  # compiled before it is transformed
    for transform in (
        lambda f: vmap(lambda image: f(image[None]))(x),
        lambda f: jvp(f, (x,), (x,))[1],
        lambda f: grad(lambda x: f(x).square().sum())(x),
    ):
        assert_close(transform(function), transform(layer))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        found, expected = (forward_ad.unpack_dual(f(dual)).tangent for f in (function, layer))
        assert expected is not None
        assert_close(found, expected)


def test_transforms_in_eager_mode():
    layers = [layer_of() for _ in "ab"]
    values, _ = stack_module_state(layers)
    x = image()
    together = vmap(lambda p: functional_call(layers[0], p, (x,)))(values)
    assert_close(together, torch.stack([layer(x) for layer in layers]))
    weight = torch.randn(4, 1, 17, 17)
    _, tangent = jvp(lambda w: depthwise_conv2d(x, w, None, (8, 8)), (weight,), (weight,))
    assert_close(tangent, F.conv2d(x, weight, padding=8, groups=4))
