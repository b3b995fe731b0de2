"""Mean average precision, AUC and d' on sounds: ``python -m eval audio``."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import reparameterize_model
from torch import nn
from torch.utils.data import DataLoader

from dcls_models.files import one_line, printable
from dcls_models.provenance import state_dict_sha256
from dcls_models.sounds import Clips
from eval import processes
from eval.audio.data import SPLIT, fingerprint, held_out, open_sounds
from eval.audio.metrics import Tags, per_class, summary
from eval.batches import in_batches
from eval.options import batch_options, device_option, json_option, load, model_options
from eval.preprocessing import batches_of
from eval.results import write_csv, write_result
from eval.section import Section
from eval.store import claim, parts_of

SECTION = Section(
    "Audio tagging",
    "mAP is the mean over all classes of the average precision, as scikit-learn computes it of the logits; "
    "AUC the mean area under the ROC curve; d' sqrt(2) times the mean of its normal quantiles.",
    {
        "dataset": ("data", 0),
        "map": ("mAP, %", 2),
        "map_present": ("mAP of classes with sounds, %", 2),
        "top1": ("top-1, %", 2),
        "auc": ("AUC", 4),
        "d_prime": ("d'", 3),
        "n": ("sounds", 0),
    },
    ("map", "higher is better"),
)


def model_of_sounds(arguments: argparse.Namespace) -> nn.Module:
    """The model of the command line.

    Raises:
        ValueError: If it is none of sounds.
    """
    model = load(arguments.model, arguments.checkpoint)
    if not hasattr(model, "front_end"):
        raise ValueError(
            f"{arguments.checkpoint or arguments.model} is no model of sounds: it has no front end for them"
        )
    return model


@torch.inference_mode()
def tag(
    model: nn.Module,
    clips: Clips,
    batches: list[list[int]],
    workers: int = 0,
    device: str = "cpu",
    amp: str | None = None,
) -> Iterator[Tags]:
    """What a model says of batches of clips.

    Args:
        model: In eval mode on its device, with its ``front_end``.
        clips: The sounds.
        batches: Their numbers.
        workers: Processes that read sounds.
        device: Where the model is.
        amp: Type of autocast (``bfloat16``), or None.
    """
    kind, dtype = torch.device(device).type, getattr(torch, amp) if amp else torch.float32
    loader = DataLoader(clips, batch_sampler=batches, num_workers=workers)
    front_end: Any = model.front_end
    for indices, (waveforms, targets, readable) in zip(batches, batches_of(loader), strict=True):
        with torch.autocast(kind, dtype, enabled=amp is not None):
            logits = model(front_end(waveforms.to(device))).float().cpu()
        if not logits[readable].isfinite().all():
            raise ValueError("the model gives NaN or infinite values")
        yield Tags(torch.tensor(indices), targets.bool(), logits, readable)


def run(arguments: argparse.Namespace) -> None:
    """Measures how well sounds are tagged, and writes it as JSON."""
    device = processes.own_device(arguments.device)
    model = model_of_sounds(arguments)
    sounds = open_sounds(arguments, model)
    settings = _settings(arguments, model, device)
    indices = held_out(sounds, arguments.checkpoint) if arguments.held_out else None
    front_end: Any = model.front_end
    clips = Clips(sounds, front_end.settings["sample_rate"], front_end.settings["seconds"], indices)
    network = (reparameterize_model(model) if arguments.fuse else model).eval().to(device)
    network.front_end = front_end.to(device)
    data = {"dataset": arguments.dataset or str(arguments.data), "split": arguments.split}
    data["held_out"] = arguments.held_out
    said: list[str] = []
    with parts_of(arguments.output) as folder:
        if folder and processes.rank_and_world()[0] == 0:
            listed = {"sounds": fingerprint(sounds), "batch_size": arguments.batch_size}
            claim(folder, {**settings, **data, **listed})
        tags = in_batches(
            Tags,
            len(clips),
            lambda batches: tag(network, clips, batches, arguments.workers, device, arguments.amp),
            folder,
            arguments.batch_size,
            name="audio",
            unit="sound",
        )
        if tags is not None:
            said = _finish(arguments, clips, tags, {**data, **settings})
    for line in said:
        print(printable(line))


def _finish(arguments: argparse.Namespace, clips: Clips, tags: Tags, rest: dict[str, Any]) -> list[str]:
    """Writes what is asked for; returns what is to be said."""
    bad = (~tags.readable).nonzero().flatten().tolist()
    unreadable = [f"{clips.filename(i)}: {_why(clips, i)}" for i in bad]
    if len(bad) == len(clips):
        raise ValueError(f"none of the {len(clips)} sounds can be read, the first: {unreadable[0]}")
    read = Tags(**{name: column[tags.readable] for name, column in vars(tags).items()})
    rows = per_class(read.targets.numpy(), read.logits.numpy())
    numbers = summary(read, rows, clips.sounds.one_label)
    name = str(arguments.checkpoint or arguments.model)
    write_result(arguments, {"model": name, **numbers, "unreadable": unreadable, **rest})
    if arguments.per_class:
        cells = ["" if value is None else value for row in rows for value in row.values()]
        lines = [[name, *cells[3 * i : 3 * i + 3]] for i, name in enumerate(clips.sounds.names)]
        write_csv(arguments.per_class, ["class", "n", "ap", "auc"], lines)
    if arguments.predictions:
        write_predictions(arguments.predictions, clips, read)
    said = [f"unreadable: {line}" for line in unreadable]
    said.append(f"{name}: {in_words(numbers)} of {numbers['n']} sounds")
    if numbers["classes_without_sounds"]:
        silent, classes = numbers["classes_without_sounds"], numbers["classes"]
        said.append(f"{silent} of {classes} classes have no sound and count 0")
    return said


def in_words(numbers: dict[str, Any]) -> str:
    """The measures in one line."""
    named = {"map": "mAP {} %", "top1": "top-1 {} %", "auc": "AUC {}", "d_prime": "d' {}"}
    return ", ".join(text.format(numbers[key]) for key, text in named.items() if numbers.get(key) is not None)


def write_predictions(path: Path, clips: Clips, tags: Tags, top: int = 5) -> None:
    """Writes every sound's path, its classes, and the likeliest classes with their probabilities."""
    names, best = clips.sounds.names, tags.logits.sigmoid().topk(min(top, tags.logits.shape[1]))
    rows: list[Sequence[Any]] = []
    for i, target, values, numbers in zip(tags.indices.tolist(), tags.targets, *best, strict=True):
        own = "|".join(names[c] for c in target.nonzero().flatten().tolist())
        pairs = zip(numbers.tolist(), values.tolist(), strict=True)
        rows.append([clips.filename(i), own, *(cell for c, p in pairs for cell in (names[c], f"{p:.6f}"))])
    head = [name for n in range(1, best.values.shape[1] + 1) for name in (f"tag{n}", f"probability{n}")]
    write_csv(path, ["path", "classes", *head], rows)


