"""Which numbers an option takes: written beside its type, checked when it is used, shown in ``--help``."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """Finite numbers from ``low`` to ``high``; ``above`` and ``below`` leave out the ends themselves."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, tuple | list):
            return all(v in self for v in value)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        high_enough = value > self.low if self.above else value >= self.low
        return high_enough and (value < self.high if self.below else value <= self.high)

    def __repr__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}" if math.isfinite(self.low) else ""
        high = f"{'below' if self.below else 'at most'} {self.high:g}" if math.isfinite(self.high) else ""
        return " and ".join(part for part in (low, high) if part) or "any number"

    __str__ = __repr__


Number = Annotated[float, Range()]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]
ShareAboveZero = Annotated[float, Range(0, 1, above=True)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
ShareInside = Annotated[float, Range(0, 1, above=True, below=True)]
Count = Annotated[int, Range(1)]
CountOrNone = Annotated[int, Range(0)]


_BELOW_1 = Range(0, 1, below=True)
# Numbers of timm and torch in dictionaries of options, which they do not check themselves; others are finite.
WITHIN = {
    **dict.fromkeys(("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate"), _BELOW_1),
    **dict.fromkeys(("prob", "switch_prob"), Range(0, 1)),
    **dict.fromkeys(("decay_epochs", "decay_t", "cycle_limit"), Range(0, above=True)),
}


def ranges_of(part: type) -> dict[str, Range]:
    """The ranges of the options of a class, its bases included."""
    constructors = [vars(base)["__init__"] for base in reversed(part.__mro__) if "__init__" in vars(base)]
    hints = [get_type_hints(make, include_extras=True) for make in constructors if hasattr(make, "__code__")]
    return {name: r for options in hints for name, hint in options.items() for r in _ranges(hint)}


def check_ranges(name: str, part: Any, values: dict[str, Any]) -> None:
    """Makes sure that every number of a part is one that it takes, also within dictionaries.

    Args:
        name: What its options begin with (``model``).
        part: The part.
        values: The values of its options; None is the absence of one.

    Raises:
        ValueError: If it is not.
    """
    for option, allowed in ranges_of(type(part)).items():
        value = values.get(option)
        if value is not None and value not in allowed:
            each = " each" if isinstance(value, tuple | list) else ""
            raise ValueError(f"{name}.{option} must be {allowed}{each}, got {value}")
    for option, value in values.items():
        if isinstance(value, dict):
            _check_within(f"{name}.{option}", value)


def _check_within(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_within(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_within(f"{name}[{i}]", inner)
    elif isinstance(value, int | float):
        allowed = WITHIN.get(name.rpartition(".")[2], Range())
        if value not in allowed:
            what = "finite" if allowed == Range() else allowed
            raise ValueError(f"{name} must be {what}, got {value}")


def _ranges(hint: Any) -> Iterator[Range]:
    if get_origin(hint) is Annotated:
        yield from (m for m in hint.__metadata__ if isinstance(m, Range))
    for argument in get_args(hint):
        if not isinstance(argument, Range):
            yield from _ranges(argument)
