"""Signals that ask a training to stop, and how they are handled."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import cache
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Stopped(SystemExit):
    """Somebody has asked the training to stop, and it has; the exit code is 128 and the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def set_handler(signum: int, handler: Callable[[int, FrameType | None], None] | Any) -> Any:
    """Sets a handler where that is possible, and returns the one before."""
    try:
        return signal.signal(signum, handler)
    except ValueError:  # not in the main thread, a notebook's for instance
        return signal.getsignal(signum)


def leave_signals_to_the_trainer(worker: int) -> None:
    """SLURM and terminals signal workers too; one that dies of it would end the training with an error."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def end_workers_at_exit() -> None:
    """Kills the workers left when this process exits, which would ask by SIGTERM and wait for ever."""
    _at_exit_of(os.getpid())


@cache
def _at_exit_of(process: int) -> None:
    """Once in each process: a forked one starts without what its parent has to do at its exit."""
    Finalize(None, _kill_children, exitpriority=0)


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
