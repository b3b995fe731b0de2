"""``dclsify`` on models that are not in the zoo: what it replaces, what it keeps, what it refuses."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.conv import _ConvNd

from dcls_models import dclsify
from dcls_models.dclsify import is_depthwise
from dcls_models.layers import SCHEMES, Dcls1d, Dcls2d, Dcls2dSame, Dcls3d, DclsNd

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
DCLS = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}


def yolo_like() -> nn.Sequential:
    """A plain CNN: numbered children, standard convolutions, groups=1, stride 2."""

    def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())

    neck = nn.Sequential(block(16, 16), nn.Upsample(scale_factor=2), nn.Conv2d(16, 12, 1))
    return nn.Sequential(block(3, 8, 2), block(8, 16, 2), block(16, 16, 2), neck)


def network(dims: int) -> nn.Sequential:
    conv = CONV[dims]
    return nn.Sequential(
        conv(2, 6, 3, padding=1), nn.GELU(), conv(6, 6, 5, padding=2, groups=6), nn.GELU(), conv(6, 4, 1)
    )


def timm_fastvit() -> FastVit:
    """A small FastViT as timm makes it: with attention and a positional encoding in the last stage."""
    return FastVit(
        layers=(1, 1, 1, 1),
        embed_dims=(8, 16, 32, 64),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        pos_embs=(None, None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7))),
        num_classes=5,
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050"), (2, 3, 64, 64)),
    "inception_next_atto": (lambda: timm.create_model("inception_next_atto"), (2, 3, 64, 64)),
    "tf_efficientnet": (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100"), (2, 3, 65, 64)),
    "fastvit": (timm_fastvit, (2, 3, 64, 64)),
    "1d": (lambda: network(1), (2, 2, 20)),
    "2d": (lambda: network(2), (2, 2, 20, 20)),
    "3d": (lambda: network(3), (2, 2, 12, 12, 12)),
}


def names(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, kind)}


def dcls_layers(model: nn.Module) -> list[DclsNd]:
    return [m for m in model.modules() if isinstance(m, DclsNd)]


def check_gradients(model: nn.Module, image: torch.Tensor) -> None:
    """One forward and backward in training mode; every tensor of every DCLS layer gets a gradient."""
    model.train()(image).square().mean().backward()
    for layer in dcls_layers(model):
        for name in ("weight", "positions"):
            grad = getattr(layer, name).grad
            assert grad is not None, f"{name} of {layer}"
            assert grad.isfinite().all()
            assert grad.ne(0).float().mean() > 0.1, f"{name} of {layer}"


@pytest.fixture(params=MODELS, scope="module")
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A model, the same model with its depthwise convolutions replaced, and an input."""
    torch.manual_seed(0)
    make, shape = MODELS[request.param]
    plain = make().eval()
    model = dclsify(copy.deepcopy(plain), kernel_count=6, dilated_kernel_size=9)
    return plain, model, torch.randn(shape)


class TestFamilies:
    def test_output_keeps_its_shape(self, family: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
        plain, model, image = family
        with torch.no_grad():
            assert model(image).shape == plain(image).shape

    def test_only_the_depthwise_convolutions_are_replaced(
        self, family: tuple[nn.Module, nn.Module, torch.Tensor]
    ) -> None:
        plain, model, _ = family
        convs = {name: m for name, m in plain.named_modules() if isinstance(m, _ConvNd)}
        depthwise = {name for name, m in convs.items() if m.groups > 1 and m.groups == m.out_channels}
        depthwise = {
            name
            for name in depthwise
            if convs[name].in_channels == convs[name].groups and max(convs[name].kernel_size) > 1
        }
        assert depthwise
        assert names(model, DclsNd) == depthwise
        assert names(model, _ConvNd) == set(convs)
        for name in set(convs) - depthwise:
            assert torch.equal(model.get_submodule(name).weight, convs[name].weight)

    def test_gradients_reach_the_positions(self, family: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
        _, model, image = family
        check_gradients(copy.deepcopy(model), image)

    def test_deploys_to_a_plain_model(self, family: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
        _, model, image = family
        plain = reparameterize_model(model)
        assert dcls_layers(model)
        assert not dcls_layers(plain)
        with torch.no_grad():
            expected = model(image)
            torch.testing.assert_close(plain(image), expected, atol=2e-5 * expected.std().item(), rtol=1e-4)

    def test_copies_and_pickles(self, family: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
        _, model, image = family
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with torch.no_grad():
                assert torch.equal(copied(image), model(image))
                assert not dcls_layers(reparameterize_model(copied))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "fastvit"])
def test_deployed_model_exports(name: str) -> None:
    make, shape = MODELS[name]
    plain = reparameterize_model(dclsify(make().eval(), kernel_count=5, dilated_kernel_size=7))
    image = torch.randn(shape)
    exported = torch.export.export(plain, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), plain(image))


def test_unfused_model_exports() -> None:
    model = dclsify(network(2).eval(), kernel_count=5, dilated_kernel_size=7)
    image = torch.randn(2, 2, 20, 20)
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), model(image))


