"""Webdataset shards with random access: which samples there are is read once, from the heads of the tars."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

IMAGE = ("jpg", "jpeg", "png", "webp", "JPEG")


class Shards:
    """The samples of a split, in the order of the shards.

    timm's reader streams them, divides whole shards over processes and drops what it cannot decode. Here each
    sample has a number, so that every process takes its share and none is lost.

    Args:
        reader: timm's reader of the split, which knows its files and where the labels are.

    Raises:
        FileNotFoundError: If a shard is not a local file.
        ValueError: If a shard is damaged, or a sample has no image or no label.
    """

    def __init__(self, reader: Any) -> None:
        self.class_to_idx: dict[str, int] = {}  # the labels are numbers
        self.samples: list[tuple[str, str, int, int, int]] = []  # shard, key, offset, size, label
        self.label_key = reader.target_key or reader.split_info.alt_label
        self.class_map = reader.class_to_idx if reader.remap_class else {}
        for name in reader.split_info.filenames:
            shard = Path(reader.root, name)
            if not shard.is_file():
                raise FileNotFoundError(f"there is no shard {shard}: --data must be a local folder of tars")
            try:
                self._scan(shard)
            except tarfile.TarError as error:
                raise ValueError(f"{shard} cannot be read: {error}") from error

    def _scan(self, shard: Path) -> None:
        members_of: dict[str, dict[str, tarfile.TarInfo]] = {}
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    members_of.setdefault(f"{folder}/{stem}".lstrip("/"), {})[extension] = member
            for key, members in members_of.items():
                image = next((members[e] for e in IMAGE if e in members), None)
                label = members.get("json" if self.label_key else "cls")
                if image is None or label is None:
                    raise ValueError(
                        f"{shard}: sample {key} needs an image and a label, has {', '.join(members)}"
                    )
                text = archive.extractfile(label).read()  # type: ignore[union-attr]
                known = json.loads(text)[self.label_key] if self.label_key else int(text)
                number = int(self.class_map.get(known, known))
                self.samples.append((str(shard), key, image.offset_data, image.size, number))

    def __len__(self) -> int:
        """How many samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        """The bytes of an image and its label."""
        shard, _, offset, size, label = self.samples[index]
        with Path(shard).open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """``SHARD:KEY``, or as timm names it: the key as a file of ImageNet."""
        shard, key = self.samples[index][:2]
        return f"{key.rpartition('/')[2]}.JPEG" if basename else f"{shard}:{key}"
