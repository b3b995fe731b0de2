"""The engines that deployed models are timed with: torch, its two compilers, and two that take ONNX."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch import nn

from dcls_models.onnx import write_onnx

ENGINES = ("torch", "inductor", "aotinductor", "onnxruntime", "openvino")
_PRECISIONS = {"onnxruntime": {torch.float32: ""}, "openvino": {torch.float32: "f32", torch.bfloat16: "bf16"}}


def compiled_ahead(model: nn.Module, images: torch.Tensor, file: Path) -> Any:
    """What AOTInductor makes of the exported model, for images of that size and layout.

    Args:
        model: Deployed.
        images: A batch.
        file: ``.pt2`` package to write.
    """
    with torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(model, (images,)), package_path=str(file)
        )
    return torch._inductor.aoti_load_package(package)


def run_by(
    engine: str, model: nn.Module, images: torch.Tensor, dtype: torch.dtype, trims: bool, file: Path
) -> Callable[[], object]:
    """A call that runs a model in onnxruntime or openvino, with as many threads as torch has.

    Args:
        engine: ``onnxruntime`` or ``openvino``.
        model: The model, not deployed yet.
        images: The batch that it runs on; openvino is told its size.
        dtype: The type that it computes in: float32, or bfloat16 by openvino.
        trims: Whether empty borders of kernels are cut off.
        file: The model as ONNX; written unless it is there.

    Raises:
        ValueError: If the engine is not installed, or does not compute in that type.
    """
    if dtype not in _PRECISIONS[engine] or images.device.type != "cpu":
        raise ValueError(
            f"{engine} runs on the cpu, in float32 (openvino in bfloat16 too): change the others"
        )
    try:
        if not file.exists():
            write_onnx(model, file, images.expand(max(2, len(images)), -1, -1, -1), trims=trims)
        make = _by_openvino if engine == "openvino" else _by_onnxruntime
        return make(file, images, _PRECISIONS[engine][dtype])
    except ImportError as error:
        needs = "onnx onnxscript onnxruntime openvino"
        raise ValueError(f"--engine {engine} needs {error.name}: pip install {needs}") from error


def _by_onnxruntime(path: Path, images: torch.Tensor, precision: str) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {"images": images.contiguous().numpy()}
    return lambda: session.run(None, inputs)[0]


def _by_openvino(path: Path, images: torch.Tensor, precision: str) -> Callable[[], object]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([*images.shape])
    compiled = core.compile_model(model, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
    inputs = images.contiguous().numpy()
    return lambda: compiled(inputs)[0]