@pytest.mark.parametrize("name", ["repvit_m0_9", "repghostnet_050"])
@pytest.mark.parametrize("count", [3, 6])
def test_blocks_that_fold_themselves_deploy(name: str, count: int) -> None:
    """Their ``fuse`` and ``reparameterize`` read ``conv.weight`` as dense, with 3 elements even silently."""
    model = dclsify(timm.create_model(name, num_classes=5).eval(), kernel_count=count, dilated_kernel_size=7)
    image = torch.randn(1, 3, 64, 64)
    for m in model.modules():  # their biases and running means are 0 at first, so a lost one shows nothing
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.bias, std=0.1)
            nn.init.normal_(m.running_mean, std=0.1)
    plain = reparameterize_model(model)
    assert not dcls_layers(plain)
    with torch.no_grad():
        expected = model(image)
        torch.testing.assert_close(plain(image), expected, atol=1e-4 * expected.std().item(), rtol=1e-3)


def test_blocks_without_dcls_layers_still_fold() -> None:
    model = dclsify(timm_fastvit().eval(), "stages.*.mlp.conv.conv", kernel_count=5, dilated_kernel_size=7)
    plain = reparameterize_model(model)
    assert plain.stages[0].blocks[0].token_mixer.reparam_conv is not None
    assert plain.stages[3].pos_emb.reparam_conv is not None


def test_the_models_own_fuse_still_works() -> None:
    model = dclsify(timm.create_model("repvit_m0_9", num_classes=5).eval(), kernel_count=3)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        model.fuse()
        torch.testing.assert_close(model(image), expected, atol=1e-4, rtol=1e-3)
    assert not dcls_layers(model)


def test_a_child_named_like_a_fusing_method_is_left_alone() -> None:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.fuse = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fuse(self.conv(x))

    model = dclsify(nn.Sequential(Neck()), kernel_count=5, dilated_kernel_size=7)
    assert isinstance(model[0].fuse, nn.Conv2d)
    assert isinstance(model[0].conv, Dcls2d)


class TestPlainCnn:
    """Numbered children, groups=1, stride 2."""

    @pytest.mark.parametrize("version", SCHEMES)
    def test_all_versions(self, version: str) -> None:
        plain = yolo_like()
        model = dclsify(copy.deepcopy(plain), "*.0", kernel_count=5, dilated_kernel_size=7, version=version)
        assert names(model, DclsNd) == {"0.0", "1.0", "2.0", "3.0.0"}
        image = torch.randn(2, 3, 64, 64)
        assert model(image).shape == plain(image).shape
        assert model.get_submodule("0.0").weight.shape == (8, 3, 5)
        assert model.get_submodule("0.0").stride == (2, 2)
        check_gradients(model, image)
        if version in ("max", "gauss"):
            assert all(layer.sigma.grad is not None for layer in dcls_layers(model))

    def test_default_selects_nothing_and_says_so(self) -> None:
        with pytest.raises(ValueError, match=r"no convolution of Sequential matches .*is_depthwise"):
            dclsify(yolo_like())

    def test_trains_away_from_where_it_started(self) -> None:
        model = dclsify(yolo_like(), "*.0", kernel_count=5, dilated_kernel_size=7)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert {n for n in before if "positions" in n} <= moved


