"""``deploy``: the same outputs from plain modules, whatever was measured to be faster."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import dcls_models
from dcls_models.deploy import fused
from dcls_models.layers import Dcls1d, Dcls2d, DclsNd, linear, long_kernels
from dcls_models.layers.depthwise import operators
from dcls_models.layers.depthwise.module import DepthwiseConv2d, use_operator
from dcls_models.layers.linear import FastLinear, fast_linear, onednn_is_faster, use_fast_linear
from dcls_models.layers.long_kernels import LongConv1d, fft_convolution

FAMILIES = timm.list_models("test_*dcls*")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN counts as faster, on any processor and for products of any size."""
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    for name in ("INFERENCE_FROM", "TRAINING_FROM", "TRAINING_ROWS"):
        monkeypatch.setattr(linear, name, 1)


def make(name: str = "test_convnext_dcls", **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):
            nn.init.ones_(parameter)  # as it comes, the blocks add next to nothing
    return model


def images_for(model: nn.Module, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *model.pretrained_cfg["input_size"], generator=generator)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    spread = (expected.max() - expected.min()).item()
    assert (actual - expected).abs().max().item() < 1e-5 * max(1.0, spread)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same(name: str, always: None) -> None:
    model = make(name)
    images = images_for(model)
    with torch.no_grad():
        expected = model(images)
    before = copy.deepcopy(model.state_dict())
    deployed: Any = dcls_models.deploy(model)
    output = deployed(images)
    assert_close(output, expected)
    assert not output.requires_grad and not deployed.training
    assert not any(isinstance(m, DclsNd) for m in deployed.modules())
    assert not any(k.endswith(("positions", "sigma")) for k in deployed.state_dict())
    layers = sum(isinstance(m, DclsNd) for m in model.modules())
    assert deployed.deployment["fused"] == layers > 0
    assert set(deployed.deployment) >= {"channels_last", "trimmed", "fast_linear", "ms_fused", "ms"}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the model was changed"


