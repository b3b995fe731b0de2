"""The kernel that a layer keeps in eval mode without gradients."""

import copy
import pickle

import pytest
import timm
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dcls_models.layers import Dcls2d, DclsNd
from dcls_models.layers import kernel_cache as module


def layer_of(version="gauss", **words) -> Dcls2d:
    return Dcls2d(4, 4, 5, padding=4, dilated_kernel_size=9, groups=4, version=version, **words).eval()


@pytest.fixture
def builds(monkeypatch):
    """How many kernels were built."""
    calls = []
    build = DclsNd._kernel
    monkeypatch.setattr(DclsNd, "_kernel", lambda self, *a: calls.append(self) or build(self, *a))
    return calls


@torch.no_grad()
def output(layer, x=None):
    return layer(torch.ones(1, 4, 12, 12, dtype=layer.weight.dtype) if x is None else x)


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_built_once(version, builds):
    layer = layer_of(version)
    first = output(layer)
    assert torch.equal(output(layer), first) and torch.equal(output(layer), first)
    assert len(builds) == 1
    with torch.inference_mode():
        layer(torch.ones(1, 4, 12, 12))
    assert len(builds) == 1


def test_not_kept_with_gradients_or_in_training(builds):
    layer = layer_of()
    x = torch.ones(1, 4, 12, 12)
    for _ in range(2):
        layer(x)
    assert len(builds) == 2
    layer.train()
    for _ in range(2):
        output(layer)
    assert len(builds) == 4 and layer._kept is None


def write_weight(layer):
    with torch.no_grad():
        layer.weight.mul_(2)


def write_positions(layer):
    with torch.no_grad():
        layer.positions.add_(1)


def write_sigma(layer):
    with torch.no_grad():
        layer.sigma.add_(1)


def replace(layer):
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def replace_data(layer):
    layer.weight.data = layer.weight.data * 2


def load(layer):
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})


def assign(layer):
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}, assign=True)


def step(layer):
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(layer.parameters(), lr=0.5).step()


def fused_step(layer):
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(layer.parameters(), lr=0.5, fused=True).step()


def average(layer):
    other = copy.deepcopy(layer)
    write_weight(other)
    ema = ModelEmaV3(layer, decay=0.5)
    ema.module = layer
    ema.update(other)


def write_data(layer):
    layer.positions.data.add_(1)


def write_numpy(layer):
    layer.weight.detach().numpy()[:] *= 2


def change_version(layer):
    layer.version = "max"


def change_size(layer):
    layer.dilated_kernel_size = (7, 9)
    layer.kernel_size, layer.padding = (7, 9), (3, 4)


def change_sigma_offset(layer):
    layer.sigma_offset = 1.0


CHANGES = [
    change_version,
    change_size,
    change_sigma_offset,
    write_weight,
    write_positions,
    write_sigma,
    replace,
    replace_data,
    load,
    assign,
    step,
    fused_step,
    average,
    write_data,
    write_numpy,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_every_change_is_seen(change):
    layer = layer_of()
    before = output(layer)
    change(layer)
    after = output(layer)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, layer(torch.ones(1, 4, 12, 12)).detach())


@pytest.mark.gpu
def test_nothing_is_kept_on_a_gpu(builds):
    layer, x = layer_of().cuda(), torch.ones(1, 4, 12, 12).cuda()
    before = output(layer, x)
    layer.weight.data.mul_(2)
    assert not torch.equal(output(layer, x), before)
    assert len(builds) == 2


def test_loaded_positions_outside_count_as_on_the_limit_once_they_change():
    layer = layer_of("v0")
    layer.load_state_dict(layer.state_dict() | {"positions": layer.positions.sign() * 4.5})
    before = output(layer)
    layer.positions_kept_at = None
    after = output(layer)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, layer(torch.ones(1, 4, 12, 12)).detach())


def test_replaced_by_another_thread_in_the_middle_of_a_call(monkeypatch):
    layer = layer_of()
    before = output(layer)
    compare = module._are_equal
    monkeypatch.setattr(module, "_are_equal", lambda *a: setattr(layer, "_kept", None) or compare(*a))
    assert torch.equal(output(layer), before)


def test_casts_and_moves():
    layer = layer_of()
    output(layer)
    assert output(layer.double()).dtype == torch.float64
    torch.testing.assert_close(output(layer), layer(torch.ones(1, 4, 12, 12).double()).detach())
    layer.to("meta")
    x = torch.ones(1, 4, 12, 12, device="meta", dtype=torch.float64)
    assert output(layer, x).device.type == "meta"


def test_writes_to_parameters_of_inference_mode_are_seen(builds):
    with torch.inference_mode():
        layer = layer_of()
        first = layer(torch.ones(1, 4, 12, 12))
        layer.weight.mul_(2)  # torch does not count it
        assert not torch.equal(layer(torch.ones(1, 4, 12, 12)), first)
    assert len(builds) == 2


def test_a_kernel_from_inference_mode_serves_no_grad_and_spoils_no_gradient():
    layer = layer_of()
    with torch.inference_mode():
        layer(torch.ones(1, 4, 12, 12))
    output(layer)
    x = torch.ones(1, 4, 12, 12, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0 and layer.weight.grad.abs().sum() > 0


def test_shared_positions_are_seen_by_every_layer():
    model = timm.create_model("test_convnext_dcls").eval()
    x = torch.randn(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        before = model(x)
        model.stages[0].positions.add_(1)
        after = model(x)
        assert not torch.equal(before, after)
    torch.testing.assert_close(after, model(x).detach())


def test_in_no_state_dict_copy_or_pickle():
    layer = layer_of()
    output(layer)
    assert layer._kept is not None
    assert set(layer.state_dict()) == {"weight", "positions", "sigma", "bias"}
    assert copy.deepcopy(layer)._kept is None
    assert pickle.loads(pickle.dumps(layer))._kept is None


@pytest.mark.parametrize("how", ["compile", "export", "trace"])
def test_in_no_graph(how):
    layer, x = layer_of(), torch.ones(1, 4, 12, 12)
    with torch.no_grad():
        before = layer(x)
        if how == "compile":
            function = torch.compile(layer, backend="eager", fullgraph=True)
        elif how == "export":
            function = torch.export.export(layer, (x,)).module()
        else:
            function = torch.jit.trace(layer, x)
        torch.testing.assert_close(function(x), before)
        for module in (layer, function):
            for name, p in module.named_parameters():
                if name.endswith("weight"):
                    p.data.mul_(3)  # nothing that the cache would see
        assert not torch.allclose(function(x), before), "the graph holds a kernel"


def test_not_kept_from_what_records():
    layer, x = layer_of(), torch.ones(1, 4, 12, 12)
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True):
            layer(x)
        before = layer(x)
        assert type(before) is torch.Tensor
        graph = make_fx(layer)(x)
        layer.weight.data.mul_(3)
        assert not torch.allclose(graph(x), before)


def test_functional_call_uses_the_parameters_that_it_is_given():
    layer = layer_of()
    output(layer)
    other = {name: p.detach() * 2 for name, p in layer.named_parameters()}
    with torch.no_grad():
        found = torch.func.functional_call(layer, other, (torch.ones(1, 4, 12, 12),))
        layer.load_state_dict(other)
    torch.testing.assert_close(found, output(layer))
