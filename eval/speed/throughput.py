"""Training steps and inference of whole models, side by side in one run."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import timm
import torch
from matplotlib.figure import Figure
from torch import nn

import dcls_models
from dcls_models.files import one_line
from dcls_models.layers.linear import use_fast_linear
from dcls_models.loading import config_of
from dcls_models.strided import slice_strided
from eval.options import at_least_1, timing_options
from eval.results import write_result
from eval.section import Section, markdown_table
from eval.speed.costs import costs_of
from eval.speed.engines import ENGINES, compiled_ahead, run_by
from eval.speed.peers import with_authors_layers, with_plain_layers
from eval.speed.steps import step_of
from eval.speed.timing import LAYOUTS, peak_memory, time_in_turns

AUTHORS = "authors:"  # before a name of the zoo: its model with the layers of the authors' package
PLAIN = "plain:"  # before a name of the zoo: its model with the convolutions of the base model
TRIMMED = "trimmed:"  # before any name: deployed with the empty borders of kernels cut off
FAST = "fast:"  # before any name: with the linear layers that ``model.fast_linear`` trains with
MODES = {
    "train": "a training step: forward, backward, AdamW",
    "inference": "eval mode, without gradients",
    "deployed": "inference after dcls_models.deploy",
}
SECTION = Section(
    "Speed",
    "Models of one file were timed side by side; speeds are those of the first model of the file.",
    {
        "mode": ("mode", 0),
        "engine": ("engine", 0),
        "layout": ("layout", 0),
        "ms/median": ("ms per step", 1),
        "images_per_second": ("images/s", 1),
        "speed": ("speed", 2),
    },
)


class Settings(NamedTuple):
    """How models are run.

    Attributes:
        batch_size: Images per step.
        img_size: Side of the images, in pixels; each model's own where None.
        device: Where to compute.
        dtype: float32, or a shorter one for autocast.
        compiled: Whether to ``torch.compile`` the models.
        pretrained: Whether to load weights; only trimming depends on them.
        layouts: Memory layouts to try, of ``LAYOUTS``; the faster one of a model counts.
    """

    batch_size: int = 4
    img_size: int | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    pretrained: bool = False
    layouts: tuple[str, ...] = tuple(LAYOUTS)


def build(name: str, mode: str, pretrained: bool = False) -> nn.Module:
    """The model as it is used in one of ``MODES``.

    Args:
        name: A timm name, ``local-dir:FOLDER`` or ``hf-hub:USER/NAME``; after ``TRIMMED``, ``FAST`` or, one
            of the zoo, ``AUTHORS`` or ``PLAIN`` as well.
        mode: A key of ``MODES``; what is deployed is deployed later, with the batch that it will see.
        pretrained: Whether to load weights.

    Raises:
        ValueError: If there is no such model, or the prefix is not for this mode.
    """
    prefix = next((p for p in (AUTHORS, PLAIN, TRIMMED, FAST) if name.startswith(p)), "")
    if prefix == TRIMMED and mode != "deployed":
        raise ValueError(f"{name}: kernels are trimmed for deployment only: give --modes deployed")
    if prefix == FAST and mode == "deployed":
        raise ValueError(f"{name}: what is deployed has fast linear layers anyway: leave out {FAST}")
    bare = name.removeprefix(prefix)
    config_of(bare)
    model = timm.create_model(bare, pretrained=pretrained)
    if prefix == AUTHORS:
        model = with_authors_layers(model)
    if prefix == PLAIN:
        model = with_plain_layers(model)
    if prefix == FAST:
        use_fast_linear(model)
    return (slice_strided(model) if mode == "train" else model).train(mode == "train")


def throughput(
    names: Sequence[str],
    modes: Sequence[str] = tuple(MODES),
    settings: Settings = Settings(),  # noqa: B008 (immutable)
    rounds: int = 15,
    engines: Sequence[str] = ENGINES[:1],
) -> list[dict[str, Any]]:
    """Times models against the first one, each in the memory layout that is the faster one for it.

    Args:
        names: What ``build`` takes; the first is the baseline.
        modes: Keys of ``MODES``.
        settings: How to run them.
        rounds: Runs of each model in each mode.
        engines: What runs the deployed models, of ``ENGINES``; in the other modes it is torch.

    Returns:
        Per mode, engine and model: ``model``, ``mode``, ``engine``, ``layout``, ``ms`` (median, quartiles,
        runs), ``images_per_second`` and ``speed`` (times that of the baseline); of torch on a CPU also
        ``peak_bytes``, the most that tensors take in a step beyond parameters and the optimizer's averages.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:  # of ONNX files, which the engines share
        for mode, engine in [(m, e) for m in modes for e in (engines if m == "deployed" else ENGINES[:1])]:
            best = _ready(names, mode, engine, settings, Path(folder))
            steps = {name: step for name, (_, step) in best.items()}
            timings = time_in_turns(steps, settings.device, rounds)
            for name, ms in timings.items():
                row = {"model": name, "mode": mode, "engine": engine, "layout": best[name][0]}
                row["ms"] = ms._asdict()
                row["images_per_second"] = round(1e3 * settings.batch_size / ms.median, 2)
                row["speed"] = round(timings[names[0]].median / ms.median, 4)
                if settings.device == "cpu" and engine == "torch" and not settings.compiled:
                    row["peak_bytes"] = peak_memory(steps[name])
                rows.append(row)
            del best, steps  # the models, before the next are made
    return rows


