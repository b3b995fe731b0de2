"""Training on two processes (gloo, CPU) equals training in one: DDP, FSDP2; and averaging with an EMA.

The processes are started once and run all the cases, because most of their time is spent importing.
"""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dcls_models.layers import DclsNd

WORLD = 2
Case = dict[str, Any]
State = dict[str, torch.Tensor]

DDP_CASES: dict[str, Case] = {
    "v0": {"version": "v0"},
    "gauss": {"version": "gauss"},
    "oblong": {"version": "v1", "dilated_kernel_size": (9, 5)},
    "checkpointing": {"version": "v1", "grad_checkpointing": True},
    "convformer": {"version": "v1", "model": "test_convformer_dcls"},
    "caformer": {"version": "gauss", "model": "test_caformer_dcls"},
    "fastvit": {"version": "v1", "model": "test_fastvit_dcls"},
    "resnet": {"version": "v0", "model": "test_resnet_dcls"},
}
FSDP_CASES: dict[str, Case] = {
    "blocks": {"version": "v1", "shard": "blocks"},
    "stages": {"version": "v1", "shard": "stages"},
    "root": {"version": "gauss", "shard": "root"},
    "oblong": {"version": "max", "shard": "stages", "dilated_kernel_size": (9, 5)},
    "checkpointing": {"version": "v0", "shard": "blocks", "grad_checkpointing": True},
    "convformer": {"version": "gauss", "shard": "stages", "model": "test_convformer_dcls"},
    "caformer": {"version": "v1", "shard": "stages", "model": "test_caformer_dcls"},
    "fastvit": {"version": "v1", "shard": "stages", "model": "test_fastvit_dcls"},
    "resnet": {"version": "v0", "shard": "stages", "model": "test_resnet_dcls"},
}
# with the usual ones, 1e-6 and 0, the positions would hardly have a gradient
SCALES = {
    "test_convnext_dcls": {"ls_init_value": 0.5},
    "test_fastvit_dcls": {"layer_scale_init_value": 0.5},
    "test_resnet_dcls": {"zero_init_last": False},
}
# learning rates of the positions and of the rest: so fast that without a clamp many positions would leave
RATES = {
    "test_convnext_dcls": (1e4, 0.05),
    "test_convformer_dcls": (1e6, 0.05),
    "test_caformer_dcls": (1e6, 0.05),
    "test_fastvit_dcls": (1e5, 0.05),
    "test_resnet_dcls": (1e2, 5e-4),
}


def name_of(case: Case) -> str:
    return case.get("model", "test_convnext_dcls")


def fsdp_steps(case: Case) -> int:
    """Three; two of the other families, where a third makes more of rounding than of learning."""
    return 2 if "model" in case else 3


def make_model(
    version: str,
    dilated_kernel_size: Any = 7,
    grad_checkpointing: bool = False,
    model: str = "test_convnext_dcls",
) -> nn.Module:
    torch.manual_seed(0)
    made = timm.create_model(
        model,
        num_classes=4,
        kernel_count=6,
        version=version,
        dilated_kernel_size=dilated_kernel_size,
        **SCALES.get(model, {}),
    )
    made.set_grad_checkpointing(grad_checkpointing)
    return with_fixed_statistics(made.train())