class TestSelection:
    def test_pattern(self) -> None:
        model = dclsify(timm.create_model("mobilenetv3_small_050"), "blocks.1.*.conv_dw")
        assert names(model, DclsNd) == {"blocks.1.0.conv_dw", "blocks.1.1.conv_dw"}

    def test_several_patterns(self) -> None:
        model = dclsify(timm.create_model("mobilenetv3_small_050"), ("blocks.0.0.conv_dw", "blocks.2.1.*dw"))
        assert names(model, DclsNd) == {"blocks.0.0.conv_dw", "blocks.2.1.conv_dw"}

    def test_function_of_name_and_module(self) -> None:
        seen = {}

        def large(name: str, conv: _ConvNd) -> bool:
            seen[name] = conv
            return conv.kernel_size == (5, 5)

        model = timm.create_model("mobilenetv3_small_050")
        convs = {n: m for n, m in model.named_modules() if isinstance(m, _ConvNd)}
        dclsify(model, large)
        assert seen == convs
        assert names(model, DclsNd) == {n for n, m in convs.items() if m.kernel_size == (5, 5)}

    def test_default_leaves_out_what_is_not_depthwise(self) -> None:
        assert is_depthwise("", nn.Conv2d(4, 4, 3, groups=4))
        assert is_depthwise("", nn.Conv2d(4, 4, (1, 3), groups=4))
        assert not is_depthwise("", nn.Conv2d(4, 8, 3, groups=4))
        assert not is_depthwise("", nn.Conv2d(4, 4, 3, groups=2))
        assert not is_depthwise("", nn.Conv2d(4, 4, 1, groups=4))
        assert not is_depthwise("", nn.Conv2d(1, 1, 3))

    def test_transposed_convolutions_and_dcls_layers_are_skipped(self) -> None:
        model = nn.Sequential(
            nn.ConvTranspose2d(4, 4, 3, groups=4), Dcls2d(4, 4, 5, groups=4), nn.Conv2d(4, 4, 3, groups=4)
        )
        first, second, _ = model
        dclsify(model, "*", kernel_count=7, dilated_kernel_size=5)
        assert model[0] is first
        assert model[1] is second
        assert isinstance(model[2], Dcls2d)
        with pytest.raises(ValueError, match="no convolution"):
            dclsify(model, "*")

    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_the_model_may_be_one_convolution(self, dims: int) -> None:
        conv = CONV[dims](4, 4, 3, padding=1, groups=4)
        image = torch.randn(2, 4, *[10] * dims)
        layer = dclsify(conv, kernel_count=5, dilated_kernel_size=7)
        assert type(layer) is DCLS[dims]
        assert layer(image).shape == conv(image).shape
        check_gradients(layer, image)

    @pytest.mark.parametrize("same_parent", [True, False])
    def test_a_convolution_at_two_places_becomes_one_layer(self, same_parent: bool) -> None:
        conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        model = nn.Sequential(conv, nn.ReLU(), conv if same_parent else nn.Sequential(conv))
        dclsify(model, kernel_count=5, dilated_kernel_size=7)
        second = model[2] if same_parent else model[2][0]
        assert isinstance(model[0], Dcls2d)
        assert second is model[0]

    def test_a_shared_convolution_is_found_by_either_name(self) -> None:
        conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        model = dclsify(nn.ModuleDict({"a": conv, "b": conv}), "b", kernel_count=5, dilated_kernel_size=7)
        assert isinstance(model["a"], Dcls2d)
        assert model["a"] is model["b"]


class TestSharing:
    def test_layers_in_a_container_share_positions(self) -> None:
        model = timm.create_model("inception_next_atto")
        dclsify(model, "stages.*.dwconv_hw", share=model.stages, kernel_count=5, dilated_kernel_size=7)
        tensors = {n for n, _ in model.named_parameters() if n.endswith("positions")}
        assert tensors == {f"stages.{i}.positions" for i in range(4)}
        for stage in model.stages:
            assert dcls_layers(stage)
            assert all(layer.positions is stage.positions for layer in dcls_layers(stage))
        check_gradients(model, torch.randn(2, 3, 64, 64))

    def test_sigma_is_shared_too(self) -> None:
        stage = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(3)))
        dclsify(stage, share=[stage], kernel_count=5, dilated_kernel_size=7, version="gauss")
        assert {n for n, _ in stage.named_parameters() if "." not in n} == {"positions", "sigma"}
        assert all(layer.sigma is stage.sigma for layer in dcls_layers(stage))

    def test_layers_outside_the_containers_keep_their_own(self) -> None:
        blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4)) for _ in "ab"]
        model = dclsify(nn.Sequential(*blocks), share=iter(blocks[:1]), kernel_count=5)
        keys = {n for n, _ in model.named_parameters() if "positions" in n}
        assert keys == {"0.positions", "1.0.positions", "1.1.positions"}

    def test_containers_without_a_match_are_passed_over(self) -> None:
        model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), nn.Sequential(nn.ReLU()))
        dclsify(model, share=model, kernel_count=5)
        assert {n for n, _ in model.named_parameters() if "positions" in n} == {"0.positions"}

    def test_the_same_container_twice_or_nested_shares_once(self) -> None:
        inner = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4))
        model = nn.Sequential(inner)
        dclsify(model, share=[inner, inner, model], kernel_count=5)
        assert {n for n, _ in model.named_parameters() if "positions" in n} == {"0.positions"}

    def test_only_layers_of_this_call_are_joined(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 5, groups=4))
        dclsify(model, "0", kernel_count=3, dilated_kernel_size=7)
        dclsify(model, "1", share=[model], kernel_count=5, dilated_kernel_size=9)
        assert model[0].positions.shape == (2, 4, 1, 3)
        assert model[1].positions is model.positions


