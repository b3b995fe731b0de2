import json
import pickle
from pathlib import Path

import pytest
import timm.utils.model
import torch
from safetensors import safe_open
from torch import nn

from dcls_models import layers
from dcls_models.layers import Dcls1d, Dcls2_1d, Dcls2d, Dcls2dK1d, Dcls3_1d, Dcls3d, DclsNd
from dcls_models.layers.depthwise.layout import prefers_contiguous

REFERENCE = Path(__file__).parent / "reference"
CASES = {
    case["prefix"]: case for case in json.loads((REFERENCE / "manifest.json").read_text())["op"]["cases"]
}
VERSIONS = ["v0", "v1", "max", "gauss"]
OF_ALL_CLASSES = {
    Dcls1d: {"dilated_kernel_size": 7},
    Dcls2d: {"dilated_kernel_size": (5, 6)},
    Dcls3d: {"dilated_kernel_size": (3, 4, 5)},
    Dcls2_1d: {"dense_kernel_size": 2, "dilated_kernel_size": 5},
    Dcls3_1d: {"dense_kernel_size": (2, 3), "dilated_kernel_size": 5},
    Dcls2dK1d: {"dilated_kernel_size": 7, "flat_dim": 1},
}
CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
all_classes = pytest.mark.parametrize("cls", OF_ALL_CLASSES, ids=lambda cls: cls.__name__)
deprecated_but_used = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
all_versions = pytest.mark.parametrize("version", VERSIONS)


def small(cls: type[DclsNd] = Dcls2d, **kwargs) -> DclsNd:
    return cls(4, 6, 3, **{**OF_ALL_CLASSES[cls], "groups": 2, **kwargs})


def image(layer: DclsNd, batch: int = 2, side: int = 8, **kwargs) -> torch.Tensor:
    return torch.randn(batch, layer.in_channels, *[side] * len(layer.kernel_size), **kwargs)


# --- the authors' values ---


@pytest.fixture(scope="module")
def recorded():
    with safe_open(REFERENCE / "op.safetensors", "pt") as file:
        keys = set(file.keys())
        yield lambda key: file.get_tensor(key) if key in keys else None


def layer_of_case(case: dict, recorded) -> DclsNd:
    words = ("stride", "padding", "groups", "padding_mode", "version", "dilated_kernel_size")
    kwargs = {word: tuple(case[word]) if isinstance(case[word], list) else case[word] for word in words}
    if case["dense_kernel_size"] is not None:
        kwargs["dense_kernel_size"] = tuple(case["dense_kernel_size"])
    if case["flat_dim"] is not None:
        kwargs["flat_dim"] = case["flat_dim"]
    values = {key: recorded(f"{case['prefix']}.{key}") for key in ("weight", "P", "SIG", "bias")}
    kwargs["bias"] = values["bias"] is not None
    layer = getattr(layers, case["op"])(
        case["in_channels"], case["out_channels"], case["kernel_count"], **kwargs
    )
    layer.load_state_dict({key: value for key, value in values.items() if value is not None})
    return layer


def rows_by_axis(case: dict) -> list[int]:
    """Which row of the authors' P moves along axis 0, 1, 2, as measured on their package."""
    axes = len(case["dilated_kernel_size"])
    return {1: [0], 2: [0, 1], 3: [0, 2, 1]}[axes] if case["version"] == "v0" else list(range(axes))[::-1]


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_layer_of_the_authors(name, recorded):
    """Their keys load; kernel, output and all gradients are theirs, those off-centre included."""
    case = CASES[name]
    layer = layer_of_case(case, recorded)
    x = recorded(f"{name}.input").requires_grad_()
    kernel, output = layer.kernel(), layer(x)
    (output * recorded(f"{name}.cotangent")).sum().backward()

    found = {"kernel": kernel, "output": output, "grad.weight": layer.weight.grad, "grad.input": x.grad}
    found |= {"grad.bias": None if layer.bias is None else layer.bias.grad}
    authors_row = torch.tensor(rows_by_axis(case)).argsort()
    for key, parameter in (("P", layer.positions), ("SIG", layer.sigma)):
        found[f"grad.{key}"] = None if parameter is None else parameter.grad[authors_row]
    square = len(set(case["dilated_kernel_size"])) == 1
    for key, value in found.items():
        expected = recorded(f"{name}.{key}")
        assert (value is None) == (expected is None)
        if expected is not None:
            # a translated position is a sum, rounded in float32, which the slopes of steep maps show
            atol = (1e-5 if square or "grad" not in key else 5e-5) * max(1.0, expected.abs().max().item())
            torch.testing.assert_close(value, expected, rtol=0, atol=atol, msg=lambda m, k=key: f"{k}: {m}")


