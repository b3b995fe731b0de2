"""Top-1 and top-5 accuracy on a folder of images, as timm's ``validate.py`` counts them."""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from dcls_models.loading import load_model
from eval.images import batches, image_folder, label_names
from eval.options import batched, json_output, where, which_model
from eval.results import provenance, write_json


@torch.inference_mode()
def accuracy(
    model: nn.Module, dataset: ImageDataset, batch_size: int = 64, workers: int = 2
) -> tuple[dict[str, Any], torch.Tensor]:
    """Measures a model.

    Args:
        model: In eval mode.
        dataset: Images with the model's labels.
        batch_size: Images per forward pass.
        workers: Processes that read images.

    Returns:
        ``top1`` and ``top5`` in percent, ``loss`` (cross-entropy) and ``n``; and the logits
        ``(n, num_classes)``, in the order of the data set.
    """
    device = next(model.parameters()).device
    logits, labels = [], []
    for images, targets in tqdm(batches(dataset, batch_size, workers), desc="accuracy", unit="batch"):
        logits.append(model(images.to(device)).float().cpu())
        labels.append(targets)
    scores, target = torch.cat(logits), torch.cat(labels)
    ranked = scores.topk(min(5, scores.shape[1])).indices == target[:, None]
    n = len(target)
    result = {
        "top1": round(100 * ranked[:, 0].sum().item() / n, 4),
        "top5": round(100 * ranked.any(1).sum().item() / n, 4),
        "loss": F.cross_entropy(scores, target).item(),
        "n": n,
    }
    return result, scores


def write_predictions(path: Path, model: nn.Module, dataset: ImageDataset, logits: torch.Tensor) -> None:
    """Writes every image's path, label, prediction and score (softmax) as CSV."""
    names = label_names(model)
    scores, predicted = logits.softmax(1).max(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "prediction", "score"])
        samples = zip(dataset.reader.samples, predicted.tolist(), scores.tolist(), strict=True)
        for (image, label), prediction, score in samples:
            writer.writerow([image, names[label], names[prediction], f"{score:.6f}"])


def run(arguments: argparse.Namespace) -> None:
    """Measures accuracy and writes it as JSON."""
    model = load_model(arguments.model, arguments.checkpoint).to(arguments.device)
    dataset = image_folder(arguments.data, model)
    found, logits = accuracy(model, dataset, arguments.batch_size, arguments.workers)
    name = str(arguments.checkpoint or arguments.model)
    result = {"model": name, **found, **provenance(arguments)}
    print(f"{name}: top-1 {result['top1']} %, top-5 {result['top5']} % of {result['n']} images")
    if arguments.predictions:
        write_predictions(arguments.predictions, model, dataset, logits)
    if arguments.output:
        write_json(arguments.output, result)


def add_commands(commands: Any) -> None:
    """Adds ``accuracy``."""
    parents = [which_model(), where(), batched(), json_output()]
    command = commands.add_parser("accuracy", parents=parents, help="top-1 and top-5 on a folder of images")
    command.add_argument("--data", type=Path, required=True, help="folder of class folders, or one with val/")
    command.add_argument("--predictions", type=Path, help="CSV file to write: every image's prediction")
    command.set_defaults(run=run)
