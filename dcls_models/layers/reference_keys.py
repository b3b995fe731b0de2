"""The keys of the authors' state dicts, ``P`` and ``SIG``, turned into ours."""

from collections.abc import Mapping
from typing import Any

import torch

# which of the authors' rows moves along axis 0, 1, 2
REVERSED = {1: (0,), 2: (1, 0), 3: (2, 1, 0)}
OF_V0 = {1: (0,), 2: (0, 1), 3: (0, 2, 1)}


def translate(
    state_dict: dict[str, Any], prefix: str, layers: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Turns the authors' keys, one copy per layer, into the one copy below ``prefix``, in place.

    The authors' rows are in another order than the axes they move along (all versions but ``v0`` reverse
    it), and each row is centred by its own size, whatever axis it moves along; ours give the same kernel.

    Args:
        state_dict: Of the whole model.
        prefix: Of the module that holds the positions, with its final dot, or empty.
        layers: Version and dilated kernel size of each layer that reads them, by its name below ``prefix``.

    Raises:
        ValueError: If the copies of layers that share positions disagree, or have the wrong number of rows.
    """
    for name, (version, size) in layers.items():
        base = f"{prefix}{name}." if name else prefix
        for key in ("DCK.IDX", "DCK.lim"):  # index grids that Dcls2_1d of the authors stores
            state_dict.pop(base + key, None)
        for theirs, ours in (("P", "positions"), ("SIG", "sigma")):
            if base + theirs not in state_dict:
                continue
            rows = state_dict.pop(base + theirs)
            translated = _reorder(rows, version, size, shift=theirs == "P")
            known = state_dict.setdefault(prefix + ours, translated)
            if not torch.equal(known, translated):
                raise ValueError(
                    f"{base}{theirs} differs from the copy of another layer that shares it: the checkpoint "
                    "was made without sharing positions, or is damaged"
                )


def _reorder(rows: torch.Tensor, version: str, size: tuple[int, ...], shift: bool) -> torch.Tensor:
    if len(rows) != len(size):
        raise ValueError(f"expected positions of {len(size)} rows, one per axis, got {tuple(rows.shape)}")
    order = (OF_V0 if version == "v0" else REVERSED)[len(size)]
    centre = [size[row] // 2 - size[axis] // 2 if shift else 0 for axis, row in enumerate(order)]
    return torch.stack([rows[row] + offset for row, offset in zip(order, centre, strict=True)])
