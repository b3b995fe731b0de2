import copy
import io
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from dcls_models.layers import Dcls2_1d, Dcls2d, DclsNd, dense_kernel
from dcls_models.layers.positions import share_positions

VERSIONS = ["v0", "v1", "max", "gauss"]
SIZE = (5, 8)
LIMITS = torch.tensor([2.0, 4.0]).view(2, 1, 1, 1)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
all_versions = pytest.mark.parametrize("version", VERSIONS)


def new_layer(version: str = "gauss", size=SIZE, **kwargs) -> Dcls2d:
    words = {"padding": "same", "groups": 3, **kwargs}
    return Dcls2d(3, 3, 4, dilated_kernel_size=size, version=version, **words)


class Stage(nn.Sequential):
    """Two layers that share positions, which the stage holds."""

    def __init__(self, version: str = "gauss", **kwargs) -> None:
        super().__init__(new_layer(version, **kwargs), nn.ReLU(), new_layer(version, **kwargs))
        share_positions(self, [self[0], self[2]])


class PlainLayer(nn.Module):
    """The same parameters and kernel, with nothing that watches over the positions."""

    def __init__(self, layer: DclsNd) -> None:
        super().__init__()
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        self.version, self.groups = layer.version, layer.groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sigma = self._parameters.get("sigma")
        kernel = dense_kernel(self.weight, self.positions, sigma, SIZE, self.version)
        return conv2d(x, kernel, self.bias, padding="same", groups=self.groups)


def image(**kwargs) -> torch.Tensor:
    return torch.randn(2, 3, 9, 9, **kwargs)


def all_inside(positions: torch.Tensor) -> bool:
    return bool((positions.abs() <= LIMITS).all())


def put_outside(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.positions.copy_(4 * LIMITS * torch.randn_like(layer.positions).sign())


def loaded_from_outside(layer: nn.Module) -> torch.Tensor:
    positions = 1.2 * LIMITS * torch.randn_like(layer.positions).sign()
    layer.load_state_dict(layer.state_dict() | {"positions": positions})
    return positions


OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "sgd": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
    "adamw": lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05),
    "adamw_by_one": lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr, foreach=False),
    "timm_lamb": lambda model, lr: create_optimizer_v2(model, "lamb", lr=lr),
    "timm_lookahead": lambda model, lr: create_optimizer_v2(model, "lookahead_adamw", lr=lr),
}
all_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - x).square().sum().backward()
    optimizer.step()


# --- inside the kernel, whoever trains ---


@all_optimizers
@pytest.mark.parametrize("make", [new_layer, Stage])
def test_after_a_huge_step_positions_are_inside_at_once(make, optimizer):
    model = make()
    take_step(model, OPTIMIZERS[optimizer](model, 1e3), image())
    assert all_inside(model.positions)
    assert (model.positions.abs() == LIMITS).float().mean() > 0.5  # they were thrown out


@all_versions
def test_compiled_training_keeps_positions_inside_too(version):
    torch._dynamo.reset()
    model = Stage(version)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    take_step(compiled, optimizer, image())
    assert all_inside(model.positions)
    assert (model.positions.abs() == LIMITS).any()


@all_optimizers
@all_versions
def test_the_trajectory_is_that_of_a_clamp_after_every_step(version, optimizer):
    layer = new_layer(version)
    with torch.no_grad():
        layer.positions.copy_(LIMITS * torch.empty_like(layer.positions).uniform_(-1, 1))
    by_hand = PlainLayer(layer)
    ours, theirs = OPTIMIZERS[optimizer](layer, 0.2), OPTIMIZERS[optimizer](by_hand, 0.2)
    start, clamped = layer.positions.detach().clone(), False
    for _ in range(5):
        x = image()
        take_step(layer, ours, x)
        take_step(by_hand, theirs, x)
        clamped |= not all_inside(by_hand.positions)
        with torch.no_grad():
            by_hand.positions.copy_(by_hand.positions.clamp(-LIMITS, LIMITS))
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, by_hand.get_parameter(name)), name
    assert not torch.equal(layer.positions, start)
    assert clamped


def subtract_without_grad(parameter: torch.Tensor) -> None:
    with torch.no_grad():
        parameter -= 1e3 * parameter.grad


def subtract_from_data(parameter: torch.Tensor) -> None:
    parameter.data = parameter.data - 1e3 * parameter.grad


def subtract_in_place_from_data(parameter: torch.Tensor) -> None:
    parameter.data -= 1e3 * parameter.grad


