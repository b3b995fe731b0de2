"""The table of the zoo: counted right, and the committed one is what its command writes today."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import timm
from timm.models import ConvNeXt

from dcls_models.layers import Dcls2d
from dcls_models.provenance import read_result
from eval.cli import main
from eval.speed.costs import costs
from eval.speed.models import as_csv, plain_model, zoo

QUICK = ("convnext_dcls_atto", "convnext_dcls_tiny", "fastvit_dcls_t8", "resnet50_dcls")
DOCS = Path(__file__).parent.parent / "docs"

# Parameters, GMACs and activations of timm's own tables (results/benchmark-infer-*.csv), in millions
TIMM = {
    "convnext_tiny": (28.59, 4.47, 13.44),
    "resnet50": (25.56, 4.11, 11.11),
    "convformer_s18": (26.77, 3.96, 15.82),
    "caformer_s18": (26.34, 4.13, 19.39),
}


@pytest.mark.parametrize("name", TIMM)
def test_plain_models_cost_what_timm_says(name: str) -> None:
    counted, _ = costs(name)
    parameters, gmacs, activations = TIMM[name]
    assert round(counted.parameters / 1e6, 2) == parameters
    assert round(counted.activations / 1e6, 2) == activations
    assert 0.99 * gmacs < counted.macs / 1e9 <= gmacs, "timm counts normalisation as well"


def test_a_deployed_model_costs_its_dense_kernels() -> None:
    (dcls, model), (plain, _) = costs("test_convnext_dcls"), costs("test_convnext")
    assert isinstance(model, ConvNeXt)
    layers = [m for m in model.modules() if isinstance(m, Dcls2d)]
    sides = [160 // 4 // 2**stage for stage, blocks in enumerate(model.stages) for _ in blocks.blocks]
    more = sum(
        layer.out_channels * side**2 * (17**2 - 7**2) for layer, side in zip(layers, sides, strict=True)
    )
    assert dcls.macs - plain.macs == more
    assert dcls.activations == plain.activations
    assert dcls.deployed_parameters - plain.parameters == sum(m.out_channels * (17**2 - 7**2) for m in layers)


def test_plain_models_are_the_ones_of_timm() -> None:
    assert plain_model("convnext_dcls_gauss_tiny") == "convnext_tiny"
    assert plain_model("resnet50_dcls") == "resnet50"
    assert plain_model("convnext_dcls_audio_tiny") is None


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of the command that the page names, run from where it is to be run."""
    (line,) = re.findall(
        r"^python -m eval (models .*)$", (DOCS / "models.md").read_text(encoding="utf-8"), re.M
    )
    monkeypatch.chdir(DOCS.parent)
    return shlex.split(line)


def test_the_committed_table_is_that_of_the_registry(command: list[str]) -> None:
    """All models are in it; those that are quick to count are counted again."""
    table = list(csv.DictReader((DOCS / "models.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["model"] for row in table] == timm.list_models("*dcls*")
    results = [read_result(Path(word)) for word in command if word.endswith(".json")]
    again = csv.DictReader(as_csv(zoo([*timm.list_models("test_*dcls*"), *QUICK], results)).splitlines())
    committed = {row["model"]: row for row in table}
    for row in again:
        assert row == committed[row["model"]], "write the table again, with the command at its top"


@pytest.mark.slow
def test_the_committed_table_is_what_its_command_writes(command: list[str], tmp_path: Path) -> None:
    assert command[-2:] == ["--output", "docs/models.md"]
    main([*command[:-1], str(tmp_path / "models.md")])
    written = (tmp_path / "models.md").read_text(encoding="utf-8")
    assert written.replace(str(tmp_path / "models.md"), "docs/models.md") == (DOCS / "models.md").read_text()
    assert (tmp_path / "models.csv").read_text() == (DOCS / "models.csv").read_text()


def test_speeds_come_from_timings_only(tmp_path: Path) -> None:
    other = str(DOCS / "digits_results.json")
    with pytest.raises(ValueError, match=r"digits_results\.json is a result of accuracy: --speed takes"):
        main(["models", "--speed", other, "--output", str(tmp_path / "models.md")])
    assert not list(tmp_path.iterdir())