def _ready(
    names: Sequence[str], mode: str, engine: str, settings: Settings, folder: Path
) -> dict[str, tuple[str, Callable[[], object]]]:
    """Per name the layout, and what is timed."""
    if mode != "deployed":
        return {name: _best_layout(name, mode, settings) for name in names}
    files = {name: folder / f"{number}.onnx" for number, name in enumerate(names)}
    return {name: _deployed_step(name, engine, settings, file) for name, file in files.items()}


def _best_layout(name: str, mode: str, settings: Settings) -> tuple[str, Callable[[], object]]:
    steps = {}
    for layout in settings.layouts:
        memory_format = LAYOUTS[layout]
        model = build(name, mode, settings.pretrained).to(settings.device, memory_format=memory_format)
        images = _images(model, settings).contiguous(memory_format=memory_format)
        if settings.compiled:
            model.compile()
        steps[layout] = step_of(model, images, mode, settings.dtype)
    if len(steps) == 1:
        return next(iter(steps.items()))
    timings = time_in_turns(steps, settings.device, rounds=3, seconds=0)
    best = min(timings, key=lambda layout: timings[layout].median)
    return best, steps[best]


def deployed(name: str, settings: Settings) -> tuple[nn.Module, torch.Tensor]:
    """A deployed model, and the images that it was measured with, in the layout that it has."""
    model = build(name, "deployed", settings.pretrained).to(settings.device)
    images = _images(model, settings)
    with torch.autocast(images.device.type, settings.dtype, enabled=settings.dtype != torch.float32):
        model = dcls_models.deploy(model, images, trims=name.startswith(TRIMMED))
    return model, images.contiguous(memory_format=LAYOUTS[_layout_of(model)])


def _layout_of(model: Any) -> str:
    return "channels_last" if model.deployment["channels_last"] else "contiguous"


def _deployed_step(
    name: str, engine: str, settings: Settings, file: Path
) -> tuple[str, Callable[[], object]]:
    if engine in ("onnxruntime", "openvino"):
        model, trims = build(name, "deployed", settings.pretrained), name.startswith(TRIMMED)
        images = _images(model, settings)
        return "contiguous", run_by(engine, model, images, settings.dtype, trims, file)
    model, images = deployed(name, settings)
    layout = _layout_of(model)
    if engine == "aotinductor":
        model = compiled_ahead(model, images, settings.dtype, file.with_suffix(".pt2"))
    elif settings.compiled or engine == "inductor":
        model.compile()
    return layout, step_of(model, images, "deployed", settings.dtype)


def _images(model: nn.Module, settings: Settings) -> torch.Tensor:
    channels, *size = model.default_cfg["input_size"]
    size = [settings.img_size] * 2 if settings.img_size else size
    return torch.randn(settings.batch_size, channels, *size, device=settings.device)


