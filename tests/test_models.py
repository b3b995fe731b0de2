"""The zoo is what was promised, and behaves in every way as timm's own models do."""

import copy
import inspect
import io
import json
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_notrace_functions, get_notrace_modules, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3
from timm.utils.model import reparameterize_model
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import dcls_models  # noqa: F401 (registers the models)
from dcls_models._timm import save_for_hf
from dcls_models.layers import DclsNd

KEYS = Path(__file__).parent / "reference" / "keys"

# name: kernel size, elements, version
SPACINGS = {
    "convnext_dcls_atto": (17, 34, "v0"),
    "convnext_dcls_femto": (17, 34, "v0"),
    "convnext_dcls_pico": (17, 34, "v0"),
    "convnext_dcls_nano": (17, 34, "v0"),
    "convnext_dcls_tiny": (17, 34, "v0"),
    "convnext_dcls_small": (17, 40, "v0"),
    "convnext_dcls_base": (17, 40, "v0"),
    "convnext_dcls_large": (17, 40, "v0"),
    "convnext_dcls_gauss_tiny": (23, 26, "gauss"),
    "convnext_dcls_audio_tiny": (23, 26, "gauss"),
    "convformer_dcls_s18": (17, 40, "v1"),
    "convformer_dcls_s36": (17, 40, "v1"),
    "convformer_dcls_m36": (17, 40, "v1"),
    "convformer_dcls_b36": (17, 40, "v1"),
    "convformer_dcls_audio_s18": (23, 26, "gauss"),
    "caformer_dcls_s18": (17, 34, "v1"),
    "caformer_dcls_s36": (17, 34, "v1"),
    "caformer_dcls_m36": (17, 34, "v1"),
    "caformer_dcls_b36": (17, 34, "v1"),
    "fastvit_dcls_t8": (17, 34, "v1"),
    "fastvit_dcls_sa12": (17, 34, "v1"),
    "fastvit_dcls_sa24": (17, 34, "v1"),
    "fastvit_dcls_sa36": (17, 34, "v1"),
    "fastvit_dcls_ma36": (17, 34, "v1"),
    "fastvit_dcls_audio_sa24": (23, 26, "gauss"),
    "resnet26_dcls": (7, 5, "v0"),
    "resnet50_dcls": (7, 5, "v0"),
    "resnet101_dcls": (7, 5, "v0"),
    "test_convnext_dcls": (17, 34, "v0"),
    "test_convformer_dcls": (17, 40, "v1"),
    "test_caformer_dcls": (17, 34, "v1"),
    "test_fastvit_dcls": (17, 34, "v1"),
    "test_resnet_dcls": (7, 5, "v0"),
}

# tag: parameters (shared positions once), keys of the authors' checkpoint, crop
RELEASED = {
    "convnext_dcls_tiny.dcls_in1k": (28_587_688, "convnext_dcls_tiny_v0", 0.875),
    "convnext_dcls_small.dcls_in1k": (50_217_064, "convnext_dcls_small_v0", 0.875),
    "convnext_dcls_base.dcls_in1k": (88_582_632, "convnext_dcls_base_v0", 0.875),
    "convnext_dcls_gauss_tiny.dcls_in1k": (28_586_536, "convnext_dcls_tiny_gauss", 0.875),
    "convformer_dcls_s18.dcls_in1k": (26_848_432, "convformer_s18_v1", 1.0),
    "caformer_dcls_s18.dcls_in1k": (26_350_488, "caformer_s18_v1", 1.0),
    "fastvit_dcls_sa24.dcls_in1k": (21_523_496, "fastvit_sa24_v1", 0.9),
    "fastvit_dcls_sa36.dcls_in1k": (31_452_584, "fastvit_sa36_v1", 0.95),
    "resnet50_dcls.dcls_in1k": (24_008_744, "resnet50_v0", 0.95),
    "convnext_dcls_audio_tiny.dcls_as2m": (28_221_263, "audio_convnext_tiny_gauss", 1.0),
    "convformer_dcls_audio_s18.dcls_as2m": (25_781_207, "audio_convformer_s18_gauss", 1.0),
    "fastvit_dcls_audio_sa24.dcls_as2m": (21_016_655, "audio_fastvit_sa24_gauss", 1.0),
}