@pytest.mark.parametrize("update", [subtract_without_grad, subtract_from_data, subtract_in_place_from_data])
@pytest.mark.parametrize("make", [new_layer, Stage])
def test_a_loop_written_by_hand_computes_with_positions_on_the_limit(make, update):
    model, x = make(), image()
    for _ in range(3):
        model(x).square().sum().backward()
        update(model.positions)
        assert not all_inside(model.positions)
        expected = model.positions.detach().clamp(-LIMITS, LIMITS)
        model.zero_grad()
        outside = model(x)
        (model if make is new_layer else model[0]).clamp_parameters()
        assert torch.equal(model.positions, expected)
        assert torch.equal(model(x), outside)


@pytest.mark.parametrize("training", [True, False])
@all_versions
def test_a_position_outside_counts_as_on_the_limit(version, training):
    layer, x = new_layer(version).train(training), image()
    clamped = copy.deepcopy(layer)
    put_outside(layer)
    with torch.no_grad():
        clamped.positions.copy_(layer.positions.clamp(-LIMITS, LIMITS))
    assert torch.equal(layer(x), clamped(x))
    grad, expected = (torch.autograd.grad(m(x).square().sum(), m.positions)[0] for m in (layer, clamped))
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [new_layer, Stage])
def test_a_state_dict_never_holds_a_position_outside(make, training):
    model = nn.ModuleDict({"stage": make()}).train(training)
    put_outside(model["stage"])
    assert not all_inside(model["stage"].positions)
    assert all_inside(model.state_dict()["stage.positions"])
    put_outside(model["stage"])
    assert all_inside(model["stage"].state_dict(keep_vars=True)["positions"])


@all_versions
def test_the_gradient_at_the_limits_is_the_whole_gradient(version):
    layer = new_layer(version)
    with (
        torch.no_grad()
    ):  # one axis on the limits, the other off the integers, where v1 and max have no slope
        on_the_limits, between = layer.positions
        on_the_limits.copy_(2 * on_the_limits.sign())
        between.copy_(between.frac() / 2 + 0.1)
    plain, x = PlainLayer(layer), image()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.positions)
    (expected,) = torch.autograd.grad(plain(x).square().sum(), plain.positions)
    assert (grad[1] != 0).all()
    assert (grad[0] != 0).any() == (version in ("v0", "gauss"))
    assert torch.equal(grad, expected)


# --- projecting in place disturbs no autograd graph ---


def with_positions_on_the_limits(model: nn.Module) -> nn.Module:
    """Half of the elements; there, v1 and max have no slope, as in the authors' package."""
    with torch.no_grad():
        model.positions[..., :2] = LIMITS * model.positions[..., :2].sign()
    return model


@all_versions
def test_two_layers_two_forwards_one_backward(version):
    model = with_positions_on_the_limits(Stage(version))
    x, other = image(), image()
    (model(x).square().sum() + model(other).square().sum()).backward()
    at_once = model.positions.grad.clone()
    model.zero_grad()
    for each in (x, other):
        model(each).square().sum().backward()
    torch.testing.assert_close(at_once, model.positions.grad)
    assert at_once.abs().sum() > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
@all_versions
def test_gradient_checkpointing(version, use_reentrant):
    model = with_positions_on_the_limits(Stage(version))
    x = image(requires_grad=True)
    model(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    checkpoint(model, checkpoint(model, x, use_reentrant=use_reentrant), use_reentrant=use_reentrant)
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@all_optimizers
@pytest.mark.parametrize("held_by_the_optimizer", [True, False])
def test_frozen_positions_stay(optimizer, held_by_the_optimizer):
    model = Stage()
    model.positions.requires_grad_(False)
    before, weight = model.positions.clone(), model[0].weight.detach().clone()
    if held_by_the_optimizer:
        stepper = OPTIMIZERS[optimizer](model, 1e3)
    else:
        others = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        stepper = OPTIMIZERS[optimizer](others, 1e3)
    for _ in range(2):
        take_step(model, stepper, image())
    assert torch.equal(model.positions, before)
    assert not torch.equal(model[0].weight, weight)


# --- positions that a checkpoint brings from outside ---


@all_versions
def test_loaded_positions_outside_are_kept_and_reported(version, caplog):
    layer = new_layer(version)
    with caplog.at_level(logging.WARNING, "dcls_models"):
        positions = loaded_from_outside(layer)
    assert f"{positions.numel()} of {positions.numel()} loaded positions of Dcls2d lie outside" in caplog.text
    plain, x = PlainLayer(layer), image()
    for training in (False, True, False):
        assert torch.equal(layer.train(training)(x), plain(x))
    assert torch.equal(layer.positions, positions)
    assert torch.equal(layer.state_dict()["positions"], positions)
    grad, expected = (torch.autograd.grad(m(x).square().sum(), m.positions)[0] for m in (layer, plain))
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("make", [new_layer, Stage])
def test_parameters_put_in_place_by_a_loader_stay_outside(make, caplog):
    source = make()
    loaded_from_outside(source)
    x = image()
    expected = source(x)
    with torch.device("meta"):
        model = make()
    for name, stored in source.state_dict().items():  # as transformers and accelerate do
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, nn.Parameter(stored.clone()))
    caplog.clear()
    assert torch.equal(model(x), expected) and torch.equal(model.eval()(x), expected)
    assert "loaded positions of" in caplog.text
    assert torch.equal(model.state_dict()["positions"], source.positions)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    take_step(model.train(), OPTIMIZERS["sgd"](model, 1e-6), x)
    assert all_inside(model.positions)


