"""What the study compares with: mixers of other libraries, and ConvNeXts that have them."""

import pytest
import timm
import torch
from timm.utils.model import reparameterize_model
from torch import nn

from dcls_models import deploy
from eval.speed.costs import costs
from train.study.peers import MIXERS, Deformable, markdown


@pytest.mark.parametrize("side", [12, 16])
@pytest.mark.parametrize("name", sorted(MIXERS))
def test_mixers_keep_the_size_and_train(name: str, side: int) -> None:
    torch.manual_seed(0)
    mixer = MIXERS[name](16)
    images = torch.randn(2, 16, side, side, requires_grad=True)
    output = mixer(images)
    assert output.shape == images.shape
    output.square().sum().backward()
    for gradient in (images.grad, *(p.grad for p in mixer.parameters())):
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0


def test_a_deformable_convolution_starts_as_a_plain_one() -> None:
    mixer = Deformable(4)
    images = torch.randn(2, 4, 9, 9)
    plain = nn.functional.conv2d(images, mixer.conv.weight, mixer.conv.bias, padding=1, groups=4)
    torch.testing.assert_close(mixer(images), plain)


class TestConvNeXts:
    def small(self, name: str) -> nn.Module:
        return timm.create_model(name, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), num_classes=3)

    @pytest.mark.parametrize("name", ["deformable", "31x31", "31x31_reparam"])
    def test_they_are_convnexts(self, name: str) -> None:
        model = self.small(f"convnext_tiny_{name}")
        assert type(model) is timm.models.ConvNeXt
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
        kinds = {type(block.conv_dw) for stage in model.stages for block in stage.blocks}
        mixer = {"deformable": "deformable", "31x31": "dense31", "31x31_reparam": "reparam31"}[name]
        assert kinds == {type(MIXERS[mixer](8))}

    def test_deploy_makes_one_kernel_of_the_branches(self) -> None:
        model = self.small("convnext_tiny_31x31_reparam")
        images = torch.randn(4, 3, 32, 32)
        model(images)  # the batch norms have seen something
        expected = model.eval()(images)
        deployed = deploy(model, images, trims=False)
        torch.testing.assert_close(deployed(images), expected, rtol=1e-3, atol=1e-4)
        sizes = {m.kernel_size for m in deployed.modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
        assert sizes == {(31, 31)}
        assert deployed.state_dict().keys() == reparameterize_model(model).state_dict().keys()


def test_what_they_cost() -> None:
    """The base model, and what its depthwise convolutions are replaced by, counted by hand."""
    counted = {
        name: costs(f"convnext_tiny{name}")[0] for name in ("", "_deformable", "_31x31", "_31x31_reparam")
    }
    channels = 3 * 96 + 3 * 192 + 9 * 384 + 3 * 768  # of all blocks
    values = 3 * 96 * 56**2 + 3 * 192 * 28**2 + 9 * 384 * 14**2 + 3 * 768 * 7**2  # of all feature maps
    plain = counted[""]
    assert counted["_31x31"].parameters == plain.parameters + (31**2 - 7**2) * channels
    assert counted["_31x31"].macs == plain.macs + (31**2 - 7**2) * values
    assert counted["_31x31_reparam"].deployed_parameters == counted["_31x31"].parameters
    assert counted["_31x31_reparam"].macs == counted["_31x31"].macs
    assert counted["_31x31_reparam"].parameters == counted["_31x31"].parameters + (25 + 2 * 2 - 1) * channels
    added = 9 - 49 + 18 * 9  # per channel: nine taps for 49, and the convolution that says where they are
    assert counted["_deformable"].parameters == plain.parameters + added * channels + 18 * 18
    assert counted["_deformable"].macs == plain.macs + added * values


def test_the_table_compares_with_the_first_model() -> None:
    modes = ("train", "inference", "deployed")
    rows = [
        {"model": model, "mode": mode, "ms": {"median": 100.0 * factor}, "peak_bytes": factor * 2**20}
        for model, factor in (("a", 1), ("b", 3))
        for mode in modes
    ]
    size = {"parameters": 28_600_000, "macs": 4_460_000_000}
    table = markdown({"rows": rows, "costs": {"a": size, "b": size}}).splitlines()
    assert len({line.count("|") for line in table}) == 1
    step, peak = "300 ms, 3.00x", "3 MiB, 3.00x"
    assert table[-1] == f"| `b` | 28.6 | 4.46 | {step} | {step} | {step} | {peak} | {peak} |"
