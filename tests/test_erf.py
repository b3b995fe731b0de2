"""The effective receptive field: by finite differences, by the authors' loop, and where it must end."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import dcls_models  # noqa: F401
from eval.cli import main
from eval.interpretability.erf import contributions, effective_receptive_field, for_drawing, share_of_area
from eval.interpretability.features import stage_of
from hub.export import export

TINY = timm.list_models("test_*_dcls")


class Convolutions(nn.Module):
    """Two convolutions with kernels of ones: each pixel in reach has a known number of ways to the middle."""

    feature_info = ({"num_chs": 4, "module": "first"}, {"num_chs": 2, "module": "second"})

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 5, padding=2, bias=False)
        self.second = nn.Conv2d(4, 2, 3, padding=1, bias=False)
        for layer in (self.first, self.second):
            nn.init.ones_(layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_ways_to_the_middle_are_counted() -> None:
    images = torch.rand(2, 3, 17, 17)
    line = np.convolve(np.ones(5), np.ones(3))  # ways from each of 7 pixels
    expected = torch.zeros(17, 17)
    expected[5:12, 5:12] = torch.from_numpy(np.outer(line, line)) * 4 * 2 * 3 * 2  # channels, colours, images
    torch.testing.assert_close(contributions(Convolutions(), images), expected)
    first = contributions(Convolutions(), images, stage=0)
    assert first.nonzero().min() == 6 and first.nonzero().max() == 10 and (first[6:11, 6:11] == 24).all()
    assert not contributions(Convolutions(), -images).any(), "a middle that is cut off adds nothing"


@pytest.mark.parametrize("name", TINY)
def test_every_family_has_a_field(name: str) -> None:
    """Against the derivative along a direction, by finite differences in float64."""
    model = timm.create_model(name).eval().double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)

    def middle(x: torch.Tensor) -> torch.Tensor:
        kept = []
        stage = model.get_submodule(stage_of(model))
        hook = stage.register_forward_hook(lambda module, inputs, output: kept.append(output))
        model(x)
        hook.remove()
        return kept[0][:, :, :2, :2].relu().sum()  # all of 2 x 2: even sides have two middles

    field = contributions(model, image)
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(middle(image), image)
    torch.testing.assert_close(field, gradient.relu().sum((0, 1)))
    step = 1e-6 * torch.randn_like(image)
    with torch.no_grad():
        difference = middle(image + step) - middle(image - step)
    torch.testing.assert_close(difference, 2 * (gradient * step).sum(), rtol=1e-3, atol=1e-12)
    assert field.shape == (64, 64) and (field > 0).sum() > 50


def test_squares_are_those_of_the_authors() -> None:
    """``get_rectangle`` of ``erf/analyze_erf.py``, as a loop over squares."""
    torch.manual_seed(1)
    rows, columns = (torch.linspace(-3, 3, size)[:, None] for size in (48, 64))
    field = for_drawing(torch.rand(48, 64) * torch.exp(-(rows**2) - columns.T**2))
    found = share_of_area(field)
    for share in (0.2, 0.3, 0.5):
        for i in range(1, 24):
            held = field[24 - i : 25 + i, 32 - i : 33 + i].sum() / field.sum()
            if held > share:
                assert found[str(share)] == pytest.approx((2 * i + 1) ** 2 / (48 * 64))
                break
    assert found["0.2"] < found["0.3"] < found["0.5"] < found["0.99"] <= 1
    even = share_of_area(torch.ones(9, 9))
    assert even["0.99"] == 1 and even["0.5"] == 49 / 81
    assert set(share_of_area(torch.eye(3).roll(0) * torch.tensor([0.0, 1.0, 0.0])).values()) == {1 / 9}


def test_a_longer_kernel_sees_further() -> None:
    reached = []
    for size in (3, 11):
        torch.manual_seed(0)
        kwargs = {"kernel_count": 9, "dilated_kernel_size": size, "ls_init_value": 1.0, "patch_size": 2}
        model = timm.create_model("test_convnext_dcls", depths=(2, 1, 1, 1), **kwargs).eval()
        field, n = effective_receptive_field(model, torch.randn(2, 2, 3, 64, 64), stage=0)
        assert n == 4
        reached.append((field > 0).sum())
    assert reached[1] > 2 * reached[0]


def test_nothing_to_see() -> None:
    with pytest.raises(ValueError, match="no pixel has a finite effect on the middle of second"):
        effective_receptive_field(Convolutions(), [torch.zeros(1, 3, 8, 8)])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("test_convnext_dcls", "test_resnet_dcls"):
        export(timm.create_model(name, num_classes=9), tmp_path / name)
    ours, baseline = (f"local-dir:{tmp_path / n}" for n in ("test_convnext_dcls", "test_resnet_dcls"))
    common = ["--baseline", baseline, "--img-size", "64", "--workers", "0", "--device", "cpu"]
    output, picture = tmp_path / "out" / "erf.json", tmp_path / "out" / "erf.png"
    files = ["--output", str(output), "--picture", str(picture)]
    main(["erf", "--model", ours, *common, "--random", "--limit", "3", *files])
    result = json.loads(output.read_text())
    assert (
        result["task"] == "erf"
        and result["model"] == ours
        and result["n"] == 3
        and result["dataset"] == "noise"
    )
    assert [r["model"] for r in result["rows"]] == [baseline, ours]
    assert list(result["share_of_area"]) == ["0.2", "0.3", "0.5", "0.99"]
    assert result["pictures"] == ["erf.png"] and Image.open(picture).width > 400
    assert "50% in" in capsys.readouterr().out
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for i in range(5):
        Image.effect_noise((40 + i, 30), 50).save(folder / f"{i}.png")
    main(["erf", "--model", ours, *common, "--data", str(tmp_path / "photos"), "--limit", "4", *files])
    assert json.loads(output.read_text())["n"] == 4
    (folder / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        main(["erf", "--model", ours, "--data", str(tmp_path / "photos"), "--device", "cpu"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in"):
        main(["erf", "--model", ours, "--data", str(tmp_path / "empty"), "--device", "cpu"])
