"""Spiking networks with learned delays: neurons, readout, loss, and the network of arXiv:2306.17670.

All sequences are ``(batch, neurons, time)``, time in frames. The neuron is that of SpikingJelly's ``LIFNode``
with ``decay_input=False, detach_reset=True`` and the surrogate ``ATan``.
"""

import json
import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd.function import once_differentiable

from .files import replaced, write_json
from .layers.delays import Delays

ALPHA = 5.0  # steepness of the surrogate
THRESHOLD = 1.0
DELAYS = ("learned", "fixed", "none")


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


class DelayNet(nn.Module):
    """Layers of delays, normalisation and neurons, and a leaky readout (arXiv:2306.17670).

    ``load_state_dict`` also takes the authors' keys (SNN-delays).

    Args:
        sizes: Neurons per layer: inputs, hidden layers, classes.
        max_delay: The largest delay in frames, an even number.
        tau: Time constant of the membranes in frames, at least 1.
        dropout: Share of the hidden neurons that a sample does without.
        delays: ``learned``, ``fixed`` (random whole delays) or ``none`` (plain weights).
        tail: Frames that every layer appends, see ``Delays``; None for the authors' ``max_delay // 2``.
        kernel_count: Taps per synapse.
        axonal: One delay per sending neuron.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        sizes: list[int],
        max_delay: int = 24,
        tau: float = 1.005,
        dropout: float = 0.0,
        delays: str = "learned",
        tail: int | None = None,
        kernel_count: int = 1,
        axonal: bool = False,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be inputs, hidden layers and classes, at least 1 each, got {sizes}")
        if not tau >= 1:
            raise ValueError(f"tau must be at least 1 frame, got {tau}")
        if delays not in DELAYS:
            raise ValueError(f"delays must be one of {', '.join(DELAYS)}, got {delays!r}")
        self.config: dict[str, Any] = {
            "sizes": list(sizes),
            "max_delay": max_delay,
            "tau": tau,
            "dropout": dropout,
            "delays": delays,
            "tail": tail,
            "kernel_count": kernel_count,
            "axonal": axonal,
        }
        self.tau = tau
        pairs = list(pairwise(sizes))
        self.synapses = nn.ModuleList(self._synapses(*pair) for pair in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:-1])
        self.dropout = nn.Dropout1d(dropout)  # one mask per sample and neuron, for all frames
        self.register_load_state_dict_pre_hook(_translate_authors_keys)

    def _synapses(self, inputs: int, outputs: int) -> nn.Module:
        config = self.config
        if config["delays"] == "none":
            plain = nn.Conv1d(inputs, outputs, 1, bias=False)
            nn.init.kaiming_uniform_(plain.weight, nonlinearity="relu")
            return plain
        tail = config["max_delay"] // 2 if config["tail"] is None else config["tail"]
        names = {k: config[k] for k in ("max_delay", "kernel_count", "axonal")}
        return Delays(inputs, outputs, tail=tail, learned=config["delays"] == "learned", **names)

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        """Membranes of the readout ``(batch, classes, frames)`` of spikes ``(batch, inputs, time)``."""
        return self.activities(spikes)[-1]

    def activities(self, spikes: torch.Tensor) -> list[torch.Tensor]:
        """The spikes of every hidden layer, and the membranes of the readout."""
        layers: list[torch.Tensor] = []
        for synapses, norm in zip(self.synapses, self.norms, strict=False):
            layers.append(lif(norm(synapses(spikes)), self.tau))
            spikes = self.dropout(layers[-1])
        return [*layers, leaky(self.synapses[-1](spikes), self.tau)]

    def step(self, spikes: torch.Tensor, state: list[Any] | None = None) -> tuple[torch.Tensor, list[Any]]:
        """One frame, in eval mode: membranes ``(batch, classes)`` of spikes ``(batch, inputs)``.

        The state is, per layer, that of its synapses and the membranes of its neurons.

        Raises:
            RuntimeError: In training mode, which normalises over time.
        """
        if self.training:
            raise RuntimeError("step() is for inference: call eval() first")
        state = state or [(None, 0.0)] * len(self.synapses)
        after = []
        for i, (synapses, (late, membrane)) in enumerate(zip(self.synapses, state, strict=True)):
            if isinstance(synapses, nn.Conv1d):
                currents = synapses(spikes.unsqueeze(-1)).squeeze(-1)
            else:
                currents, late = synapses.step(spikes, late)  # type: ignore[operator]
            membrane = torch.zeros_like(currents) + membrane
            if i < len(self.norms):
                spikes, membrane = lif_step(self.norms[i](currents), membrane, self.tau)
            else:
                membrane = membrane - membrane / self.tau + currents
            after.append((late, membrane))
        return after[-1][1], after

    def fuse(self) -> "DelayNet":
        """Replaces all delays by their form for deployment, in place; returns the network in eval mode."""
        for i, synapses in enumerate(self.synapses):
            if isinstance(synapses, Delays):
                self.synapses[i] = synapses.fuse()
        return self.eval()

    def delays(self) -> list[Delays]:
        """The layers of delays, in order."""
        return [m for m in self.synapses if isinstance(m, Delays)]

    def save(self, folder: Path, **more: Any) -> None:
        """Writes ``config.json`` (with what ``more`` tells about the data) and ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(folder / "model.safetensors") as part:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, part)
        write_json(folder / "config.json", {"architecture": "DelayNet", "model": self.config, **more})

    @classmethod
    def of_run(cls, options: Mapping[str, Any]) -> "DelayNet":
        """The network that ``python -m train.delays`` makes of its options (``--model.hidden``, ...)."""
        sizes = [options["inputs"], *options["hidden"], options["num_classes"]]
        names = ("max_delay", "tau", "dropout", "delays", "tail", "kernel_count", "axonal")
        return cls(sizes, **{name: options[name] for name in names})

    @classmethod
    def load(cls, folder: Path) -> "DelayNet":
        """Reads what ``save`` wrote; in eval mode.

        Raises:
            ValueError: If it is something else.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("architecture") != "DelayNet":
            raise ValueError(f"{folder} holds no DelayNet: give a folder that DelayNet.save wrote")
        net = cls(**config["model"])
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return net.eval()


def _translate_authors_keys(module: DelayNet, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """``model.N`` of SNN-delays: delays, normalisation, neurons, dropout, and so on, in one list."""
    for key in [k for k in state_dict if re.fullmatch(re.escape(prefix) + r"model\.\d+\..+", k)]:
        number, name = key[len(prefix) + len("model.") :].split(".", 1)
        layer, part = divmod(int(number), 4)
        ours = {0: f"synapses.{layer}.conv.", 1: f"norms.{layer}."}.get(part)
        value = state_dict.pop(key)
        if ours is not None:
            state_dict[f"{prefix}{ours}{name}"] = value