def test_the_recorded_cases_are_all_there():
    assert len(CASES) == 254
    assert {case["op"] for case in CASES.values()} == {cls.__name__ for cls in OF_ALL_CLASSES}


def test_index_grids_that_the_authors_store_are_dropped():
    layer = small(Dcls2_1d)
    state = layer.state_dict()
    state["P"] = state.pop("positions")
    state["DCK.IDX"], state["DCK.lim"] = torch.arange(5), torch.tensor([5])
    assert str(layer.load_state_dict(state)) == "<All keys matched successfully>"


def test_positions_of_the_wrong_number_of_rows_are_refused():
    layer = small(Dcls2d)
    state = layer.state_dict()
    state["P"] = state.pop("positions")[:1]
    with pytest.raises(RuntimeError, match="expected positions of 2 rows, one per axis"):
        layer.load_state_dict(state)


@all_versions
@all_classes
def test_initial_values_are_the_authors(cls, version):
    layer = cls(8, 8, 64, **OF_ALL_CLASSES[cls], version=version)
    bound = (layer.weight[0].numel()) ** -0.5
    for parameter in (layer.weight, layer.bias):
        assert 0.5 * bound < parameter.abs().max() <= bound
    for row, k in zip(layer.positions, layer.dilated_kernel_size, strict=True):
        assert row.abs().max() <= k // 2
        over_the_whole_range = cls in (Dcls2_1d, Dcls3_1d)
        assert row.std().item() == pytest.approx((k // 2) / 3**0.5 if over_the_whole_range else 0.5, rel=0.05)
    expected_sigma = {"max": 0.0, "gauss": 0.23}.get(version)
    assert (layer.sigma is None) == (expected_sigma is None)
    assert layer.sigma is None or (layer.sigma == expected_sigma).all()


# --- a drop-in for nn.ConvNd ---


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Dcls1d, (4, 6, 3, 2, 1, 5, 2, False, "circular", "v1")),
        (Dcls2d, (4, 6, 3, (2, 1), (1, 0), (5, 6), 2, False, "circular", "v1")),
        (Dcls3d, (4, 6, 3, 2, 1, 5, 2, False, "circular", "v1")),
    ],
)
def test_the_constructor_takes_the_authors_arguments_in_their_order(cls, arguments):
    names = ("in_channels", "out_channels", "kernel_count", "stride", "padding", "dilated_kernel_size")
    names += ("groups", "bias", "padding_mode", "version")
    by_position, by_name = cls(*arguments), cls(**dict(zip(names, arguments, strict=True)))
    assert repr(by_position) == repr(by_name)
    assert (by_position.groups, by_position.bias, by_position.version) == (2, None, "v1")
    assert (by_position.padding_mode, by_position.kernel_count) == ("circular", 3)


