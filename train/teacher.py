"""Distillation: the outputs of another model that are to be matched."""

from typing import Literal

import torch
from timm.task.distillation import DistillationTeacher
from torch import nn
from torch.nn import functional as F

from dcls_models.loading import load_model
from train.models import downloading


class Teacher:
    """A frozen model whose outputs a student is to match.

    It is no ``nn.Module``, so that it is no part of the student's module and of its checkpoints.

    Args:
        name: A model, as in ``dcls_models.loading.load_model``.
        num_classes: Number of classes of the student.
        device: Where the student is.
        kind: ``soft`` (KL divergence to its probabilities) or ``hard`` (cross-entropy with the class that it
            decides for, as in DeiT, arXiv:2012.12877).
        temperature: Temperature of both softmaxes of ``soft``.

    Raises:
        ValueError: If it has another number of classes.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        device: torch.device,
        kind: Literal["soft", "hard"] = "soft",
        temperature: float = 1.0,
    ) -> None:
        with downloading(name, "model.teacher"):
            model = load_model(name).requires_grad_(False)
        if model.num_classes != num_classes:
            raise ValueError(
                f"the teacher {name} has {model.num_classes} classes, the data have {num_classes}"
            )
        self.model: nn.Module = DistillationTeacher(model).to(device)
        self.kind, self.temperature = kind, temperature

    def distance(
        self,
        images: torch.Tensor,
        logits: torch.Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> torch.Tensor:
        """How far the student's logits ``(N, classes)`` are from the teacher's.

        Args:
            images: The student's images ``(N, 3, H, W)``, normalised with ``mean`` and ``std``.
            logits: What the student says of them.
            mean: Mean of each channel that was subtracted.
            std: Standard deviation of each channel.
        """
        channels = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
        with torch.no_grad():
            target = self.model(self.model.normalize_input(images, *channels))  # type: ignore[operator]
        if self.kind == "hard":
            return F.cross_entropy(logits, target.argmax(-1))
        t = self.temperature
        student, target = F.log_softmax(logits / t, dim=-1), F.log_softmax(target / t, dim=-1)
        return F.kl_div(student, target, reduction="batchmean", log_target=True) * t**2