class Foreign(nn.Module):
    """As ultralytics' heads: ``fuse`` makes it something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean((2, 3)))

    def fuse(self) -> None:
        self.conv = self.head = None  # type: ignore[assignment]


def test_a_foreign_models_own_fuse_is_not_called() -> None:
    inner = Foreign()
    model = dcls_models.dclsify(nn.Sequential(nn.Conv2d(3, 8, 1), inner), dilated_kernel_size=9).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
    deployed = dcls_models.deploy(model, images)
    assert_close(deployed(images), expected)
    assert type(deployed[1].conv) is nn.Conv2d
    with pytest.raises(ValueError, match="Sequential says no input_size: give deploy an example_input"):
        dcls_models.deploy(model)


def test_layers_that_share_positions_or_stand_alone_are_fused() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    model = dcls_models.dclsify(Foreign(), "conv", dilated_kernel_size=5).eval()
    model.extra = dcls_models.dclsify(block, share=[block], dilated_kernel_size=5)
    plain = fused(model)
    assert not any(isinstance(m, DclsNd) for m in plain.modules())
    assert not hasattr(plain.extra, "positions") and not hasattr(plain.extra, "reparameterize")
    layer = Dcls2d(4, 4, 3, dilated_kernel_size=5, groups=4)
    assert type(fused(layer)) is nn.Conv2d


def test_one_layer_in_two_places_stays_one() -> None:
    layer = Dcls2d(4, 4, 3, padding=2, dilated_kernel_size=5, groups=4)
    plain: Any = fused(nn.Sequential(layer, nn.GELU(), layer))
    assert plain[0] is plain[2] and type(plain[0]) is nn.Conv2d


def test_kernels_are_trimmed_only_where_they_may_be() -> None:
    deployed: Any = dcls_models.deploy(make(), trims=False)
    kernels = [m.kernel_size for m in deployed.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert set(kernels) == {(17, 17)} and not deployed.deployment["trimmed"]


@pytest.mark.parametrize("way", ["export", "trace", "script", "compile"])
def test_what_is_deployed_leaves_python(way: str, always: None, tmp_path: Path) -> None:
    model = make("test_convnext_dcls", depths=(1, 1, 1, 1))
    images = images_for(model)
    deployed = dcls_models.deploy(model)
    use_fast_linear(deployed)  # whatever was measured
    ways: dict[str, Callable[[], Any]] = {
        "export": lambda: torch.export.export(deployed, (images,)).module(),
        "trace": lambda: torch.jit.trace(deployed, images),
        "script": lambda: torch.jit.script(deployed),
        "compile": lambda: torch.compile(deployed, fullgraph=True, backend="eager"),
    }
    left = ways[way]()
    assert_close(left(images), deployed(images))
    if way == "export":
        graph = str(torch.export.export(deployed, (images,)).graph)
        assert "mkldnn" not in graph and "aten.linear" in graph


@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (2, 3, 5, 24), (0, 24), (24,)])
@pytest.mark.parametrize("bias", [True, False])
def test_fast_linear_is_linear(shape: tuple[int, ...], bias: bool, always: None) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(16, 24)
    offset = torch.randn(16) if bias else None
    for gelu in (False, True):
        expected = F.gelu(F.linear(x, weight, offset)) if gelu else F.linear(x, weight, offset)
        torch.testing.assert_close(fast_linear(x, weight, offset, gelu), expected, atol=1e-5, rtol=1e-5)
    leaves = [t.clone().requires_grad_() for t in (x, weight, offset) if t is not None]
    grads = [torch.autograd.grad(f(*leaves).square().sum(), leaves) for f in (fast_linear, F.linear)]
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-4)


def test_fast_linear_takes_views_and_transforms(always: None) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 6, 24), torch.randn(16, 24)
    for view in (x.transpose(0, 1), x[:, ::2], x[..., :0].new_zeros(6, 24).t().t()):
        torch.testing.assert_close(fast_linear(view, weight), F.linear(view, weight), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.func.vmap(fast_linear, in_dims=(0, None))(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-5
    )
    _, tangent = torch.func.jvp(lambda t: fast_linear(t, weight), (x,), (x,))
    torch.testing.assert_close(tangent, F.linear(x, weight), atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_linear(x, weight).dtype == torch.bfloat16
    assert fast_linear(x.double(), weight.double()).dtype == torch.float64
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(fast_linear(leaf, weight).pow(3).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    again = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(F.linear(again, weight).pow(3).sum(), again, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.sum(), again)[0], atol=1e-2, rtol=1e-4)


def test_training_keeps_keys_and_steps(always: None) -> None:
    plain, fast = make(), use_fast_linear(make())
    assert [*plain.state_dict()] == [*fast.state_dict()]
    images = images_for(plain)
    for model in (plain, fast):
        model.train()(images).square().sum().backward()
    assert any(type(m) is FastLinear for m in fast.modules())
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        scale = max(1.0, a.grad.abs().max().item())
        assert (a.grad - b.grad).abs().max().item() < 1e-4 * scale, name


def test_nothing_changes_where_mkl_is_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)
    model = use_fast_linear(make(), gelu=True)
    assert not any(isinstance(m, FastLinear) for m in model.modules())
    x, weight = torch.randn(4096, 64), torch.randn(64, 64)
    assert torch.equal(fast_linear(x, weight), F.linear(x, weight))
    assert isinstance(onednn_is_faster(), bool)


def test_the_trainer_trains_with_them(always: None) -> None:
    from train.module import Classifier

    trained, plain = (
        Classifier("test_convnext_dcls", num_classes=3, fast_linear=fast) for fast in (True, False)
    )
    assert any(isinstance(m, FastLinear) for m in trained.modules())
    assert not any(isinstance(m, FastLinear) for m in plain.modules())
    assert [*trained.state_dict()] == [*plain.state_dict()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("aware", [False, True], ids=["static", "quantization-aware"])
@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_torchao_quantizes_layers_as_they_are(version: str, aware: bool) -> None:
    pytest.importorskip("torchao", reason="pip install torchao")
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model = make(version=version)
    images = images_for(model)
    expected = model(images).detach()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=aware))
    prepare = quantize_pt2e.prepare_qat_pt2e if aware else quantize_pt2e.prepare_pt2e
    prepared = prepare(torch.export.export(model.train(aware), (images,)).module(), quantizer)
    observed = prepared(images)
    if aware:
        observed.sum().backward()
        assert all(p.grad is not None for n, p in prepared.named_parameters() if n.endswith("positions"))
    change = (quantize_pt2e.convert_pt2e(prepared)(images) - expected).abs().max()
    assert 0 < change < 0.2 * (expected.max() - expected.min())


def test_depthwise_convolutions_by_the_operator_are_the_same(tmp_path: Path) -> None:
    model = fused(make())
    images = images_for(model)
    expected, keys = model(images), list(model.state_dict())
    use_operator(model)
    changed = [m for m in model.modules() if isinstance(m, DepthwiseConv2d)]
    assert changed and all(m.groups == m.in_channels and m.stride == (1, 1) for m in changed)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(copy.deepcopy(model)(images), expected)
    torch.testing.assert_close(torch.jit.script(model)(images), expected)
    exported = torch.export.export(model, (images,))
    assert not any("dcls" in str(node.target) for node in exported.graph.nodes)


def test_long_kernels_along_time_go_through_ffts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [Dcls1d(4, 4, 5, dilated_kernel_size=257, padding=128, groups=4), nn.Conv1d(4, 2, 3)]
    model, sound = nn.Sequential(*layers).eval(), torch.randn(2, 4, 1000)
    deployed: Any = dcls_models.deploy(model, sound)
    assert [type(m) for m in deployed] == [LongConv1d, nn.Conv1d]
    assert list(deployed.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    calls = []
    monkeypatch.setattr(long_kernels, "fft_convolution", lambda *a: calls.append(1) or fft_convolution(*a))
    torch.testing.assert_close(deployed(sound), model(sound), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2, "the layer itself does it as well"
    expected = fused(model)(sound)
    for again in (
        copy.deepcopy(deployed),
        torch.jit.script(deployed),
        torch.export.export(deployed, (sound,)).module(),
    ):
        torch.testing.assert_close(again(sound), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_large_kernels_go_through_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCLS_TRITON", "1")
    model = make().cuda().bfloat16()
    images = images_for(model).cuda().bfloat16()
    calls: list[torch.dtype] = []
    operator = operators.convolution
    monkeypatch.setattr(operators, "convolution", lambda *a: calls.append(a[0].dtype) or operator(*a))
    deployed = dcls_models.deploy(model, images)
    assert set(calls) == {torch.bfloat16}
    calls.clear()
    with torch.no_grad():
        found, expected = deployed(images).float(), model.double()(images.double()).float()
    assert calls and (found - expected).norm() <= 5e-2 * expected.norm()
