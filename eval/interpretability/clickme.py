"""Images with maps of where people look: ClickMe's shards, or a folder of one's own.

ClickMe (arXiv:1805.08819) was published for training and evaluation by the Harmonization project
(arXiv:2211.04533) as TFRecord shards, 17 of them for validation. What a record holds is known from that
project's ``harmonization/common/clickme_dataset.py``, which the Grad-CAM study (arXiv:2408.03164) uses: a
``tf.train.Example`` with ``image`` (JPEG, 256 x 256, colour), ``heatmap`` (JPEG, 256 x 256, grey) and
``label`` (ImageNet's class, 0 to 999). JPEG is decoded by Pillow here and by TensorFlow there, whose pixels
may differ by a rounding. The published shards were not at hand where this was written: the tests write such
files with TensorBoard's writer and protobuf.
"""

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from dcls_models.files import one_line
from dcls_models.folders import is_leftover
from dcls_models.images import read_image

STORED, SIDE = 256, 224  # pixels in ClickMe's files, and where maps are compared
HEAD = struct.Struct("<QI")  # of a record: length and its checksum


class Sample(NamedTuple):
    """An image, where people look in it, ``(224, 224)``, and its class, -1 where nobody says."""

    image: Image.Image
    human: torch.Tensor
    label: int


class HumanMaps(Dataset[Sample]):
    """What ``open_human_maps`` gives."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError


def open_human_maps(path: Path, exif: bool = False) -> HumanMaps:
    """A shard of ClickMe, a folder of shards, or a folder with ``images/`` and ``maps/``.

    Args:
        path: The file or folder.
        exif: Whether the images of such a folder are turned as their EXIF data say.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If a shard is broken, or an image has no map.
    """
    if path.is_file():
        return ClickMe([path])
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if (path / "images").is_dir() or (path / "maps").is_dir():
        return Pairs(path, exif)
    files = [p for p in path.iterdir() if p.is_file() and not is_leftover(p.name)]
    if not files:
        raise FileNotFoundError(
            f"there is nothing to read in {path}: expected shards of ClickMe, or the folders images and maps"
        )
    return ClickMe(sorted(files, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)]))


class ClickMe(HumanMaps):
    """ClickMe's records; the human maps are prepared as in the study.

    Args:
        files: Shards, in order.
    """

    def __init__(self, files: list[Path]) -> None:
        self.records = [(file, start, length) for file in files for start, length in records_of(file)]

    def __len__(self) -> int:
        """How many records there are."""
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one record; raises ValueError with its file if it is broken."""
        file, start, length = self.records[index]
        what = f"the record at byte {start - HEAD.size} of {file}"
        data = _read(file, start, length, what)
        try:
            features = parse_example(data)
            image, heatmap, label = features["image"], features["heatmap"], features["label"]
            pixels, clicks = (read_image(io.BytesIO(jpeg)) for jpeg in (image, heatmap))
        except (KeyError, IndexError, ValueError, TypeError, OSError) as error:
            raise ValueError(
                f"{what} is not ClickMe's: expected the features image and heatmap (JPEG) and label, got "
                f"{type(error).__name__}: {error}"
            ) from error
        for name, picture in (("image", pixels), ("heatmap", clicks)):
            if picture.size != (STORED, STORED):
                raise ValueError(f"{what} has a {name} of {picture.size} pixels, expected {(STORED, STORED)}")
        return Sample(_resized(pixels), blurred(_tensor(clicks.convert("L"))), int(label))


def records_of(file: Path) -> Iterator[tuple[int, int]]:
    """Start and length of the data of each record of a TFRecord file; the data itself is not read.

    Each is a length (uint64), its masked CRC-32C, the data, and their masked CRC-32C.

    Raises:
        ValueError: If it is not such a file, or is cut short.
    """
    end, start = file.stat().st_size, 0
    if not end:
        raise ValueError(f"{file} is empty, expected TFRecords")
    with file.open("rb") as stream:
        while start < end:
            stream.seek(start)
            head = stream.read(HEAD.size)
            length, checksum = HEAD.unpack(head) if len(head) == HEAD.size else (0, -1)
            if checksum != _masked_crc(head[:8]):
                raise ValueError(
                    f"{file} is cut short, damaged or no TFRecord file: no record at byte {start}"
                )
            start += HEAD.size
            if start + length + 4 > end:
                raise ValueError(f"{file} is cut short: the record at byte {start - HEAD.size} is not whole")
            yield start, length
            start += length + 4


