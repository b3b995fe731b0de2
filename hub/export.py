"""From a training checkpoint to a folder that timm loads: safetensors and config."""

import shutil
import tempfile
from pathlib import Path

import timm
import torch
from timm.models._hub import save_for_hf

from dcls_models.loading import load_model


def export(checkpoint: Path, out: Path) -> Path:
    """Writes ``model.safetensors`` and ``config.json``, once the folder has proved to give the same logits.

    Args:
        checkpoint: A checkpoint of ``python -m train``.
        out: Folder to write to; other files in it stay.

    Returns:
        The folder, for ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        RuntimeError: If what was written does not give the model back; nothing is left in ``out`` then.
    """
    model = load_model(checkpoint=checkpoint)
    cfg = model.pretrained_cfg
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # safetensors takes no channels_last
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, model_config={"label_names": cfg["label_names"]}, safe_serialization=True)
        copy = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = torch.randn(2, *cfg["input_size"], generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            difference = (copy(images) - model(images)).abs().max().item()
        if difference > 1e-5:
            raise RuntimeError(
                f"the exported model differs from the checkpoint by {difference} in its logits"
            )
        out.mkdir(parents=True, exist_ok=True)
        for file in Path(folder).iterdir():
            part = out / f".{file.name}.part"
            shutil.copyfile(file, part)
            part.replace(out / file.name)
    return out
