"""Timing things side by side: in turns, with inputs that are in no cache, on any device; and their memory."""

import time
from collections.abc import Callable, Mapping
from statistics import quantiles
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

FLUSHED = 2**24  # float32 numbers (64 MiB), more than the last-level cache of most processors holds
FLUSHED_CUDA = 2**28  # so many that what is timed is launched meanwhile
SETTLED = 0.01  # seconds of runs before each timed one; one at least
WARMUP = 0.5  # seconds of runs before the first round; each call runs once at least


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Timing(NamedTuple):
    """Milliseconds of one call: the median of its runs and the quartiles around it."""

    median: float
    low: float
    high: float
    runs: int


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device | str = "cpu",
    rounds: int = 15,
    seconds: float = 60.0,
    flush: bool = True,
) -> dict[str, Timing]:
    """Times every call once per round, so that what else the machine does hits all of them alike.

    On a CUDA device the times are those of its events: launches count only where the device waits for them.
    In its turn a call first runs untimed for ``SETTLED`` seconds: after one that takes and gives back a lot
    of memory, the next pays for it (page tables), most of all on a virtual machine. The order turns around in
    every second round.

    Args:
        calls: What to time, by name.
        device: Where the calls compute; an accelerator is waited for before and after each.
        rounds: Most runs of each.
        seconds: A call that has used up this much is left out of further rounds, after three runs.
        flush: Whether to overwrite the caches before each timed run; no need where every run has new inputs.

    Returns:
        The timing of every call.
    """
    device = torch.device(device)
    junk = torch.zeros(FLUSHED_CUDA if device.type == "cuda" else FLUSHED, device=device)

    def run(call: Callable[[], object]) -> float:
        settled = time.perf_counter() + SETTLED
        call()
        while time.perf_counter() < settled:
            call()
        if flush:
            junk.add_(1)
        if device.type == "cuda":
            return _seconds_on_gpu(call)
        _wait_for(device)
        start = time.perf_counter()
        call()
        _wait_for(device)
        return time.perf_counter() - start

    end = time.perf_counter() + WARMUP
    while [run(call) for call in calls.values()] and time.perf_counter() < end:
        pass
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        names = [n for n, times in runs.items() if len(times) < 3 or sum(times) < seconds]
        for name in names if turn % 2 == 0 else reversed(names):
            runs[name].append(run(calls[name]))
    return {name: _timing(times) for name, times in runs.items()}


def time_on_gpu(call: Callable[[], object], device: torch.device | str, runs: int) -> Timing:
    """The timing of one call on a CUDA device, after a first run that compiles; caches are overwritten."""
    junk = torch.zeros(FLUSHED_CUDA, device=device)
    call()
    times = []
    for _ in range(runs):
        junk.add_(1)
        times.append(_seconds_on_gpu(call))
    return _timing(times)


def _seconds_on_gpu(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end))


def _timing(times: list[float]) -> Timing:
    low, median, high = (1e3 * t for t in quantiles(times * 2 if len(times) == 1 else times, n=4))
    return Timing(round(median, 4), round(low, 4), round(high, 4), len(times))


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(call: Callable[[], object]) -> int:
    """The most bytes that tensors made on the CPU during a call take at one time."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
        call()
    events = memory.profiler.kineto_results.events()  # type: ignore[union-attr]
    used = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        used += event.nbytes()
        most = max(most, used)
    return most