@pytest.mark.parametrize("make", [new_layer, Stage])
def test_a_copy_of_what_was_written_outside_by_hand_computes_the_same(make):
    model, x = make(), image()
    put_outside(model)
    expected = model(x)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(x), expected)
    assert all_inside(model.state_dict()["positions"])


def test_a_step_that_counts_no_writes_clamps_loaded_positions():
    layer = new_layer("v1")
    loaded_from_outside(layer)
    stepper = torch.optim.AdamW(layer.parameters(), lr=1e-6, fused=True)
    take_step(layer, stepper, image())
    assert all_inside(layer.positions)


def test_a_layer_of_inference_mode_keeps_loaded_positions_outside():
    with torch.inference_mode():
        layer = new_layer("v1")
        positions = loaded_from_outside(layer)
        assert torch.equal(layer.state_dict()["positions"], positions)


@all_optimizers
@pytest.mark.parametrize("make", [new_layer, Stage])
def test_the_first_step_clamps_loaded_positions(make, optimizer):
    model = make()
    loaded_from_outside(model)
    stepper = OPTIMIZERS[optimizer](model, 1e-6)
    model(image())
    assert not all_inside(model.positions)
    take_step(model, stepper, image())
    assert all_inside(model.positions)
    assert all_inside(model.state_dict()["positions"])


@pytest.mark.parametrize("duplicate", [False, True])
def test_after_a_step_by_hand_loaded_positions_count_as_on_the_limit(duplicate):
    layer = new_layer()
    loaded_from_outside(layer)
    if duplicate:
        layer = copied(layer)
    layer(image()).sum().backward()
    layer.clamp_parameters()
    assert not all_inside(layer.positions)  # as they were loaded
    with torch.no_grad():
        layer.positions -= 1e-6 * layer.positions.grad
    x = image()
    output = layer(x)
    layer.clamp_parameters()
    assert all_inside(layer.positions)
    assert torch.equal(layer(x), output)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_loaded_positions_that_are_frozen_stay_outside(optimizer):
    model = Stage()
    positions = loaded_from_outside(model)
    model.positions.requires_grad_(False)
    stepper = OPTIMIZERS[optimizer](model, 1e-3)
    for _ in range(2):
        take_step(model, stepper, image())
    assert torch.equal(model.positions, positions)


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def cast(model: nn.Module) -> nn.Module:
    return model.double().float()


@pytest.mark.parametrize("duplicate", [copied, pickled, saved, cast])
@pytest.mark.parametrize("make", [new_layer, Stage])
def test_a_copy_keeps_loaded_positions_outside_until_it_is_trained(make, duplicate):
    model, x = make(), image()
    positions, expected = loaded_from_outside(model), model(x)
    duplicated = duplicate(model)
    assert torch.equal(duplicated(x), expected)
    assert torch.equal(duplicated.state_dict()["positions"], positions)
    assert torch.equal(duplicated.eval()(x), expected)
    take_step(duplicated.train(), torch.optim.SGD(duplicated.parameters(), lr=1e-6), x)
    assert all_inside(duplicated.positions)


def test_a_load_of_positions_inside_ends_the_exception():
    layer = new_layer()
    inside = layer.state_dict()["positions"].clone()
    loaded_from_outside(layer)
    layer.load_state_dict(layer.state_dict() | {"positions": inside})
    put_outside(layer)
    layer.clamp_parameters()
    assert all_inside(layer.positions)


