"""Writes the handwritten digits that scikit-learn ships as a folder of images: a real data set, offline.

1797 digits of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits), a stratified 20 % for validation.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def write_digits(root: Path, val_share: float = 0.2, seed: int = 0) -> int:
    """Writes ``root/train/<digit>/*.png`` and ``root/val/<digit>/*.png``.

    Args:
        root: Folder to write to.
        val_share: Share of every class that goes to ``val``.
        seed: Of the random split.

    Returns:
        How many images there are.
    """
    pixels, labels, held_out = digits(val_share, seed)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / ("val" if held_out[i] else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:04}.png")
    return len(labels)


def digits(val_share: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images ``(n, 8, 8)`` of bytes, their labels ``(n,)``, and which are held out ``(n,)``."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    _, val = train_test_split(range(len(labels)), test_size=val_share, stratify=labels, random_state=seed)
    return pixels, labels, np.isin(np.arange(len(labels)), val)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    print(f"wrote {write_digits(arguments.root)} images to {arguments.root}")
