"""What others have published of the models, each number with its source; nothing of it was measured here."""

import csv
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")


def published() -> list[dict[str, str]]:
    """The rows: ``task``, ``model``, ``measure``, ``value``, ``source``."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
