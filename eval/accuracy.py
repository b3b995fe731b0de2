"""Top-1 and top-5 accuracy on a folder of images, as timm's ``validate.py`` counts them."""

import csv
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from eval.images import batches, label_names


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
