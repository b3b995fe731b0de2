"""How the results of a command look on a page: its section of the report, and tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Section(NamedTuple):
    """What a page says about the results of one task; the command that writes them has it beside it.

    Attributes:
        title: Heading.
        text: What the numbers mean.
        columns: Heading and digits by key of the result; keys of what lies deeper are joined by slashes.
        bars: The key of the bars in the picture, and which end is better.
        tables: More tables of one result, as Markdown.
    """

    title: str
    text: str
    columns: dict[str, tuple[str, int]]
    bars: tuple[str, str] | None = None
    tables: Callable[[Mapping[str, Any]], str] | None = None


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table that a README can hold: the first ``left`` columns to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = (
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, rule, *rows)
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)