FILES = {
    "convnext_dcls_tiny.dcls_in1k": "record/7112021/files/convnext_dcls_tiny_1k_224_ema.pth",
    "convnext_dcls_small.dcls_in1k": "record/7112021/files/convnext_dcls_small_1k_224_ema.pth",
    "convnext_dcls_base.dcls_in1k": "record/7112021/files/convnext_dcls_base_1k_224_ema.pth",
    "convnext_dcls_gauss_tiny.dcls_in1k": "record/8029747/files/convnext_dcls_gauss_tiny_1k_224_ema.pth",
    "convformer_dcls_s18.dcls_in1k": "records/8370737/files/convformer_s18_v1_17lim_40el_seed0.pth.tar",
    "caformer_dcls_s18.dcls_in1k": "records/8370737/files/caformer_s18_v1_17lim_34el_seed0.pth.tar",
    "fastvit_dcls_sa24.dcls_in1k": "records/8370737/files/fastvit_sa24_v1_17lim_34el_seed0.pth.tar",
    "fastvit_dcls_sa36.dcls_in1k": "records/8370737/files/fastvit_sa36_v1_17lim_34el_seed0.pth.tar",
    "resnet50_dcls.dcls_in1k": "records/8373830/files/resnet_dcls_kernel_5_model_best.pth.tar",
    "convnext_dcls_audio_tiny.dcls_as2m": "record/8370979/files/convnext_dcls_audio_tiny.pth",
    "convformer_dcls_audio_s18.dcls_as2m": "record/8370979/files/convformer_dcls_audio_s18.pth",
    "fastvit_dcls_audio_sa24.dcls_as2m": "record/8370979/files/fastvit_dcls_audio_sa24.pth",
}

# timm's own words for the shape of a family, by class
SHAPES: dict[str, dict[str, Any]] = {
    "ConvNeXtDcls": {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 32)},
    "MetaFormerDcls": {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 64)},
    "FastVitDcls": {"layers": (1, 2, 1, 1), "embed_dims": (8, 16, 32, 64), "mlp_ratios": (2, 3, 2, 3)},
    "ResNetDcls": {"layers": (1, 2, 1, 1), "channels": (4, 6, 8, 10)},
}

every = pytest.mark.parametrize("name", timm.list_models("*dcls*"))
tiny = pytest.mark.parametrize("name", timm.list_models("test_*dcls*"))
large = pytest.mark.parametrize("name", timm.list_models("*dcls*", exclude_filters="test_*"))
released = pytest.mark.parametrize("tag", RELEASED)


@torch.no_grad()
def wake(module: nn.Module) -> nn.Module:
    """Makes every part matter: as initialised, scales of 1e-6 would hide any mistake."""
    for key, parameter in module.named_parameters():
        if key.endswith("positions"):
            parameter.mul_(3).clamp_(-2.5, 2.5)
        elif parameter.abs().max() <= 1e-4 and key.endswith(("weight", "gamma", "scale")):
            parameter.uniform_(0.5, 1)
        elif key.endswith("bias"):
            parameter.normal_(std=0.1)
    for key, buffer in module.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.copy_(
                torch.rand_like(buffer) + 0.5 if key.endswith("var") else 0.1 * torch.randn_like(buffer)
            )
    return module


def make(name: str, **kwargs: Any) -> nn.Module:
    return wake(timm.create_model(name, **{"num_classes": 10, **kwargs})).eval()


def images(model: nn.Module, batch: int = 2) -> torch.Tensor:
    """64 x 64 pixels; spectrograms are longer, for their stem of 2 x 16 patches."""
    channels, height, width = model.pretrained_cfg["input_size"]
    return torch.randn(batch, channels, 64, 64 if height == width else 256)


def meta(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@cache
def outline(name: str) -> nn.Module:
    """The model without values, to be looked at only."""
    return meta(name)


def small(name: str) -> dict[str, Any]:
    return {**SHAPES[type(outline(name)).__name__], "exportable": True}


def stages_of(model: nn.Module) -> list[nn.Module]:
    if hasattr(model, "stages"):
        return list(model.stages)
    return [model.get_submodule(f"layer{i}") for i in range(1, 5)]


def layers_of(model: nn.Module) -> dict[str, DclsNd]:
    return {name: m for name, m in model.named_modules() if isinstance(m, DclsNd)}


def positions_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name.endswith("positions")}


