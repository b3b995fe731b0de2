"""The model card: written from measured results, with the data set and licence that somebody stands for."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from PIL import Image

from dcls_models.markdown import code, plain
from hub import INSTALL, HubError
from hub.folder import CARD, check_folder, written_at_once
from hub.measured import METRICS, dataset_of, read_measured
from hub.remote import check_dataset_id, check_repo_id

ENTRIES = ".eval_results/results.yaml"
TAGS = ["timm", "pytorch", "dcls", "dilated-convolution", "learnable-spacings", "large-kernel"]

PAPERS = {  # arXiv number: title, authors, year
    "2112.03740": (
        "Dilated convolution with learnable spacings",
        "Khalfaoui-Hassani, Ismail and Pellegrini, Thomas and Masquelier, Timothée",
        2021,
    ),
    "2306.00817": (
        "Dilated Convolution with Learnable Spacings: beyond bilinear interpolation",
        "Khalfaoui-Hassani, Ismail and Pellegrini, Thomas and Masquelier, Timothée",
        2023,
    ),
    "2309.13972": (
        "Audio classification with Dilated Convolution with Learnable Spacings",
        "Khalfaoui-Hassani, Ismail and Masquelier, Timothée and Pellegrini, Thomas",
        2023,
    ),
    "2408.03164": (
        "Dilated Convolution with Learnable Spacings makes visual models more aligned with humans: "
        "a Grad-CAM study",
        "Chamas, Rabih and Khalfaoui-Hassani, Ismail and Masquelier, Timothée",
        2024,
    ),
}


def write_card(
    folder: Path,
    results: Sequence[Path],
    dataset: str | None,
    licence: str,
    repo: str,
    *,
    dataset_id: str | None = None,
    licence_link: str | None = None,
    picture: Path | None = None,
) -> Path:
    """Writes ``README.md``, ``.eval_results`` and copies of the results and the picture to a folder.

    Args:
        folder: Of ``python -m hub export`` or ``convert``.
        results: JSON files of ``python -m eval accuracy --output``.
        dataset: What the numbers were measured on, in words; by default as the results name it.
        licence: Of the weights, as the Hub spells it (``mit``, ``cc-by-4.0``, ``other``).
        repo: Where it will be published, ``USER/NAME``, for the lines that show how to use it.
        dataset_id: The data set on the Hub, if it is there; only then ``.eval_results`` is written.
        licence_link: Where the terms stand; needed with ``other``.
        picture: PNG file of ``python -m eval kernels``.

    Returns:
        The card.

    Raises:
        HubError: If a file is not what it should be, or a licence is not said.
    """
    checked = check_folder(folder)
    _check_terms(licence, licence_link)
    check_repo_id(repo)
    if dataset_id is not None:
        check_dataset_id(dataset_id)
    if picture and not _is_png(picture):
        raise HubError(f"{picture} is not a PNG picture")
    measured = read_measured(folder, results)
    said = " ".join((dataset or "").split())
    names = [said or dataset_of(result) for result in measured]
    name = repo.split("/")[1]
    data = ModelCardData(
        library_name="timm",
        license=licence,
        license_name="see-link" if licence == "other" else None,
        license_link=licence_link,
        datasets=[dataset_id] if dataset_id else None,
        pipeline_tag=task_of(checked.config),
        tags=[task_of(checked.config), *TAGS, checked.config["architecture"].partition("_")[0]],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=task_of(checked.config),
                dataset_type=dataset_id or re.sub(r"\W+", "-", on.lower()).strip("-"),
                dataset_name=on,
                metric_type="accuracy" if key != "map" else "mAP",
                metric_name=METRICS[key],
                metric_value=result[key],
            )
            for result, on in zip(measured, names, strict=True)
            for key in METRICS
            if key in result
        ],
    )
    terms = f"[{licence}]({licence_link})" if licence_link else licence
    sections = [
        f"---\n{data.to_yaml()}\n---\n",
        what_it_is(checked.config, checked.parameters, name),
        _usage(checked.config, f"hf-hub:{repo}"),
        _numbers(measured, names),
        "![Learned kernels](kernels.png)\n" if picture else "",
        _provenance(checked.config, checked.metadata, terms),
        citations(checked.config),
    ]
    with written_at_once(folder) as part:
        text = "\n".join(section for section in sections if section)
        (part / CARD).write_text(text, encoding="utf-8", errors="backslashreplace")
        for i, path in enumerate(results):
            shutil.copyfile(path, part / f"results{'' if i == 0 else i + 1}.json")
        if picture:
            shutil.copyfile(picture, part / "kernels.png")
        if dataset_id:
            (part / ENTRIES).parent.mkdir()
            (part / ENTRIES).write_text(_entries(measured, dataset_id), encoding="utf-8")
    if not dataset_id:
        (folder / ENTRIES).unlink(missing_ok=True)  # of an earlier card, and perhaps of other weights
    return folder / CARD


def plain_card(config: dict[str, Any]) -> str:
    """What a folder says of itself before anything was measured: how to use it."""
    lines = ["Nothing was measured yet: `python -m hub card` writes a card from results.\n"]
    return "\n".join([f"# {config['architecture']}\n", _usage(config, "local-dir:FOLDER"), *lines])


def task_of(config: dict[str, Any]) -> str:
    """The Hub's name of what the model does."""
    return (
        "audio-classification" if config["pretrained_cfg"]["input_size"][0] == 1 else "image-classification"
    )


