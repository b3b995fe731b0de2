"""The table of the zoo: what every registered model is, what it costs, and what is reported of it."""

import argparse
import csv
import io
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from dcls_models.files import replaced
from dcls_models.layers import DclsNd
from dcls_models.models._build import plain_name
from dcls_models.provenance import read_result
from dcls_models.published import published
from eval.options import ending
from eval.section import markdown_table
from eval.speed.costs import costs

MEASURES = {"top1": "top-1", "map": "mAP"}  # of published.csv, in percent
COLUMNS = (  # of the CSV; those of timm's results and benchmarks first
    *("model", "img_size", "top1", "crop_pct", "interpolation", "param_count", "infer_gmacs", "infer_macts"),
    *("infer_samples_per_sec", "infer_step_time", "kernel_size", "kernel_count", "version"),
    *("deployed_param_count", "plain_model", "plain_gmacs", "relative_speed", "map", "source", "weights"),
)
INTRODUCTION = """\
# Models

Every registered model, written from the registry by

```bash
{command}
```

together with [{csv}]({csv}), which has timm's columns and more.

- *Kernel*: its side in pixels, its number of elements, and how they are interpolated (`version`).
- *Parameters*: millions of numbers that are trained; *deployed*: the same with dense kernels (`deploy`).
- *GMACs*: multiplications in convolutions and matrix products of the deployed model, for one image, by the
  formulas of torch; in brackets those of timm's plain model. (timm's tables count normalisation too, which
  adds under one percent.) *Activations*: millions of numbers that these operators put out.
- *Images/s*: of the deployed model on a CPU, measured here; in brackets its speed relative to timm's plain
  model in the same run. Where it is empty nobody has measured it.
- *Reported*: in percent, by the authors of the weights, not measured here. Where it is empty we could not
  read the number at its source.
- *Weights*: the Zenodo record. Their licence is that of the record, which you should read; this project does
  not know it.
"""
SECTIONS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "With the authors' weights": lambda row: bool(row["weights"]) and "audio" not in row["model"],
    "For audio, with the authors' weights": lambda row: bool(row["weights"]) and "audio" in row["model"],
    "Without weights": lambda row: not row["weights"] and not row["model"].startswith("test_"),
    "For tests": lambda row: row["model"].startswith("test_"),
}


def plain_model(name: str) -> str | None:
    """The model of timm with the same blocks and plain convolutions, if there is one."""
    plain = plain_name(name)
    return plain if timm.is_model(plain) else None


