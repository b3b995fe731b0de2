"""A model to a folder that timm loads: ``model.safetensors``, ``config.json`` and what belongs to them."""

import copy
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from dcls_models._timm import get_model_args, save_config_for_hf
from dcls_models.checkpoint import check_values
from dcls_models.config import CONFIG
from dcls_models.files import one_line, sha256_of, write_json
from dcls_models.layers import DclsNd
from dcls_models.layers.positions import fuse_layers
from dcls_models.loading import load_model, read_run
from dcls_models.models._build import plain_name
from dcls_models.provenance import versions
from hub import HubError
from hub.card import plain_card
from hub.folder import CARD, WEIGHTS, check_folder, config_sha256, written_at_once
from hub.logits import check_logits, spread
from hub.measured import result_of
from hub.onnx import export_onnx, images_below

ORIGIN = ("origin_url", "paper_ids", "notes", "license", "tag", "url")  # of published weights
KEPT_PRECISE = ("positions", "sigma", "running_mean", "running_var")
WHERE = ("root", "predict_root", "classes")  # paths on a machine are nobody's business
SOURCE_CFG = (
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "input_size",
    "label_names",
    "origin_url",
    "paper_ids",
)


def export(
    model: nn.Module,
    out: Path,
    *,
    source: str = "a live model",
    source_sha256: str = "",
    published: bool = True,
    files: Mapping[str, str] | None = None,
    fused: bool = False,
    half: bool = False,
    onnx: bool = False,
    dynamic_size: bool = False,
    int8: bool = False,
    compare: Path | None = None,
) -> dict[str, str]:
    """Writes a model to a folder, once the folder has proved to give the same logits through timm.

    Args:
        model: Any timm model; it stays as it is. Its layout and shared tensors do not matter.
        out: Folder to write to; other files in it stay.
        source: Where the weights come from, for their metadata.
        source_sha256: The sha256 of that file.
        published: Whether they derive from the weights that ``pretrained_cfg`` names; otherwise it is left
            out where those are and what their terms are.
        files: More text files to write, by name.
        fused: Plain convolutions instead of DCLS layers, for timm without this package.
        half: Weights in float16; positions, sigma and statistics stay as they are.
        onnx: Writes ``model.onnx`` too, checked with onnxruntime.
        dynamic_size: Of the ONNX file: whether it takes any height and width.
        int8: Of the ONNX file: whether it computes matrix products in int8.
        compare: Folder of images on which int8 is compared with the model.

    Returns:
        The metadata of ``model.safetensors``.

    Raises:
        HubError: If what was written does not give the model back, or an option is not possible. Nothing
            is written then.
        CheckpointError: If a weight is NaN or infinite.
    """
    check_values(model.state_dict(), source)
    if (dynamic_size or int8) and not onnx:
        raise HubError("dynamic_size and int8 are of the ONNX file: give --onnx as well")
    if compare and not int8:
        raise HubError("--images compares the int8 file with the model: give --int8 as well")
    compared = images_below(compare, model) if compare else []
    if (out / CARD).exists() and not (out / CONFIG).exists():
        raise HubError(f"{out} has a {CARD} that is not of an exported model: choose another folder")
    model = copy.deepcopy(model).eval().cpu().float()
    if not published:
        model.pretrained_cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in ORIGIN}
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
    exported = plain_model(model) if fused else model
    if half:
        _halve_(exported)
        with torch.inference_mode():
            rounded, change = exported(images), (exported(images) - expected).abs().max().item()
        print(f"float16 changes the logits by at most {change:.2g} (they spread over {spread(expected):.2g})")
        expected = rounded
    with written_at_once(out) as part:
        for name, text in (files or {}).items():
            (part / name).write_text(text, encoding="utf-8")
        metadata = _write(exported, part, half, {"source": source, "source_sha256": source_sha256})
        check_logits(_load(part)(images), expected, f"the exported {metadata['architecture']}")
        check_folder(part)
        if onnx:
            export_onnx(exported, part / "model.onnx", images, dynamic_size, int8, compared)
    written = {*(files or {}), "model.onnx" if onnx else ""}
    for name in {"model.onnx", "training.json", "conversion.json"} - written:
        (out / name).unlink(missing_ok=True)  # it would be of other weights
    return metadata


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    results: Path | None = None,
    ema: bool | None = None,
    **options: Any,
) -> dict[str, str]:
    """Exports a checkpoint of ``python -m train`` with its training config and measured results.

    Args:
        checkpoint: A checkpoint of the trainer.
        out: Folder to write to.
        results: JSON file of ``python -m eval accuracy --output``, to be kept beside the weights.
        ema: Whether the averaged or the raw weights; by default the averaged ones where it has both.
        **options: ``fused``, ``half``, ``onnx``, ``dynamic_size``, ``int8`` and ``compare`` of
            :func:`export`.

    Returns:
        The metadata of ``model.safetensors``.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or has no averaged weights.
        HubError: As :func:`export`, or if ``results`` is not a results file.
    """
    run = read_run(checkpoint)
    model = load_model(checkpoint=run, ema=ema)
    averaged = bool(run.averaged) and ema is not False
    training = {
        "model": run.model,
        "data": {k: v for k, v in run.data.items() if k not in WHERE},
        "epoch": run.epoch,
        "global_step": run.global_step,
        "weights": "averaged (EMA)" if averaged else "raw",
    }
    files = {"training.json": json.dumps(training, indent=2, default=str) + "\n"}
    if results:
        files["results.json"] = json.dumps(result_of(results), indent=2) + "\n"
    source = {"source": f"{checkpoint.name}, {training['weights']}", "source_sha256": sha256_of(checkpoint)}
    return export(model, out, published=run.model.get("pretrained", True), files=files, **source, **options)