def test_the_constructors_with_one_learned_axis_keep_the_authors_order_too():
    dense_first = Dcls2_1d(4, 6, 3, 2, 1, 2, 5, 2, False, "circular", "v1")
    assert (dense_first.kernel_size, dense_first.groups, dense_first.version) == ((2, 5), 2, "v1")
    both_dense_first = Dcls3_1d(4, 6, 3, 2, 1, (2, 3), 5, 2, False, "circular", "max")
    assert (both_dense_first.kernel_size, both_dense_first.groups, both_dense_first.version) == (
        (2, 3, 5),
        2,
        "max",
    )
    row = Dcls2dK1d(4, 6, 3, 2, 1, 5, 2, False, "circular", "gauss", 1)
    assert (row.kernel_size, row.groups, row.version) == ((1, 5), 2, "gauss")
    assert {cls(1, 1, 1).version for cls in OF_ALL_CLASSES if cls is not Dcls2dK1d} == {"gauss"}
    assert Dcls2dK1d(1, 1, 1).version == "v1"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"version": "v2"}, "version must be one of v0, v1, max, gauss, got version='v2'"),
        ({"kernel_count": 0}, "kernel_count must be a whole number of at least 1, got kernel_count=0"),
        ({"kernel_count": (7, 7)}, r"got kernel_count=\(7, 7\); .* nn.ConvNd has the kernel size, .*LoRA"),
        ({"kernel_count": 2.5}, "got kernel_count=2.5"),
        ({"in_channels": 0}, "channels must be at least 1, got in_channels=0, out_channels=4"),
        ({"out_channels": 0}, "channels must be at least 1, got in_channels=4, out_channels=0"),
        ({"dilated_kernel_size": (5, 0)}, r"dilated_kernel_size must be .* at least 1, .* got \(5, 0\)"),
        ({"dilated_kernel_size": 4.5}, "got 4.5"),
        ({"dilated_kernel_size": (5, 5, 5)}, r"one for each of 2 axes, got \(5, 5, 5\)"),
        ({"groups": 3}, "divisible by groups"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
        ({"padding": "full"}, "'full'"),
        ({"padding": "same", "stride": 2}, "strided"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Dcls2d(**{"in_channels": 4, "out_channels": 4, "kernel_count": 3, "dilated_kernel_size": 5, **kwargs})


def test_dense_sizes_are_checked_too():
    with pytest.raises(ValueError, match=r"dense_kernel_size must be .* for each of 2 axes, got \(3,\)"):
        Dcls3_1d(4, 4, 3, dense_kernel_size=(3,), dilated_kernel_size=5)


def test_a_kernel_is_either_a_column_or_a_row():
    with pytest.raises(ValueError, match=r"flat_dim must be 0 \(a column\) or 1 \(a row\), got flat_dim=2"):
        Dcls2dK1d(4, 4, 3, dilated_kernel_size=5, flat_dim=2)


@all_versions
@all_classes
def test_parameter_names_and_shapes(cls, version):
    dense = {Dcls2_1d: (2,), Dcls3_1d: (2, 3)}.get(cls, ())
    layer = small(cls, version=version)
    shape, axes = (6, 2, *dense, 3), len(layer.dilated_kernel_size)
    expected = {"weight": shape, "bias": (6,), "positions": (axes, *shape)}
    expected |= {"sigma": (axes, *shape)} if version in ("max", "gauss") else {}
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected
    assert layer.kernel().shape == (6, 2, *layer.kernel_size)
    assert isinstance(layer, CONVS[layer.kernel().dim()])


def test_repr_names_what_differs_from_a_plain_convolution():
    assert repr(Dcls2d(4, 6, 3, padding=2, dilated_kernel_size=5)) == (
        "Dcls2d(4, 6, kernel_count=3, dilated_kernel_size=(5, 5), version='gauss', "
        "stride=(1, 1), padding=(2, 2))"
    )
    full = small(stride=2, padding=1, dilation=2, bias=False, padding_mode="reflect", version="v0")
    assert repr(full) == (
        "Dcls2d(4, 6, kernel_count=3, dilated_kernel_size=(5, 6), version='v0', stride=(2, 2), "
        "padding=(1, 1), dilation=(2, 2), groups=2, padding_mode='reflect', bias=False)"
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": 3},
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": "same", "dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "replicate"},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "circular"},
        {"groups": 1, "bias": False},
    ],
    ids=str,
)
@all_classes
def test_the_rest_is_nn_conv(cls, kwargs):
    """Outputs and gradients of the input equal those of nn.ConvNd with the same dense kernel."""
    layer = small(cls, **kwargs)
    x = image(layer, side=12, requires_grad=True)
    conv_words = {"groups": 2, **kwargs}
    conv = CONVS[x.dim()](4, 6, layer.kernel_size, **conv_words)
    conv.load_state_dict({"weight": layer.kernel()} | ({} if layer.bias is None else {"bias": layer.bias}))
    output, expected = layer(x), conv(x)
    assert torch.equal(output, expected)
    cotangent = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, x, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, x, cotangent)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("version", ["v0", "v1", "max"])
