import pytest
import timm
import torch
from timm.layers import Conv2dSame
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.utils import prune

from dcls_models.layers import Dcls1d, Dcls2d, Dcls2dSame, Dcls3d, trim

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def empty_borders(conv, borders):
    """Zeros in the first and last pixels of each axis: ``borders`` has (before, after) per axis."""
    with torch.no_grad():
        for axis, (before, after) in enumerate(borders):
            size = conv.weight.shape[2 + axis]
            conv.weight.narrow(2 + axis, 0, before).zero_()
            conv.weight.narrow(2 + axis, size - after, after).zero_()
    return conv


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "words",
    [
        {"padding": 4},
        {"padding": (1, 6)},
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": 4, "stride": 2},
        {"padding": 9, "dilation": 2},
        {"padding": 4, "groups": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(9, 9), (8, 6)])
def test_outputs_stay_the_same(words, mode, size):
    conv = nn.Conv2d(4, 4, size, padding_mode=mode, dtype=torch.float64, **words)
    empty_borders(conv, [(3, 2), (1, 1)])
    x = torch.randn(2, 4, 25, 24, dtype=torch.float64)
    expected = conv(x)
    assert trim(conv) is conv
    torch.testing.assert_close(conv(x), expected)
    wanted = {"valid": (0, 0), (1, 6): (1, 1)}.get(words["padding"], (2, 1))
    assert conv.kernel_size == tuple(k - 2 * cut for k, cut in zip(size, wanted, strict=True))
    assert conv.weight.shape[2:] == conv.kernel_size and conv.weight.is_contiguous()


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes(axes):
    conv = empty_borders(CONVS[axes](2, 2, 5, padding=2), [(1, 1)] * axes)
    x = torch.randn(1, 2, *[8] * axes)
    expected = conv(x)
    assert trim(conv).kernel_size == (3,) * axes
    torch.testing.assert_close(conv(x), expected)


def test_an_empty_kernel_keeps_its_centre():
    conv = empty_borders(nn.Conv2d(2, 2, 5, padding=2), [(5, 0), (0, 0)])
    assert trim(conv).kernel_size == (1, 1)
    assert conv(torch.ones(1, 2, 6, 6)).shape == (1, 2, 6, 6)


def test_a_tolerance_is_the_largest_weight_that_is_cut():
    conv = empty_borders(nn.Conv2d(2, 2, 7, padding=3), [(2, 2), (2, 2)])
    with torch.no_grad():
        conv.weight[0, 0, 1, 3] = -0.01
    assert trim(conv).kernel_size == (5, 3)
    assert trim(conv, tolerance=0.01).kernel_size == (3, 3)
    with pytest.raises(ValueError, match=r"at least 0, got tolerance=-1"):
        trim(conv, tolerance=-1)


def test_numbers_that_are_none_are_not_empty():
    conv = empty_borders(nn.Conv2d(2, 2, 7, padding=3), [(2, 2), (2, 2)])
    with torch.no_grad():
        conv.weight[0, 0, 0, 3] = torch.nan
    assert trim(conv).kernel_size == (7, 3)
    with pytest.raises(ValueError, match="at least 0, got tolerance=nan"):
        trim(conv, tolerance=float("nan"))


def test_weights_that_something_else_makes_are_left_alone():
    conv = prune.identity(empty_borders(nn.Conv2d(2, 2, 7, padding=3), [(2, 2), (2, 2)]), "weight")
    assert trim(conv).kernel_size == (7, 7)
    assert trim(nn.Conv2d(2, 0, 7, padding=3)).kernel_size == (7, 7)


@pytest.mark.parametrize("layer_class", [Dcls1d, Dcls2d, Dcls3d])
def test_fuse_can_trim(layer_class):
    axes = layer_class.learned_axes
    layer = layer_class(4, 4, 3, padding=8, dilated_kernel_size=17, groups=4, version="v0")
    with torch.no_grad():
        layer.positions.clamp_(-2.5, 2.5)[0, 0, 0, 0] = 2.5
    x = torch.randn(2, 4, *[20] * axes)
    fused = layer.eval().fuse(trim=True)
    assert layer.fuse().kernel_size == (17,) * axes
    assert fused.kernel_size[0] == 7 and fused.padding[0] == 3
    torch.testing.assert_close(fused(x), layer(x), rtol=1e-4, atol=1e-5)
    assert layer.fuse(trim=True, tolerance=1e9).kernel_size == (1,) * axes


def test_other_classes_are_left_alone():
    layer = Dcls2dSame(4, 4, 3, dilated_kernel_size=9, version="v0")
    fused = layer.fuse(trim=True)
    assert type(fused) is Conv2dSame and fused.kernel_size == (9, 9)
    assert trim(layer).dilated_kernel_size == (9, 9)


@pytest.mark.parametrize("name", timm.list_models("test_*dcls*"))
def test_whole_models(name):
    model = timm.create_model(name).eval()
    x = torch.randn(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        expected = model(x)
        plain = reparameterize_model(model)
        before = sum(p.numel() for p in plain.parameters())
        assert trim(plain) is plain
        assert sum(p.numel() for p in plain.parameters()) < before
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
