"""``model.onnx``: written, and compared with the model at two sizes by onnxruntime."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcls_models.files import one_line
from dcls_models.folders import files_below
from dcls_models.images import EXTENSIONS, read_image, transform_of
from dcls_models.onnx import write_onnx
from hub import HubError
from hub.logits import check_logits, spread

LARGER = (32, 64)  # pixels in height and width by which the second size is larger, where it may be
COMPARED, BATCH = 500, 32  # images of a folder at most, evenly over its files; at once


def export_onnx(
    model: nn.Module,
    path: Path,
    images: torch.Tensor,
    dynamic_size: bool = False,
    int8: bool = False,
    compare: Sequence[str] = (),
) -> None:
    """Writes a model to an ONNX file that has proved to give the same logits.

    Args:
        model: Any model, in eval mode.
        path: File to write.
        images: An example ``(N, C, H, W)`` with N of 2 or more; any batch size will do later.
        dynamic_size: Whether any height and width will do as well.
        int8: Whether matrix products are computed in int8, with scales found at each run. How much that
            changes the logits is printed.
        compare: Files of images on which it is printed too, as ``images_below`` gives them.

    Raises:
        HubError: If a package is missing, torch cannot export the model, or the file gives other logits.
    """
    _check_installed()
    larger = (images.shape[2] + LARGER[0], images.shape[3] + LARGER[1])
    size = larger if dynamic_size else images.shape[2:]
    generator = torch.Generator().manual_seed(1)
    examples = (images, torch.randn(1, images.shape[1], *size, generator=generator))
    try:
        write_onnx(model, path, images, dynamic_size)
    except ValueError as error:
        raise HubError(str(error)) from error
    with torch.inference_mode():
        expected = [model(example) for example in examples]
    for example, logits in zip(examples, expected, strict=True):
        check_logits(_run(path, example), logits, f"the ONNX model at {tuple(example.shape)}", 1e-4)
    if int8:
        _quantize(path)
        for example, logits in zip(examples, expected, strict=True):
            change = (_run(path, example) - logits).abs().max().item()
            print(
                f"int8 changes the logits of random images by at most {change:.2g} (they spread over "
                f"{spread(logits):.2g}): compare on images of your own with --images FOLDER"
            )
        if compare:
            print(_compared(path, model, compare))


def images_below(folder: Path, model: nn.Module) -> list[str]:
    """Up to ``COMPARED`` image files of a folder, evenly over all of them.

    Raises:
        HubError: If there are none, or the model does not take images.
    """
    if not folder.is_dir():
        raise HubError(f"--images is not a folder: {folder}")
    files = files_below(folder, EXTENSIONS)
    if not files:
        raise HubError(f"{folder} has no images ({' '.join(EXTENSIONS)})")
    try:
        transform_of(model)
    except ValueError as error:
        raise HubError(f"--images: {error}") from error
    return files[:: -(-len(files) // COMPARED)]


@torch.inference_mode()
def _compared(path: Path, model: nn.Module, files: Sequence[str]) -> str:
    """What int8 changes on images, in words."""
    transform = transform_of(model)
    n, same, change, seen = 0, 0, 0.0, 0.0
    for start in range(0, len(files), BATCH):
        images = list(_transformed(files[start : start + BATCH], transform))
        if images:
            expected, logits = model(torch.stack(images)), _run(path, torch.stack(images))
            n, same = n + len(images), same + int((expected.argmax(1) == logits.argmax(1)).sum())
            change, seen = max(change, (logits - expected).abs().max().item()), max(seen, spread(expected))
    return (
        f"int8 gives the same answer for {same} of {n} images; it changes their logits by at "
        f"most {change:.2g} (they spread over {seen:.2g})"
    )


def _transformed(files: Sequence[str], transform: Any) -> Iterator[torch.Tensor]:
    """The images that can be read; the others are named."""
    for file in files:
        try:
            yield transform(read_image(file))
        except (OSError, ValueError) as error:
            print(f"unreadable: {file}: {one_line(error)}")


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise HubError(f"--onnx needs {error.name}: pip install onnx onnxruntime onnxscript") from error


def _run(path: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(logits)


def _quantize(path: Path) -> None:
    """Convolutions stay in float32: with their padding apart, onnxruntime cannot run them in int8."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "int8.onnx"
        products = {"op_types_to_quantize": ["MatMul", "Gemm"], "weight_type": QuantType.QInt8}
        try:
            quantize_dynamic(path, quantized, per_channel=True, **products)
        except Exception as error:  # shape inference of onnx raises its own, which an old onnxruntime meets
            raise HubError(
                f"onnxruntime {onnxruntime.__version__} cannot make int8 of it ({one_line(error)}): "
                "1.32 can, 1.30 and older cannot"
            ) from error
        path.write_bytes(quantized.read_bytes())
