from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import dcls_models  # noqa: F401
from dcls_models.layers import Dcls2d
from dcls_models.layers.positions import share_positions
from dcls_models.optim import holders, param_groups, repulsion

REFERENCE = Path(__file__).parent / "reference"


def names_of(model, group):
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("name", timm.list_models("test_*_dcls"))
def test_positions_and_sigma_are_faster_and_never_decay(name):
    model = timm.create_model(name, version="gauss")
    groups = param_groups(model, lr=0.1, weight_decay=0.05)
    spacings = {n for n, _ in model.named_parameters() if n.endswith((".positions", ".sigma"))}
    (positions,) = [g for g in groups if g["name"] == "positions"]
    assert names_of(model, positions) == spacings
    assert (positions["lr"], positions["lr_scale"], positions["weight_decay"]) == (0.5, 5.0, 0.0)
    by_name = {g["name"]: g for g in groups}
    assert by_name["decay"]["weight_decay"] == 0.05
    assert all(model.get_parameter(n).ndim > 1 for n in names_of(model, by_name["decay"]))


@pytest.mark.parametrize("name", timm.list_models("test_*_dcls"))
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_trainable_parameter_is_in_exactly_one_group(name, layer_decay):
    model = timm.create_model(name)
    next(model.parameters()).requires_grad_(False)
    grouped = [id(p) for g in param_groups(model, 0.1, layer_decay=layer_decay) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_layer_decay_multiplies_with_the_factor_of_the_positions():
    model = timm.create_model("test_convnext_dcls")
    scale = {}
    for group in param_groups(model, 0.1, layer_decay=0.5):
        assert group["lr"] == pytest.approx(0.1 * group["lr_scale"])
        scale |= dict.fromkeys(names_of(model, group), group["lr_scale"])
    for stage in range(4):
        weight = scale[f"stages.{stage}.blocks.0.conv_dw.weight"]
        assert scale[f"stages.{stage}.positions"] == pytest.approx(5 * weight)
    assert scale["stages.0.positions"] < scale["stages.3.positions"]
    assert scale["head.fc.weight"] == 1.0


def test_a_model_without_dcls_has_no_group_of_positions():
    assert {g["name"] for g in param_groups(timm.create_model("test_convnext"), 0.1)} == {"decay", "no_decay"}


def layers_with(*positions):
    layers = nn.Sequential()
    for p in positions:
        _, out, ins, n = p.shape
        layer = Dcls2d(ins, out, n, dilated_kernel_size=17)
        layer.positions.data.copy_(p)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("prefix", ["", "dense."])
def test_repulsion_equals_the_reference(prefix):
    stored = load_file(REFERENCE / "repulsion.safetensors")
    names = ["dense.P"] if prefix else [f"P.{i}" for i in range(4)]
    layers = layers_with(*(stored[name] for name in names))
    value = repulsion(layers)
    torch.testing.assert_close(value, stored[f"{prefix}value"][0], atol=1e-8, rtol=1e-6)
    (value**2).backward()
    for name, layer in zip(names, layers, strict=True):
        expected = stored[name.replace("P", "grad_of_square")]
        torch.testing.assert_close(layer.positions.grad, expected, atol=1e-9, rtol=1e-5)


def test_shared_positions_repel_once():
    one = layers_with(torch.randn(2, 3, 1, 5))
    two = nn.Sequential(Dcls2d(1, 3, 5, dilated_kernel_size=17), Dcls2d(1, 3, 5, dilated_kernel_size=17))
    share_positions(two, list(two))
    two.positions.data.copy_(one[0].positions)
    assert holders(two) == [two]
    assert repulsion(two) == repulsion(one)


def test_repulsion_needs_elements():
    with pytest.raises(ValueError, match="no DCLS layer"):
        repulsion(nn.Conv2d(1, 1, 3))