def test_integer_positions_on_a_full_grid_are_a_dense_convolution(version):
    conv = nn.Conv2d(3, 4, (3, 5), padding=1)
    layer = Dcls2d(3, 4, 15, padding=1, dilated_kernel_size=(3, 5), version=version)
    row, column = torch.meshgrid(torch.arange(3) - 1, torch.arange(5) - 2, indexing="ij")
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(2))
        layer.bias.copy_(conv.bias)
        layer.positions.copy_(torch.stack([row, column]).reshape(2, 1, 1, 15).expand_as(layer.positions))
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=2e-6)
    cotangent = torch.randn(2, 4, 6, 5)
    inputs, dense_inputs = (x, layer.weight, layer.bias), (x, conv.weight, conv.bias)
    grads = torch.autograd.grad(layer(x), inputs, cotangent)
    for grad, expected in zip(grads, torch.autograd.grad(conv(x), dense_inputs, cotangent), strict=True):
        torch.testing.assert_close(grad, expected.reshape(grad.shape), rtol=0, atol=2e-5)


@all_classes
def test_an_unbatched_input_is_taken_as_nn_conv_takes_it(cls):
    layer = small(cls)
    x = image(layer, batch=1)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@all_classes
def test_an_empty_batch_has_an_empty_output_and_zero_gradients(cls):
    layer = small(cls)
    output = layer(image(layer, batch=0))
    output.sum().backward()
    assert output.shape[:2] == (0, 6)
    for parameter in layer.parameters():
        assert (parameter.grad == 0).all()


@pytest.mark.parametrize("of", ["input", "layer", "both"])
def test_channels_last(of):
    layer = Dcls2d(8, 8, 5, padding=3, dilated_kernel_size=7, groups=8)
    x = torch.randn(2, 8, 9, 9)
    expected = layer(x)
    if of != "input":
        layer = layer.to(memory_format=torch.channels_last)
    if of != "layer":
        x = x.to(memory_format=torch.channels_last)
    output = layer(x)
    output.sum().backward()
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    assert of == "layer" or output.is_contiguous(memory_format=torch.channels_last)
    assert layer.positions.grad.abs().sum() > 0


@all_versions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(version, dtype):
    layer = small(version=version, padding="same")
    x = image(layer)
    made_so, cast = small(version=version, dtype=dtype), small(version=version).to(dtype)
    assert {p.dtype for p in [*made_so.parameters(), *cast.parameters()]} == {dtype}
    expected = layer(x)
    layer = layer.to(dtype)
    output = layer(x.to(dtype))
    output.sum().backward()
    assert output.dtype == layer.positions.grad.dtype == dtype
    torch.testing.assert_close(
        output.float(), expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5
    )


@all_versions
@all_classes
def test_a_layer_made_on_meta_is_filled_later_as_one_made_at_once(cls, version):
    at_once = small(cls, version=version)
    layer = small(cls, version=version, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    at_once.reset_parameters()
    assert layer.state_dict().keys() == at_once.state_dict().keys()
    for name, value in at_once.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)
    with torch.device("meta"):
        assert small(cls, version=version).kernel().device.type == "meta"


# --- deployment: fuse, compile, export, trace, script ---


@pytest.mark.parametrize("training", [True, False])
@all_classes
def test_fuse_gives_the_plain_convolution(cls, training):
    layer = small(cls, stride=2, padding=1, dtype=torch.float64).train(training)
    layer.weight.requires_grad_(False)
    fused = layer.fuse()
    x = image(layer, dtype=torch.float64)
    assert type(fused) is CONVS[x.dim()]
    assert fused.training == training
    assert (fused.weight.dtype, fused.weight.device) == (torch.float64, layer.weight.device)
    assert (fused.weight.requires_grad, fused.bias.requires_grad) == (False, True)
    assert fused.bias.data_ptr() != layer.bias.data_ptr()
    assert torch.equal(fused(x), layer(x))
    assert small(cls, bias=False).fuse().bias is None