class TestWhatIsKept:
    @pytest.mark.parametrize("size", [7, 17])
    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize("dilation", [1, 2, (2, 1)])
    @pytest.mark.parametrize(
        ("stride", "padding"), [(1, 0), (1, 1), (1, "same"), (1, "valid"), (2, (0, 2)), ((1, 2), "valid")]
    )
    def test_arguments_and_output_size(
        self,
        size: int,
        groups: int,
        stride: int | tuple[int, int],
        dilation: int | tuple[int, int],
        padding: str | int | tuple[int, int],
    ) -> None:
        conv = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups, bias=groups == 2)
        layer = dclsify(conv, "*", kernel_count=5, dilated_kernel_size=size)
        kept = ("in_channels", "out_channels", "stride", "dilation", "groups", "padding_mode", "training")
        for name in kept:
            assert getattr(layer, name) == getattr(conv, name), name
        assert (layer.bias is None) == (conv.bias is None)
        assert layer.kernel_size == (size, size)
        image = torch.randn(2, 4, 14, 17)
        assert layer(image).shape == conv(image).shape
        assert layer.fuse()(image).shape == conv(image).shape

    def test_same_padding_stays_same(self) -> None:
        assert dclsify(nn.Conv2d(4, 4, 3, padding="same"), "*").padding == "same"

    @pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
    def test_padding_mode(self, mode: str) -> None:
        conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
        layer = dclsify(conv, "*", kernel_count=5, dilated_kernel_size=7)
        image = torch.randn(1, 4, 12, 12)
        assert layer.padding_mode == mode
        assert layer(image).shape == conv(image).shape
        torch.testing.assert_close(layer.fuse()(image), layer(image))

    @pytest.mark.parametrize("old", [2, 3, 4, 5])
    @pytest.mark.parametrize("new", [6, 7, 8, 17])
    def test_even_and_odd_kernels(self, old: int, new: int) -> None:
        conv = nn.Conv2d(4, 4, old, padding=old // 2)
        image = torch.randn(1, 4, 20, 20)
        size = conv(image).shape[-1] + (new - old) % 2
        layer = dclsify(conv, "*", kernel_count=5, dilated_kernel_size=new)
        assert layer(image).shape[-2:] == (size, size)

    @pytest.mark.parametrize("size", [20, 21, 22])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_tensorflow_padding(self, size: int, stride: int, dilation: int) -> None:
        conv = Conv2dSame(4, 4, 5, stride=stride, dilation=dilation, groups=4)
        image = torch.randn(1, 4, size, size + 1)
        layer = dclsify(conv, kernel_count=5, dilated_kernel_size=9)
        assert type(layer) is Dcls2dSame
        assert layer(image).shape == conv(image).shape
        fused = layer.fuse()
        assert type(fused) is Conv2dSame
        torch.testing.assert_close(fused(image), layer(image))

    def test_rectangular_kernels(self) -> None:
        conv = nn.Conv2d(4, 4, (1, 11), padding=(0, 5), groups=4)
        layer = dclsify(conv, kernel_count=5, dilated_kernel_size=(3, 17))
        image = torch.randn(1, 4, 20, 20)
        assert layer.kernel_size == (3, 17)
        assert layer(image).shape == conv(image).shape

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype(self, dtype: torch.dtype) -> None:
        model = dclsify(network(2).to(dtype), kernel_count=5, dilated_kernel_size=7)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model(torch.randn(1, 2, 12, 12, dtype=dtype)).dtype == dtype

    def test_meta_device(self) -> None:
        with torch.device("meta"):
            model = network(2)
        dclsify(model, kernel_count=5, dilated_kernel_size=7)
        assert all(p.is_meta for p in model.parameters())
        assert model(torch.empty(1, 2, 12, 12, device="meta")).shape == (1, 4, 12, 12)
        model.to_empty(device="cpu")
        for m in model.modules():
            if hasattr(m, "reset_parameters"):
                m.reset_parameters()
        check_gradients(model, torch.randn(2, 2, 12, 12))

    def test_only_a_layer_on_meta_stays_there(self) -> None:
        model = network(2)
        model[2] = nn.Conv2d(6, 6, 5, padding=2, groups=6, device="meta")
        dclsify(model, kernel_count=5, dilated_kernel_size=7)
        assert model[2].weight.is_meta
        assert not model[0].weight.is_meta

    def test_training_flag_of_each_convolution(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4)).train()
        model[0].eval()
        dclsify(model, kernel_count=5)
        assert [m.training for m in model] == [False, True]

    def test_starts_as_the_authors_do(self) -> None:
        model = dclsify(nn.Conv2d(64, 64, 3, groups=64), kernel_count=34, positions="authors")
        assert model.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not model.bias.any()
        assert model.positions.std().item() == pytest.approx(0.5, rel=0.1)