def plain_model(model: nn.Module) -> nn.Module:
    """The same model as timm has it, with the learned kernels as dense ones.

    Args:
        model: A model of the zoo, in eval mode.

    Raises:
        HubError: If timm's architecture has no place for kernels of that size, as only ConvNeXt has.
    """
    name = model.pretrained_cfg["architecture"]
    base = plain_name(name)
    layers = [m for m in model.modules() if isinstance(m, DclsNd)]
    if not layers:
        raise HubError(f"{name} has no DCLS layer to fuse: export it without --fused")
    arguments = get_model_args(model)
    for key in ("kernel_count", "dilated_kernel_size", "version", "positions"):
        arguments.pop(key, None)
    if base.partition("_")[0] == "convnext" or "test_convnext" in base:
        arguments["kernel_sizes"] = layers[0].dilated_kernel_size[0]
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k in SOURCE_CFG and v}
    cfg |= {"num_classes": model.num_classes, "pool_size": None}
    fused = fuse_layers(copy.deepcopy(model))
    weights = {k: v for k, v in fused.state_dict().items() if not k.endswith((".positions", ".sigma"))}
    try:
        plain = timm.create_model(base, pretrained_cfg_overlay=cfg, **arguments).eval()
        plain.load_state_dict(weights)
        if hasattr(model, "front_end"):
            plain.front_end = model.front_end
    except Exception as error:  # no such name, unknown arguments, other shapes
        raise HubError(
            f"{name} cannot be exported fused: timm's {base} has no place for its kernels of "
            f"{layers[0].dilated_kernel_size} (only ConvNeXt does). Export it without --fused, or with --onnx"
        ) from error
    return plain


def _halve_(model: nn.Module) -> None:
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not name.endswith(KEPT_PRECISE):
            rounded = tensor.data.half()
            if not rounded.isfinite().all():
                raise HubError(f"{name} has values that float16 cannot hold: export without --half")
            with torch.no_grad():
                tensor.copy_(rounded)


def _write(model: nn.Module, part: Path, half: bool, source: dict[str, str]) -> dict[str, str]:
    cfg, choices = model.pretrained_cfg, _dcls_choices(model)
    extra: dict[str, Any] = {k: cfg[k] for k in ("label_names", "label_descriptions") if cfg.get(k)}
    if front_end := getattr(model, "front_end", None):  # what makes its spectrograms
        extra["front_end"] = front_end.settings
    save_config_for_hf(model, part / CONFIG, model_config=extra, model_args=choices)
    config = json.loads((part / CONFIG).read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)  # said beside it; transformers refuses it twice
    metadata = {
        "format": "pt",
        "architecture": config["architecture"],
        "precision": "float16" if half else "float32",
        **versions(),
        "git_commit": _git_commit(),
        "config_sha256": config_sha256(config),
        **source,
    }
    as_computed = {k: p.detach().clone() for k, p in model.named_parameters() if k.endswith("positions")}
    tensors = {}  # cloned, because safetensors takes neither views nor shared memory
    for name, tensor in {**model.state_dict(), **as_computed}.items():
        precise = not half or not tensor.is_floating_point() or name.endswith(KEPT_PRECISE)
        tensors[name] = tensor.detach().to(tensor.dtype if precise else torch.float16).clone().contiguous()
    try:
        safetensors.torch.save_file(tensors, part / WEIGHTS, metadata)
    except safetensors.SafetensorError as error:  # which is no OSError
        raise HubError(f"the weights cannot be written: {error}") from error
    config["weights_sha256"] = sha256_of(part / WEIGHTS)
    write_json(part / CONFIG, config)
    (part / CARD).write_text(plain_card(config), encoding="utf-8")
    return metadata


def _dcls_choices(model: nn.Module) -> dict[str, Any]:
    """Every choice about the kernels, so that no later default can change what the weights mean."""
    layers = [m for m in model.modules() if isinstance(m, DclsNd)]
    choices = {(m.kernel_count, m.dilated_kernel_size, m.version) for m in layers}
    if not choices:
        return {}
    if len(choices) > 1:
        raise HubError(f"its layers differ in their kernels ({choices}), which a config cannot say")
    ((count, size, version),) = choices
    flat = size[0] if len(set(size)) == 1 else list(size)
    return {"kernel_count": count, "dilated_kernel_size": flat, "version": version}


def _load(folder: Path) -> nn.Module:
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        raise HubError(
            "timm cannot build this model from its name alone, so its weights cannot be shared as a folder: "
            f"register a model of your own first ({one_line(error)})"
        ) from error


def _git_commit() -> str:
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
