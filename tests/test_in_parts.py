"""Kernels of many elements, built part by part: the same numbers, and nothing kept for the gradient."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from dcls_models.layers import Dcls2d, dense_kernel, in_parts

SHAPE = (7, 2, 3)


def sources(weight=True, positions=True):
    w = torch.randn(SHAPE, dtype=torch.float64, requires_grad=weight)
    p = (4 * torch.rand(2, *SHAPE, dtype=torch.float64) - 2).requires_grad_(positions)
    return w, p


@pytest.fixture(params=[1, 12, 1000])
def parts(request, monkeypatch):
    """One channel a time, some, all."""
    monkeypatch.setattr(in_parts, "FROM", 0)
    monkeypatch.setattr(in_parts, "ELEMENTS", request.param)


def whole(monkeypatch):
    monkeypatch.setattr(in_parts, "FROM", 10**9)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
def test_kernel_and_gradients(needs, version, parts, monkeypatch):
    tensors = sources(*needs)
    leaves = [t for t in tensors if t.requires_grad]
    found, cotangent = [], torch.randn(*SHAPE[:2], 5, 5).double()
    for _ in range(2):
        kernel = dense_kernel(*tensors, None, (5, 5), version)
        found.append((kernel, *torch.autograd.grad(kernel, leaves, cotangent)))
        whole(monkeypatch)
    assert "InParts" in str(found[0][0].grad_fn.next_functions) + str(found[0][0].grad_fn)
    torch.testing.assert_close(*found, rtol=0, atol=1e-14)


def test_gradients_of_gradients(parts):
    def kernel(weight, positions):
        return dense_kernel(weight, positions, None, (5, 5), "v1")

    tensors = sources()
    assert gradcheck(kernel, tensors) and gradgradcheck(kernel, tensors)


def test_in_transforms_it_is_whole(parts):
    w, p = sources(False, False)
    kernels = vmap(lambda w, p: dense_kernel(w, p, None, (5, 5), "v0"), (0, 1))(w, p)
    torch.testing.assert_close(kernels, dense_kernel(w, p, None, (5, 5), "v0"))


def test_its_gradient_is_vmapped(parts):
    tensors = sources()
    kernel = dense_kernel(*tensors, None, (5, 5), "v1")
    cotangents = torch.randn(3, *kernel.shape).double()

    def gradients(cotangent):
        return torch.autograd.grad(kernel, tensors, cotangent, retain_graph=True)

    expected = [torch.stack(g) for g in zip(*map(gradients, cotangents), strict=True)]
    torch.testing.assert_close(list(vmap(gradients)(cotangents)), expected)


def test_what_is_kept_for_the_gradient(monkeypatch):
    """The parameters, and no number more."""
    monkeypatch.setattr(in_parts, "FROM", 0)
    layer, kept = Dcls2d(4, 6, 5, dilated_kernel_size=7, version="v0"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dense_kernel(layer.weight, layer.positions, None, (7, 7), "v0")
    assert [t.data_ptr() for t in kept] == [layer.weight.data_ptr(), layer.positions.data_ptr()]
