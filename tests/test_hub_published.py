"""The cards of the published models: complete, true to the registry and to what is reported, and usable."""

import re
import shlex
from pathlib import Path

import pytest
import timm
from huggingface_hub import ModelCard

from dcls_models.published import published
from hub.cli import main, parser

NAMES = sorted(name.partition(".")[0] for name in timm.list_models("*_dcls*", pretrained=True))


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "cards"
    main(["cards", str(folder)])
    return folder


def test_there_is_one_for_each_of_the_twelve(cards: Path) -> None:
    assert len(NAMES) == 12
    assert sorted(card.stem for card in cards.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_says_where_weights_are_and_what_is_reported(cards: Path, name: str) -> None:
    card, cfg = ModelCard.load(cards / f"{name}.md"), timm.get_pretrained_cfg(name)
    assert card.data.license == "other" and card.data.license_link == cfg.origin_url
    assert f"]({cfg.url})" in card.text and f"[Zenodo record]({cfg.origin_url})" in card.text
    assert "republishes nothing" in card.text
    reported = {row["value"] for row in published() if row["model"] == name}
    assert {cell.strip() for cell in re.findall(r"^\|[^|]+\|([ \d.]+)\|", card.text, re.M)} == reported
    assert reported or "none is given here" in card.text
    for code in re.findall(r"```python\n(.*?)```", card.text, re.S):
        compile(code, name, "exec")
    converts = re.findall(r"`python -m hub (convert [^`]+)`", card.text)
    assert len(converts) == ("audio" not in name)
    assert all(parser().parse_args(shlex.split(command)).model == name for command in converts)


@pytest.mark.parametrize("name", ["convnext_dcls_tiny", "fastvit_dcls_audio_sa24"])
def test_its_lines_run_with_random_weights(cards: Path, name: str) -> None:
    text = (cards / f"{name}.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S)[1].replace("pretrained=True", "pretrained=False")
    names: dict = {}
    exec(code, names)
    assert names["output"].shape == (1, names["model"].num_classes)
    assert f"{sum(p.numel() for p in names['model'].parameters()):,} parameters" in text
