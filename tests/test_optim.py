from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

import dcls_models
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
    assert (positions["lr"], positions["weight_decay"]) == (0.5, 0.0)
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


def learning_rates(model, groups):
    return {name: group["lr"] for group in groups for name in names_of(model, group)}


@pytest.mark.parametrize("dclsified", [False, True])
def test_layer_decay_multiplies_with_the_factor_of_the_positions(dclsified):
    model = timm.create_model("test_convnext" if dclsified else "test_convnext_dcls")
    if dclsified:
        dcls_models.dclsify(model, share=model.stages)
    lr = learning_rates(model, param_groups(model, 0.1, layer_decay=0.5))
    for stage in range(4):
        weight = lr[f"stages.{stage}.blocks.0.conv_dw.weight"]
        assert lr[f"stages.{stage}.positions"] == pytest.approx(5 * weight)
    assert lr["stages.0.positions"] < lr["stages.3.positions"]
    assert lr["head.fc.weight"] == pytest.approx(0.1)


def test_schedulers_of_timm_and_torch_keep_the_factors():
    model = timm.create_model("test_convnext_dcls")
    for schedule in (
        lambda o: CosineLRScheduler(o, t_initial=10, t_in_epochs=False).step_update(0),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    ):
        optimizer = create_optimizer_v2(param_groups(model, 1e-3), opt="adamw", lr=1e-3)
        schedule(optimizer)
        lr = learning_rates(model, optimizer.param_groups)
        assert lr["stages.0.positions"] == pytest.approx(5e-3)
        assert lr["stem.0.weight"] == pytest.approx(1e-3)


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