class TestWhereElementsStart:
    @pytest.mark.parametrize("version", ["v1", "gauss"])
    @pytest.mark.parametrize("size", [(9,), (17, 5), (9, 5, 3)])
    def test_spread_over_the_kernel(self, size: tuple[int, ...], version: str) -> None:
        dims, spacings = len(size), {"dilated_kernel_size": size, "version": version}
        layer = dclsify(
            CONV[dims](64, 64, 3, padding=1, groups=64), kernel_count=34, positions="spread", **spacings
        )
        for row, k in zip(layer.positions, size, strict=True):
            limit = k // 2
            assert -limit <= row.min() < -0.98 * limit and 0.98 * limit < row.max() <= limit
            assert row.std().item() == pytest.approx(
                2 * limit / 12**0.5, rel=0.05
            )  # of a uniform distribution
        if version == "gauss":
            authors = dclsify(CONV[dims](4, 4, 3, groups=4), kernel_count=34, **spacings)
            assert layer.sigma.unique() == authors.sigma.unique()
        layer.reset_parameters()
        assert layer.positions[0].std().item() == pytest.approx(0.5, rel=0.1)

    def test_spread_by_default(self) -> None:
        def positions(seed: int, **kwargs: str) -> torch.Tensor:
            torch.manual_seed(seed)
            return dclsify(nn.Conv2d(8, 8, 3, groups=8), kernel_count=5, **kwargs).positions

        assert torch.equal(positions(0), positions(0, positions="spread"))
        assert not torch.equal(positions(0), positions(0, positions="authors"))
        assert not torch.equal(positions(0), positions(1))

    def test_one_set_for_layers_that_share(self) -> None:
        stage = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(3)))
        dclsify(stage, share=[stage], kernel_count=9, positions="spread")
        assert {n for n, _ in stage.named_parameters() if "positions" in n} == {"positions"}
        assert stage.positions.abs().max() > 4
        check_gradients(stage, torch.randn(2, 4, 20, 20))


