"""Leaky integrate-and-fire neurons, a leaky readout, and what the loss sees of it.

All sequences are ``(batch, neurons, time)``, time in frames. The neuron is that of SpikingJelly's ``LIFNode``
with ``decay_input=False, detach_reset=True`` and the surrogate ``ATan``.
"""

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

ALPHA = 5.0  # steepness of the surrogate
THRESHOLD = 1.0


def surrogate(distance: torch.Tensor, alpha: float = ALPHA) -> torch.Tensor:
    """The derivative that a spike is given: of an arctangent, at the membrane minus the threshold."""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * distance).square())


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: torch.Tensor, alpha: float) -> torch.Tensor:
        ctx.save_for_backward(distance)
        ctx.alpha = alpha
        return (distance >= 0).to(distance)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (distance,) = ctx.saved_tensors
        return grad * surrogate(distance, ctx.alpha), None


def lif_step(
    current: torch.Tensor, membrane: torch.Tensor, tau: float, alpha: float = ALPHA
) -> tuple[torch.Tensor, torch.Tensor]:
    """One frame of leaky integrate-and-fire neurons: their spikes, and the membrane after the reset to 0."""
    membrane = membrane - membrane / tau + current
    spikes = _Spike.apply(membrane - THRESHOLD, alpha)
    return spikes, membrane * (1 - spikes.detach())


def lif_reference(currents: torch.Tensor, tau: float, alpha: float = ALPHA) -> torch.Tensor:
    """What ``lif`` computes, as a plain loop over autograd: slow and obvious, its judge."""
    membrane, frames = torch.zeros_like(currents[..., 0]), []
    for current in currents.unbind(-1):
        spikes, membrane = lif_step(current, membrane, tau, alpha)
        frames.append(spikes)
    return torch.stack(frames, -1)


class _Lif(torch.autograd.Function):
    """All frames at once; membranes before the reset are kept for the gradients."""

    @staticmethod
    def forward(ctx: Any, currents: torch.Tensor, tau: float, alpha: float) -> torch.Tensor:
        before = torch.empty_like(currents)  # time first
        membrane = torch.zeros_like(currents[0])
        for current, reached in zip(currents, before, strict=True):
            torch.sub(membrane, membrane / tau, out=reached).add_(current)
            torch.mul(reached, reached < THRESHOLD, out=membrane)
        ctx.save_for_backward(before)
        ctx.tau, ctx.alpha = tau, alpha
        return (before >= THRESHOLD).to(currents)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (before,) = ctx.saved_tensors
        grads = grad * surrogate(before - THRESHOLD, ctx.alpha)
        kept = (before < THRESHOLD).to(grads).mul_(1 - 1 / ctx.tau)  # of a membrane, in the next frame
        for t in range(len(grads) - 2, -1, -1):
            grads[t].addcmul_(grads[t + 1], kept[t])
        return grads, None, None


def lif(currents: torch.Tensor, tau: float, alpha: float = ALPHA) -> torch.Tensor:
    """Spikes of leaky integrate-and-fire neurons.

    ``H = V - V / tau + current``; a spike where H reaches 1, after which V is 0, else V = H. The reset has no
    gradient, a spike that of ``surrogate``.

    Args:
        currents: ``(batch, neurons, time)``.
        tau: Time constant of the membrane in frames, at least 1.
        alpha: Steepness of the surrogate.

    Returns:
        0 and 1, shaped as ``currents``.
    """
    return _Lif.apply(currents.movedim(-1, 0).contiguous(), tau, alpha).movedim(0, -1)


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, currents: torch.Tensor, tau: float) -> torch.Tensor:
        ctx.tau = tau
        membranes = currents.clone()  # time first
        for t in range(1, len(membranes)):
            membranes[t].add_(membranes[t - 1] - membranes[t - 1] / tau)
        return membranes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Leaky.apply(grad.flip(0), ctx.tau).flip(0), None


def leaky(currents: torch.Tensor, tau: float) -> torch.Tensor:
    """Membranes of neurons that never spike, ``V = V - V / tau + current``: the readout."""
    return _Leaky.apply(currents.movedim(-1, 0).contiguous(), tau).movedim(0, -1)


def summed_softmax(membranes: torch.Tensor) -> torch.Tensor:
    """Scores ``(batch, classes)``: what softmax says in every frame, summed over the frames.

    The authors' loss is the cross-entropy of these.
    """
    return membranes.softmax(1).sum(-1)