def with_fixed_statistics(model: nn.Module) -> nn.Module:
    """Batch norms keep those of one batch, because half a batch has others than the whole."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
        for norm in norms:
            norm.eval()
    return model


def stages_of(model: nn.Module) -> list[nn.Module]:
    if hasattr(model, "stages"):
        return list(model.stages)
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def train(
    model: nn.Module,
    steps: int,
    rank: int | None = None,
    after: Callable[[], None] = lambda: None,
    name: str = "test_convnext_dcls",
) -> None:
    """Some steps on one fixed batch per step, or on the half of it that belongs to a rank."""
    named = list(model.named_parameters())
    fast, slow = RATES[name]
    optimizer = torch.optim.SGD(
        [
            {"params": [p for n, p in named if n.endswith("positions")], "lr": fast},
            {"params": [p for n, p in named if not n.endswith("positions")], "lr": slow, "momentum": 0.9},
        ]
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(4, 3, 64, 64, generator=generator)
        labels = torch.randint(4, (4,), generator=generator)
        mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[mine]), labels[mine]).backward()
        optimizer.step()
        after()


def position_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if n.endswith("positions")}


def clone(state: dict[str, torch.Tensor]) -> State:
    return {k: v.detach().clone() for k, v in state.items()}


# What runs in the processes.


def run_ddp(rank: int, case: Case) -> dict[str, Any]:
    model = make_model(**case)
    train(DistributedDataParallel(model), steps=2, rank=rank, name=name_of(case))
    return {"positions": clone(position_tensors(model)), "state": clone(model.state_dict())}


def run_fsdp(rank: int, case: Case) -> dict[str, Any]:
    arguments = {**case}
    shard = arguments.pop("shard")
    model = make_model(**arguments)
    mesh = init_device_mesh("cpu", (WORLD,))
    parts: dict[str, Iterable[nn.Module]] = {
        "blocks": (block for stage in stages_of(model) for block in stage.blocks),
        "stages": stages_of(model),
        "root": [],
    }
    for part in parts[shard]:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    local = []  # what a rank stores straight after each step

    def look() -> None:
        local.append({n: p.to_local().detach().clone() for n, p in position_tensors(model).items()})

    train(model, steps=fsdp_steps(case), rank=rank, after=look, name=name_of(case))
    full = StateDictOptions(full_state_dict=True)
    state = clone(get_model_state_dict(model, options=full))
    shared = all(
        layer.positions is stage.positions
        for stage in stages_of(model)
        for layer in stage.modules()
        if isinstance(layer, DclsNd)
    )
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    set_model_state_dict(model, zeros, options=full)
    zeroed = clone(get_model_state_dict(model, options=full))
    set_model_state_dict(model, dict(state), options=full)  # distributes the tensors of its argument
    restored = clone(get_model_state_dict(model, options=full))
    return {"state": state, "local": local, "shared": shared, "zeroed": zeroed, "restored": restored}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    results = {f"ddp {name}": run_ddp(rank, case) for name, case in DDP_CASES.items()}
    results |= {f"fsdp {name}": run_fsdp(rank, case) for name, case in FSDP_CASES.items()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# What looks at it.

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """For each rank, what each case gave."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def of_both_ranks(results: Results, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return results[0][name], results[1][name]


def alone(case: Case, steps: int) -> tuple[nn.Module, State, State]:
    """The model trained in one process on the whole batches, its state and the state it began with."""
    model = make_model(**{k: v for k, v in case.items() if k != "shard"})
    start = clone(model.state_dict())
    train(model, steps, name=name_of(case))
    return model, clone(model.state_dict()), start


