"""Images as a model takes them: one reader and one preprocessing for training, evaluation and the Space."""

from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps
from timm.data import create_transform, resolve_data_config
from torch import nn

from .files import one_line

# What a folder of images may hold: everything that Pillow reads safely. Of an animation, the first frame.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def read_image(file: str | Path | IO[bytes] | Image.Image, exif: bool = False) -> Image.Image:
    """Reads an image as RGB.

    Args:
        file: The file, or an image that is open.
        exif: Whether it is turned as its EXIF data say; timm and torchvision do not.

    Raises:
        ValueError: If it is not one, is too large to be safe, or has more than 8 bits a channel, which
            Pillow would turn nearly white.
        OSError: If the file cannot be read or its content is damaged.
    """
    try:
        with file if isinstance(file, Image.Image) else Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"its pixels have more than 8 bits (mode {image.mode}), save it with 8 bits a channel"
                )
            return (ImageOps.exif_transpose(image) if exif else image).convert("RGB")
    except (OSError, ValueError):
        raise
    except Exception as error:  # decoders raise anything, and DecompressionBombError for too many pixels
        raise ValueError(one_line(error)) from error


def transform_of(model: nn.Module, **changes: Any) -> Any:
    """The preprocessing that a model was trained for, with changes to timm's data config.

    Raises:
        ValueError: If the model is not for colour images.
    """
    config = resolve_data_config({}, model=model) | changes
    if (channels := config["input_size"][0]) != 3:
        raise ValueError(f"{type(model).__name__} takes inputs of {channels} channels, images have 3")
    return create_transform(**config)


def label_names(model: nn.Module) -> list[str]:
    """Names of the model's classes; their numbers where nobody has named them."""
    cfg: Any = model.pretrained_cfg
    classes: Any = model.num_classes
    return list(cfg.get("label_names") or map(str, range(classes)))
