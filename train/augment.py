"""timm's transforms, with one operation that newer Pillow refuses."""

from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform

__all__ = ["create_transform"]


def posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    """Reduces each channel to so many bits; to none as Pillow did before 13, which raises (timm 1.0.31)."""
    return auto_augment.posterize(image, bits, **kwargs) if bits >= 1 else Image.new(image.mode, image.size)


for _name, _operation in auto_augment.NAME_TO_OP.items():
    if _operation is auto_augment.posterize:
        auto_augment.NAME_TO_OP[_name] = posterize
