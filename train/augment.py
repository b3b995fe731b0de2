"""timm's transforms, with one operation that newer Pillow refuses."""

from typing import Any

from PIL import Image
from timm.data import auto_augment
from timm.data import create_transform as timm_transform


def create_transform(img_size: int, **kwargs: Any) -> Any:
    """A transform of timm.

    Raises:
        ValueError: If timm does not know what is asked for.
    """
    try:
        return timm_transform(img_size, **kwargs)
    except (AssertionError, KeyError) as error:
        names = ("auto_augment", "interpolation", "re_mode")
        asked = ", ".join(f"data.{k} {kwargs[k]!r}" for k in names if kwargs.get(k))
        raise ValueError(f"timm cannot make a transform with {asked}: {error}") from error


def posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    """Reduces each channel to so many bits; to none as Pillow did before 13, which raises (timm 1.0.31)."""
    return auto_augment.posterize(image, bits, **kwargs) if bits >= 1 else Image.new(image.mode, image.size)


for _name, _operation in auto_augment.NAME_TO_OP.items():
    if _operation is auto_augment.posterize:
        auto_augment.NAME_TO_OP[_name] = posterize