def assert_same(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        tolerance = 1e-3 if name.endswith("positions") else 1e-5  # their learning rate is huge
        torch.testing.assert_close(
            ours[name], value, atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_learned_within(state: State, start: State, size: Any) -> None:
    """All positions inside, many of them at the limit, most of them moved."""
    sizes = (size, size) if isinstance(size, int) else size
    names = [n for n in state if n.endswith("positions")]
    assert names == [n for n in start if n.endswith("positions")]
    for name in names:
        for row, before, k in zip(state[name], start[name], sizes, strict=True):
            assert row.abs().max() <= k // 2
            assert row.ne(before).float().mean() > 0.7, name
    at_limit = [
        r.abs().eq(k // 2).float().mean() for n in names for r, k in zip(state[n], sizes, strict=True)
    ]
    assert max(at_limit) > 0.2


class TestDdp:
    @pytest.mark.parametrize("name", DDP_CASES)
    def test_two_steps_on_halves_equal_two_on_the_whole(self, name: str, results: Results) -> None:
        first, _ = of_both_ranks(results, f"ddp {name}")
        _, state, start = alone(DDP_CASES[name], steps=2)
        assert_same(first["state"], state)
        assert_learned_within(first["positions"], start, DDP_CASES[name].get("dilated_kernel_size", 7))

    @pytest.mark.parametrize("name", DDP_CASES)
    def test_ranks_agree_to_the_bit(self, name: str, results: Results) -> None:
        first, second = of_both_ranks(results, f"ddp {name}")
        assert all(torch.equal(v, second["state"][k]) for k, v in first["state"].items())
        assert all(torch.equal(v, second["positions"][k]) for k, v in first["positions"].items())


class TestFsdp:
    @pytest.mark.parametrize("name", FSDP_CASES)
    def test_steps_equal_those_of_the_whole_model(self, name: str, results: Results) -> None:
        first, second = of_both_ranks(results, f"fsdp {name}")
        _, state, start = alone(FSDP_CASES[name], steps=fsdp_steps(FSDP_CASES[name]))
        assert_same(first["state"], state)
        assert_same(second["state"], state)
        assert_learned_within(first["state"], start, FSDP_CASES[name].get("dilated_kernel_size", 7))

    @pytest.mark.parametrize("name", FSDP_CASES)
    def test_each_rank_keeps_its_shard_inside(self, name: str, results: Results) -> None:
        """Straight after the optimizer, before a forward or a state dict could have clamped."""
        size = FSDP_CASES[name].get("dilated_kernel_size", 7)
        sizes = (size, size) if isinstance(size, int) else size
        for rank, result in enumerate(of_both_ranks(results, f"fsdp {name}")):
            assert len(result["local"]) == fsdp_steps(FSDP_CASES[name])
            for step in result["local"]:
                assert list(step) == [n for n in result["state"] if n.endswith("positions")]
                for shard in step.values():
                    assert shard.shape[0] == 1  # two axes, two ranks
                    assert shard.abs().max() <= sizes[rank] // 2
            first, last = result["local"][0], result["local"][-1]
            assert all(not torch.equal(first[n], last[n]) for n in first)

    @pytest.mark.parametrize("name", FSDP_CASES)
    def test_a_stage_still_shares_one_tensor(self, name: str, results: Results) -> None:
        _, state, _ = alone(FSDP_CASES[name], steps=0)
        for result in of_both_ranks(results, f"fsdp {name}"):
            assert result["shared"]
            assert list(result["state"]) == list(state)

    @pytest.mark.parametrize("name", FSDP_CASES)
    def test_the_full_state_dict_loads_again(self, name: str, results: Results) -> None:
        for result in of_both_ranks(results, f"fsdp {name}"):
            assert not any(v.any() for v in result["zeroed"].values())
            assert all(torch.equal(v, result["state"][k]) for k, v in result["restored"].items())


class TestEma:
    @pytest.mark.parametrize("foreach", [True, False])
    def test_shared_positions_are_averaged_once(self, foreach: bool) -> None:
        """The authors' way, a tensor in every block, would average those of n blocks n times."""
        model = make_model("gauss")
        ema = ModelEmaV3(model, decay=0.9, foreach=foreach)
        start = clone(model.state_dict())
        train(model, steps=1)
        end = clone(model.state_dict())
        ema.update(model)
        average = ema.module.state_dict()
        assert average.keys() == start.keys()
        for name, value in average.items():
            torch.testing.assert_close(value, start[name] + 0.1 * (end[name] - start[name]))
        assert any((end[n] - start[n]).abs().max() > 1 for n in start if n.endswith("positions"))

    def test_the_average_reads_its_own_positions(self) -> None:
        model = make_model("v1")
        ema = ModelEmaV3(model, decay=0.9)
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            before = ema.module(image)
            for positions in position_tensors(model).values():
                positions.add_(1)
            assert torch.equal(ema.module(image), before)
            ema.update(model)
            assert not torch.equal(ema.module(image), before)
        for stage, original in zip(ema.module.stages, model.stages, strict=True):
            layers = [m for m in stage.modules() if isinstance(m, DclsNd)]
            assert layers
            assert all(layer.positions is stage.positions for layer in layers)
            assert stage.positions is not original.positions

    def test_the_average_stays_inside(self) -> None:
        model = make_model("v1")
        ema = ModelEmaV3(model, decay=0.5)
        for _ in range(3):
            train(model, steps=1)
            ema.update(model)
        positions = position_tensors(ema.module)
        assert len(positions) == 4
        assert all(p.abs().max() <= 3 for p in positions.values())
        assert any(p.abs().max() > 2.5 for p in positions.values())