def spread(tensor: torch.Tensor) -> float:
    return (tensor.max() - tensor.min()).item()


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, over the spread of what was expected."""
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item() / spread(expected)


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# The names


def test_the_zoo_holds_what_was_promised() -> None:
    assert set(timm.list_models("*dcls*")) == set(SPACINGS)


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_importing_prints_nothing_and_loads_no_training_packages() -> None:
    code = "import dcls_models; print('imported'); import sys; print(*{m.split('.')[0] for m in sys.modules})"
    first, modules = run(code).splitlines()
    loaded = set(modules.split())
    assert first == "imported"
    assert "timm" in loaded
    assert not loaded & {"pytorch_lightning", "lightning", "matplotlib", "sklearn", "torchmetrics"}


def test_importing_changes_nothing_of_timm() -> None:
    code = """
import json, timm
def listing(): return {m: timm.list_models(module=m) for m in timm.list_modules()}
before, entry_points = listing(), {m: timm.model_entrypoint(m) for m in timm.list_models()}
import dcls_models
assert all(timm.model_entrypoint(m) is f for m, f in entry_points.items())
print(json.dumps({m: names for m, names in listing().items() if names != before.get(m)}))
"""
    added = json.loads(run(code))
    assert set(added) == {"convnext_dcls", "fastvit_dcls", "metaformer_dcls", "resnet_dcls"}
    assert {name for names in added.values() for name in names} == set(SPACINGS)


def test_pretrained_tags() -> None:
    assert set(timm.list_models("*dcls*", pretrained=True)) == set(RELEASED)


@released
def test_default_cfg(tag: str) -> None:
    crop, url = RELEASED[tag][2], f"https://zenodo.org/{FILES[tag]}"
    cfg = timm.get_pretrained_cfg(tag)
    assert (cfg.url, cfg.origin_url, cfg.crop_pct) == (url, url.split("/files/")[0], crop)
    assert cfg.paper_ids.startswith("arXiv:")
    if "audio" in tag:
        assert (cfg.input_size, cfg.num_classes) == ((1, 128, 1001), 527)
        assert (cfg.mean, cfg.std) == ((-18.2696,), (30.5735,))
    else:
        size = 256 if "fastvit" in tag else 224
        assert (cfg.input_size, cfg.num_classes) == ((3, size, size), 1000)
        assert (cfg.mean, cfg.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        assert cfg.interpolation == "bicubic"
    name, _, label = tag.partition(".")
    assert outline(name).default_cfg == outline(tag).default_cfg
    assert outline(name).default_cfg["tag"] == label


@released
def test_the_licence_is_left_to_the_record(tag: str) -> None:
    cfg = timm.get_pretrained_cfg(tag)
    assert cfg.license is None
    assert cfg.origin_url in " ".join(cfg.notes)


def test_a_wrong_tag_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="fb_in1k"):
        timm.create_model("convnext_dcls_tiny.fb_in1k")


@pytest.mark.parametrize("name", sorted(SPACINGS.keys() - {tag.split(".")[0] for tag in RELEASED}))
def test_no_weights_where_none_were_released(name: str) -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        timm.create_model(name, pretrained=True)


# The architectures


@every
def test_released_kernels(name: str) -> None:
    model = outline(name)
    found = {(m.dilated_kernel_size, m.kernel_count, m.version) for m in layers_of(model).values()}
    size, count, version = SPACINGS[name]
    assert found == {((size, size), count, version)}


@every
def test_stems(name: str) -> None:
    model = outline(name)
    names = model.pretrained_cfg["first_conv"]
    conv = model.get_submodule(names if isinstance(names, str) else names[0])
    audio = "audio" in name
    assert (conv.in_channels, conv.kernel_size == (2, 16)) == (1 if audio else 3, audio)
    assert model.num_classes == (527 if audio else 1000)


@tiny
@pytest.mark.parametrize("size", [8, (7, 8)])
def test_even_kernels_are_refused(name: str, size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"dilated_kernel_size of {name} must be odd, got "):
        meta(name, dilated_kernel_size=size)


@released
def test_parameter_counts(tag: str) -> None:
    assert sum(p.numel() for p in outline(tag).parameters()) == RELEASED[tag][0]


@tiny
def test_tiny_models_are_tiny(name: str) -> None:
    assert sum(p.numel() for p in outline(name).parameters()) < 1_000_000


@released
def test_positions_are_shared_as_in_the_authors_models(tag: str) -> None:
    groups = json.loads((KEYS / f"{RELEASED[tag][1]}.json").read_text())["shared_groups"]
    ours = Counter(layer.holder() for layer in layers_of(outline(tag)).values())
    assert list(ours.values()) == [len(group) for group in groups if group[0].endswith(".P")]


@every
def test_the_stages_hold_the_positions(name: str) -> None:
    model = outline(name)
    held = ["positions", "sigma"] if SPACINGS[name][2] in ("max", "gauss") else ["positions"]
    stages = [s for s in stages_of(model) if any(isinstance(m, DclsNd) for m in s.modules())]
    assert [m for m in model.modules() if "positions" in m._parameters] == stages
    assert all([k for k, p in s.named_parameters(recurse=False) if p is not None] == held for s in stages)
    assert len(stages) == (2 if "caformer" in name else 4)


@tiny
def test_positions_matter_and_are_trained(name: str) -> None:
    model = make(name).train()
    x = images(model, 4)
    assert all(g.abs().max() > 0 for k, g in gradients(model, x).items() if k.endswith("positions"))
    before = model(x)
    with torch.no_grad():
        for parameter in positions_of(model).values():
            parameter.neg_()
    assert difference(model(x), before) > 1e-3


@tiny
def test_elements_may_start_spread_over_the_kernel(name: str, tmp_path: Path) -> None:
    near = timm.create_model(name, dilated_kernel_size=17)
    far = timm.create_model(name, dilated_kernel_size=17, positions="spread")
    assert positions_of(near).keys() == positions_of(far).keys()
    assert all(p.abs().max() < 4 for p in positions_of(near).values())
    assert all(7 < p.abs().max() <= 8 for p in positions_of(far).values())
    save_for_hf(near, tmp_path, model_args={"positions": "spread"})
    stored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(p, positions_of(near)[k]) for k, p in positions_of(stored).items())
    anew = timm.create_model(f"local-dir:{tmp_path}")
    assert all(p.abs().max() > 7 for p in positions_of(anew).values())
    with pytest.raises(ValueError, match=r"positions must be 'authors' .* or 'spread' .*, got 'far'"):
        meta(name, positions="far")


@every
def test_unknown_arguments_are_errors(name: str) -> None:
    with pytest.raises(TypeError):
        meta(name, not_an_argument=1)


@tiny
def test_overrides_take_effect_and_come_back(name: str, tmp_path: Path) -> None:
    shape = SHAPES[type(outline(name)).__name__]
    spacings: dict[str, Any] = {"dilated_kernel_size": (9, 5), "kernel_count": 6, "version": "gauss"}
    model = make(name, **shape, **spacings, in_chans=2)
    lengths, widths, *ratios = shape.values()
    blocks = [getattr(stage, "blocks", stage) for stage in stages_of(model)]
    assert [len(stage) for stage in blocks] == list(lengths)
    expansion = 4 if "resnet" in name else 1
    assert [info["num_chs"] for info in model.feature_info[-4:]] == [w * expansion for w in widths]
    if ratios:
        assert [s[0].mlp.fc1.out_channels // s[0].mlp.fc1.in_channels for s in blocks] == list(ratios[0])
    found = {(m.dilated_kernel_size, m.kernel_count, m.version) for m in layers_of(model).values()}
    assert found == {tuple(spacings.values())}

    save_for_hf(model, tmp_path, safe_serialization=True)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architecture"] == name
    assert saved["model_args"].items() >= json.loads(json.dumps({**shape, **spacings, "in_chans": 2})).items()
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 2, 64, 64)
    assert torch.equal(again(x), model(x))


@tiny
@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_every_version_in_every_family(name: str, version: str, tmp_path: Path) -> None:
    model = make(name, version=version, dilated_kernel_size=7, kernel_count=5)
    x = images(model)
    assert all(g.isfinite().all() for g in gradients(model, x).values())
    learned = [k for k, _ in model.named_parameters() if k.endswith("sigma")]
    assert len(learned) == (len(positions_of(model)) if version in ("max", "gauss") else 0)
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))


# Inputs, heads, features


@tiny
@pytest.mark.parametrize("in_chans", [1, 5])
def test_in_chans(name: str, in_chans: int) -> None:
    model = make(name, in_chans=in_chans)
    assert model(torch.randn(2, in_chans, 64, 64)).shape == (2, 10)


@tiny
def test_heads(name: str) -> None:
    model = make(name, num_classes=7)
    x = images(model)
    features, logits = model.forward_features(x), model(x)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert logits.shape == (2, 7)
    assert features.shape[:2] == (2, model.num_features)
    assert pre_logits.shape == (2, model.head_hidden_size)
    assert difference(model.forward_head(features), logits) < 1e-5
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert difference(model(x), pre_logits) < 1e-5
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    assert difference(model.forward_head(features, pre_logits=True), pre_logits) > 1e-2
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape


@tiny
def test_global_pool(name: str) -> None:
    average, maximum = make(name), make(name, global_pool="max")
    maximum.load_state_dict(average.state_dict())
    x = images(average)
    assert difference(maximum(x), average(x)) > 1e-2
    assert make(name, num_classes=0, global_pool="")(x).ndim == 4


@tiny
@pytest.mark.parametrize("levels", [(0,), (2,), (1, 3), (-1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("feature_cls", ["dict", "getter", "fx"])
def test_features_only(name: str, levels: tuple[int, ...], feature_cls: str) -> None:
    backbone = timm.create_model(name, features_only=True, out_indices=levels, feature_cls=feature_cls)
    wake(backbone).train()
    x = images(backbone)
    outputs = backbone(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    assert [o.shape[1] for o in outputs] == backbone.feature_info.channels()
    assert [64 // o.shape[2] for o in outputs] == backbone.feature_info.reduction()

    stages = [int("positions" in stage._parameters) for stage in stages_of(outline(name))]
    if "resnet" in name:
        stages.insert(0, 0)  # the stem is its first level
    kept = positions_of(backbone).values()
    assert len(kept) == sum(stages if -1 in levels else stages[: max(levels) + 1])
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad.abs().max() > 0 for p in kept)


@tiny
def test_features_follow_the_model(name: str) -> None:
    model = make(name)
    x = images(model)
    final, intermediates = model.forward_intermediates(x)
    assert difference(final, model.forward_features(x)) < 1e-5
    assert [f.shape[1] for f in intermediates] == [info["num_chs"] for info in model.feature_info]
    stopped = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(stopped[0], intermediates[1])

    backbone = timm.create_model(name, features_only=True, feature_cls="getter").eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)
    for actual, expected in zip(backbone(x), intermediates[-len(backbone.feature_info) :], strict=True):
        assert difference(actual, expected) < 1e-5

    levels = model.prune_intermediate_layers([-2], prune_norm=True)
    assert len(positions_of(model)) == min(
        3, sum("positions" in s._parameters for s in stages_of(outline(name)))
    )
    pruned = model.forward_intermediates(x, indices=levels, intermediates_only=True)
    assert torch.equal(pruned[0], intermediates[-2])


@tiny
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride(name: str, output_stride: int) -> None:
    if "output_stride" not in inspect.signature(type(outline(name)).__mro__[2].__init__).parameters:
        with pytest.raises(TypeError):  # neither does timm's class of this family
            meta(name, output_stride=output_stride)
        return
    model = make(name, output_stride=output_stride)
    x = images(model)
    assert model.forward_features(x).shape[2] == 64 // output_stride
    if output_stride == 8:
        assert len({layer.dilation for layer in layers_of(model).values()}) > 1
    assert difference(reparameterize_model(model)(x), model(x)) < 1e-5


# Training


@tiny
def test_drop_path(name: str) -> None:
    model = make(name, drop_path_rate=0.5)
    x = images(model, 4)
    assert torch.equal(model(x), model(x))
    for module in model.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    assert difference(model(x), model(x)) > 1e-3


@tiny
def test_grad_checkpointing_changes_nothing(name: str) -> None:
    model = make(name).train()
    x = images(model)
    plain, checkpointed = copy.deepcopy(model), copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    expected, actual = gradients(plain, x), gradients(checkpointed, x)
    assert expected.keys() == actual.keys()
    assert all(
        torch.allclose(actual[k], g, rtol=1e-4, atol=1e-6 * g.abs().max()) for k, g in expected.items()
    )
    assert torch.equal(checkpointed(x), plain(x))


@every
def test_layer_decay_puts_positions_at_the_start_of_their_stage(name: str) -> None:
    model = outline(name)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    head = {scale[id(p)] for p in model.get_classifier().parameters()}
    assert head == {1.0}
    for stage in stages_of(model):
        blocks = getattr(stage, "blocks", stage)
        first, *others = [{scale[id(p)] for p in block.parameters()} for block in blocks]
        own = {scale[id(p)] for p in stage.parameters(recurse=False)}
        assert own in (first, set())
        assert all(max(own, default=0) < min(other) for other in others)


@every
def test_coarse_groups_are_stages(name: str) -> None:
    model = outline(name)
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    stages = stages_of(model)
    names = {m: n for n, m in model.named_modules()}
    for stage in stages:
        of_stage = {i for key, i in groups.items() if key.startswith(f"{names[stage]}.")}
        assert len(of_stage) == 1


@every
def test_positions_are_never_decayed(name: str) -> None:
    model = outline(name)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        spacing = key.endswith(("positions", "sigma"))
        assert not (spacing and decay[id(parameter)])
    assert {decay[id(layer.weight)] for layer in layers_of(model).values()} == {0.05}


@tiny
def test_ema_averages_shared_positions_once(name: str) -> None:
    model = make(name)
    average = ModelEmaV3(model, decay=0.9)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.01)
    average.update(moved)
    for before, after in zip(model.parameters(), average.module.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.001, rtol=0, atol=1e-6)
    assert difference(average.module(images(model)), model(images(model))) > 0


# Copies, devices, files


@tiny
def test_deepcopy(name: str) -> None:
    model = make(name)
    x = images(model)
    twin = copy.deepcopy(model)
    before = model(x)
    assert torch.equal(twin(x), before)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    with torch.no_grad():
        for parameter in positions_of(twin).values():
            parameter.neg_()
    assert torch.equal(model(x), before)
    assert difference(twin(x), before) > 1e-3


@tiny
def test_a_whole_model_is_pickled(name: str) -> None:
    model = make(name)
    x = images(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), model(x))
    assert list(again.state_dict()) == list(model.state_dict())


@tiny
def test_safetensors(name: str) -> None:
    model, other = make(name), make(name)
    x = images(model)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    assert torch.equal(other(x), model(x))


@tiny
def test_a_meta_model_takes_weights_by_assignment(name: str) -> None:
    model = make(name)
    x = images(model)
    empty = meta(name, num_classes=10).eval()
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    assert empty(x.to("meta")).shape == (2, 10)
    empty.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert torch.equal(empty(x), model(x))
    assert len(positions_of(empty)) == len(positions_of(model))
    with torch.no_grad():
        for parameter in positions_of(empty).values():
            parameter.neg_()
    assert difference(empty(x), model(x)) > 1e-3  # every layer reads the new tensor


@tiny
def test_factory_arguments(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


@tiny
def test_a_meta_model_is_initialised_after_to_empty(name: str) -> None:
    model = meta(name, num_classes=10).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for parameter in positions_of(model).values():
        assert 0.4 < parameter.std() < 0.6
    for parameter in model.parameters():  # timm's scales have no reset of their own
        parameter.data.nan_to_num_(nan=1.0)
    assert model(images(model)).isfinite().all()


@tiny
def test_bfloat16(name: str) -> None:
    model = make(name)
    x = images(model)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(model(x).float(), expected) < 0.1
    actual = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert actual.dtype == torch.bfloat16
    assert difference(actual.float(), expected) < 0.1


# Deployment


@tiny
def test_reparameterized(name: str) -> None:
    model = make(name)
    x = images(model)
    fused = reparameterize_model(model)
    assert difference(fused(x), model(x)) < 1e-5
    assert layers_of(fused) == {}
    assert not [key for key in fused.state_dict() if key.endswith(("positions", "sigma"))]
    sizes = Counter(m.kernel_size for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert sizes[SPACINGS[name][0], SPACINGS[name][0]] >= len(layers_of(model))
    assert layers_of(model)  # it was a copy
    assert difference(reparameterize_model(model, inplace=True)(x), fused(x)) < 1e-5


@tiny
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_script(name: str) -> None:
    model = make(name, scriptable=True)
    x = images(model)
    types = {n: type(m) for n, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    parameters = {n: id(p) for n, p in model.named_parameters()}
    scripted = torch.jit.script(model)
    assert {n: type(m) for n, m in model.named_modules()} == types
    assert {n: id(p) for n, p in model.named_parameters()} == parameters
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert list(model.state_dict()) == list(state)

    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    expected = model(x)
    assert difference(scripted(x), expected) < 1e-5
    assert difference(torch.jit.load(file)(x), expected) < 1e-5

    with torch.no_grad():  # the model lives on, and can be scripted again
        for parameter in positions_of(model).values():
            parameter.neg_()
    assert difference(torch.jit.script(model)(x), model(x)) < 1e-5
    assert difference(scripted(x), expected) < 1e-5
    assert all(g.abs().max() > 0 for k, g in gradients(model, x).items() if k.endswith("positions"))


@tiny
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace(name: str) -> None:
    model = make(name, exportable=True)
    x = images(model)
    traced = torch.jit.trace(model, x)
    other = images(model)
    assert difference(traced(other), model(other)) < 1e-5


@tiny
@pytest.mark.parametrize("training", [False, True])
def test_fx(name: str, training: bool) -> None:
    model = make(name).train(training)
    x = images(model)
    options = {
        "leaf_modules": list(get_notrace_modules()),
        "autowrap_functions": list(get_notrace_functions()),
    }
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=options)
    graph = create_feature_extractor(
        model,
        train_return_nodes={train_nodes[-1]: "y"},
        eval_return_nodes={eval_nodes[-1]: "y"},
        tracer_kwargs=options,
    ).train(training)
    twin = copy.deepcopy(model)
    assert difference(graph(x)["y"], twin(x)) < 1e-5
    traced = dict(graph.named_parameters())
    assert set(positions_of(model)) <= set(traced)
    graph.zero_grad()
    graph(x)["y"].square().sum().backward()
    for key, gradient in gradients(copy.deepcopy(twin), x).items():
        if key.endswith("positions"):
            torch.testing.assert_close(traced[key].grad, gradient, rtol=1e-3, atol=1e-3 * spread(gradient))


@tiny
def test_symbolic_trace(name: str) -> None:
    model = make(name)
    x = images(model)
    assert difference(torch.fx.symbolic_trace(model)(x), model(x)) < 1e-5


@tiny
def test_compile_for_inference(name: str) -> None:
    torch._dynamo.reset()
    model = make(name, **small(name))
    x = images(model)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert difference(compiled(x), model(x)) < 1e-5


@tiny
def test_compile_for_training(name: str) -> None:
    torch._dynamo.reset()
    model = make(name, **small(name)).train()
    x = images(model)
    expected = gradients(copy.deepcopy(model), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for key, actual in gradients(compiled, x).items():
        gradient = expected[key.removeprefix("_orig_mod.")]
        torch.testing.assert_close(actual, gradient, rtol=1e-3, atol=1e-3 * spread(gradient) + 1e-6)


@pytest.mark.slow
def test_compile_with_the_default_backend() -> None:
    torch._dynamo.reset()
    model = make("test_convnext_dcls", **{**small("test_convnext_dcls"), "version": "gauss"}).train()
    x = images(model)
    compiled = torch.compile(model, fullgraph=True)
    assert difference(compiled(x), model(x)) < 1e-5
    expected = gradients(copy.deepcopy(model), x)
    found = gradients(compiled, x)
    assert {key.removeprefix("_orig_mod.") for key in found} == set(expected)
    assert all(g.abs().max() > 0 for key, g in expected.items() if key.endswith("positions"))
    for key, actual in found.items():
        gradient = expected[key.removeprefix("_orig_mod.")]
        torch.testing.assert_close(actual, gradient, rtol=1e-3, atol=1e-3 * spread(gradient) + 1e-6)


@tiny
def test_export(name: str) -> None:
    model = make(name, **small(name))
    x = images(model)
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    other = images(model, 3)
    assert difference(program.module()(other), model(other)) < 1e-5


@tiny
def test_onnx(name: str, tmp_path: Path) -> None:
    model = make(name, **small(name))
    x = images(model)
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert difference(torch.from_numpy(actual), model(x)) < 1e-4


# Every model at full size


@pytest.mark.slow
@large
def test_full_size(name: str, tmp_path: Path) -> None:
    model = make(name, num_classes=7)
    x = images(model)
    found = gradients(model, x)
    assert all(g.isfinite().all() for g in found.values())
    assert all(g.abs().max() > 0 for k, g in found.items() if k.endswith("positions"))
    with torch.no_grad():
        expected = model(x)
        save_for_hf(model, tmp_path, safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert torch.equal(again(x), expected)
        assert difference(reparameterize_model(model, inplace=True)(x), expected) < 1e-4
    assert layers_of(model) == {}