def costs_by_name(names: Sequence[str], img_size: int | None = None) -> dict[str, dict[str, int]]:
    """By name the numbers of ``Costs``, for one image of that side or of each model's own.

    The authors' layers, fast linear layers and kernels that are trimmed later count as the model without.
    """
    counted = {}
    for name in names:
        prefix = next((p for p in (AUTHORS, FAST, TRIMMED) if name.startswith(p)), "")
        with torch.device("meta"):
            model = build(name.removeprefix(prefix), "inference")
        counted[name] = costs_of(model, img_size)._asdict()
    return counted


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    header = ["model", "mode", "engine", "layout", "ms per step", "images/s", "speed"]
    return markdown_table(
        header,
        [
            [
                row["model"],
                row["mode"],
                row["engine"],
                row["layout"],
                f"{row['ms']['median']:.1f}",
                f"{row['images_per_second']:.1f}",
                f"{row['speed']:.2f}x",
            ]
            for row in rows
        ],
    )


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """One panel per mode and engine, one bar per model: speed, 1 = the first model."""
    modes = list(dict.fromkeys(_title(row) for row in rows))
    figure, axes = plt.subplots(
        1, len(modes), figsize=(4 * len(modes) + 1, 1 + 0.3 * len(rows) / len(modes)), squeeze=False
    )
    for mode, axis in zip(modes, axes[0], strict=True):
        shown = [row for row in rows if _title(row) == mode][::-1]
        names = [row["model"] for row in shown]
        ours = [
            "tab:blue" if "dcls" in n and not n.startswith((AUTHORS, PLAIN)) else "tab:gray" for n in names
        ]
        bars = axis.barh(names, [row["speed"] for row in shown], color=ours)
        axis.bar_label(bars, [f" {row['speed']:.2f}" for row in shown], fontsize=8)
        axis.set(title=mode, xlabel=f"images/s, 1 = {rows[0]['model']}")
        axis.set_xlim(0, 1.25 * max(row["speed"] for row in shown))
        axis.axvline(1, color="black", linewidth=0.8, zorder=0)
        if axis is not axes[0][0]:
            axis.set_yticklabels([])
    figure.tight_layout()
    return figure


def _title(row: dict[str, Any]) -> str:
    return row["mode"] + ("" if row["engine"] == "torch" else f" by {row['engine']}")


def run(arguments: argparse.Namespace) -> None:
    """Times models side by side."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    dtype, layouts = getattr(torch, arguments.dtype), tuple(arguments.layouts)
    kept = {k: getattr(arguments, k) for k in ("batch_size", "img_size", "device", "pretrained")}
    settings = Settings(**kept, dtype=dtype, compiled=arguments.compile, layouts=layouts)
    if arguments.engine != ["torch"] and "deployed" not in arguments.modes:
        raise ValueError("--engine is of deployed models: give --modes deployed")
    for module in arguments.imports:
        _import(module)
    rows = throughput(arguments.models, arguments.modes, settings, arguments.rounds, arguments.engine)
    costs = costs_by_name(arguments.models, arguments.img_size)
    write_result(arguments, {"rows": rows, "costs": costs}, lambda: draw(rows))
    print(table(rows))


def _import(module: str) -> None:
    """Imports what registers models of one's own.

    Raises:
        ValueError: If it cannot be imported, whatever it raises.
    """
    try:
        import_module(module)
    except Exception as error:
        raise ValueError(
            f"--import {module}: it cannot be imported ({type(error).__name__}: {one_line(error)}); give the "
            "dotted name of a module that python -c 'import NAME' finds from this folder"
        ) from error


def add_commands(commands: Any) -> None:
    """Adds ``throughput``."""
    command = commands.add_parser(
        "throughput", parents=[timing_options()], help="images per second, side by side"
    )
    models_help = f"timm names, folders, Hub ids; the first is the baseline; {AUTHORS}NAME for"
    models_help += (
        f" a model of the zoo with the layers of the authors' package, {PLAIN}NAME with the layers of its "
        f"base model, {TRIMMED}NAME for trimmed kernels, "
        f"{FAST}NAME for fast linear layers"
    )
    command.add_argument("--models", nargs="+", required=True, metavar="MODEL", help=models_help)
    import_help = "modules to import first, such as one that registers models of your own with timm"
    command.add_argument(
        "--import", nargs="+", default=[], dest="imports", metavar="MODULE", help=import_help
    )
    modes_help = "; ".join(f"{mode}: {text}" for mode, text in MODES.items())
    command.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES, help=modes_help)
    engine_help = "what runs the deployed models; inductor: torch.compile, aotinductor: ahead of time"
    command.add_argument("--engine", nargs="+", default=["torch"], choices=ENGINES, help=engine_help)
    command.add_argument("--batch-size", type=at_least_1, default=4)
    command.add_argument("--img-size", type=at_least_1, help="pixels; each model's own by default")
    command.add_argument("--compile", action="store_true", help="torch.compile the models")
    layouts_help = "memory layouts to try; the faster one counts"
    command.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS, help=layouts_help)
    command.add_argument("--pretrained", action="store_true", help=f"with weights, for {TRIMMED}NAME")
    command.set_defaults(run=run)