# --- layers that share ---


def independent(model: Stage) -> nn.Sequential:
    """The same layers, each with its own copy of the positions."""
    return nn.Sequential(copy.deepcopy(model[0]), nn.ReLU(), copy.deepcopy(model[2]))


@all_versions
def test_shared_layers_compute_what_separate_ones_do(version):
    model, x = Stage(version), image()
    separate = independent(model)
    assert torch.equal(model(x), separate(x))
    for each in (model, separate):
        each(x).square().sum().backward()
    added = separate[0].positions.grad + separate[2].positions.grad
    torch.testing.assert_close(model.positions.grad, added)
    assert model[0].positions is model[2].positions is model.positions


@all_versions
def test_a_state_dict_has_one_copy_and_safetensors_takes_it(version, tmp_path):
    model, other = Stage(version), Stage(version)
    names = {"0.weight", "0.bias", "2.weight", "2.bias", "positions"}
    names |= {"sigma"} if version in ("max", "gauss") else set()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} == names
    save_file(model.state_dict(), tmp_path / "stage.safetensors")
    assert (
        str(other.load_state_dict(load_file(tmp_path / "stage.safetensors")))
        == "<All keys matched successfully>"
    )
    x = image()
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("make_empty", [lambda: Stage(device="meta"), Stage])
def test_assigned_parameters_stay_shared(make_empty):
    model, other, x = Stage(), make_empty(), image()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other.load_state_dict(state, assign=True)
    assert other[0].positions.data_ptr() == other[2].positions.data_ptr() == state["positions"].data_ptr()
    assert torch.equal(other(x), model(x))
    take_step(other, torch.optim.SGD(other.parameters(), lr=1e3), x)
    assert all_inside(other.positions)


def test_a_stage_made_on_meta_is_filled_later():
    model = Stage(device="meta").to_empty(device="cpu")
    for layer in (model[0], model[2]):
        layer.reset_parameters()
    assert model[0].positions is model[2].positions is model.positions
    assert all_inside(model.positions)
    assert model.positions.std().item() == pytest.approx(0.5, rel=0.3)
    assert (model.sigma == 0.23).all()
    assert model(image()).isfinite().all()


@pytest.mark.parametrize("duplicate", [copied, pickled, saved])
def test_a_copy_of_the_container_shares_among_itself(duplicate):
    model, x = Stage(), image()
    expected = model(x)
    duplicated = duplicate(model)
    assert torch.equal(duplicated(x), expected)
    assert duplicated[0].positions is duplicated[2].positions is duplicated.positions
    take_step(duplicated, torch.optim.SGD(duplicated.parameters(), lr=1e3), x)
    assert all_inside(duplicated.positions)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("from_outside", [False, True])
def test_a_copy_of_one_layer_alone_has_positions_of_its_own(from_outside):
    model, x = Stage(), image()
    if from_outside:
        loaded_from_outside(model)
    layer = copy.deepcopy(model[2])
    assert list(layer.state_dict()) == ["weight", "bias", "positions", "sigma"]
    assert torch.equal(layer(x), model[2](x))
    before = model.positions.detach().clone()
    take_step(layer, torch.optim.SGD(layer.parameters(), lr=1e3), x)
    assert all_inside(layer.positions)
    assert torch.equal(model.positions, before)


@all_versions
def test_functional_call_and_functional_gradients(version):
    model, other, x = Stage(version), Stage(version), image()
    values = dict(other.named_parameters())
    assert torch.equal(torch.func.functional_call(model, values, x), other(x))

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, x).square().sum()

    grads = torch.func.grad(loss)({name: value.detach() for name, value in values.items()})
    other(x).square().sum().backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


@pytest.mark.parametrize("loaded_outside", [False, True])
@pytest.mark.parametrize("make", [new_layer, Stage])
@all_versions
def test_functional_transforms_in_training_mode(version, make, loaded_outside):
    """As with nn.Conv2d; the clamp is straight-through, for forward derivatives too."""
    model, x = make(version).double().train(), image(dtype=torch.float64)
    if loaded_outside:
        loaded_from_outside(model)
    else:
        with_positions_on_the_limits(model)
    values = {name: p.detach() for name, p in model.named_parameters()}
    before = {name: p.clone() for name, p in values.items()}

    def loss(parameters, images=x):
        return torch.func.functional_call(model, parameters, images).square().sum()

    grads = torch.func.grad(loss)(values)
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
    tangents = {name: torch.randn_like(p) for name, p in values.items()}
    _, slope = torch.func.jvp(loss, (values,), (tangents,))
    torch.testing.assert_close(slope, sum((grads[n] * t).sum() for n, t in tangents.items()))
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    for name, grad in each.items():
        torch.testing.assert_close(grad.sum(0), grads[name])
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, x).sum((1, 2, 3)))(values)
    assert jacobian["positions"].shape == (2, *model.positions.shape)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@all_versions
