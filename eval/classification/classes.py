"""Which output of a model is which class of a data set."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from dcls_models.files import some
from dcls_models.images import label_names


def match_classes(
    names: Sequence[str], model: nn.Module, outputs: Sequence[int], where: str
) -> tuple[dict[str, int], Sequence[str]]:
    """Which output of a model is which class of a data set.

    By name, if the model has names; by WordNet id, if the classes are ImageNet's and so many as the model has
    are; by number, if they are numbers; else by order, if they are as many as the outputs.

    Args:
        names: Of the classes, in natural order.
        model: The model.
        outputs: Which of its outputs are evaluated.
        where: What to call the data set in an error.

    Returns:
        The output of each name, and the names of all outputs.

    Raises:
        ValueError: If they do not fit.
    """
    of_all = label_names(model)
    synsets = _synsets(infer_imagenet_subset(model))
    numbered = _are_numbers(names, model.num_classes)
    if model.pretrained_cfg.get("label_names"):
        unknown = [name for name in names if name not in set(of_all)]
        if unknown and not (numbered and len(unknown) == len(names)):
            raise ValueError(f"{where} has classes that the model does not have: {some(unknown, 5)}")
    elif set(names) <= set(synsets):
        of_all = synsets
    elif not numbered:
        if len(names) != len(outputs):
            raise ValueError(f"{where} has {len(names)} classes, the model {len(outputs)}")
        named = dict(zip(outputs, names, strict=True))
        of_all = [named.get(i, name) for i, name in enumerate(of_all)]
    number = {name: i for i, name in enumerate(of_all)}
    return {name: number[name] if name in number else int(name) for name in names}, of_all


def _are_numbers(names: Sequence[str], classes: int) -> bool:
    """Whether each name is the number of another output: ``1`` and ``01`` are names, not numbers."""
    numbers = [int(name) for name in names if name.isdecimal()]
    return len(set(numbers)) == len(names) and max(numbers, default=0) < classes


@cache
def _synsets(subset: str | None) -> list[str]:
    return list(ImageNetInfo(subset).label_names()) if subset else []


def read_indices(path: Path) -> list[int]:
    """Outputs of a model, one number a line, as timm's ``imagenet_a_indices.txt``.

    Raises:
        ValueError: If there is anything else in the file.
    """
    try:
        return [int(line) for line in path.read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise ValueError(f"{path} must hold one output of the model a line: {error}") from error