def _read(file: Path, start: int, length: int, what: str) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        data, checksum = stream.read(length), stream.read(4)
    if int.from_bytes(checksum, "little") != _masked_crc(data):
        raise ValueError(f"{what} is damaged: its data do not have its checksum")
    return data


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(data: bytes) -> dict[str, bytes | int]:
    """The first value of each feature of a serialized ``tf.train.Example``; bytes and integers only."""
    features: dict[str, bytes | int] = {}
    for _, group in _fields(data):
        for _, entry in _fields(group):
            parts = dict(_fields(entry))  # a map's entry: 1 is the name, 2 the feature
            for kind, values in _fields(parts[2]):
                value = next(_fields(values))[1] if values else b""
                if kind == 3:  # int64_list, packed or not
                    value = value if isinstance(value, int) else _varint(value, 0)[0]
                features[parts[1].decode()] = value
    return features


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of the fields of a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if key & 7 not in FIXED and key & 7 != 2:
            raise ValueError(f"no protobuf field at byte {at}")
        length, at = (FIXED[key & 7], at) if key & 7 in FIXED else _varint(message, at)
        yield key >> 3, message[at : at + length]
        at += length


FIXED = {1: 8, 5: 4}  # bytes of protobuf's fields of fixed size, by wire type


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def blurred(heatmap: torch.Tensor) -> torch.Tensor:
    """A map of clicks ``(256, 256)`` as the study compares it, ``(224, 224)``.

    Resized to 64 x 64, averaged in a window of 10 x 10 with the weights of a Gaussian of standard deviation
    10, with zeros around the image, and resized to 224 x 224. As ``ClickMe_dataset/blur.py`` of the study has
    it with TensorFlow's padding "SAME", the window takes 4 pixels before and 5 behind each pixel, and the
    Gaussian's peak is one pixel to the right of it.
    """
    offsets = torch.arange(-5.0, 5.0)
    line = (-offsets.square() / 200).exp()
    window = line.flip(0)[:, None] * line[None, :]
    small = F.interpolate(heatmap[None, None], (64, 64), mode="bilinear")
    blur = F.conv2d(F.pad(small, (4, 5, 4, 5)), (window / window.sum())[None, None])
    return F.interpolate(blur, (SIDE, SIDE), mode="bilinear")[0, 0]


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32))


def _resized(image: Image.Image) -> Image.Image:
    """At 224 pixels, bilinear without smoothing and cut to whole numbers, as the study has it."""
    pixels = _tensor(image).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear")[0].permute(1, 2, 0)
    return Image.fromarray(small.to(torch.uint8).numpy())


class Pairs(HumanMaps):
    """One's own images and maps: ``images/NAME.*`` and ``maps/NAME.png`` or ``.npy``, of the same size.

    The maps are used as they are (no blur), resized to 224 x 224.

    Args:
        root: The folder with the two folders.
        exif: Whether images are turned as their EXIF data say; maps are as large as what that gives.
    """

    def __init__(self, root: Path, exif: bool = False) -> None:
        self.exif = exif
        images, maps = _by_name(root / "images"), _by_name(root / "maps")
        for here, there, folder in ((images, maps, "maps"), (maps, images, "images")):
            if alone := [file for name, file in here.items() if name not in there]:
                raise ValueError(f"{alone[0]} has no partner of that name in {root / folder}")
        self.files = [(images[name], maps[name]) for name in images]

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Reads one pair; raises ValueError with its file if it is broken."""
        image_file, map_file = self.files[index]
        try:
            pixels = read_image(image_file, self.exif)
        except (OSError, ValueError) as error:
            raise ValueError(f"{image_file} cannot be read as an image: {one_line(error)}") from error
        human = _read_map(map_file)
        if human.shape != (pixels.height, pixels.width):
            raise ValueError(
                f"{map_file} has {human.shape[1]} x {human.shape[0]} pixels, expected "
                f"{pixels.width} x {pixels.height} as {image_file}"
            )
        resized = F.interpolate(human[None, None], (SIDE, SIDE), mode="bilinear", antialias=True)
        return Sample(pixels, resized[0, 0], -1)


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: expected images/ and maps/ side by side")
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not is_leftover(p.name)]
    if not files:
        raise FileNotFoundError(f"{folder} is empty")
    named = {p.stem: p for p in files}
    if len(named) < len(files):
        twice = next(p for p in files if named[p.stem] != p)
        raise ValueError(f"{twice} and {named[twice.stem]} have the same name")
    return named


def _read_map(file: Path) -> torch.Tensor:
    """A map ``(H, W)``."""
    try:
        if file.suffix == ".npy":
            stored = np.load(file, allow_pickle=False)
        else:
            with Image.open(file) as image:
                # a palette's numbers are no brightness
                stored = np.array(image.convert("RGB") if image.mode == "P" else image)
        if stored.dtype.kind not in "buif":
            raise ValueError(f"it holds {stored.dtype}, expected real numbers")
        with np.errstate(over="ignore"):  # it becomes infinite, and is refused
            values = torch.from_numpy(stored.astype(np.float32))
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a map: {one_line(error)}") from error
    if values.ndim != 2 or not values.isfinite().all():
        raise ValueError(
            f"{file} must have one channel of finite numbers (a grey PNG, or NPY of (H, W)), got "
            f"{tuple(values.shape)}"
        )
    return values
