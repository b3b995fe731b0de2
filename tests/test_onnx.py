"""ONNX files: equal outputs at any batch and size, with the width padding of wide convolutions apart."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from dcls_models.onnx import pad_apart, write_onnx
from hub import HubError
from hub.export import export
from hub.onnx import export_onnx, images_below

FAMILIES = timm.list_models("test_*dcls*")


class Convolutions(nn.Module):
    """Depthwise ones of several shapes, and a dense one, in a row."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            nn.Conv2d(4, 4, size, padding=(size[0] // 2, size[1] // 2), groups=4) for size in sizes
        )
        self.dense = nn.Conv2d(4, 4, 11, padding=5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.depthwise:
            x = conv(x).tanh()
        return self.dense(x)


def run(proto: onnx.ModelProto, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


def spread_out(model: nn.Module) -> nn.Module:
    """As trained positions are: kernels are not empty at their borders."""
    for name, parameter in model.named_parameters():
        if name.endswith("positions"):
            nn.init.uniform_(parameter, -8, 8)
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    return model


@pytest.mark.filterwarnings("ignore")
def test_the_padding_apart_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Convolutions((17, 17), (7, 7), (5, 13), (13, 5), (23, 23)).eval()
    images = torch.randn(2, 4, 24, 20)
    with monkeypatch.context() as patch:
        patch.setattr("dcls_models.onnx.pad_apart", lambda graph: 0)
        write_onnx(model, tmp_path / "plain.onnx", images, dynamic_size=True)
    proto = onnx.load(tmp_path / "plain.onnx")
    before = {tuple(size): run(proto, torch.ones(size)) for size in ((2, 4, 24, 20), (1, 4, 31, 9))}
    assert pad_apart(proto.graph) == 3, "17x17, 5x13 and 23x23; not the narrow ones and the dense one"
    onnx.checker.check_model(proto)
    for size, expected in before.items():
        assert np.array_equal(run(proto, torch.ones(size)), expected)
    assert pad_apart(proto.graph) == 0, "nothing is left to be changed"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_at_any_batch_and_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = spread_out(timm.create_model(name).eval())
    channels, height, width = model.pretrained_cfg["input_size"]
    images = torch.randn(2, channels, height, width)
    export_onnx(model, tmp_path / "model.onnx", images, dynamic_size=True)
    proto = onnx.load(tmp_path / "model.onnx")
    wide = "resnet" not in name  # whose convolutions are dense
    assert any(node.op_type == "Pad" for node in proto.graph.node) == wide
    other = torch.randn(3, channels, height - 32, width + 32)
    with torch.no_grad():
        expected = model(other)
    assert np.abs(run(proto, other) - expected.numpy()).max() < 1e-4 * max(1, expected.abs().max().item())


@pytest.mark.filterwarnings("ignore")
def test_int8_at_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = spread_out(timm.create_model("test_convnext_dcls").eval())
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.effect_noise((40, 50), 60 + i).convert("RGB").save(photos / f"{i}.png")
    path = tmp_path / "model.onnx"
    export_onnx(
        model,
        path,
        torch.randn(2, 3, 96, 96),
        dynamic_size=True,
        int8=True,
        compare=images_below(photos, model),
    )
    out = capsys.readouterr().out
    assert "int8 changes the logits of random images by at most" in out
    assert re.search(r"int8 gives the same answer for [0-3] of 3 images; it changes", out)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "photos"}
    (photos / "4.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    export_onnx(
        model, path, torch.randn(2, 3, 96, 96), True, int8=True, compare=images_below(Path("photos"), model)
    )
    out = capsys.readouterr().out
    assert "unreadable: photos/4.png: " in out and "of 3 images; it changes" in out
    with pytest.raises(HubError, match="--images is not a folder: nowhere"):
        export(model, tmp_path / "out", onnx=True, int8=True, compare=Path("nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match=r"empty has no images \(\.png"):
        export(model, tmp_path / "out", onnx=True, int8=True, compare=tmp_path / "empty")
    with pytest.raises(HubError, match="--images compares the int8 file with the model: give --int8 as well"):
        export(model, tmp_path / "out", onnx=True, compare=photos)
    proto = onnx.load(tmp_path / "model.onnx")
    kinds = {node.op_type for node in proto.graph.node}
    assert {"MatMulInteger", "Conv", "Pad"} <= kinds and "ConvInteger" not in kinds
    images = torch.randn(3, 3, 64, 128)
    with torch.no_grad():
        expected = model(images)
    change = np.abs(run(proto, images) - expected.numpy()).max()
    assert 0 < change < 0.1 * (expected.max() - expected.min()).item()


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 3 * 8 * 8) if x.shape[2] == 8 else x

    with pytest.raises(HubError, match=r"torch cannot export Fixed with a dynamic size: leave it out \("):
        export_onnx(Fixed(), tmp_path / "x.onnx", torch.randn(2, 3, 8, 8), dynamic_size=True)
    changed: Callable[[nn.Module], nn.Module] = lambda model: nn.Sequential(model, nn.Hardtanh(-0.1, 0.1))  # noqa: E731
    monkeypatch.setattr("dcls_models.onnx.fused", changed)
    with pytest.raises(HubError, match=r"the ONNX model at \(2, 4, 12, 12\) differs from the model by"):
        export_onnx(Convolutions((3, 3)).eval(), tmp_path / "x.onnx", torch.randn(2, 4, 12, 12))
