"""Small files in ClickMe's format, written by TensorBoard's record writer and protobuf."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image, ImageFilter
from tensorboard.summary.writer.record_writer import RecordWriter


def example_class() -> Any:
    """``tf.train.Example``, as TensorFlow's example.proto and feature.proto define it."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    lists = {"BytesList": 12, "FloatList": 2, "Int64List": 3}  # protobuf's numbers of the types
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=3)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, start=1):
        field = feature.field.add(name=name.lower(), number=number, type=11, label=1, type_name=f".tf.{name}")
        field.oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".tf.Feature")
    kind = ".tf.Features.FeatureEntry"
    features.field.add(name="feature", number=1, type=11, label=3, type_name=kind)
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=11, label=1, type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


EXAMPLE = example_class()


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def pictures(count: int, side: int = 256) -> list[tuple[Image.Image, Image.Image]]:
    """Noise with a bright spot, and a map of the spot."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        y, x = generator.integers(side // 4, 3 * side // 4, 2)
        rows, columns = np.mgrid[:side, :side]
        spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (side / 8) ** 2)
        noise = generator.integers(0, 120, (side, side, 3))
        image = Image.fromarray((noise + 120 * spot[..., None]).astype(np.uint8))
        found.append(
            (image.filter(ImageFilter.GaussianBlur(2)), Image.fromarray((255 * spot).astype(np.uint8)))
        )
    return found


def record(image: bytes, heatmap: bytes, label: int) -> bytes:
    example = EXAMPLE()
    example.features.feature["image"].byteslist.value.append(image)
    example.features.feature["heatmap"].byteslist.value.append(heatmap)
    example.features.feature["label"].int64list.value.append(label)
    return example.SerializeToString()


def write_shard(path: Path, records: list[bytes]) -> Path:
    with path.open("wb") as stream:
        writer = RecordWriter(stream)
        for data in records:
            writer.write(data)
    return path


def clickme_shard(path: Path, count: int, first: int = 0) -> Path:
    """A shard of ``count`` records with the labels ``first``, ``first + 1``..."""
    pairs = pictures(first + count)[first:]
    records = [record(jpeg(i), jpeg(h), first + n) for n, (i, h) in enumerate(pairs)]
    return write_shard(path, records)
