"""Spiking networks with learned delays: accuracy, activity, delays, and the time that a second takes."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from dcls_models.loading import read_run
from dcls_models.provenance import state_dict_sha256
from dcls_models.spikes import Batch, Binning, Recordings, open_recordings, padded
from dcls_models.spiking import DelayNet, summed_softmax
from eval.options import at_least_1, json_option, picture_option
from eval.results import write_result
from eval.section import Section

MADE = "runs/speech"  # where python -m train.delays makes spoken digits if it is given nothing
SECTION = Section(
    "Delays",
    "Spiking networks: accuracy in percent on recordings that were held out; spikes per neuron and second; "
    "the mean delay in frames; milliseconds per second of recording, one recording at a time.",
    {
        "top1": ("top-1, %", 2),
        "n": ("recordings", 0),
        "spikes_per_second": ("spikes/s", 1),
        "mean_delay": ("mean delay", 1),
        "ms_per_second/dense": ("dense, ms/s", 1),
        "ms_per_second/sparse": ("sparse, ms/s", 1),
        "ms_per_second/frames": ("frame by frame, ms/s", 1),
    },
    ("top1", "higher is better"),
)


def batches(recordings: Recordings, size: int, frames: int | None) -> Iterator[Batch]:
    """What can be read, in order."""
    for start in range(0, len(recordings), size):
        samples = [recordings[i] for i in range(start, min(start + size, len(recordings)))]
        if any(sample is not None for sample in samples):
            yield padded(samples, frames)


@torch.no_grad()
def measure(
    net: DelayNet, recordings: Recordings, size: int, frames: int | None, frame: float
) -> dict[str, Any]:
    """Accuracy in percent, and the mean spikes per neuron and second of every hidden layer.

    Args:
        net: In eval mode.
        recordings: What it hears.
        size: Recordings per batch.
        frames: Length of all recordings.
        frame: Seconds of a frame.
    """
    right, count, seconds, silent = 0, 0, 0.0, len(net.norms)
    fired = torch.zeros(silent, dtype=torch.float64)
    for spikes, labels in batches(recordings, size, frames):
        *hidden, membranes = net.activities(spikes)
        if not membranes.isfinite().all():
            raise ValueError("the network gives NaN or infinite values")
        right += int((summed_softmax(membranes).argmax(1) == labels).sum())
        count += len(labels)
        fired += torch.tensor([layer.mean(1).sum().item() for layer in hidden], dtype=torch.float64)
        seconds += len(labels) * spikes.shape[-1] * frame
    rates = (fired / seconds).tolist()
    return {
        "top1": 100 * right / count,
        "n": count,
        "skipped": int(recordings.unreadable.sum()),
        "spikes_per_second": sum(rates) / len(rates) if rates else None,
        "spikes_per_second_by_layer": rates,
    }


def delay_statistics(net: DelayNet) -> dict[str, Any]:
    """The delays in frames: their mean, and per layer mean, standard deviation and counts from 0 on."""
    layers = []
    for layer in net.delays():
        delays = layer.delays.flatten()
        counts = torch.bincount(delays, minlength=layer.max_delay + 1)
        spread = delays.float().std(unbiased=False).item()
        layers.append({"mean": delays.float().mean().item(), "std": spread, "counts": counts.tolist()})
    total = sum(sum(layer["counts"]) for layer in layers)
    mean = sum(layer["mean"] * sum(layer["counts"]) for layer in layers) / total if total else None
    return {"mean_delay": mean, "delays": layers}


@torch.no_grad()
def times(net: DelayNet, spikes: torch.Tensor, frame: float) -> dict[str, float]:
    """Milliseconds per second of one recording ``(channels, frames)``, in each form of the network."""
    recording, seconds = spikes[None], spikes.shape[1] * frame
    fused = DelayNet(**net.config)
    fused.load_state_dict(net.state_dict())
    fused.fuse()

    def stepwise() -> None:
        state = None
        for now in recording.unbind(-1):
            _, state = fused.step(now, state)

    calls: dict[str, Callable[[], object]] = {
        "dense": lambda: net(recording),
        "sparse": lambda: fused(recording),
        "frames": stepwise,
    }
    return {name: 1000 * median_time(call) / seconds for name, call in calls.items()}


def median_time(call: Callable[[], object], runs: int = 15) -> float:
    """Seconds, after one run that does not count."""
    call()
    durations = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations)


def draw(layers: list[dict[str, Any]]) -> Figure:
    """Draws how many synapses have which delay, per layer."""
    figure, axes = plt.subplots(
        1, len(layers), figsize=(4 * len(layers), 3.4), squeeze=False, layout="constrained"
    )
    for i, (axis, layer) in enumerate(zip(axes[0], layers, strict=True)):
        axis.bar(range(len(layer["counts"])), layer["counts"], width=1.0)
        place = "to the readout" if i == len(layers) - 1 else f"to hidden layer {i + 1}"
        axis.set(xlabel="delay (frames)", ylabel="synapses", title=f"{place}: {layer['mean']:.1f} on average")
        axis.title.set_fontsize(10)
    figure.suptitle("Delays of the synapses: a flat profile is what they start with", fontsize=11)
    return figure


def run(arguments: argparse.Namespace) -> None:
    """Measures a checkpoint."""
    checkpoint = read_run(arguments.checkpoint)
    if checkpoint.model.get("name") != "DelayNet":
        raise ValueError(f"{arguments.checkpoint} is no checkpoint of python -m train.delays")
    try:
        net, classes = DelayNet.of_run(checkpoint.model).eval(), checkpoint.model["num_classes"]
        options, names = checkpoint.data, checkpoint.model["class_names"]
        root = arguments.data or Path(options["root"] or MADE)
        binning = Binning(*(options[key] for key in ("frame", "units", "group", "binning", "longest")))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{arguments.checkpoint} is no whole checkpoint of python -m train.delays ({error})"
        ) from error
    checkpoint.load_into(net)
    source = open_recordings(root, arguments.split, binning, options["front_end"])
    if source is None:
        raise ValueError(f"{root} has no recordings to {arguments.split}: give --data, or another --split")
    if source.channels != net.config["sizes"][0]:
        raise ValueError(f"{root} has {source.channels} channels, the network {net.config['sizes'][0]}")
    recordings = Recordings(source)
    others = names and source.class_names and list(names) != list(source.class_names)
    if others or source.labels.max() >= classes:
        raise ValueError(f"{root} has other classes than the network was trained on, which are {classes}")
    result = {"model": str(arguments.checkpoint), "state_dict_sha256": state_dict_sha256(net)}
    result |= {"data": str(root), "split": arguments.split, "config": net.config}
    result |= measure(net, recordings, arguments.batch_size, options["frames"], options["frame"])
    result |= delay_statistics(net)
    first = next(spikes for spikes, _ in batches(recordings, 1, options["frames"]))[0]
    result["ms_per_second"] = times(net, first, options["frame"])
    print(f"top-1 {result['top1']:.2f} % of {result['n']} recordings ({result['skipped']} could not be read)")
    said = ", ".join(f"{name} {value:.1f} ms" for name, value in result["ms_per_second"].items())
    print(f"a second of recording takes: {said}")
    write_result(arguments, result, (lambda: draw(result["delays"])) if result["delays"] else None)


def add_commands(commands: Any) -> None:
    """Adds ``delays``."""
    parents = [json_option(), picture_option()]
    command = commands.add_parser("delays", parents=parents, help="spiking networks with learned delays")
    command.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint of python -m train.delays"
    )
    command.add_argument("--data", type=Path, help="folder of recordings; that of the training by default")
    command.add_argument("--split", choices=("train", "val", "test"), default="test")
    command.add_argument("--batch-size", type=at_least_1, default=64)
    command.set_defaults(run=run, device="cpu")
