"""The network of arXiv:2306.17670: layers of delays, normalisation and neurons, and a leaky readout."""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dcls_models.files import replaced, write_json
from dcls_models.layers.delays import Delays, FusedDelays, check_shape

from .neurons import leaky, lif, lif_step

DELAYS = ("learned", "fixed", "none")


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
        """The spikes of every hidden layer, and the membranes of the readout.

        Raises:
            ValueError: If ``spikes`` have another shape, or other channels than the network.
        """
        check_shape(spikes, self.config["sizes"][0], 3)
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
            ValueError: If ``spikes`` have another shape, or other channels than the network.
        """
        if self.training:
            raise RuntimeError("step() is for inference: call eval() first")
        check_shape(spikes, self.config["sizes"][0], 2)
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

    def save(self, folder: str | Path, **more: Any) -> None:
        """Writes ``config.json`` (with what ``more`` tells about the data) and ``model.safetensors``.

        Raises:
            ValueError: If the network is fused, which loses what training needs.
        """
        if any(isinstance(m, FusedDelays) for m in self.synapses):
            raise ValueError("a fused network is not saved: save() before fuse(), and fuse() after load()")
        folder = Path(folder)
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
    def load(cls, folder: str | Path) -> "DelayNet":
        """Reads what ``save`` wrote; in eval mode.

        Raises:
            ValueError: If it is something else.
        """
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("architecture") != "DelayNet":
            raise ValueError(f"{folder} holds no DelayNet: give a folder that DelayNet.save wrote")
        net = cls(**config["model"])
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return net.eval()


def _translate_authors_keys(module: DelayNet, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """``model.N`` of SNN-delays: delays, normalisation, neurons, dropout, and so on, in one list."""
    for key in [k for k in state_dict if re.fullmatch(re.escape(prefix) + r"model\.\d+\..+", k)]:
        number, name = key[len(prefix) + len("model.") :].split(".", 1)
        layer, part = divmod(int(number), 4)
        plain = module.config["delays"] == "none"
        ours = {0: f"synapses.{layer}." + "conv." * (not plain), 1: f"norms.{layer}."}.get(part)
        value = state_dict.pop(key)
        if plain and part == 0 and value.ndim == 2:  # a linear layer
            value = value.unsqueeze(-1)
        if ours is not None:
            state_dict[f"{prefix}{ours}{name}"] = value