class TestErrors:
    """Each leaves the model as it was, so that the call can be repeated."""

    def refused(self, model: nn.Module, match: str, *args: object, **kwargs: object) -> None:
        before = [(n, id(m)) for n, m in model.named_modules(remove_duplicate=False)]
        state = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            dclsify(model, *args, **kwargs)  # type: ignore[arg-type]
        assert [(n, id(m)) for n, m in model.named_modules(remove_duplicate=False)] == before
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    def test_no_match(self) -> None:
        self.refused(network(2), r"no convolution of Sequential matches convs='\*\.conv_dw'", "*.conv_dw")

    def test_no_convolution_at_all(self) -> None:
        self.refused(nn.Linear(2, 2), "no convolution of Linear matches")

    def test_unknown_init(self) -> None:
        self.refused(network(2), "init must be 'random' or 'dense', got init='pretrained'", init="pretrained")

    def test_unknown_start(self) -> None:
        words = "positions must be 'authors' .* or 'spread' .*, got 'uniform'"
        self.refused(network(2), words, positions="uniform")
        words = "with init='dense' the fit decides where elements start: leave positions='spread' out"
        self.refused(network(2), words, dilated_kernel_size=9, init="dense", positions="spread")

    def test_unknown_version(self) -> None:
        self.refused(network(2), "version must be one of v0, v1, max, gauss", version="bilinear")

    def test_no_elements(self) -> None:
        self.refused(network(2), "kernel_count must be", kernel_count=0)

    def test_sharing_between_different_shapes(self) -> None:
        model = network(2)
        model[0] = nn.Conv2d(2, 2, 3, groups=2)
        self.refused(model, "share them over smaller containers", share=[model])

    def test_sharing_in_a_container_that_already_does(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 5, groups=4))
        dclsify(model, "0", share=[model])
        self.refused(model, "already has an attribute 'positions'", "1", share=[model])

    def test_dense_kernel_too_large(self) -> None:
        self.refused(
            network(2), r"2: a dense kernel of \(5, 5\) does not fit", dilated_kernel_size=3, init="dense"
        )

    def test_kernel_smaller_than_an_unpadded_one(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 4, 7, groups=4))
        self.refused(model, "0: .* has too little padding", dilated_kernel_size=3)

    def test_convolution_that_does_more(self) -> None:
        model = nn.Sequential(timm.layers.StdConv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4))
        self.refused(model, "0 is a StdConv2d that does more than Conv2d")
        dclsify(model, "1")
        assert isinstance(model[1], Dcls2d)
        normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, groups=4)))
        self.refused(normed, "hooks or parametrizations")

    def test_convolutions_that_share_a_weight(self) -> None:
        model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(3)))
        model[2].weight = model[0].weight
        self.refused(model, r"0\.weight and 2\.weight are one parameter, which DCLS layers would untie")
        self.refused(model, r"0\.weight and 2\.weight are one parameter", "2")
        dclsify(model, "1")
        assert model[0].weight is model[2].weight and isinstance(model[1], Dcls2d)

    @pytest.mark.parametrize("share", [True, False])
    def test_dense_start_with_an_even_kernel(self, share: bool) -> None:
        model = timm.create_model("inception_next_atto")
        stages = model.stages if share else ()
        even = {"share": stages, "dilated_kernel_size": 16, "init": "dense"}
        words = r"stages.0.blocks.0.\S*: an even kernel in place of an odd one, .* model does not run"
        self.refused(model, words, "*.dwconv_hw", **even)

    def test_dense_start_with_an_example_that_does_not_fit(self) -> None:
        image = torch.randn(1, 5, 64, 64)
        words = r"Sequential does not take example_input \(1, 5, 64, 64\): "
        self.refused(network(2), words, dilated_kernel_size=9, init="dense", example_input=image)


class TestWhatIsFrozen:
    def frozen_in_part(self) -> nn.Sequential:
        """Three stages of two convolutions: frozen, the first of two frozen, not frozen."""
        stages = [nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in "ab")) for _ in range(3)]
        stages[0].requires_grad_(False)
        stages[1][0].requires_grad_(False)
        stages[2][0].bias.requires_grad_(False)
        return nn.Sequential(*stages)

    @pytest.mark.parametrize("version", ["v1", "gauss"])
    @pytest.mark.parametrize("share", [True, False])
    def test_stays_frozen(self, share: bool, version: str) -> None:
        model = self.frozen_in_part()
        expected = {name for name, p in model.named_parameters() if not p.requires_grad}
        dclsify(model, share=model if share else (), kernel_count=9, dilated_kernel_size=5, version=version)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        learned = ("positions", "sigma") if version == "gauss" else ("positions",)
        holders = ["0"] if share else ["0.0", "0.1", "1.0"]
        assert frozen == expected | {f"{holder}.{key}" for holder in holders for key in learned}

    def test_a_dense_start_fits_frozen_convolutions(self, caplog: pytest.LogCaptureFixture) -> None:
        plain, image = self.frozen_in_part(), torch.randn(1, 4, 9, 9)
        exact = {"kernel_count": 9, "dilated_kernel_size": 5, "version": "v1", "jitter": 0.0}
        model = dclsify(copy.deepcopy(plain), init="dense", example_input=image, **exact)
        torch.testing.assert_close(model(image), plain(image), atol=1e-5, rtol=0)
        assert "frozen" not in caplog.text
        dclsify(plain, kernel_count=9, dilated_kernel_size=5)
        assert "3 of 6 DCLS layers are random and frozen, as their convolutions were" in caplog.text
