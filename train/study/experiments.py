"""What the study runs: five experiments, each a list of trainings and a table. docs/study.md has the plan."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from train.study.models import PEERS, STANDARD, VARIANTS
from train.study.tasks import LARGE, TASKS
from train.study.training import CONTINUATIONS, DENSE, Run

FIRST, _, WIDE, DIGITS, _ = TASKS
CHOOSING = 100  # the seed on which the positions' learning rates are chosen
ALL = list(VARIANTS)
FEWER = [name for name in VARIANTS if "gauss" not in name and "narrower" not in name]
CURVES = [STANDARD, "DCLS v1", "DCLS v1, spread", "frozen, as many elements"]
Row = dict[str, Any]


def rates(seeds: int, large: bool) -> list[Run]:
    """The learning rate of positions, on a seed that is used for nothing else."""
    names = ("DCLS v1", "DCLS v1, spread")
    return [Run("rates", FIRST, name, CHOOSING, rate) for name in names for rate in (1.0, 5.0, 25.0, 100.0)]


def variants(seeds: int, large: bool) -> list[Run]:
    """All variants, at equal parameters and updates."""
    tasks = dict.fromkeys(LARGE, ALL) if large else {**dict.fromkeys(TASKS, FEWER), FIRST: ALL}
    return [
        Run("variants", task, name, seed, VARIANTS[name].rate)
        for seed in range(seeds)
        for task, names in tasks.items()
        for name in names
    ]


def curve(seeds: int, large: bool) -> list[Run]:
    """Accuracy and positions over a training that is four times as long."""
    return [
        Run("curve", FIRST, name, seed, VARIANTS[name].rate, length=4, moments=16)
        for seed in range(seeds)
        for name in CURVES
    ]


def warm(seeds: int, large: bool) -> list[Run]:
    """From a trained dense model on."""
    return [Run("warm", FIRST, "all", seed, rate=5.0) for seed in range(seeds)]


def peers(seeds: int, large: bool) -> list[Run]:
    """What users would take instead."""
    return [
        Run("peers", task, name, seed, 1.0)
        for seed in range(seeds)
        for task in (WIDE, DIGITS)
        for name in PEERS
    ]


EXPERIMENTS: dict[str, Callable[[int, bool], list[Run]]] = {
    "rates": rates,
    "variants": variants,
    "curve": curve,
    "warm": warm,
    "peers": peers,
}


def is_done(run: Run, rows: Iterable[Row]) -> bool:
    """Whether results have the run."""
    wanted = run._replace(variant=DENSE) if run.experiment == "warm" else run
    return any(all(row[k] == v for k, v in wanted._asdict().items()) for row in rows)


def order(row: Row) -> tuple[Any, ...]:
    """The place of a row among the others: of experiments, tasks, variants as they are listed."""
    tasks, names = list(TASKS | LARGE), [*VARIANTS, *PEERS, DENSE, *CONTINUATIONS]
    places = (list(EXPERIMENTS).index(row["experiment"]), tasks.index(row["task"]))
    return (*places, names.index(row["variant"]), row["rate"], row["seed"])


def summary(rows: Iterable[Row]) -> list[Row]:
    """Per experiment, task, variant and rate: seeds, their top-1, mean and standard deviation, parameters."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=order):
        key = tuple(row[k] for k in ("experiment", "task", "variant", "rate", "length"))
        groups.setdefault(key, []).append(row)
    table = []
    for (experiment, task, variant, rate, length), own in groups.items():
        top1 = [row["top1"] for row in own]
        same = {k: own[0][k] for k in ("parameters", "trained")}
        kept = {"experiment": experiment, "task": task, "variant": variant, "rate": rate, "length": length}
        kept |= {**same, "seeds": [row["seed"] for row in own], "top1": top1}
        kept["mean"] = round(statistics.mean(top1), 3)
        kept["std"] = round(statistics.stdev(top1), 3) if len(top1) > 1 else None
        table.append(kept)
    return table


def markdown(table: list[Row], experiment: str) -> str:
    """The table of an experiment, as docs/study.md has it: a line a variant, a column a task."""
    own = [row for row in table if row["experiment"] == experiment]
    tasks = list(dict.fromkeys(row["task"] for row in own))
    one_rate = experiment != "rates"
    lines: dict[str, dict[str, Row]] = {}
    for row in own:
        name = row["variant"] if one_rate else f"{row['variant']}, x{row['rate']:g}"
        lines.setdefault(name, {})[row["task"]] = row
    text = [f"| | trained numbers | {' | '.join(tasks)} |", f"|---|---:|{'---:|' * len(tasks)}"]
    for name, cells in lines.items():
        first = next(iter(cells.values()))
        said = [_cell(cells.get(task)) for task in tasks]
        text.append(f"| {name} | {first['trained']:,} | {' | '.join(said)} |")
    return "\n".join(text)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['mean']:.1f}" + ("" if row["std"] is None else f" ± {row['std']:.1f}")
