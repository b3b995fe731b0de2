"""The study: its tasks, its models, its trainings, its results and the picture of README.md."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from dcls_models.layers import Dcls2d
from dcls_models.provenance import read_result
from train.study.contours import contours
from train.study.experiments import EXPERIMENTS, FIRST, is_done, markdown, summary
from train.study.models import PEERS, STANDARD, VARIANTS, Variant, model_kwargs, parameters
from train.study.picture import main, on_pixels
from train.study.study import main as study
from train.study.tasks import TASKS, baselines
from train.study.textures import textures
from train.study.training import CONTINUATIONS, DENSE, Run, execute

DOCS = Path(__file__).parents[1] / "docs"
SEEDS = {"rates": 1, "variants": 5, "curve": 3, "warm": 5, "peers": 5}  # that docs report
SMALL = TASKS[FIRST]._replace(images=320, epochs=2)


class TestContours:
    def test_they_depend_on_their_seed_only(self) -> None:
        (images, labels), (again, _), (other, _) = (contours(64, seed=seed) for seed in (5, 5, 6))
        assert images.shape == (64, 3, 32, 32)
        assert 0 <= images.min() < images.max() <= 1
        assert labels.sum() == 32
        assert torch.equal(images, again) and not torch.equal(images, other)

    def test_there_is_no_shortcut(self) -> None:
        found = baselines(32)
        for simple in ("linear", "dots", "amount of ink"):
            assert found[simple] == pytest.approx(50, abs=3), simple

    def test_dots_and_ink_are_those_of_the_other_class(self) -> None:
        images, labels = contours(20000)
        marked = (images[:, 0] - images[:, 1]).sum(2)
        row = torch.linspace(-1, 1, 32)
        apart = (marked * row**2).sum(1) - (marked * row).sum(1) ** 2
        for seen in (marked.sum(1), apart, images[:, 1].sum((1, 2))):
            here, there = seen[labels == 1], seen[labels == 0]
            assert here.mean().item() == pytest.approx(there.mean().item(), rel=0.03)
            assert here.std().item() == pytest.approx(there.std().item(), rel=0.05)


def test_only_what_is_close_tells_textures_apart() -> None:
    images, labels = textures(4096, seed=3)
    again, _ = textures(4096, seed=3)
    assert images.shape == (4096, 3, 32, 32) and torch.equal(images, again)
    assert labels.bincount().tolist() == [512] * 8
    for k in range(8):
        own = images[labels == k, 0]
        assert own.mean().item() == pytest.approx(0, abs=0.02)
        assert own.std().item() == pytest.approx(1, abs=0.02)
        far = (own[..., 5:] * own[..., :-5]).mean().item(), (own[..., 5:, :] * own[..., :-5, :]).mean().item()
        assert far == pytest.approx((0, 0), abs=0.01)
    rows = [(images[labels == k, 0, :, 1:] * images[labels == k, 0, :, :-1]).mean().item() for k in range(8)]
    assert max(rows) - min(rows) > 0.4


class TestVariants:
    @pytest.mark.parametrize("depth", [2, 4])
    def test_trained_numbers_are_equal(self, depth: int) -> None:
        made = {name: build(variant, depth) for name, variant in {**VARIANTS, **PEERS}.items()}
        trained = {name: parameters(model)["trained"] for name, model in made.items()}
        wanted = trained[STANDARD]
        larger = {"dense 13x13", "dense 31x31", "31x31 with a 5x5 branch"}
        assert {name for name, count in trained.items() if count > wanted} == larger
        fewer = {"frozen, as many elements"}
        assert {name for name in VARIANTS if trained[name] < 0.97 * wanted} == fewer
        assert min(trained[name] for name in PEERS) > 0.85 * wanted  # a step of the width is larger there

    def test_frozen_positions_are_those_of_the_learned_ones(self) -> None:
        torch.manual_seed(0)
        learned = build(VARIANTS["DCLS v1, spread"], 2)
        torch.manual_seed(0)
        frozen = build(VARIANTS["frozen, as many elements"], 2)
        assert torch.equal(learned.blocks.positions, frozen.blocks.positions)
        assert learned.blocks.positions.requires_grad and not frozen.blocks.positions.requires_grad
        assert learned.blocks.positions.abs().max() > 5.5 and frozen.blocks[0][0].fn[0].weight.requires_grad

    @pytest.mark.parametrize("name", [*VARIANTS, *PEERS])
    def test_only_the_spatial_mixing_differs(self, name: str) -> None:
        model = build({**VARIANTS, **PEERS}[name], 2)
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2)
        dim = model.stem[0].out_channels
        assert [m.kernel_size for m in model.blocks[0] if isinstance(m, nn.Conv2d)] == [(1, 1)]
        assert model.blocks[0][1].weight.shape == (dim, dim, 1, 1)


def build(variant: Variant, depth: int) -> nn.Module:
    return timm.create_model("study_convmixer", num_classes=2, **model_kwargs(variant, 32, depth))


class TestTraining:
    def test_points_say_where_positions_are(self) -> None:
        (row,) = execute(Run("curve", FIRST, "DCLS v1, spread", 0, 25.0, length=2, moments=4), SMALL, 32)
        assert [point["updates"] for point in row["points"]] == [5, 10, 15, 20]
        moved = [point["moved"] for point in row["points"]]
        assert moved == sorted(moved) and moved[0] > 0
        assert 4 < row["points"][0]["from_centre"] < 5.5
        assert row["top1"] == row["points"][-1]["top1"]

    def test_frozen_positions_stay_and_runs_repeat(self) -> None:
        run = Run("variants", FIRST, "frozen, as many elements", 1, 5.0)
        rows = [execute(run, SMALL, 32)[0] for _ in range(2)]
        assert rows[0]["points"] == rows[1]["points"]
        assert rows[0]["points"][-1]["moved"] == 0

    def test_continuations_start_from_the_trained_model(self) -> None:
        rows = {row["variant"]: row for row in execute(Run("warm", FIRST, "all", 0, 5.0), SMALL, 32)}
        assert list(rows) == [DENSE, *CONTINUATIONS]
        further = rows["dense 7x7, further"]["points"]
        assert [point["updates"] for point in further] == [0, 5]
        assert [point["updates"] for point in rows["dense 7x7, from scratch"]["points"]] == [5]
        assert rows["DCLS v1, warm start"]["points"][-1]["moved"] > 0
        assert rows["DCLS v1, warm start, frozen"]["points"][-1]["moved"] == 0


class TestCommand:
    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
        runs = [Run("variants", FIRST, name, 0, 5.0) for name in (STANDARD, "DCLS v1, spread")]
        monkeypatch.setitem(TASKS, FIRST, SMALL)
        monkeypatch.setitem(EXPERIMENTS, "variants", lambda seeds, large: runs)
        return runs

    @pytest.mark.usefixtures("small")
    def test_it_writes_reports_and_goes_on(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        study(["variants", "--out", str(tmp_path), "--workers", "1"])
        result = read_result(tmp_path / "study.json")
        assert result["results"] == summary(result["runs"]) and len(result["runs"]) == 2
        assert markdown(result["results"], "variants") in capsys.readouterr().out
        assert Image.open(tmp_path / "study.png").width > 1000
        kept = {**result["runs"][0], "seconds": -1.0}
        (tmp_path / "study.json").write_text(json.dumps({**result, "runs": [kept]}))
        study(["variants", "--out", str(tmp_path), "--workers", "1"])
        again = read_result(tmp_path / "study.json")["runs"]
        assert again[0] == kept and again[1]["seconds"] > 0
        assert [row["points"] for row in again] == [row["points"] for row in result["runs"]]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--seeds", "0"], "at least 1, got '0'"),
            (["--workers", "-1"], "at least 1, got '-1'"),
            (["sizes"], "no experiment 'sizes': choose from rates, variants, curve, warm, peers"),
        ],
    )
    def test_what_it_does_not_know_is_one_line(
        self, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            study([*arguments, "--out", str(tmp_path / "new")])
        assert said in capsys.readouterr().err and not (tmp_path / "new").exists()

    @pytest.mark.parametrize("content", ["{", "[]", '{"runs": []}'])
    def test_a_file_that_is_not_a_studys_stays(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "study.json").write_text(content)
        with pytest.raises(SystemExit, match="is not a study's"):
            study(["rates", "--out", str(tmp_path)])
        assert (tmp_path / "study.json").read_text() == content


def test_docs_hold_the_tables_of_the_results() -> None:
    result = read_result(DOCS / "study.json")
    assert summary(result["runs"]) == result["results"]
    text = (DOCS / "study.md").read_text("utf-8")
    for experiment in SEEDS:
        assert markdown(result["results"], experiment) in text, experiment
        wanted = EXPERIMENTS[experiment](SEEDS[experiment], False)
        assert [run for run in wanted if not is_done(run, result["runs"])] == []


def test_a_dilated_kernel_has_gaps_and_the_same_effect() -> None:
    conv = nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=4, bias=False)
    kernels = on_pixels(conv)
    assert kernels.shape == (4, 5, 5)
    images = torch.randn(2, 4, 9, 9)
    on_pixels_of_images = nn.functional.conv2d(images, kernels[:, None], padding=2, groups=4)
    torch.testing.assert_close(on_pixels_of_images, conv(images))


def test_a_learned_kernel_is_what_the_layer_computes_with() -> None:
    layer = Dcls2d(4, 4, kernel_count=3, dilated_kernel_size=5, padding=2, groups=4, bias=False, version="v1")
    assert torch.equal(on_pixels(layer), layer.fuse().weight[:, 0])


def test_the_command_trains_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, FIRST, SMALL)
    main(["--output", str(tmp_path / "new" / "picture.png"), "--updates", "2"])
    assert Image.open(tmp_path / "new" / "picture.png").width > 1000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
