"""An evaluation in batches, shared by the processes of ``torchrun``, which goes on where it was killed."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from timm.utils import decay_batch_step
from tqdm import tqdm

from eval import processes
from eval.store import Batches, Store


@torch.inference_mode()
def in_batches(
    kind: type[Batches],
    count: int,
    run: Callable[[list[list[int]]], Iterable[Batches]],
    folder: Path | None = None,
    batch_size: int = 64,
    name: str = "images",
    unit: str = "image",
) -> Batches | None:
    """Evaluates all samples of a data set.

    Batches are the same whatever the number of processes, and after a kill, so that the numbers are too.
    Where memory does not suffice, the rest goes on in smaller ones (``timm.utils.decay_batch_step``).

    Args:
        kind: The dataclass of what is computed for a batch.
        count: How many samples there are.
        run: Computes batches of sample numbers, in their order.
        folder: Where results are kept until the end; what is there is not computed again.
        batch_size: Samples per forward pass.
        name: Of the progress bar.
        unit: What a sample is.

    Returns:
        What was computed for all samples, in the first process; None in the others.
    """
    rank, world = processes.rank_and_world()
    with contextlib.ExitStack() as stack:
        if rank == 0 and folder is None and world > 1:
            folder = Path(stack.enter_context(TemporaryDirectory()))
        folder = processes.from_first(folder)
        store = Store(kind, folder)
        if rank == 0:
            store.forget_unreadable()
            stack.callback(store.forget_unreadable)
        done = processes.from_first(store.done() if rank == 0 else None)
        batches = split([i for i in range(count) if i not in done], batch_size)[rank::world]
        with tqdm(total=sum(map(len, batches)), desc=name, unit=unit, disable=rank > 0) as bar:
            while batches:
                left = list(batches)
                try:
                    for batch in run(batches):
                        store.add(batch)
                        bar.update(len(left.pop(0)))
                    batches = []
                except RuntimeError as error:
                    batches = _smaller(left, error, unit)
        processes.wait_for_all()
        whole = store.whole(count) if rank == 0 else None
        processes.wait_for_all()
    return whole


def split(indices: Sequence[int], size: int) -> list[list[int]]:
    """Batches of ``size``, the last one shorter."""
    return [list(indices[i : i + size]) for i in range(0, len(indices), size)]


def _smaller(batches: list[list[int]], error: RuntimeError, unit: str) -> list[list[int]]:
    """The same samples in smaller batches, if memory did not suffice; else the error is raised again."""
    full = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
    size = decay_batch_step(len(batches[0])) if full else 0
    if not size:
        raise error
    print(f"out of memory with {len(batches[0])} {unit}s at a time: going on with {size}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return split([i for batch in batches for i in batch], size)
