"""The processes of ``torchrun`` that share an evaluation: who am I, and what does the first one say."""

import os
from typing import Any

import torch
import torch.distributed as dist


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 without ``torchrun``."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")  # what is sent is small: the results go through files
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def own_device(device: str) -> str:
    """``cuda`` becomes the GPU of this process."""
    if device == "cuda" and rank_and_world()[1] > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return device


def from_first(value: Any) -> Any:
    """Broadcasts the first process's value."""
    if rank_and_world()[1] == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def wait_for_all() -> None:
    """Returns when all processes are here."""
    if rank_and_world()[1] > 1:
        dist.barrier()
