"""Pictures and statistics of kernels, on kernels that are known."""

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from dcls_models.layers import Dcls2d
from dcls_models.layers.positions import stage_title
from eval.cli import main
from eval.interpretability.kernels import elements, magnitude, stages_of, statistics
from hub.export import export

TINY = timm.list_models("test_*_dcls")


def layer(version: str = "v1", size: int = 9) -> Dcls2d:
    """Three elements on the row of the middle: in it, 2 pixels right of it and at the border."""
    found = Dcls2d(4, 4, 3, dilated_kernel_size=size, groups=4, version=version)
    with torch.no_grad():
        found.positions.zero_()
        found.positions[1, ..., 1], found.positions[1, ..., 2] = 2, size // 2
        found.weight.copy_(torch.tensor([1.0, -2.0, 1.0]))
    return found.eval()


def test_numbers_of_a_known_stage() -> None:
    found = statistics("s", [layer(), layer()])
    assert found["size"] == [9, 9] and found["layers"] == 2 and found["kernel_count"] == 3
    assert found["radius"] == pytest.approx((0 * 1 + 2 * 2 + 4 * 1) / 4)
    assert found["outside_7x7"] == pytest.approx(1 / 4)
    assert found["mean_distance"] == pytest.approx((0 + 2 + 4) / 3)
    assert found["at_border"] == pytest.approx(1 / 3)
    assert "sigma" not in found
    assert statistics("s", [layer("gauss")])["sigma"] == pytest.approx({"mean": 0.5, "std": 0})
    dense = nn.Conv2d(4, 4, 3, groups=4)
    nn.init.ones_(dense.weight)
    radius = (4 + 4 * math.sqrt(2)) / 9
    found = statistics("d", [dense])
    assert found.pop("radius") == pytest.approx(radius)
    assert found == {"name": "d", "layers": 1, "size": [3, 3], "outside_7x7": 0}


def test_kernels_of_unequal_size_are_centred() -> None:
    small, large = nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 2, (5, 4), groups=2)
    for conv in (small, large):
        nn.init.zeros_(conv.weight)
    small.weight.data[:, :, 1, 1] = 2
    large.weight.data[:, :, 2, 2] = -4
    expected = torch.zeros(5, 4)
    expected[2, 2] = 3
    assert torch.equal(magnitude([small, large]), expected)


@pytest.mark.parametrize("name", TINY)
def test_every_family_has_its_stages(name: str) -> None:
    model = timm.create_model(name)
    stages = stages_of(model)
    assert sum(map(len, stages.values())) == sum(isinstance(m, Dcls2d) for m in model.modules())
    assert set(stages) <= {info["module"] for info in model.feature_info}
    for title, layers in stages.items():
        holder = model.get_submodule(title)
        assert elements(layers)[0].shape == holder.positions.flatten(1).shape, "shared positions count once"


def test_pictures_count_stages_from_one() -> None:
    names = ["stages.0", "stages_0", "layer1", "encoder.stages.3", "blocks", ""]
    assert [stage_title(n) for n in names] == [
        "stage 1",
        "stage 1",
        "stage 1",
        "stage 4",
        "blocks",
        "kernels",
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = timm.create_model("test_convnext_dcls", num_classes=9, version="gauss")
    export(model, tmp_path / "model")
    export(timm.create_model("test_fastvit_dcls", num_classes=9), tmp_path / "other")
    output, numbers = tmp_path / "out" / "k.png", tmp_path / "out" / "k.json"
    which = ["--model", f"local-dir:{tmp_path / 'model'}", "--baseline", f"local-dir:{tmp_path / 'other'}"]
    main(["kernels", *which, "--output", str(numbers), "--picture", str(output)])
    result = json.loads(numbers.read_text())
    assert result["task"] == "kernels" and result["pictures"] == ["k.png"] and len(result["rows"]) == 2
    assert [s["name"] for s in result["stages"]] == list(stages_of(model))
    assert "sigma" in result["stages"][0] and "sigma" not in result["rows"][0]["stages"][0]
    assert Image.open(output).height > 700
    assert capsys.readouterr().out.count("radius") == len(result["stages"]) + len(result["rows"][0]["stages"])


def test_a_dense_model_is_looked_at_and_others_say_why_not() -> None:
    stages = stages_of(timm.create_model("test_convnext"))
    assert set(stages) == {f"stages.{i}" for i in range(4)}
    with pytest.raises(ValueError, match="Sequential has no DCLS layer and no depthwise convolution"):
        stages_of(nn.Sequential(nn.Conv2d(3, 8, 3)))
