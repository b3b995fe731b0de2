"""What else is at work while a layer computes: a graph that is being made, a function that is transformed."""

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad

is_exporting = getattr(torch.compiler, "is_exporting", lambda: True)  # torch 2.6 cannot tell


def is_traced() -> bool:
    """Whether a graph is being made of what is done, to run here or elsewhere."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def is_recorded() -> bool:
    """Whether a graph is being made that is to run without this package."""
    return _is_exported() if torch.compiler.is_compiling() else is_traced()


@torch.compiler.assume_constant_result  # before torch 2.14 the compiler itself always answers yes
def _is_exported() -> bool:
    return bool(is_exporting())


def is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Whether vmap or forward-mode derivatives are at work, which know ATen's functions only."""
    if forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return is_in_transform()
    # the older vmap is that of ``is_grads_batched`` and ``torch.autograd.functional``
    return any(is_functorch_wrapped_tensor(t) or is_legacy_batchedtensor(t) for t in tensors if t is not None)


@torch.compiler.assume_constant_result  # asked while the compiler traces; it guards the transforms itself
def is_in_transform() -> bool:
    """Whether a transform of ``torch.func`` is at work, on whatever tensors."""
    return peek_interpreter_stack() is not None
