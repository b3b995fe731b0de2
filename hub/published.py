"""Cards of the models with published weights: where those are, their terms, what is reported of them."""

from pathlib import Path

import timm
import torch
from huggingface_hub import ModelCardData

from dcls_models.published import published
from hub import INSTALL
from hub.card import TAGS, citations, task_of, what_it_is
from hub.folder import written_at_once

REPOSITORIES = {  # the authors' repository that lists a record, and the licence that its README states
    "7112021": ("https://github.com/K-H-Ismail/ConvNeXt-dcls", "MIT"),
    "8029747": ("https://github.com/K-H-Ismail/ConvNeXt-dcls", "MIT"),
    "8370979": ("https://github.com/K-H-Ismail/DCLS-Audio", "MIT"),
}
MEASURES = {
    "top1": "ImageNet-1k, top-1 (%)",
    "map": "AudioSet-2M, mAP (%)",
    "c_bar": "ImageNet-C-bar, error (%)",
    "a": "ImageNet-A, top-1 (%)",
    "r": "ImageNet-R, top-1 (%)",
    "sketch": "ImageNet-Sketch, top-1 (%)",
    "images_per_second": "speed (a second)",
}


def write_cards(out: Path) -> list[Path]:
    """Writes ``NAME.md`` for every registered model with weights of its authors; nothing is downloaded.

    Args:
        out: Folder to write to.

    Returns:
        The cards, by name.
    """
    names = [name.partition(".")[0] for name in timm.list_models("*_dcls*", pretrained=True)]
    with written_at_once(out) as part:
        for name in names:
            (part / f"{name}.md").write_text(_card(name), encoding="utf-8")
    return [out / f"{name}.md" for name in names]


def _card(name: str) -> str:
    cfg = timm.get_pretrained_cfg(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    first = next(m for m in model.modules() if hasattr(m, "dilated_kernel_size"))
    config = {
        "architecture": name,
        "num_classes": cfg.num_classes,
        "pretrained_cfg": cfg.to_dict(),
        "model_args": {
            "kernel_count": first.kernel_count,
            "dilated_kernel_size": first.dilated_kernel_size[0],
            "version": first.version,
        },
    }
    data = ModelCardData(
        library_name="timm",
        license="other",
        license_name="see-record",
        license_link=cfg.origin_url,
        pipeline_tag=task_of(config),
        tags=[task_of(config), *TAGS, name.partition("_")[0]],
        model_name=name,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n",
        what_it_is(config, sum(p.numel() for p in model.parameters()), name),
        _weights(cfg),
        _reported(name),
        _usage(name, cfg),
        citations(config),
    ]
    return "\n".join(sections)


def _weights(cfg: timm.models.PretrainedCfg) -> str:
    record = cfg.origin_url.rstrip("/").rpartition("/")[2]
    listed = ""
    if record in REPOSITORIES:
        repository, licence = REPOSITORIES[record]
        listed = f" The authors' [repository]({repository}) says: {licence} licence, of the code."
    return (
        f"## Weights\n\n- By the authors of [{cfg.paper_ids}](https://arxiv.org/abs/{cfg.paper_ids[6:]}): "
        f"[{cfg.url.rpartition('/')[2]}]({cfg.url})\n"
        f"- Terms: those of the [Zenodo record]({cfg.origin_url}), which you should read; this project "
        f"neither knows nor changes them, and republishes nothing.{listed}\n"
        "- No hash is published. The sha256 of your first download is kept, and checked ever after.\n"
        "- The file was not downloaded where this card was written.\n"
    )


def _reported(name: str) -> str:
    rows = [row for row in published() if row["model"] == name and row["measure"] in MEASURES]
    lines = [f"| {MEASURES[row['measure']]} | {row['value']} | {row['source']} |" for row in rows]
    if not lines:
        return "## Reported\n\nIts paper could not be read at its source: none is given here.\n"
    return (
        "## Reported\n\nBy the authors or as transcribed, **not measured here**:\n\n"
        "| what | value | source |\n|---|---:|---|\n" + "\n".join(lines) + "\n"
    )


def _usage(name: str, cfg: timm.models.PretrainedCfg) -> str:
    shape = ", ".join(map(str, cfg.input_size))
    usage = (
        f"## How to use it\n\nIn a clone of the dcls_models repository, run `{INSTALL}`; then:\n\n```python\n"
        "import timm\nimport torch\n\nimport dcls_models  # registers the model\n\n"
        f'model = timm.create_model("{name}", pretrained=True).eval()  # downloads the authors\' file\n'
        f"output = model(torch.randn(1, {shape}))\n```\n"
    )
    if "audio" in name:
        return usage + "\n`model.front_end` makes the spectrograms that it takes, of waveforms.\n"
    return (
        f"{usage}\nWith transformers, convert the file first: `python -m hub convert "
        f"{cfg.url.rpartition('/')[2]} --model {name} --out {name}`; then:\n\n```python\n"
        "import dcls_models\nfrom transformers import AutoImageProcessor, AutoModelForImageClassification\n\n"
        f'processor = AutoImageProcessor.from_pretrained("./{name}")\n'
        f'model = AutoModelForImageClassification.from_pretrained("./{name}")\n```\n'
    )
