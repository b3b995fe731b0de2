"""Strided 1x1 convolutions that oneDNN writes out of bounds for, as slices."""

import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn

import dcls_models
from dcls_models import dclsify, slice_strided
from dcls_models.strided import SlicedConv2d, overrunning

TRAINING = """
import sys, timm, torch, dcls_models
layout = getattr(torch, sys.argv[1])
for family in ("convnext", "resnet", "convformer", "caformer", "fastvit"):
    for batch, side in ((8, 128), (1, 97), (2, 64)):
        model = timm.create_model(f"test_{family}_dcls").to(memory_format=layout).train()
        images = torch.randn(batch, 3, side, side).contiguous(memory_format=layout)
        for _ in range(2):
            model(images).square().mean().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    print(family)
"""


@pytest.mark.parametrize("layout", ["channels_last", "contiguous_format"])
def test_every_family_trains_in_anybodys_loop(layout):
    guarded = {**os.environ, "MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3"}  # glibc: memory is never zero
    command = [sys.executable, "-c", TRAINING, layout]
    done = subprocess.run(command, capture_output=True, text=True, env=guarded)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.split() == ["convnext", "resnet", "convformer", "caformer", "fastvit"]


@pytest.mark.parametrize("side", [64, 97])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_slice_and_an_unstrided_convolution_give_the_same(side, layout):
    conv = nn.Conv2d(3, 20, 1, stride=(2, 3))
    sliced = slice_strided(nn.Sequential(copy.deepcopy(conv)))[0]
    assert type(sliced) is SlicedConv2d and sliced.state_dict().keys() == conv.state_dict().keys()
    images = torch.randn(4, 3, side, side).contiguous(memory_format=layout)
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    expected, actual = conv(inputs[0]), sliced(inputs[1])
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    assert actual.is_contiguous(memory_format=layout)
    actual.sum().backward()
    rows, columns = conv.stride
    by_hand = images[:, :, ::rows, ::columns].sum((0, 2, 3)).expand(20, 3)[..., None, None]
    torch.testing.assert_close(sliced.weight.grad, by_hand, atol=1e-3, rtol=1e-4)
    for conversion in (torch.jit.script, torch.fx.symbolic_trace, copy.deepcopy):
        assert torch.equal(conversion(sliced)(images), actual)


def test_the_stem_of_timms_fastvit_only():
    model = timm.create_model("test_fastvit_dcls", num_classes=3).eval()
    assert [n for n, m in model.named_modules() if isinstance(m, SlicedConv2d)] == ["stem.0.conv_scale.conv"]
    assert not overrunning(model)
    assert overrunning(timm.create_model("fastvit_t8")) == ["stem.0.conv_scale.conv"]
    for name in ("convnext_tiny", "resnet50", "convformer_s18", "mobilenetv3_small_050"):
        with torch.device("meta"):
            assert not overrunning(timm.create_model(name)), name
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(reparameterize_model(model)(images), model(images), atol=1e-5, rtol=1e-4)


def test_dclsify_warns_of_it_once_in_a_foreign_model(caplog):
    model = timm.create_model("fastvit_t8")
    dclsify(model, "stages.3.*.mlp.conv.conv", kernel_count=5, dilated_kernel_size=9)
    (line,) = [m for m in caplog.messages if "channels_last" in m]
    assert "stem.0.conv_scale.conv" in line and "dcls_models.slice_strided" in line
    caplog.clear()
    dclsify(slice_strided(timm.create_model("fastvit_t8")), "stages.3.*.mlp.conv.conv", dilated_kernel_size=9)
    timm.create_model("test_fastvit_dcls")
    assert not caplog.messages
    assert dcls_models.slice_strided is slice_strided
