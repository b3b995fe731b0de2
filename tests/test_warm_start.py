"""Starting from a dense model: exact where it can be, the best fit where not, reported either way."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from timm.models import save_for_hf
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from dcls_models import WarmStart, dclsify, warm_start
from dcls_models.layers import SCHEMES, Dcls2_1d, Dcls2d, DclsNd

CLASSES = 10
RESNET = {"layers": (1, 2, 2, 1), "channels": (8, 12, 16, 24)}
FASTVIT = {"layers": (1, 1, 2, 1), "embed_dims": (8, 16, 32, 64), "mlp_ratios": (3, 3, 3, 3)}
METAFORMER = {"depths": (1, 2, 2, 1), "dims": (16, 24, 32, 64)}

SOURCES: dict[str, Callable[[], nn.Module]] = {  # what each of the zoo's test models is made from
    "test_convnext_dcls": partial(timm.create_model, "test_convnext", num_classes=CLASSES),
    "test_resnet_dcls": partial(ResNet, Bottleneck, num_classes=CLASSES, **RESNET),
    "test_fastvit_dcls": partial(
        FastVit,
        num_classes=CLASSES,
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        pos_embs=(None, None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7))),
        **FASTVIT,
    ),
    "test_convformer_dcls": partial(
        MetaFormer,
        num_classes=CLASSES,
        token_mixers=SepConv,
        norm_layers=LayerNorm2dNoBias,
        **METAFORMER,
    ),
    "test_caformer_dcls": partial(
        MetaFormer,
        num_classes=CLASSES,
        token_mixers=[SepConv, SepConv, Attention, Attention],
        norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
        **METAFORMER,
    ),
}
TAPS = {name: 9 if "resnet" in name else 49 for name in SOURCES}


@torch.no_grad()
def awake(model: nn.Module) -> nn.Module:
    """Random values everywhere: as initialised, layer scales of 1e-6 would hide the convolutions."""
    for name, p in model.named_parameters():
        if p.ndim > 1:
            p.normal_(std=p[0].numel() ** -0.5)
        elif name.endswith("bias"):
            p.normal_(std=0.1)
        else:
            p.normal_(1, 0.1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 1.5)
    return model


def pair(name: str, **overrides: object) -> tuple[nn.Module, nn.Module]:
    """A model of the zoo and the dense model that it can start from."""
    model = timm.create_model(name, num_classes=CLASSES, **{"kernel_count": TAPS[name], **overrides})
    return model.eval(), awake(SOURCES[name]()).eval()


def dcls_layers(model: nn.Module) -> dict[str, DclsNd]:
    return {name: m for name, m in model.named_modules() if isinstance(m, DclsNd)}


def holders(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if "positions" in m._parameters]


def embedded(layer: DclsNd, conv: nn.Module) -> torch.Tensor:
    """The dense kernel in the middle of a kernel of the layer's size (odd sizes), in float64."""
    padding = [(k - t) // 2 for k, t in zip(layer.kernel_size, conv.kernel_size, strict=True)]
    padding = [p for p in reversed(padding) for _ in range(2)]
    return nn.functional.pad(conv.weight.detach().double(), padding)


def assert_same_logits(a: nn.Module, b: nn.Module, image: torch.Tensor, tolerance: float = 2e-5) -> None:
    with torch.no_grad():
        ours, theirs = a(image), b(image)
    assert theirs.std() > 1e-2, "a test that would not notice anything"
    torch.testing.assert_close(ours, theirs, atol=tolerance * theirs.abs().max().item(), rtol=0)


def warm_start_of(model: nn.Module, **spacings: object) -> WarmStart:
    source = copy.deepcopy(model)
    return warm_start(dclsify(model, version="v0", **spacings), source)  # type: ignore[arg-type]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


class TestExact:
    """Enough elements for the dense kernel: 49 for 7x7, 9 for 3x3."""

    @pytest.mark.parametrize("version", ["v0", "v1", "max"])
    @pytest.mark.parametrize("name", SOURCES)
    def test_families(self, name: str, version: str, image: torch.Tensor) -> None:
        model, source = pair(name, version=version)
        report = warm_start(model, source, jitter=0, example_input=image)
        for layer_name, layer in dcls_layers(model).items():
            dense = embedded(layer, source.get_submodule(layer_name))
            error = (layer.kernel().double() - dense).abs().max()
            assert error <= (0 if version == "v0" else 1e-6 * dense.abs().max()), layer_name
        assert report.residuals.keys() == dcls_layers(model).keys()
        assert max(report.residuals.values()) <= (0 if version == "v0" else 2e-7)
        assert_same_logits(model, source, image)
        assert report.logits_change is not None
        assert report.logits_change < 2e-5
        assert report.jitter_change == 0

    def test_bit_for_bit_where_the_convolution_is_the_same(self, image: torch.Tensor) -> None:
        model, source = pair("test_convnext_dcls", version="v0", dilated_kernel_size=7)
        report = warm_start(model, source, example_input=image)
        with torch.no_grad():
            assert torch.equal(model(image), source(image))
        assert report.logits_change == 0
        assert set(report.residuals.values()) == {0.0}

    @pytest.mark.parametrize("name", SOURCES)
    def test_gauss_spreads_a_little(self, name: str, image: torch.Tensor) -> None:
        model, source = pair(name, version="gauss")
        report = warm_start(model, source, example_input=image)
        assert 1e-4 < max(report.residuals.values()) < 1e-2
        assert report.jitter_change == 0
        assert_same_logits(model, source, image, tolerance=2e-2)

    @pytest.mark.parametrize("version", SCHEMES)
    def test_more_elements_than_pixels(self, version: str, image: torch.Tensor) -> None:
        model, source = pair("test_convnext_dcls", version=version, kernel_count=60)
        before = [h.positions.detach().clone() for h in holders(model)]
        report = warm_start(model, source, jitter=0, example_input=image)
        assert max(report.residuals.values()) <= (1e-2 if version == "gauss" else 2e-7)
        for layer in dcls_layers(model).values():
            assert not layer.weight[..., 49:].any()
            assert layer.weight[..., :49].any()
        for holder, start in zip(holders(model), before, strict=True):
            assert torch.equal(holder.positions[..., 49:], start[..., 49:])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtype_than_the_source(self, dtype: torch.dtype, image: torch.Tensor) -> None:
        model, source = pair("test_convnext_dcls", version="v0")
        report = warm_start(model.to(dtype), source, example_input=image)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert max(report.residuals.values()) < (1e-11 if dtype == torch.float64 else 1e-2)
        assert report.logits_change is not None
        assert report.logits_change < (1e-5 if dtype == torch.float64 else 0.1)


def unit_maps(positions: torch.Tensor, sigma: torch.Tensor | None, size: int, version: str) -> torch.Tensor:
    """Direct formula, float64: what one unit of weight at each position spreads to, (..., n, K, K)."""
    pixel = torch.arange(size, dtype=torch.float64) - size // 2
    distance = (pixel - positions.double().unsqueeze(-1)).abs()  # 2 ... n K
    if version == "gauss":
        assert sigma is not None
        factor = torch.exp(-(distance**2) / 2 / (0.27 + sigma.double().abs().unsqueeze(-1)) ** 2)
    else:
        factor = (1 - distance).clamp(min=0)
    maps = factor[0].unsqueeze(-1) * factor[1].unsqueeze(-2)
    return maps if version == "v0" else maps / maps.sum((-1, -2), keepdim=True)


class TestFewerElements:
    @pytest.mark.parametrize(
        ("name", "count", "version"),
        [
            ("test_convnext_dcls", 34, "v0"),
            ("test_convformer_dcls", 40, "v1"),
            ("test_convnext_dcls", 34, "max"),
            ("test_fastvit_dcls", 26, "gauss"),
            ("test_convnext_dcls", 26, "gauss"),
            ("test_resnet_dcls", 5, "v0"),
            ("test_resnet_dcls", 5, "gauss"),
        ],
    )
    def test_least_squares(self, name: str, count: int, version: str) -> None:
        model, source = pair(name, kernel_count=count, version=version)
        report = warm_start(model, source, jitter=0, example_input=torch.randn(1, 3, 32, 32))
        for layer_name, layer in dcls_layers(model).items():
            dense = embedded(layer, source.get_submodule(layer_name))
            residual = (layer.kernel().double() - dense).norm() / dense.norm()
            assert report.residuals[layer_name] == pytest.approx(residual.item(), rel=1e-6)
            assert 0.01 < residual < 0.8

            maps = unit_maps(layer.positions, layer.sigma, layer.kernel_size[0], version)
            columns = maps.flatten(-2).flatten(0, 1).mT.detach()  # rows K*K n
            wanted = dense.flatten(2).flatten(0, 1).unsqueeze(-1)  # rows K*K 1
            best = torch.linalg.lstsq(columns, wanted).solution
            best_residual = (columns @ best - wanted).norm() / wanted.norm()
            assert residual.item() == pytest.approx(best_residual.item(), rel=1e-5)
            ours = layer.weight.detach().double().flatten(0, 1).unsqueeze(-1)
            torch.testing.assert_close(ours, best, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("name", ["test_convnext_dcls", "test_resnet_dcls"])
    def test_elements_stand_where_the_kernels_of_all_sharing_layers_are_strongest(self, name: str) -> None:
        count = 5 if "resnet" in name else 30
        model, source = pair(name, kernel_count=count, version="v0")
        report = warm_start(model, source, example_input=torch.randn(1, 3, 32, 32))
        for holder in holders(model):
            layers = {n: m for n, m in dcls_layers(model).items() if m.holder() is holder}
            energy = {n: source.get_submodule(n).weight.detach().double().square().flatten(2) for n in layers}
            together = torch.stack(list(energy.values())).sum(0)
            lost = together.sort(-1).values[..., :-count].sum()
            reported = sum(report.residuals[n] ** 2 * energy[n].sum() for n in layers)
            assert float(reported) == pytest.approx(lost.item(), rel=1e-5)

    def test_elements_stay_where_the_dense_kernel_was_even_if_it_is_empty(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
        nn.init.zeros_(model[0].weight)
        report = warm_start_of(model, kernel_count=5, dilated_kernel_size=17)
        assert model[0].positions.abs().max() <= 1
        assert report.residuals == {"0": 0.0}

    def test_loss_is_logged_as_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        model, source = pair("test_convnext_dcls", kernel_count=34)
        with caplog.at_level(logging.INFO, "dcls_models"):
            report = warm_start(model, source, example_input=torch.randn(1, 3, 32, 32))
        worst = max(report.residuals, key=lambda n: report.residuals[n])
        (record,) = [r for r in caplog.records if r.name == "dcls_models.warm_start"]
        assert record.levelname == "WARNING"
        assert worst in record.getMessage()
        assert f"{report.residuals[worst]:.2g}" in record.getMessage()
        assert str(report.logits_change) in record.getMessage()

    def test_no_warning_where_nothing_is_lost(self, caplog: pytest.LogCaptureFixture) -> None:
        model, source = pair("test_convnext_dcls")
        with caplog.at_level(logging.INFO, "dcls_models"):
            warm_start(model, source, example_input=torch.randn(1, 3, 32, 32))
        assert [r.levelname for r in caplog.records if r.name == "dcls_models.warm_start"] == ["INFO"]


def test_positions_stay_shared(image: torch.Tensor) -> None:
    model, source = pair("test_convnext_dcls", version="v1")
    keys = list(model.state_dict())
    parameters = {n: id(p) for n, p in model.named_parameters()}
    warm_start(model, source, example_input=image)
    assert list(model.state_dict()) == keys
    assert {n: id(p) for n, p in model.named_parameters()} == parameters
    assert len(holders(model)) == 4
    for stage in model.stages:
        assert all(layer.positions is stage.positions for layer in dcls_layers(stage).values())


class TestJitter:
    @pytest.mark.parametrize("version", ["v1", "max"])
    @pytest.mark.parametrize("jitter", [1e-3, 0.05])
    def test_reported_changes_are_what_they_say(
        self, version: str, jitter: float, image: torch.Tensor
    ) -> None:
        model, source = pair("test_convnext_dcls", version=version)
        report = warm_start(model, source, jitter=jitter, example_input=image)
        rounded = copy.deepcopy(model)
        for holder in holders(rounded):
            holder.positions.data.round_()
        with torch.no_grad():
            dense, fitted, jittered = source(image), rounded(image), model(image)
        assert report.logits_change == pytest.approx(change(dense, fitted), rel=1e-6)
        assert report.jitter_change == pytest.approx(change(fitted, jittered), rel=1e-6)
        assert jitter * 1e-2 < report.jitter_change < jitter * 10

    @pytest.mark.parametrize("version", ["v1", "max"])
    @pytest.mark.parametrize("size", [7, (7, 9), 17])
    def test_positions_leave_the_integers_but_not_the_kernel(
        self, version: str, size: int | tuple[int, int]
    ) -> None:
        """7x7 dense kernels: with a side of 7 they reach the border."""
        model, source = pair("test_convnext_dcls", version=version, dilated_kernel_size=size)
        warm_start(model, source, jitter=1e-3, example_input=torch.randn(1, 3, 32, 32))
        sizes = (size, size) if isinstance(size, int) else size
        for holder in holders(model):
            off = (holder.positions - holder.positions.round()).abs()
            assert off.min() > 4e-4
            assert off.max() < 1.1e-3
            for row, k in zip(holder.positions, sizes, strict=True):
                assert row.abs().max() <= k // 2
                assert row.abs().round().max() >= 3

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_resolves_it(self, dtype: torch.dtype) -> None:
        model, source = pair("test_convnext_dcls", version="v1", dilated_kernel_size=7)
        model.to(dtype)
        warm_start(model, source, example_input=torch.randn(1, 3, 32, 32))
        for holder in holders(model):
            assert holder.positions.ne(holder.positions.round()).all()
            assert holder.positions.abs().max() <= 3

    @pytest.mark.parametrize("version", ["v0", "gauss"])
    def test_versions_that_need_none_get_none(self, version: str) -> None:
        model, source = pair("test_convnext_dcls", version=version)
        report = warm_start(model, source, jitter=0.1, example_input=torch.randn(1, 3, 32, 32))
        assert report.jitter_change == 0
        assert all(torch.equal(h.positions, h.positions.round()) for h in holders(model))


def change(before: torch.Tensor, after: torch.Tensor) -> float:
    return ((after - before).abs().max() / before.abs().max()).item()


def moved_by_training(model: nn.Module, steps: int = 10) -> list[torch.Tensor]:
    """How far each position goes in some steps, for each holder ``(axes, n, out * in)``."""
    start = [h.positions.detach().clone() for h in holders(model)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    images = torch.randn(2, 3, 128, 128)  # 4 x 4 in the last stage: all of a 7x7 kernel sees something
    labels = torch.randint(CLASSES, (2,))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    ends = [h.positions.detach() for h in holders(model)]
    return [(e - s).abs().flatten(1, 2).transpose(1, 2) for e, s in zip(ends, start, strict=True)]


class TestPositionsMove:
    @pytest.mark.parametrize("count", [26, 52])
    @pytest.mark.parametrize("version", SCHEMES)
    def test_every_element_after_ten_steps(self, version: str, count: int) -> None:
        model, source = pair("test_convnext_dcls", version=version, kernel_count=count)
        warm_start(model, source, example_input=torch.randn(1, 3, 32, 32))
        for moved in moved_by_training(model):  # axes n channels
            assert moved.median(-1).values.min() > 1e-3
            assert moved.gt(1e-4).float().mean() > 0.95

    def test_widths_too(self) -> None:
        """At exactly 0, ``|sigma|`` would have no gradient."""
        model, source = pair("test_convnext_dcls", version="gauss")
        warm_start(model, source, example_input=torch.randn(1, 3, 32, 32))
        start = [h.sigma.detach().clone() for h in holders(model)]
        moved_by_training(model)
        for holder, sigma in zip(holders(model), start, strict=True):
            assert holder.sigma.ne(sigma).float().mean() > 0.95

    @pytest.mark.parametrize("version", SCHEMES)
    def test_from_the_border(self, version: str) -> None:
        """Some want to leave the kernel and stay at its border, all others move."""
        model, source = pair("test_convnext_dcls", version=version, dilated_kernel_size=7)
        warm_start(model, source, example_input=torch.randn(1, 3, 32, 32))
        for moved in moved_by_training(model):
            assert moved.median(-1).values.min() > 0
            assert moved.gt(1e-4).float().mean() > 0.8
        for holder in holders(model):
            assert holder.positions.abs().max() <= 3

    @pytest.mark.parametrize("version", ["v1", "max"])
    def test_without_jitter_they_would_stay_for_ever(self, version: str) -> None:
        model, source = pair("test_convnext_dcls", version=version)
        warm_start(model, source, jitter=0, example_input=torch.randn(1, 3, 32, 32))
        assert all(not moved.any() for moved in moved_by_training(model))


class TestSourceByName:
    """A timm name stands for that model with its pretrained weights."""

    @pytest.fixture
    def saved(self, tmp_path: Path) -> tuple[str, nn.Module]:
        source = awake(SOURCES["test_convnext_dcls"]()).eval()
        save_for_hf(source, tmp_path, safe_serialization=True)
        return f"local-dir:{tmp_path}", source

    def test_pretrained_weights_are_loaded(self, saved: tuple[str, nn.Module], image: torch.Tensor) -> None:
        name, source = saved
        model = timm.create_model("test_convnext_dcls", num_classes=CLASSES, kernel_count=49).eval()
        report = warm_start(model, name, example_input=image)
        assert report.logits_change is not None
        assert report.logits_change < 2e-5
        assert_same_logits(model, source, image)

    def test_a_new_head_and_other_channels(self, saved: tuple[str, nn.Module]) -> None:
        """As timm does it: another number of classes resets the head, stem filters are adapted."""
        name, source = saved
        model = timm.create_model("test_convnext_dcls", num_classes=3, in_chans=1, kernel_count=49).eval()
        report = warm_start(model, name)
        assert report.logits_change is not None
        assert model.head.fc.weight.shape == (3, 64)
        torch.testing.assert_close(model.stem[0].weight, source.stem[0].weight.sum(1, keepdim=True))
        block, dense = model.stages[2].blocks[1], source.stages[2].blocks[1]
        assert torch.equal(block.mlp.fc1.weight, dense.mlp.fc1.weight)
        assert torch.equal(block.conv_dw.kernel().double(), embedded(block.conv_dw, dense.conv_dw))

    def test_weights_from_a_file(self, tmp_path: Path, image: torch.Tensor) -> None:
        source = awake(SOURCES["test_convnext_dcls"]()).eval()
        torch.save(source.state_dict(), tmp_path / "weights.pth")
        overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": CLASSES}
        loaded = timm.create_model("test_convnext", pretrained=True, pretrained_cfg_overlay=overlay)
        model = timm.create_model("test_convnext_dcls", num_classes=CLASSES, kernel_count=49).eval()
        warm_start(model, loaded, example_input=image)
        assert_same_logits(model, source, image)


class TestMeasuring:
    def test_training_flag_of_every_module_is_restored(self, image: torch.Tensor) -> None:
        model, source = pair("test_resnet_dcls")
        model.train()
        model.layer2[0].bn1.eval()
        source.eval()
        source.layer1.train()
        flags = [[m.training for m in whole.modules()] for whole in (model, source)]
        statistics = {n: b.clone() for n, b in source.named_buffers()}
        warm_start(model, source, example_input=image)
        assert [[m.training for m in whole.modules()] for whole in (model, source)] == flags
        assert all(torch.equal(b, statistics[n]) for n, b in source.named_buffers())
        assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers())

    def test_default_image_is_that_of_the_model(self) -> None:
        for chans in (3, 1):
            source = awake(timm.create_model("test_convnext", in_chans=chans))
            model = timm.create_model("test_convnext_dcls", kernel_count=49, in_chans=chans)
            sizes = []
            model.stem.register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(args[0].shape))
            report = warm_start(model, source)
            assert sizes == [(1, chans, 160, 160)] * 2
            assert report.logits_change is not None

    def test_without_an_image_there_is_no_change_of_logits(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
        source = copy.deepcopy(model)
        dclsify(model, kernel_count=9, dilated_kernel_size=7)
        report = warm_start(model, source)
        assert report.logits_change is None
        assert report.jitter_change is None
        assert max(report.residuals.values()) < 1e-6

    def test_source_is_not_changed(self, image: torch.Tensor) -> None:
        model, source = pair("test_fastvit_dcls", kernel_count=20)
        before = {k: v.clone() for k, v in source.state_dict().items()}
        warm_start(model, source, example_input=image)
        assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


class TestDclsifyDense:
    """``dclsify(init="dense")``, on any model."""

    def start(self, model: nn.Module, image: torch.Tensor, **kwargs: object) -> tuple[torch.Tensor, ...]:
        awake(model).eval()
        with torch.no_grad():
            before = model(image)
            model = dclsify(model, "*", version="v0", init="dense", **kwargs)  # type: ignore[arg-type]
            after = model(image)
        assert dcls_layers(model)
        return before, after

    def assert_starts_equal(self, model: nn.Module, image: torch.Tensor, **kwargs: object) -> None:
        before, after = self.start(model, image, **kwargs)
        assert before.abs().max() > 0.1
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "name", ["mobilenetv3_small_050", "inception_next_atto", "tf_mobilenetv3_small_minimal_100"]
    )
    def test_timm_models(self, name: str, image: torch.Tensor) -> None:
        model = awake(timm.create_model(name, num_classes=CLASSES)).eval()
        plain = copy.deepcopy(model)
        dclsify(model, kernel_count=25, dilated_kernel_size=11, version="v0", init="dense")
        if name != "inception_next_atto":  # its bands of 11 pixels fit into 25 elements as well
            assert {m.kernel_size for m in plain.modules() if isinstance(m, nn.Conv2d) and m.groups > 1} <= {
                (3, 3),
                (5, 5),
            }
        assert_same_logits(model, plain, image)
        odd = torch.randn(1, 3, 65, 49)
        assert_same_logits(model, plain, odd)

    @pytest.mark.parametrize("old", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("new", [7, 8, 17])
    @pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
    def test_even_and_dilated_kernels(self, old: int, new: int, stride: int, dilation: int) -> None:
        """Where the sizes are not both odd or both even, the output may get one pixel larger."""
        conv = nn.Conv2d(4, 6, old, stride, padding=1, dilation=dilation, groups=2)
        image = torch.randn(1, 4, 23, 26)
        before, after = self.start(nn.Sequential(conv), image, kernel_count=49, dilated_kernel_size=new)
        height, width = before.shape[-2:]
        more = dilation * ((new - old) % 2)
        assert 0 <= after.shape[-2] - height <= more
        assert 0 <= after.shape[-1] - width <= more
        torch.testing.assert_close(after[..., :height, :width], before, atol=1e-5, rtol=1e-5)

    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
    @pytest.mark.parametrize(("old", "new"), [(3, 8), (3, 17), (4, 17), (4, 8), (2, 17), (5, 8)])
    def test_same_padding(self, old: int, new: int) -> None:
        model = nn.Sequential(nn.Conv2d(4, 6, old, padding="same", groups=2))
        self.assert_starts_equal(model, torch.randn(1, 4, 20, 21), kernel_count=25, dilated_kernel_size=new)

    @pytest.mark.parametrize("dilation", [1, 2])
    def test_valid_padding(self, dilation: int) -> None:
        model = nn.Sequential(nn.Conv2d(4, 6, 3, padding="valid", dilation=dilation))
        self.assert_starts_equal(model, torch.randn(1, 4, 20, 21), kernel_count=9, dilated_kernel_size=9)

    @pytest.mark.parametrize("size", [20, 21, 22])
    @pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
    def test_tensorflow_padding(self, size: int, stride: int, dilation: int) -> None:
        model = nn.Sequential(Conv2dSame(4, 6, 3, stride=stride, dilation=dilation))
        self.assert_starts_equal(model, torch.randn(1, 4, size, size), kernel_count=9, dilated_kernel_size=9)

    @pytest.mark.parametrize("mode", ["reflect", "circular"])
    def test_padding_mode(self, mode: str) -> None:
        """Inside, the output is the same; towards the border, more is reflected than before, times zero."""
        model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode))
        self.assert_starts_equal(model, torch.randn(1, 4, 20, 21), kernel_count=9, dilated_kernel_size=9)

    @pytest.mark.parametrize("dims", [1, 3])
    def test_other_dimensions(self, dims: int) -> None:
        conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
        model = nn.Sequential(conv(4, 6, 3, padding=1, stride=2))
        shape = (1, 4, *[12] * dims)
        self.assert_starts_equal(model, torch.randn(shape), kernel_count=3**dims, dilated_kernel_size=5)

    def test_the_model_may_be_one_convolution(self) -> None:
        conv = nn.Conv2d(4, 6, 3, padding=1)
        self.assert_starts_equal(conv, torch.randn(1, 4, 12, 12), kernel_count=9, dilated_kernel_size=7)

    @pytest.mark.parametrize("same_parent", [True, False])
    def test_a_convolution_at_two_places(self, same_parent: bool) -> None:
        conv = nn.Conv2d(4, 4, 3, padding=1)
        model = nn.Sequential(conv, nn.ReLU(), conv if same_parent else nn.Sequential(conv))
        self.assert_starts_equal(model, torch.randn(1, 4, 12, 12), kernel_count=9, dilated_kernel_size=7)

    def test_layers_that_share_may_have_had_different_sizes(self) -> None:
        sizes = [(3, 3), (5, 5), (1, 7), (2, 4)]
        convs = [nn.Conv2d(4, 4, k, padding=(k[0] // 2, k[1] // 2), groups=4) for k in sizes]
        model = nn.Sequential(*convs)
        before, after = self.start(
            model, torch.randn(1, 4, 16, 16), kernel_count=30, dilated_kernel_size=9, share=[model]
        )
        assert model[0].positions is model.positions
        torch.testing.assert_close(after[..., :17, :17], before, atol=1e-5, rtol=1e-5)

    def test_everything_else_is_kept(self) -> None:
        model = awake(timm.create_model("mobilenetv3_small_050"))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        dclsify(model, "blocks.1.*.conv_dw", kernel_count=9, init="dense")
        replaced = {"blocks.1.0.conv_dw.weight", "blocks.1.1.conv_dw.weight"}
        after = model.state_dict()
        assert state.keys() <= after.keys()
        assert all(torch.equal(after[k], v) for k, v in state.items() if k not in replaced)

    @pytest.mark.parametrize("version", ["v1", "max"])
    def test_jitter_and_image_are_passed_on(self, version: str, caplog: pytest.LogCaptureFixture) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
        with caplog.at_level(logging.INFO, "dcls_models"):
            dclsify(
                model,
                kernel_count=9,
                version=version,
                init="dense",
                jitter=0.25,
                example_input=torch.randn(1, 4, 9, 9),
            )
        off = (model[0].positions - model[0].positions.round()).abs()
        assert off.min() >= 0.125
        assert off.max() <= 0.25
        assert "jitter of 0.25 pixels" in caplog.text
        assert "None" not in caplog.text


class TestErrors:
    """Each is raised before anything is changed."""

    def refused(self, model: nn.Module, source: nn.Module, match: str) -> None:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            warm_start(model, source)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_other_number_of_classes(self) -> None:
        model, _ = pair("test_convnext_dcls")
        source = timm.create_model("test_convnext", num_classes=CLASSES + 1)
        self.refused(model, source, r"2 tensors besides the kernels \(head.fc.bias, head.fc.weight\)")

    @pytest.mark.parametrize("depths", [(1, 2, 4, 1), (1, 2, 4, 3)])
    def test_other_depths(self, depths: tuple[int, ...]) -> None:
        model, _ = pair("test_convnext_dcls")
        source = timm.create_model("convnext_atto", num_classes=CLASSES, depths=depths, dims=(24, 32, 48, 64))
        self.refused(model, source, "the source (has no dense convolution|differs from the model)")

    def test_other_widths(self) -> None:
        model, _ = pair("test_convnext_dcls")
        self.refused(model, timm.create_model("test_convnext2", num_classes=CLASSES), "the source has")

    def test_dense_kernel_too_large(self) -> None:
        model, source = pair("test_convnext_dcls", dilated_kernel_size=5)
        self.refused(model, source, r"a dense kernel of \(7, 7\) does not fit into .* \(5, 5\)")

    def test_source_is_a_dcls_model(self) -> None:
        model, _ = pair("test_convnext_dcls")
        self.refused(model, copy.deepcopy(model), "no dense convolution 'stages.0.blocks.0.conv_dw', it has")

    def test_model_is_not(self) -> None:
        _, source = pair("test_convnext_dcls")
        self.refused(source, copy.deepcopy(source), "ConvNeXt has no DCLS layer")

    def test_source_has_something_else_there(self) -> None:
        model, source = pair("test_convnext_dcls")
        source.stages[3].blocks[1].conv_dw = nn.Identity()
        self.refused(model, source, r"'stages.3.blocks.1.conv_dw', it has Identity")

    @pytest.mark.parametrize(
        "other",
        [
            {"stride": 2},
            {"dilation": 2},
            {"groups": 4, "in_channels": 16},
            {"padding_mode": "reflect"},
            {"padding": 4},
            {"padding": 0},
        ],
    )
    def test_source_convolves_otherwise(self, other: dict[str, object]) -> None:
        arguments = {"in_channels": 4, "out_channels": 4, "groups": 4, "kernel_size": 5, "padding": 2}
        model = nn.Sequential(nn.Conv2d(**arguments))
        dclsify(model, kernel_count=5, dilated_kernel_size=7)
        self.refused(model, nn.Sequential(nn.Conv2d(**{**arguments, **other})), "0: ")

    def test_axes_that_are_not_learned(self) -> None:
        model = nn.Sequential(Dcls2_1d(4, 4, 3, dense_kernel_size=3, dilated_kernel_size=7))
        self.refused(model, nn.Sequential(nn.Conv2d(4, 4, 3)), "Dcls2_1d has axes that are not learned")

    def test_pixels_that_cannot_lie_on_each_other(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 4, padding="same", dilation=2))
        with pytest.raises(ValueError, match=r"0: .* an odd dilated_kernel_size for an odd kernel"):
            dclsify(model, "*", kernel_count=16, dilated_kernel_size=17, init="dense")
        assert isinstance(model[0], nn.Conv2d)
        assert not isinstance(model[0], Dcls2d)

    def test_an_image_that_does_not_fit(self) -> None:
        model, source = pair("test_convnext_dcls")
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(RuntimeError):
            warm_start(model, source, example_input=torch.randn(1, 5, 32, 32))
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("size", "count"), [(7, 5), (17, 5), (7, 49), (17, 49)])
def test_after_a_warm_start_the_model_deploys_and_is_saved(
    size: int, count: int, tmp_path: Path, image: torch.Tensor
) -> None:
    model, source = pair("test_convnext_dcls", version="v1", dilated_kernel_size=size, kernel_count=count)
    warm_start(model, source, example_input=image)
    assert_same_logits(timm.utils.model.reparameterize_model(model), model, image)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))