def _settings(arguments: argparse.Namespace, model: nn.Module, device: str) -> dict[str, Any]:
    front_end: Any = model.front_end
    return {
        "state_dict_sha256": state_dict_sha256(model),
        "param_count": sum(p.numel() for p in model.parameters()),
        "front_end": front_end.settings,
        "fused": arguments.fuse,
        "amp": arguments.amp,
        "device": device,
    }


def _why(clips: Clips, index: int) -> str:
    try:
        clips.waveform(index)
    except (OSError, ValueError) as error:
        return one_line(error)
    return "it could not be read before"


def add_commands(commands: Any) -> None:
    """Adds ``audio``."""
    command = commands.add_parser(
        "audio",
        parents=[model_options(), device_option(), batch_options(), json_option()],
        help="mAP, AUC and d' on sounds",
        description="With --output, a run that was killed goes on when the same command is given again.",
    )
    data_help = "folder of class folders, or one with val/; .csv of AudioSet; .h5 of PANNs; cache for hfds/"
    command.add_argument("--data", type=Path, help=data_help)
    command.add_argument("--sounds", type=Path, help="folder of the sounds that a .csv names")
    labels_help = "AudioSet's class_labels_indices.csv; by default that beside a .csv or .h5"
    command.add_argument("--labels", type=Path, help=labels_help)
    command.add_argument("--dataset", default="", help="hfds/NAME; else --data")
    command.add_argument("--split", default=SPLIT, help="subfolder of --data, or split of hfds/")
    command.add_argument("--audio-column", default="audio", help="column of the sounds of hfds/")
    command.add_argument("--label-column", default="label", help="column of their classes")
    held_out_help = "only what the training of --checkpoint held out"
    command.add_argument("--held-out", action="store_true", help=held_out_help)
    command.add_argument("--amp", choices=("bfloat16", "float16"), help="mixed precision")
    command.add_argument("--fuse", action="store_true", help="plain convolutions (reparameterize_model)")
    command.add_argument("--per-class", type=Path, help="CSV file to write: every class's precision and AUC")
    command.add_argument("--predictions", type=Path, help="CSV file to write: every sound's likeliest tags")
    command.set_defaults(run=run)
