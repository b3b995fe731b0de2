"""One page that compares results: tables, a picture, and published figures beside the measured ones."""

import argparse
import base64
import csv
import html
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import matplotlib.pyplot as plt
from markdown import markdown

from eval import layers
from eval.options import ending
from eval.timing import markdown_table

PUBLISHED = Path(__file__).with_name("published.csv")
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


class Section(NamedTuple):
    """What a page says of the results of one task.

    Attributes:
        title: Heading.
        text: What the numbers mean.
        columns: Heading and digits by key of the result; keys of what lies deeper are joined by slashes.
        drawn: The key of the bars in the picture, and which end is better.
    """

    title: str
    text: str
    columns: dict[str, tuple[str, int]]
    drawn: tuple[str, str] | None = None


SECTIONS = {
    "accuracy": Section(
        "Accuracy",
        "Share of images whose label is the best (top-1) or among the five best answers; NLL is the mean "
        "cross-entropy, ECE the expected calibration error.",
        {
            "dataset": ("data", 0),
            "top1": ("top-1, %", 2),
            "top5": ("top-5, %", 2),
            "real_top1": ("ReaL top-1, %", 2),
            "loss": ("NLL", 3),
            "ece": ("ECE, %", 2),
            "n": ("images", 0),
        },
        ("top1", "higher is better"),
    ),
    "robustness": Section(
        "Robustness",
        "Accuracy on images of other kinds. mCE: mean corruption error, each corruption's error divided by "
        "AlexNet's (arXiv:1903.12261); lower is better.",
        {
            "benchmark": ("benchmark", 0),
            "source": ("images from", 0),
            "top1": ("top-1, %", 2),
            "mce": ("mCE, %", 2),
            "n": ("images", 0),
        },
        ("top1", "higher is better"),
    ),
    "gradcam": Section(
        "Where it looks",
        "Score: mean Spearman correlation of the model's map with the map of people, divided by the "
        "agreement of people with each other (arXiv:2408.03164), with its 95 % interval; flat maps have no "
        "correlation and are counted.",
        {
            "method": ("map", 0),
            "score": ("score", 3),
            "low": ("from", 3),
            "high": ("to", 3),
            "spearman": ("Spearman", 3),
            "n": ("images", 0),
            "flat": ("flat maps", 0),
        },
        ("score", "higher is better"),
    ),
    "erf": Section(
        "Effective receptive field",
        "The share of the image's area that holds so much of the gradient of the centre output "
        "(arXiv:2203.06717).",
        {f"share_of_area/{t}": (f"{100 * float(t):.0f} %", 3) for t in ("0.2", "0.3", "0.5", "0.99")},
    ),
    "kernels": Section(
        "Kernels",
        "Per stage, in pixels: the mean distance from the middle, weighted with |kernel|, and the share of "
        "|kernel| outside the middle 7 x 7; of the elements, their mean distance, the share at the edge of "
        "their range, and sigma.",
        {
            "name": ("stage", 0),
            "size": ("size", 0),
            "version": ("version", 0),
            "radius": ("radius", 2),
            "outside_7x7": ("outside 7 x 7", 3),
            "mean_distance": ("mean distance", 2),
            "at_border": ("at the edge", 3),
            "sigma/mean": ("sigma", 2),
        },
    ),
    "throughput": Section(
        "Speed",
        "Models of one file were timed side by side; speeds are those of the first model of the file.",
        {
            "mode": ("mode", 0),
            "layout": ("layout", 0),
            "ms/median": ("ms per step", 1),
            "images_per_second": ("images/s", 1),
            "speed": ("speed", 2),
        },
    ),
    "layers": Section("Layers", "Forward and backward, by themselves: the median of the runs.", {}),
    "segmentation": Section(
        "Segmentation",
        "In percent, before and after the training: the mean over classes of intersection over union, and "
        "the share of pixels.",
        {
            "before/miou": ("mIoU before", 1),
            "miou": ("mIoU", 1),
            "before/pixels": ("pixels before", 1),
            "pixels": ("pixels", 1),
            "updates": ("updates", 0),
            "n": ("images", 0),
        },
        ("miou", "higher is better"),
    ),
    "detection": Section(
        "Detection",
        "COCO's average precision in percent, of boxes and of masks, before and after the training; AP50 "
        "asks for an intersection over union of 0.5 only.",
        {
            "before/box_ap": ("box AP before", 1),
            "box_ap": ("box AP", 1),
            "box_ap50": ("box AP50", 1),
            "before/mask_ap": ("mask AP before", 1),
            "mask_ap": ("mask AP", 1),
            "mask_ap50": ("mask AP50", 1),
            "updates": ("updates", 0),
            "n": ("images", 0),
        },
        ("box_ap", "higher is better"),
    ),
}
PUBLISHED_NAMES = {
    "top1": "top-1, %",
    "real_top1": "ReaL top-1, %",
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
        ValueError: If a file is not a result of ``python -m eval`` or of a dense task's training.
    """
    results = []
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in ("task", "command", "date", "machine", "versions") if key not in result]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a result of python -m eval: {error}") from error
        if missing:
            raise ValueError(f"{path} is not a result of python -m eval: it lacks {', '.join(missing)}")
        results.append({**result, "path": path})
    return results


def write_report(results: Sequence[dict[str, Any]], output: Path, title: str) -> None:
    """Writes the page, and beside it, for Markdown, the picture at its top.

    Args:
        results: Of ``read_results``.
        output: ``.html``, one file with its pictures in it, or ``.md``.
        title: Its heading.
    """
    blocks = [f"# {_cell(title)}"]
    if drawn := draw(results):
        picture = output.with_name(f"{output.stem}_models.png")
        if output.suffix == ".md":
            picture.write_bytes(drawn)
        link = _relative(picture, output) if output.suffix == ".md" else _embedded(drawn)
        blocks.append(f"![All models]({link})")
    for task in dict.fromkeys(result["task"] for result in results):
        blocks += _section(task, [result for result in results if result["task"] == task], output)
    blocks += ["## How it was measured", _provenance(results)]
    text = "\n\n".join(blocks) + "\n"
    if output.suffix == ".html":
        head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        body = markdown(text, extensions=["tables"])
        text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    part = output.with_name(output.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(output)


def _section(task: str, results: Sequence[dict[str, Any]], output: Path) -> Iterable[str]:
    section = SECTIONS.get(task, Section(task, "", {}))
    yield f"## {_cell(section.title)}"
    if section.text:
        yield section.text
    rows = [row for result in results for row in _rows(result)]
    columns = section.columns or _scalars(rows)
    shown = {key: column for key, column in columns.items() if any(_at(row, key) is not None for row in rows)}
    if shown:
        header = ["model", *(name for name, _ in shown.values())]
        cells = [[_value(_at(row, key), digits) for key, (_, digits) in shown.items()] for row in rows]
        yield markdown_table(header, [[_cell(str(r["model"])), *c] for r, c in zip(rows, cells, strict=True)])
    for result in results:
        if task == "layers":
            yield layers.tables(result)
        for name in result.get("pictures", []):
            file = result["path"].parent / name
            what = _cell(str(result.get("model", file.stem)))
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
    with PUBLISHED.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["task"] == task and _same(r["model"], models)]
    if not rows:
        return
    yield "Reported by others, **not measured here** (ImageNet-1k; for speed, their machine):"
    measures = list(dict.fromkeys(r["measure"] for r in rows))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        found.setdefault((row["model"], row["source"]), {})[row["measure"]] = row["value"]
    yield markdown_table(
        ["model", "source", *(PUBLISHED_NAMES[m] for m in measures)],
        [[model, source, *(of.get(m, "") for m in measures)] for (model, source), of in found.items()],
        left=2,
    )


def _same(published: str, models: set[str]) -> bool:
    return any(
        published == model or published.partition(".")[0] == model.partition(".")[0] for model in models
    )


def _provenance(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        where = f"{result['date']}, {result['machine']}, {versions}"
        lines.append(f"- `{result['command'].replace('`', '')}`: {_cell(where)}")
    return "\n".join(lines)


def draw(results: Sequence[dict[str, Any]]) -> bytes:
    """A PNG with a panel per measure and a bar per result; empty where there is nothing to draw."""
    panels: dict[str, list[tuple[str, float, tuple[float, float] | None]]] = {}
    for task, result in [(whole["task"], row) for whole in results for row in _rows(whole)]:
        section = SECTIONS.get(task)
        if not section or not section.drawn:
            continue
        key, better = section.drawn
        if result.get(key) is None and "mce" in result:
            key, better = "mce", "lower is better"
        value = result.get(key)
        if value is None:
            continue
        kind = result.get("benchmark") or result.get("method") or ""
        span = (result["low"], result["high"]) if "low" in result and "high" in result else None
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
    if isinstance(value, str):
        return _cell(value)
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _link(file: Path, output: Path) -> str:
    if output.suffix == ".html":
        return _embedded(file.read_bytes())
    return _relative(file, output)


def _relative(file: Path, output: Path) -> str:
    return quote(Path(os.path.relpath(file, output.parent)).as_posix())


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