def test_fuse_keeps_device_and_dtype():
    fused = small(device="meta", dtype=torch.bfloat16).fuse()
    assert {(p.device.type, p.dtype) for p in fused.parameters()} == {("meta", torch.bfloat16)}


def test_timm_reparameterizes_a_model_without_touching_the_original():
    model = nn.Sequential(small(), nn.ReLU(), nn.Sequential(Dcls2d(6, 6, 3, dilated_kernel_size=3))).eval()
    x = torch.randn(2, 4, 9, 9)
    deployed = timm.utils.model.reparameterize_model(model)
    assert [type(m) for m in deployed.modules()] == [
        nn.Sequential,
        nn.Conv2d,
        nn.ReLU,
        nn.Sequential,
        nn.Conv2d,
    ]
    assert sum(isinstance(m, DclsNd) for m in model.modules()) == 2
    torch.testing.assert_close(deployed(x), model(x), rtol=0, atol=1e-6)


class Classifier(nn.Module):
    """Arithmetic around two layers, for tools that look at graphs."""

    def __init__(self, version: str = "gauss") -> None:
        super().__init__()
        self.first, self.second = small(version=version, padding="same"), Dcls2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("training", [True, False])
@all_versions
def test_compile_in_one_graph(version, training):
    torch._dynamo.reset()
    model = Classifier(version).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 8, 8)
    expected = model(x)
    expected.sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    output = compiled(x)
    output.sum().backward()
    torch.testing.assert_close(output, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name])


@all_versions
def test_export(version):
    model = Classifier(version).eval()
    x = torch.randn(2, 4, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 4, 8, 8)
    torch.testing.assert_close(program.module()(more), model(more))
    assert set(program.state_dict) == set(model.state_dict())


@all_versions
def test_fx_trace_keeps_the_layers(version):
    model = Classifier(version)
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(traced(x), model(x))
    (grad,) = torch.autograd.grad(traced(x).sum(), model.first.positions)
    assert grad.abs().sum() > 0


@deprecated_but_used
@all_versions
def test_jit_trace(version):
    model = Classifier(version).eval()
    x = torch.randn(2, 4, 8, 8)
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x + 1), model(x + 1))


@deprecated_but_used
@all_versions
def test_jit_script_leaves_the_model_as_it_was(version, tmp_path):
    model = Classifier(version).eval()
    x = torch.randn(2, 4, 8, 8)
    modules = [(name, type(module), id(module)) for name, module in model.named_modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.jit.script(model).save(tmp_path / "model.pt")
    scripted = torch.jit.load(tmp_path / "model.pt")
    torch.testing.assert_close(scripted(x), model(x))
    assert [(name, type(module), id(module)) for name, module in model.named_modules()] == modules
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert b"_scripted_kernel" not in pickle.dumps(model)  # a copy takes no stale kernel along


@deprecated_but_used
def test_a_scripted_layer_refuses_to_train():
    scripted = torch.jit.script(small().train())
    with pytest.raises(Exception, match="script the model in eval mode"):
        scripted(torch.randn(2, 4, 8, 8))


def test_dense_layers_are_vmapped_over_their_input():
    layer = Dcls2d(4, 6, 5, padding=3, dilated_kernel_size=7)
    image = torch.randn(3, 2, 4, 3, 3)
    expected = torch.stack([layer(x) for x in image])
    torch.testing.assert_close(torch.func.vmap(layer)(image), expected)


@pytest.mark.parametrize("side", [3, 18])
def test_dense_kernels_meet_few_pixels_in_their_own_layout(side):
    layer = Dcls2d(4, 6, 5, padding=3, dilated_kernel_size=7, version="v0").double()
    image = torch.randn(1, 4, side, side, dtype=torch.float64)
    tall = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    assert prefers_contiguous(tall, layer.kernel()) == (image.numel() < 4 * 6 * 49)
    assert not prefers_contiguous(image, layer.kernel())
    output, expected = layer(tall), layer(image)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, check_stride=False)
    grads = [torch.autograd.grad(y.square().sum(), layer.weight)[0] for y in (output, expected)]
    torch.testing.assert_close(*grads)
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    torch.testing.assert_close(traced(tall), expected, check_stride=False)
