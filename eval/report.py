"""One page that compares results: tables, a picture, and published figures beside the measured ones."""

import argparse
import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib.pyplot as plt
from markdown import markdown

from dcls_models.files import replaced
from dcls_models.markdown import code, plain
from dcls_models.provenance import read_result
from dcls_models.published import published
from eval import delays, training_sections
from eval.audio import tagging
from eval.classification import accuracy, robustness
from eval.interpretability import erf, gradcam, kernels
from eval.options import ending
from eval.results import relative
from eval.section import Section, markdown_table
from eval.speed import growth, layers, long_kernels, throughput

SUFFIXES = (".html", ".md")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top }
thead th { border-bottom: 2px solid #222 }
img { max-width: 100%; margin: 1rem 0 }
code { font-size: .85em; overflow-wrap: anywhere }
"""
SECTIONS = {
    "accuracy": accuracy.SECTION,
    "audio": tagging.SECTION,
    "robustness": robustness.SECTION,
    "gradcam": gradcam.SECTION,
    "erf": erf.SECTION,
    "kernels": kernels.SECTION,
    "throughput": throughput.SECTION,
    "growth": growth.SECTION,
    "layers": layers.SECTION,
    "long_kernels": long_kernels.SECTION,
    "delays": delays.SECTION,
    **training_sections.SECTIONS,
}
PUBLISHED_NAMES = {
    "top1": "top-1, %",
    "real_top1": "ReaL top-1, %",
    "map": "mAP, %",
    "images_per_second": "images/s",
    "c": "C, mCE",
    "c_bar": "C-bar, error %",
    "a": "A, %",
    "r": "R, %",
    "sketch": "Sketch, %",
    "v2": "V2, %",
}


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads results, each with its ``path``.

    Raises:
        OSError: If one cannot be read.
        ValueError: If one is no results file, or was changed by hand.
    """
    results = [{**read_result(path), "path": path} for path in paths]
    for result in results:
        rows = result.get("rows", [])
        for part in (result, *(rows if isinstance(rows, list) else [])):
            for key, kind in {"rows": dict, "stages": dict, "pictures": str}.items():
                listed = part.get(key, []) if isinstance(part, dict) else None
                if not isinstance(listed, list) or not all(isinstance(item, kind) for item in listed):
                    raise ValueError(f"{result['path']}: {key} is not what a command wrote: measure it again")
    return results


def write_report(results: Sequence[dict[str, Any]], output: Path, title: str) -> None:
    """Writes the page, and beside it, for Markdown, the picture at its top.

    Args:
        results: Of ``read_results``.
        output: ``.html``, one file with its pictures in it, or ``.md``.
        title: Its heading.
    """
    blocks = [f"# {plain(title)}"]
    if drawn := draw(results):
        picture = output.with_name(f"{output.stem}_models.png")
        link = _relative(picture, output) if output.suffix == ".md" else _embedded(drawn)
        blocks.append(f"![All models]({link})")
    for task in dict.fromkeys(result["task"] for result in results):
        blocks += _section(task, [result for result in results if result["task"] == task], output)
    blocks += ["## How it was measured", _how_measured(results)]
    text = "\n\n".join(blocks) + "\n"
    if output.suffix == ".html":
        head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        body = markdown(text, extensions=["tables"])
        text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    if drawn and output.suffix == ".md":
        with replaced(picture) as part:
            part.write_bytes(drawn)
    with replaced(output) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def _section(task: str, results: Sequence[dict[str, Any]], output: Path) -> Iterable[str]:
    section = SECTIONS.get(task, Section(task, "", {}))
    yield f"## {plain(section.title)}"
    if section.text:
        yield section.text
    rows = [row for result in results for row in _rows(result)]
    columns = section.columns or _scalars(rows)
    shown = {key: column for key, column in columns.items() if any(_at(row, key) is not None for row in rows)}
    if shown:
        header = ["model", *(name for name, _ in shown.values())]
        cells = [[_value(_at(row, key), digits) for key, (_, digits) in shown.items()] for row in rows]
        yield markdown_table(header, [[plain(str(r["model"])), *c] for r, c in zip(rows, cells, strict=True)])
    for result in results:
        if section.tables:
            try:
                yield section.tables(result)
            except (LookupError, TypeError, ValueError) as error:
                raise ValueError(f"{result['path']} is no whole result of {task} ({error!r})") from error
        for name in result.get("pictures", []):
            file = result["path"].parent / name
            what = plain(str(result.get("model", file.stem)))
            yield f"![{what}]({_link(file, output)})" if file.is_file() else f"{what}: {file} is not there."
    yield from _reported(task, {str(row["model"]) for row in rows})


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One per model, or per stage of a model; the rows of a robustness result are of corruptions: details."""
    rows = result.get("rows") or [{}]
    rows = rows if "model" in rows[0] else [result]
    return [{"model": row.get("model"), **stage} for row in rows for stage in row.get("stages", [row])]


def _scalars(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    known = ("model", "task", "command", "date", "machine", "path", "state_dict_sha256")
    keys = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, int | float | str))
    return {key: (key.replace("_", " "), 3) for key in keys if key not in known}


def _reported(task: str, models: set[str]) -> Iterable[str]:
    """What others have published of the same models, marked as such."""
    rows = [r for r in published() if r["task"] == task and _same(r["model"], models)]
    if not rows:
        return
    yield "Reported by others, **not measured here** (ImageNet-1k or AudioSet; for speed, their machine):"
    measures = list(dict.fromkeys(r["measure"] for r in rows))
    values: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        values.setdefault((row["model"], row["source"]), {})[row["measure"]] = row["value"]
    yield markdown_table(
        ["model", "source", *(PUBLISHED_NAMES[m] for m in measures)],
        [[model, source, *(of.get(m, "") for m in measures)] for (model, source), of in values.items()],
        left=2,
    )


def _same(published: str, models: set[str]) -> bool:
    return any(
        published == model or published.partition(".")[0] == model.partition(".")[0] for model in models
    )


def _how_measured(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        where = f"{result['date']}, {result['machine']}, {versions}"
        lines.append(f"- {code(result['command'])}: {plain(where)}")
    return "\n".join(lines)


def draw(results: Sequence[dict[str, Any]]) -> bytes:
    """A PNG with a panel per measure and a bar per result; empty where there is nothing to draw."""
    panels: dict[str, list[tuple[str, float, tuple[float, float] | None]]] = {}
    for task, result in [(whole["task"], row) for whole in results for row in _rows(whole)]:
        section = SECTIONS.get(task)
        if not section or not section.bars:
            continue
        key, better = section.bars
        if result.get(key) is None and "mce" in result:
            key, better = "mce", "lower is better"
        value = result.get(key)
        if not _is_number(value):
            continue
        kind = result.get("benchmark") or result.get("method") or ""
        low, high = result.get("low"), result.get("high")
        span = (low, high) if _is_number(low) and _is_number(high) else None
        label = f"{section.title}{': ' * bool(kind)}{kind}\n{key}, {better}"
        panels.setdefault(label, []).append((str(result.get("model", "")), value, span))
    if not panels:
        return b""
    height = 1.2 + 0.35 * max(len(bars) for bars in panels.values())
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (4.5 * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for (label, bars), axis in zip(panels.items(), axes.flat, strict=False):
        places = range(len(bars))[::-1]
        values = [value for _, value, _ in bars]
        colours = ["tab:blue" if "dcls" in name else "tab:gray" for name, _, _ in bars]
        drawn = axis.barh(places, values, color=colours)
        axis.bar_label(drawn, [f" {value:.4g}" for value in values], fontsize=8)
        for place, (_, _, span) in zip(places, bars, strict=True):
            if span:
                axis.hlines(place, *span, color="black", linewidth=1)
        axis.set_yticks(places, [name[-32:] for name, _, _ in bars], fontsize=8)
        axis.set_title(label, fontsize=9)
        axis.margins(x=0.18)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    return png.getvalue()


def _at(row: dict[str, Any], key: str) -> Any:
    value: Any = row
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _value(value: Any, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " x ".join(map(str, value))
    if not isinstance(value, int | float):
        return plain(str(value))
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # so written, NaN is none


def _link(file: Path, output: Path) -> str:
    if output.suffix == ".html":
        return _embedded(file.read_bytes())
    return _relative(file, output)


def _relative(file: Path, output: Path) -> str:
    return quote(relative(file, output), errors="surrogateescape")


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def run(arguments: argparse.Namespace) -> None:
    """Writes the page."""
    write_report(read_results(arguments.results), arguments.output, arguments.title)
    print(f"compared {len(arguments.results)} results: {arguments.output}")


def add_commands(commands: Any) -> None:
    """Adds ``report``."""
    command = commands.add_parser("report", help="one page that compares results")
    command.add_argument("results", nargs="+", type=Path, help="JSON files of the other commands")
    command.add_argument(
        "--output", type=ending(*SUFFIXES), required=True, help="HTML or Markdown file to write"
    )
    command.add_argument("--title", default="Evaluation")
    command.set_defaults(run=run)
