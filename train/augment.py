"""timm's transforms, with one operation that newer Pillow refuses."""

from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data import create_transform as timm_transform

from dcls_models.files import one_line

_TIMM_POSTERIZE = auto_augment.posterize


def create_transform(img_size: int, **kwargs: Any) -> Any:
    """A transform of timm.

    Raises:
        ValueError: If timm does not know what is asked for.
    """
    _mend_posterize()
    try:
        return timm_transform(img_size, **kwargs)
    except (AssertionError, KeyError) as error:
        names = ("auto_augment", "interpolation", "re_mode")
        asked = ", ".join(f"data.{k} {kwargs[k]!r}" for k in names if kwargs.get(k))
        raise ValueError(f"timm cannot make a transform with {asked} ({one_line(error)})") from error


class Splits:
    """Several versions of an image, the first without the policy or colour jitter (AugMix, arXiv:1912.02781).

    Args:
        stages: timm's three transforms (``separate=True``): crop and flip, augment, make a tensor.
        count: How many versions there are.
    """

    def __init__(self, stages: tuple[Any, Any, Any], count: int) -> None:
        self.crop, self.augment, self.finish = stages
        self.count = count

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The versions, ``(count, 3, H, W)``."""
        image = self.crop(image)
        augmented = (self.finish(self.augment(image)) for _ in range(self.count - 1))
        return torch.stack([self.finish(image), *augmented])


def posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    """Reduces each channel to so many bits; to none as Pillow did before 13, which raises (timm 1.0.31)."""
    return _TIMM_POSTERIZE(image, bits, **kwargs) if bits >= 1 else Image.new(image.mode, image.size)


def _mend_posterize() -> None:
    """Puts our ``posterize`` in the place of timm's."""
    for name, operation in auto_augment.NAME_TO_OP.items():
        if operation is _TIMM_POSTERIZE:
            auto_augment.NAME_TO_OP[name] = posterize
