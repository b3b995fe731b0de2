"""A model as an ONNX file that onnxruntime runs fast (needs the packages onnx and onnxscript)."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .deploy import fused
from .files import one_line
from .layers import trim

PADDED_FROM = 11  # width of depthwise kernels from which onnxruntime gains; 9 is neutral, 7 loses
OPSET = 18  # the first in which Pad takes the axes that it pads


def write_onnx(
    model: nn.Module, path: Path, images: torch.Tensor, dynamic_size: bool = False, trims: bool = True
) -> None:
    """Writes a model, deployed, to one ONNX file with the input ``images`` and the output ``logits``.

    Args:
        model: Any model that takes and gives one tensor; it stays as it is.
        path: File to write.
        images: An example ``(N, C, H, W)`` with N of 2 or more; any batch size will do later.
        dynamic_size: Whether any height and width will do as well.
        trims: Whether empty borders of kernels are cut off.

    Raises:
        ValueError: If torch cannot export the model.
    """
    import onnx

    plain = (trim(fused(model)) if trims else fused(model)).to(memory_format=torch.contiguous_format)
    sides = (0, 2, 3) if dynamic_size else (0,)
    try:
        torch.onnx.export(
            plain,
            (images,),
            path,
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamic_shapes=(dict.fromkeys(sides, torch.export.Dim.DYNAMIC),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        what = "with a dynamic size: leave it out" if dynamic_size else "to ONNX"
        raise ValueError(f"torch cannot export {type(model).__name__} {what} ({one_line(error)})") from error
    proto = onnx.load(path)
    pad_apart(proto.graph)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def pad_apart(graph: Any) -> int:
    """Moves the width padding of wide depthwise convolutions into a ``Pad`` before each, in place.

    onnxruntime computes the columns whose window reaches into the padding on a slow path. The outputs stay
    the same to the bit. Its form of ``Pad`` matters: without ``axes`` onnxruntime folds it back.

    Args:
        graph: The ``onnx.GraphProto``.

    Returns:
        How many convolutions were changed.
    """
    from onnx import helper, numpy_helper

    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    nodes, changed = [], 0
    for node in graph.node:
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        pads = list(settings.get("pads", ()))
        if node.op_type == "Conv" and _is_wide(shapes.get(node.input[1], ()), settings, pads):
            names = [f"{node.name}_width_{part}" for part in ("pads", "axes", "padded")]
            amounts = torch.tensor([pads[1], pads[3]]).numpy(), torch.tensor([3]).numpy()
            for name, values in zip(names, amounts, strict=False):
                graph.initializer.append(numpy_helper.from_array(values, name))
            inputs = [node.input[0], names[0], "", names[1]]
            nodes.append(helper.make_node("Pad", inputs, [names[2]], f"{node.name}_pad", mode="constant"))
            node.input[0] = names[2]
            next(a for a in node.attribute if a.name == "pads").ints[:] = [pads[0], 0, pads[2], 0]
            changed += 1
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _is_wide(weight: tuple[int, ...], settings: dict[str, Any], pads: list[int]) -> bool:
    depthwise = len(weight) == 4 and weight[1] == 1 and weight[0] == settings.get("group", 1) > 1
    return depthwise and weight[3] >= PADDED_FROM and len(pads) == 4 and bool(pads[1] + pads[3])
