"""ImageNet-C and its kin: the corruptions, AlexNet's errors, corruption errors, and images made here."""

import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

# Errors of AlexNet over the five severities in percent, which Hendrycks & Dietterich 2019 (arXiv:1903.12261,
# table 1) normalise by, with the digits of the authors' code (github.com/hendrycks/robustness).
ALEXNET = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
# Mintun, Kirillov & Xie 2021, On Interaction Between Augmentations and Corruptions (arXiv:2102.11273)
C_BAR = (
    *("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout"),
    *("cocentric_sine_waves", "inverse_sparkles", "perlin_noise", "plasma_noise"),
    *("single_frequency_greyscale", "sparkles"),
)
SEVERITIES = (1, 2, 3, 4, 5)
LIBRARY = "imagecorruptions-imaug"
SEEDED = ("glass_blur", "impulse_noise")  # do not draw from numpy's global generator


def mean_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The error of each corruption in percent, averaged over its severities."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(row["corruption"], []).append(100 - row["top1"])
    return {name: sum(of_it) / len(of_it) for name, of_it in errors.items()}


def corruption_errors(errors: Mapping[str, float]) -> dict[str, float]:
    """The CE of arXiv:1903.12261: mean errors as percentages of AlexNet's. Their mean is the mCE."""
    return {name: 100 * error / ALEXNET[name] for name, error in errors.items()}


class Corruption:
    """Makes of a cropped image what ImageNet-C would hold: corrupted, and saved as JPEG of quality 85.

    The random numbers depend on the image, the corruption and its severity only, so that it is the same image
    in any process and at any time.

    Args:
        name: One of ImageNet-C's 15.
        severity: 1 to 5.

    Raises:
        ValueError: If the library is not installed.
    """

    def __init__(self, name: str, severity: int) -> None:
        try:
            from imagecorruptions import corrupt
        except ImportError as error:
            raise ValueError(f"--generate needs a package: pip install {LIBRARY}") from error
        self.corrupt, self.name, self.severity = corrupt, name, severity

    def __call__(self, image: Image.Image) -> Image.Image:
        """A PIL image ``RGB``, 32 pixels or larger."""
        pixels = np.array(image)
        seed = zlib.crc32(f"{self.name} {self.severity}".encode(), zlib.crc32(pixels.tobytes()))
        np.random.seed(seed)
        more = {"seed": seed} if self.name in SEEDED else {}
        corrupted = self.corrupt(pixels, self.severity, self.name, **more)
        file = BytesIO()
        Image.fromarray(corrupted).save(file, "JPEG", quality=85, optimize=True)
        return Image.open(file).convert("RGB")


def library() -> str:
    """Which library makes the images, with its version."""
    return f"{LIBRARY} {version(LIBRARY)}"
