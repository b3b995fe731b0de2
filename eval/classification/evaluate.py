"""A model, set up as in timm's ``validate.py``, and its predictions for the images of a data set."""

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from timm.data.loader import PrefetchLoader, fast_collate
from timm.layers import apply_test_time_pool
from timm.models import reparameterize_model
from torch import nn
from torch.utils.data import DataLoader

from dcls_models.provenance import state_dict_sha256
from eval import processes
from eval.batches import in_batches
from eval.classification.data import Samples
from eval.classification.store import Predictions
from eval.options import load
from eval.preprocessing import batches_of

IN_TIMM = ("img_size", "crop_pct", "crop_mode", "interpolation")  # options as in validate.py


@dataclass
class Setup:
    """A model and how it is evaluated.

    Attributes:
        model: In eval mode, on its device, fused if asked for.
        original: The model as it was loaded, which knows its classes.
        config: timm's data config: ``input_size``, ``crop_pct``, ``mean``...
        settings: What the numbers depend on, for the result.
        amp: Type of autocast, or None.
        channels_last: Memory layout of the images.
    """

    model: nn.Module
    original: nn.Module
    config: dict[str, Any]
    settings: dict[str, Any]
    amp: torch.dtype | None
    channels_last: bool

    def transform(self, corruption: Callable[[Image.Image], Image.Image] | None = None) -> Any:
        """From a PIL image to bytes; a corruption comes after the crop."""
        names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
        composed = create_transform(**{k: self.config[k] for k in names}, use_prefetcher=True)
        if corruption:
            composed.transforms.insert(-1, corruption)
        return composed

    def loader(self, samples: Samples, batches: list[list[int]], workers: int) -> Any:
        """The loader of timm, which normalizes on the device, over given batches."""
        loader = DataLoader(samples, batch_sampler=batches, num_workers=workers, collate_fn=fast_collate)
        mean, std, device = self.config["mean"], self.config["std"], torch.device(self.settings["device"])
        return PrefetchLoader(loader, mean, std, channels=self.config["input_size"][0], device=device)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The logits of a batch, in the type of the autocast."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.amp) if self.amp else contextlib.nullcontext():
            return self.model(images)


def set_up(arguments: argparse.Namespace, **defaults: Any) -> Setup:
    """Loads the model that the command line asks for.

    Args:
        arguments: With the options of ``evaluation_options``.
        **defaults: Of timm's data config, where the command line gives none.
    """
    asked = {**defaults, **{k: v for k in IN_TIMM if (v := getattr(arguments, k)) is not None}}
    device = processes.own_device(arguments.device)
    model = load(arguments.model, arguments.checkpoint)
    if hasattr(model, "front_end"):
        raise ValueError(
            f"{arguments.checkpoint or arguments.model} is a model of sounds: see python -m eval audio"
        )
    size = asked.get("img_size")
    if size and model.pretrained_cfg.get("fixed_input_size"):
        model = load(arguments.model, arguments.checkpoint, img_size=size)
    sha256, original = state_dict_sha256(model), model
    if arguments.fuse:
        model = reparameterize_model(model)
    parameters = sum(p.numel() for p in model.parameters())
    config = resolve_input_data_config(original, asked, use_test_size=not arguments.train_size)
    pooled = False
    if arguments.test_pool:
        model, pooled = apply_test_time_pool(copy.deepcopy(model), config)  # which takes its head
        if pooled:
            config["crop_pct"] = 1.0
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    model = model.eval().to(device, memory_format=layout)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32, as in validate.py
    settings = {
        "state_dict_sha256": sha256,
        "param_count": parameters,
        "img_size": config["input_size"][-1],
        **{k: config[k] for k in IN_TIMM[1:]},
        "test_pool": pooled,
        "fused": arguments.fuse,
        "amp": arguments.amp,
        "channels_last": arguments.channels_last,
        "exif": arguments.exif,
        "device": device,
    }
    amp = getattr(torch, arguments.amp) if arguments.amp else None
    return Setup(model, original, config, settings, amp, arguments.channels_last)


def evaluate(
    setup: Setup,
    samples: Samples,
    outputs: list[int] | None = None,
    folder: Path | None = None,
    batch_size: int = 64,
    workers: int = 2,
    name: str = "images",
) -> Predictions | None:
    """A model's predictions for all images; the processes of ``torchrun`` share them, batch by batch.

    Args:
        setup: The model.
        samples: The images.
        outputs: Which outputs of the model count; all by default.
        folder: Where results are kept until the end; what is there is not computed again.
        batch_size: Images per forward pass.
        workers: Processes that read images.
        name: Of the progress bar.

    Returns:
        The predictions, in the first process; None in the others.

    Raises:
        ValueError: If the model gives NaN, or the processes find different images.
    """
    images = samples.fingerprint()
    if images != processes.from_first(images):
        raise ValueError("a process finds other images than the first: give all the same folder")
    return in_batches(
        Predictions,
        len(samples),
        lambda batches: _run(setup, samples, outputs, batches, workers),
        folder,
        batch_size,
        name,
    )


def _run(
    setup: Setup, samples: Samples, outputs: list[int] | None, batches: list[list[int]], workers: int
) -> Iterator[Predictions]:
    loaded = setup.loader(samples, batches, workers)
    for indices, (images, labels) in zip(batches, batches_of(loaded), strict=True):
        logits = setup.logits(images)
        if outputs is not None:
            logits = logits[:, outputs]
        if logits.isnan().any():
            raise ValueError(f"the model gives NaN{', try --amp bfloat16' * (setup.amp == torch.float16)}")
        ranked = logits.topk(min(5, logits.shape[1]), 1, True, True).indices
        yield Predictions(torch.tensor(indices), labels.cpu(), logits.float().cpu(), ranked.cpu())