def test_second_derivatives_in_training_mode(version):
    model, x = new_layer(version).double(), image(dtype=torch.float64)
    values = {name: p.detach() for name, p in model.named_parameters()}

    def loss(positions):
        return torch.func.functional_call(model, values | {"positions": positions}, x).square().sum()

    positions = values["positions"].requires_grad_()
    hessian = torch.func.hessian(loss)(positions).reshape(positions.numel(), -1)
    (grad,) = torch.autograd.grad(loss(positions), positions, create_graph=True)
    rows = [torch.autograd.grad(g, positions, retain_graph=True)[0].flatten() for g in grad.flatten()[::5]]
    torch.testing.assert_close(hessian[::5], torch.stack(rows))


def test_graph_tools_see_the_shared_positions():
    model, x = nn.Sequential(Stage(), nn.Flatten()).eval(), image()
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), expected)
    (grad,) = torch.autograd.grad(traced(x).square().sum(), traced.get_parameter("0.positions"))
    assert grad.abs().sum() > 0


def test_timms_average_takes_shared_positions_once_and_keeps_them_inside():
    model = Stage()
    average = ModelEmaV3(model, decay=0.9)
    before = average.module.positions.clone()
    take_step(model, torch.optim.SGD(model.parameters(), lr=1e3), image())
    average.update(model)
    torch.testing.assert_close(average.module.positions, 0.9 * before + 0.1 * model.positions)
    assert not torch.equal(model.positions, before)
    assert all_inside(average.module.state_dict()["positions"])
    assert torch.equal(average.module[2].positions, average.module.positions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "v1"}, "must have one version, kernel size and shape, got Dcls2d.*and Dcls2d"),
        ({"size": (5, 7)}, "must have one version, kernel size and shape"),
        ({"groups": 1}, "must have one version, kernel size and shape"),
    ],
)
def test_layers_that_do_not_fit_cannot_share(change, message):
    model = nn.Sequential(new_layer(), new_layer(**change))
    with pytest.raises(ValueError, match=message):
        share_positions(model, list(model))
    assert model[0].holder() is model[0]


def test_the_holder_must_contain_the_layers_and_have_the_name_free():
    stranger = new_layer()
    with pytest.raises(ValueError, match="is not inside the module that is to hold its positions"):
        share_positions(nn.Sequential(new_layer()), [stranger])
    model = Stage()
    with pytest.raises(ValueError, match="Stage already has an attribute 'positions'"):
        share_positions(model, [model[0], model[2]])


def authors_state(model: Stage) -> dict[str, torch.Tensor]:
    """As the authors' files: a copy below every layer, rows in reverse."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    positions, sigma = state.pop("positions"), state.pop("sigma")
    for layer in ("0", "2"):
        state |= {f"{layer}.P": positions.flip(0), f"{layer}.SIG": sigma.flip(0)}
    return state


def test_copies_of_the_authors_become_one():
    model, other = Stage(size=(7, 7)), Stage(size=(7, 7))
    with torch.no_grad():
        model.sigma.uniform_(-1, 1)
    assert str(other.load_state_dict(authors_state(model))) == "<All keys matched successfully>"
    assert torch.equal(other.positions, model.positions)
    assert torch.equal(other.sigma, model.sigma)


@pytest.mark.parametrize("key", ["2.P", "2.SIG"])
def test_copies_that_disagree_are_refused(key):
    model = Stage(size=(7, 7))
    state = authors_state(model)
    state[key] = state[key] + 0.1
    with pytest.raises(RuntimeError, match=rf"{key} differs from the copy of another layer that shares it"):
        model.load_state_dict(state)


def test_a_layer_with_dense_axes_is_watched_over_too():
    layer = Dcls2_1d(3, 3, 4, padding="same", dense_kernel_size=3, dilated_kernel_size=5)
    take_step(layer, torch.optim.SGD(layer.parameters(), lr=1e3), image())
    assert layer.positions.abs().max() == 2.0
