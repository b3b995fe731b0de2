"""The picture of README.md."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dcls_models.layers import Dcls2d
from train.study.picture import main, on_pixels
from train.study.study import SIZES


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
    monkeypatch.setitem(SIZES["small"], "images", 256)
    main(["--output", str(tmp_path / "new" / "picture.png"), "--updates", "2"])
    assert Image.open(tmp_path / "new" / "picture.png").width > 1000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