def _check_terms(licence: str, link: str | None) -> None:
    if licence == "other" and not link:
        raise HubError("the licence 'other' says nothing: give --license-link, where the terms can be read")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise HubError(f"a licence is named as on the Hub, such as mit, cc-by-4.0 or other; got {licence!r}")
    if link and not re.fullmatch(r"(https?://)?[^\s()<>:]+", link):
        raise HubError(f"--license-link is an address or a file of the repository, got {link!r}")


def _is_png(file: Path) -> bool:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def what_it_is(config: dict[str, Any], parameters: int, name: str) -> str:
    """The title and a sentence on the size and the kernels."""
    choices = config.get("model_args") or {}
    text = f"# {name}\n\n`{config['architecture']}`, {parameters:,} parameters, input "
    text += (
        " x ".join(map(str, config["pretrained_cfg"]["input_size"])) + f", {config['num_classes']} classes."
    )
    if "kernel_count" in choices:
        text += (
            f" Its convolutions learn where their {choices['kernel_count']} elements sit in a kernel of "
            f"{choices['dilated_kernel_size']} x {choices['dilated_kernel_size']} pixels (DCLS, "
            f"interpolation `{choices['version']}`)."
        )
    return text + "\n"


def _usage(config: dict[str, Any], model: str) -> str:
    ours = "_dcls" in config["architecture"]
    imports = "import timm\nimport torch\n" + (
        "import dcls_models  # first: it registers the model\n" if ours else ""
    )
    if "front_end" in config:
        return _usage_of_sounds(model)
    size = ", ".join(map(str, config["pretrained_cfg"]["input_size"]))
    install = f"In a clone of the dcls_models repository, run `{INSTALL}`; then:\n\n" if ours else ""
    return (
        f"## How to use it\n\n{install}```python\n{imports}\n"
        f'model = timm.create_model("{model}", pretrained=True).eval()\n'
        f"logits = model(torch.randn(1, {size}))\n```\n\n{_usage_by_transformers(model, ours)}"
    )


def _usage_by_transformers(model: str, ours: bool) -> str:
    place = model.partition(":")[2]
    return (
        "Or with transformers:\n\n```python\n"
        + "import dcls_models  # first: it registers the model\n" * ours
        + "from transformers import AutoImageProcessor, AutoModelForImageClassification\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{place}")\n'
        f'model = AutoModelForImageClassification.from_pretrained("{place}")\n```\n'
        + (
            "\nThe optimizer of its `Trainer` decays positions: pass `optimizers=(torch.optim.AdamW("
            "param_groups(model, lr=1e-4)), None)`, with `from dcls_models.optim import param_groups`.\n"
        )
        * ours
    )


def _usage_of_sounds(model: str) -> str:
    return (
        f"## How to use it\n\nIn a clone of the dcls_models repository, run `{INSTALL}`; then:\n\n"
        "```python\nfrom dcls_models.loading import load_model\nfrom dcls_models.sounds import read_sound\n\n"
        f'model = load_model("{model}")\nsettings = model.front_end.settings\n'
        'waveform = read_sound("sound.wav", settings["sample_rate"], settings["seconds"])\n'
        "probabilities = model(model.front_end(waveform[None])).sigmoid()\n```\n"
    )


def _numbers(measured: list[dict[str, Any]], names: list[str]) -> str:
    unit = "sounds" if any(result["task"] == "audio" for result in measured) else "images"
    lines = [
        "## Measured\n",
        f"| data | metric | value | {unit} | command | when, on what |",
        "|" + "---|" * 6,
    ]
    for result, on in zip(measured, names, strict=True):
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        where = plain(f"{result['date']}, {result['machine']}, {versions}")
        rest = f"{result['n']} | {code(result['command'])} | {where} |"
        lines += [f"| {plain(on)} | {METRICS[k]} | {result[k]} % | {rest}" for k in METRICS if k in result]
    return "\n".join(lines) + "\n"


def _provenance(config: dict[str, Any], metadata: dict[str, str], terms: str) -> str:
    origin = config["pretrained_cfg"].get("origin_url")
    lines = [
        "## Weights\n",
        f"- licence of the weights: {terms}",
        *(
            [f"- derived from the weights that were published at {origin}, whose terms hold"]
            if origin
            else []
        ),
        f"- from `{metadata.get('source', 'unknown')}`, sha256 `{metadata.get('source_sha256') or 'none'}`",
        f"- `model.safetensors`: sha256 `{config.get('weights_sha256', 'none')}`",
        f"- written by dcls_models {metadata.get('dcls_models')} (commit {metadata.get('git_commit')}), "
        f"timm {metadata.get('timm')}, torch {metadata.get('torch')}",
    ]
    return "\n".join(lines) + "\n"


def citations(config: dict[str, Any]) -> str:
    """The papers of the method and of the weights, as BibTeX."""
    version = (config.get("model_args") or {}).get("version", "v0")
    of_weights = str(config["pretrained_cfg"].get("paper_ids", "")).removeprefix("arXiv:")
    wanted = ["2112.03740", "" if version == "v0" else "2306.00817", of_weights]
    entries = []
    for number in dict.fromkeys(n for n in wanted if n in PAPERS):
        title, authors, year = PAPERS[number]
        entries.append(
            f"@article{{dcls{number.replace('.', '')},\n  title = {{{title}}},\n  author = {{{authors}}},\n"
            f"  journal = {{arXiv:{number}}},\n  year = {{{year}}},\n}}"
        )
    return "## Citation\n\n```bibtex\n" + "\n".join(entries) + "\n```\n"


def _entries(measured: list[dict[str, Any]], dataset_id: str) -> str:
    entries = [
        EvalResultEntry(dataset_id, key, result[key], date=result["date"], notes=result["command"])
        for result in measured
        for key in METRICS
        if key in result
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