def zoo(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model, with ``COLUMNS``; empty where nothing is known.

    Args:
        names: Registered models.
        results: Results of ``eval throughput``, for the speeds.
    """
    reported = _reported()
    rows = [_described(name) | _speed(name, results) | reported.get(name, {}) for name in names]
    return [{column: row.get(column, "") for column in COLUMNS} for row in rows]


def _described(name: str) -> dict[str, Any]:
    """What the registry and the model itself say."""
    counted, model = costs(name)
    layer = next(m for m in model.modules() if isinstance(m, DclsNd))  # the others differ in channels only
    cfg = timm.get_pretrained_cfg(name)
    _, height, width = cfg.input_size
    plain = plain_model(name)
    return {
        "model": name,
        "img_size": height if height == width else f"{height}x{width}",
        "crop_pct": cfg.crop_pct,
        "interpolation": cfg.interpolation,
        "param_count": _millions(counted.parameters),
        "deployed_param_count": _millions(counted.deployed_parameters),
        "infer_gmacs": round(counted.macs / 1e9, 2),
        "infer_macts": _millions(counted.activations),
        "kernel_size": "x".join(map(str, layer.dilated_kernel_size)),
        "kernel_count": layer.kernel_count,
        "version": layer.version,
        "plain_model": plain or "",
        "plain_gmacs": round(costs(plain)[0].macs / 1e9, 2) if plain else "",
        "weights": cfg.origin_url or "",
    }


def _millions(number: int) -> float:
    return round(number / 1e6, 2)


def _speed(name: str, results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The speed of the deployed model, from the last result that holds its plain model as well."""
    speed: dict[str, Any] = {}
    for result in results:
        deployed = {row["model"]: row for row in result["rows"] if row["mode"] == "deployed"}
        if name in deployed and (plain := deployed.get(plain_model(name) or "")):
            per_second = deployed[name]["images_per_second"]
            speed = {
                "infer_samples_per_sec": per_second,
                "infer_step_time": deployed[name]["ms"]["median"],
                "relative_speed": round(per_second / plain["images_per_second"], 2),
            }
    return speed


def _reported() -> dict[str, dict[str, str]]:
    """By model, what its authors have published of it, and where."""
    rows = [row for row in published() if row["measure"] in MEASURES]
    return {row["model"]: {row["measure"]: row["value"], "source": row["source"]} for row in rows}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows with their column names, as a file's text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_page(
    rows: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], command: str, table: str
) -> str:
    """The page in Markdown.

    Args:
        rows: Of ``zoo``.
        results: Where their speeds are from.
        command: The command line that writes the page.
        table: The name of the CSV file beside it.
    """
    blocks = [INTRODUCTION.format(command=command, csv=table)]
    for title, belongs in SECTIONS.items():
        shown = [_cells(row) for row in rows if belongs(row)]
        header = [name for name in shown[0] if any(cells[name] for cells in shown)]
        lines = [[cells[name] for name in header] for cells in shown]
        blocks.append(f"## {title}\n\n{markdown_table(header, lines, left=2)}\n")
    sources: dict[str, list[str]] = {}
    for row in rows:
        if row["source"]:
            sources.setdefault(row["source"], []).append(f"`{row['model']}`")
    said = [f"- {', '.join(names)}: reported in the {source}" for source, names in sources.items()]
    said += [f"- images/s: `{r['command']}`, {r['date']}, {r['machine']}, {_versions(r)}" for r in results]
    return "\n".join([*blocks, "## Sources\n", *said]) + "\n"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """One line of the page: headings and texts."""
    plain_gmacs, speed = row["plain_gmacs"], row["relative_speed"]
    reported = [f"{row[key]} {name}" for key, name in MEASURES.items() if row[key]]
    record = row["weights"].rpartition("/")[2]
    return {
        "model": f"`{row['model']}`",
        "kernel": f"{row['kernel_size']}, {row['kernel_count']}, {row['version']}",
        "input": str(row["img_size"]),
        "parameters": f"{row['param_count']:.2f}",
        "deployed": f"{row['deployed_param_count']:.2f}",
        "GMACs": f"{row['infer_gmacs']:.2f}" + (f" ({plain_gmacs:.2f})" if plain_gmacs else ""),
        "activations": f"{row['infer_macts']:.2f}",
        "images/s": f"{row['infer_samples_per_sec']} ({speed:.2f})" if speed else "",
        "reported": ", ".join(reported),
        "weights": f"[{record}]({row['weights']})" if record else "",
    }


def _versions(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def _timed(path: Path) -> dict[str, Any]:
    result = read_result(path)
    if result["task"] != "throughput":
        raise ValueError(f"{path} is a result of {result['task']}: --speed takes results of eval throughput")
    return result


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and the CSV beside it."""
    results = [_timed(path) for path in arguments.speed]
    rows = zoo(timm.list_models("*dcls*"), results)
    table = arguments.output.with_suffix(".csv")
    command = shlex.join(["python", "-m", "eval", *arguments.argv])
    texts = {table: as_csv(rows), arguments.output: as_page(rows, results, command, table.name)}
    for path, text in texts.items():
        with replaced(path) as part:
            part.write_text(text, encoding="utf-8")
    print(f"wrote {arguments.output} and {table}: {len(rows)} models")


def add_commands(commands: Any) -> None:
    """Adds ``models``."""
    command = commands.add_parser("models", help="the table of all registered models")
    command.add_argument(
        "--output", type=ending(".md"), required=True, help="page to write, and CSV beside it"
    )
    speed_help = "results of eval throughput that hold a model and its plain one, deployed"
    command.add_argument("--speed", type=Path, nargs="+", default=[], metavar="JSON", help=speed_help)
    command.set_defaults(run=run)
