"""Synapses that learn when their spikes arrive: a causal convolution over time with taps at learned delays.

Source: Hammouamri, Khalfaoui-Hassani, Masquelier, "Learning Delays in Spiking Neural Networks using Dilated
Convolutions with Learnable Spacings", arXiv:2306.17670.
"""

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .dcls import Dcls1d
from .interpolation import dense_kernel
from .long_kernels import fft_convolution

FFT_BATCH = 64  # from this batch size on, training on a CPU is faster by FFT (measured, docs/delays.md)
State = torch.Tensor  # what ``step`` hands on to the next frame


class Delays(nn.Module):
    """Weighted connections between two groups of neurons, each with its own delay.

    A tap at position p of the kernel is a delay of ``max_delay // 2 - p`` frames: 0 at the right end of the
    kernel, ``max_delay`` at its left end. Nothing depends on the future. In training a tap is a Gaussian
    around its delay, whose width ``sigma`` is not learned but set (``set_sigma``, from ``narrowed``); in eval
    mode delays are rounded and taps are one frame wide, and no parameter is written to.

    Args:
        inputs: Neurons that send.
        outputs: Neurons that receive.
        max_delay: The largest delay in frames, an even number of at least 2 (the kernel then has a centre).
        kernel_count: Taps per synapse.
        tail: Frames of silence to append, so that late spikes arrive: the output is so much longer than the
            input. The authors append ``max_delay // 2``.
        axonal: One delay per input neuron instead of one per synapse.
        learned: False keeps the initial delays, rounded: fixed random delays, one frame wide in training too.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        max_delay: int,
        kernel_count: int = 1,
        *,
        tail: int = 0,
        axonal: bool = False,
        learned: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(max_delay, int) or max_delay < 2 or max_delay % 2:
            raise ValueError(f"max_delay must be an even number of frames, at least 2, got {max_delay!r}")
        if not isinstance(tail, int) or tail < 0:
            raise ValueError(f"tail must be a number of frames, 0 or more, got {tail!r}")
        super().__init__()
        self.inputs, self.outputs, self.max_delay = inputs, outputs, max_delay
        self.tail, self.axonal, self.learned = tail, axonal, learned
        self.conv = Dcls1d(
            inputs,
            inputs if axonal else outputs,
            kernel_count,
            dilated_kernel_size=max_delay + 1,
            groups=inputs if axonal else 1,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.linear = nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype) if axonal else None
        self.conv.sigma.requires_grad_(False)
        self.conv.positions.requires_grad_(learned)
        self.conv.weight.requires_grad_(not axonal or kernel_count > 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform delays, the widest taps, and weights as ``kaiming_uniform_`` draws them."""
        nn.init.kaiming_uniform_((self.linear or self.conv).weight, nonlinearity="relu")
        if self.axonal:
            nn.init.constant_(self.conv.weight, 1 / self.conv.kernel_count)
        nn.init.uniform_(self.conv.positions, -(self.max_delay // 2), self.max_delay // 2)
        if not self.learned:
            self.conv.positions.round_()
        self.set_sigma(self.max_delay / 2)

    @torch.no_grad()
    def set_sigma(self, sigma: float) -> None:
        """Makes the Gaussians of training ``|sigma| + 0.27`` frames wide (standard deviation)."""
        self.conv.sigma.fill_(sigma)

    @property
    def delays(self) -> torch.Tensor:
        """In whole frames: ``(outputs, inputs, kernel_count)``, axonal ``(inputs, 1, kernel_count)``."""
        return (self.max_delay // 2 - self._rounded()[0]).long()

    def _rounded(self) -> torch.Tensor:
        limit = self.max_delay // 2
        return self.conv.positions.detach().round().clamp(-limit, limit)

    def _taps(self) -> torch.Tensor:
        if self.training and self.learned:
            return self.conv.kernel()
        return dense_kernel(self.conv.weight, self._rounded(), None, self.conv.dilated_kernel_size, "v1")

    def kernel(self) -> torch.Tensor:
        """The kernel ``(outputs, inputs, max_delay + 1)``, differentiable; its last column is delay 0."""
        return self._taps() if self.linear is None else self.linear.weight.unsqueeze(-1) * self._taps()[:, 0]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Currents ``(batch, outputs, time + tail)`` of spikes ``(batch, inputs, time)``.

        Raises:
            ValueError: If ``input`` has another shape.
        """
        check_shape(input, self.inputs, 3)
        if self.linear is not None:
            late = F.conv1d(F.pad(input, (self.max_delay, self.tail)), self._taps(), groups=self.inputs)
            return self.linear(late.transpose(1, 2)).transpose(1, 2)
        if self.training and _by_fft(input):
            return fft_convolution(input, self.kernel(), (self.max_delay, self.tail))
        return F.conv1d(F.pad(input, (self.max_delay, self.tail)), self.kernel())

    def step(self, spikes: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """One frame: currents ``(batch, outputs)`` of spikes ``(batch, inputs)``, and the next step's state.

        The state is what arrived in the last ``max_delay`` frames. ``fuse().step`` is faster.

        Raises:
            ValueError: If ``spikes`` have another shape.
        """
        check_shape(spikes, self.inputs, 2)
        if state is None:
            state = spikes.new_zeros(*spikes.shape, self.max_delay)
        window = torch.cat((state, spikes.unsqueeze(-1)), -1)
        return F.conv1d(window, self.kernel())[..., 0], window[..., 1:]

    def fuse(self) -> "FusedDelays":
        """The form for deployment: a sparse matrix for sequences, a ring buffer for single frames."""
        table = self.to_numpy()
        return FusedDelays(
            torch.from_numpy(table["delays"]).to(self.conv.weight.device),
            torch.from_numpy(table["weights"]).to(self.conv.weight),
            self.max_delay,
            self.tail,
        )

    @torch.no_grad()
    def to_numpy(self) -> dict[str, Any]:
        """Delays in frames (rounded, int64) and weights, each ``(outputs, inputs, kernel_count)``."""
        delays, weights = self.delays, self.conv.weight
        if self.linear is not None:
            weights = self.linear.weight.unsqueeze(-1) * weights[:, 0]
            delays = delays[:, 0].expand_as(weights)
        return {"delays": delays.cpu().numpy().copy(), "weights": weights.cpu().numpy().copy()}

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        words = f"{self.inputs}, {self.outputs}, max_delay={self.max_delay}"
        words += f", kernel_count={self.conv.kernel_count}"
        plain = {"tail": 0, "axonal": False, "learned": True}
        return words + "".join(f", {k}={getattr(self, k)}" for k, v in plain.items() if getattr(self, k) != v)


class FusedDelays(nn.Module):
    """Synapses with whole delays, for inference: work is proportional to synapses and spikes, not to kernels.

    Args:
        delays: Frames, whole numbers, ``(outputs, inputs, kernel_count)``.
        weights: The same shape.
        max_delay: The largest delay that there may be.
        tail: Frames of silence to append.
    """

    delays: torch.Tensor
    weights: torch.Tensor
    _rows: torch.Tensor
    _columns: torch.Tensor
    _values: torch.Tensor

    def __init__(self, delays: torch.Tensor, weights: torch.Tensor, max_delay: int, tail: int = 0) -> None:
        super().__init__()
        self.max_delay, self.tail = max_delay, tail
        self.register_buffer("delays", delays)
        self.register_buffer("weights", weights)
        self._make_table()
        self.register_load_state_dict_post_hook(_make_table_again)

    def _make_table(self) -> None:
        """A sparse row per output: which input, how late (taps that coincide are added)."""
        dense = self.weights.new_zeros(*self.delays.shape[:2], self.max_delay + 1)
        dense.scatter_add_(-1, self.max_delay - self.delays, self.weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
            table = dense.flatten(1).to_sparse_csr()
        parts = {"_rows": table.crow_indices(), "_columns": table.col_indices(), "_values": table.values()}
        for name, part in parts.items():  # a sparse buffer could not be copied
            self.register_buffer(name, part.clone(), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As ``Delays.forward``; for large batches that one, in eval mode, is faster."""
        check_shape(input, self.delays.shape[1], 3)
        batch, inputs, time = input.shape
        window = F.pad(input, (self.max_delay, self.tail)).unfold(-1, time + self.tail, 1)
        late = window.permute(1, 2, 0, 3).reshape(inputs * (self.max_delay + 1), -1)
        size = (len(self.delays), len(late))
        table = torch.sparse_csr_tensor(self._rows, self._columns, self._values, size, check_invariants=False)
        return (table @ late).view(len(self.delays), batch, -1).transpose(0, 1)

    @torch.no_grad()
    def step(
        self, spikes: torch.Tensor, state: tuple[torch.Tensor, int] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, int]]:
        """As ``Delays.step``; the state is a ring buffer of currents to come, written to in place."""
        check_shape(spikes, self.delays.shape[1], 2)
        batch, size = len(spikes), self.max_delay + 1
        ring, now = state or (spikes.new_zeros(batch, size, len(self.delays)), 0)
        sample, sender = spikes.nonzero(as_tuple=True)
        frame = sample[:, None, None] * size + (self.delays[:, sender].movedim(1, 0) + now) % size
        place = frame * len(self.delays) + torch.arange(len(self.delays), device=frame.device)[:, None]
        sent = self.weights[:, sender].movedim(1, 0) * spikes[sample, sender][:, None, None]
        ring.view(-1).index_add_(0, place.flatten(), sent.flatten())
        currents = ring[:, now].clone()
        ring[:, now] = 0
        return currents, (ring, (now + 1) % size)

    def extra_repr(self) -> str:
        """What it connects."""
        outputs, inputs, count = self.delays.shape
        return f"{inputs}, {outputs}, max_delay={self.max_delay}, kernel_count={count}, tail={self.tail}"


def _make_table_again(module: FusedDelays, incompatible_keys: Any) -> None:
    module._make_table()


def check_shape(spikes: torch.Tensor, inputs: int, axes: int) -> None:
    """Refuses what is not ``(batch, inputs, time)`` or, with two axes, ``(batch, inputs)``."""
    if spikes.ndim != axes or spikes.shape[1] != inputs:
        expected = f"(batch, {inputs}, time)" if axes == 3 else f"(batch, {inputs})"
        raise ValueError(f"spikes must be {expected}, got {tuple(spikes.shape)}")


def narrowed(epoch: int, epochs: int, start: float, end: float = 0.23, until: float = 0.25) -> float:
    """The ``sigma`` of an epoch: from ``start`` down to ``end``, by a constant factor, then ``end``.

    Args:
        epoch: Number of the epoch, from 0.
        epochs: Epochs of the whole training.
        start: At the beginning; the authors take half of ``max_delay``.
        end: At the end: Gaussians of 0.5 frames.
        until: Share of the training in which it shrinks.
    """
    shrinking = int(epochs * until)
    return end if epoch >= shrinking else start * (end / start) ** (epoch / shrinking)


def _by_fft(input: torch.Tensor) -> bool:
    plain = input.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(input.device.type)
    return input.device.type == "cpu" and len(input) >= FFT_BATCH and plain
