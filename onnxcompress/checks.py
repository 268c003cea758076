"""What a network must be like to be worked on: whole, finite, consistent, and within bounds.

Each function raises `InputError` where it is not so.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from onnxcompress.errors import InputError
from onnxcompress.shapes import LAYERS, emptiness, inferred, inferred_shapes, misfit
from onnxcompress.weights import weights_of

QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)

FUSED = frozenset({"FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv"})
"""Layers that ONNX Runtime has merged with what is around them, in its own domain."""

KNOWN_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms.internal")
"""What the domains of the operators that ONNX Runtime has start with, where they are not empty."""

MOST_NODES = 1_000_000
"""That a network may have, with its model-local functions written out."""

LARGEST = 2**30
"""Elements that a value may have for one sample."""


def check_files(proto: onnx.ModelProto, folder: Path) -> None:
    """The files in which weights lie are there, in the network's folder or below; no weights are sparse."""
    for tensor in tensors(proto):
        if in_another_file(tensor):
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if not location or Path(location).is_absolute() or ".." in Path(location).parts:
                raise InputError(
                    f"the weights '{tensor.name}' point out of the network's folder: '{location}'"
                )
            if not (folder / location).is_file():
                raise InputError(
                    f"the weights '{tensor.name}' lie in {folder / location}, which is missing: "
                    "keep it beside the network"
                )
    for sparse in proto.graph.sparse_initializer:
        raise InputError(f"the weights '{sparse.values.name}' are sparse: export the network with dense ones")


def tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """All tensors of a protobuf message, wherever they are."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                if isinstance(part, onnx.TensorProto):
                    yield part
                else:
                    yield from tensors(part)


def in_another_file(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's content is not in the message."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def check_functions(model: ir.Model) -> None:
    """Inlined, the model-local functions are of a size that can be worked on."""

    @cache
    def size(identifier: ir.OperatorIdentifier) -> int:
        called = model.functions.get(identifier)
        return 1 if called is None else sum(size(node.op_identifier()) for node in called.all_nodes())

    total = sum(size(node.op_identifier()) for node in model.graph.all_nodes())
    if total > MOST_NODES:
        raise InputError(f"its model-local functions stand for {total:,} nodes, which is too many")


def check_operators(model: ir.Model) -> None:
    """ONNX Runtime knows their domains and does not crash on them, and no layers are quantized or merged."""
    for node in model.graph.all_nodes():
        known = not node.domain or node.domain.startswith(KNOWN_DOMAINS)
        if not known and node.op_identifier() not in model.functions:
            raise InputError(
                f"ONNX Runtime does not know the operator {node.domain}.{node.op_type} (node '{node.name}'): "
                "export the network with ONNX's own operators"
            )
        if node.domain.endswith("nchwc") or (node.domain and node.op_type in FUSED):
            raise InputError(
                f"optimized by ONNX Runtime (node '{node.name}', {node.op_type}): give the network as it was "
                "exported"
            )
        if node.op_type in QUANTIZED:
            raise InputError(
                f"quantized already (node '{node.name}', {node.op_type}): compress first, then quantize"
            )
        if node.op_type == "Resize" and not any(node.inputs[2 if len(node.inputs) > 2 else 1 :]):
            raise InputError(f"the node '{node.name}' (Resize) has neither scales nor sizes")


def check_weights(model: ir.Model) -> None:
    """They are numbers, and those of layers finite: infinite ones may mask attention or pad a maximum."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            array = weights_of(value)
            if array is None or array.dtype.kind != "f":
                continue
            in_layer = any(node.op_type in LAYERS for node, _ in value.uses())
            if np.isnan(array).any() or (in_layer and np.isinf(array).any()):
                raise InputError(
                    f"the weights '{value.name}' hold NaN or infinite values; export the network again"
                )


def check_layers(model: ir.Model) -> None:
    """Types and shapes agree everywhere, and layers' weights fit what they are applied to."""
    shapes = inferred(model.clone(), strict=True)
    for node in model.graph:
        if problem := misfit(node, shapes):
            raise InputError(f"node '{node.name}' ({node.op_type}): {problem}")


def check_sizes(model: ir.Model) -> None:
    """No value is beyond all memory, and layers have something to work on."""
    shapes = inferred_shapes(model)
    for name, shape in shapes.items():
        if math.prod(shape) > LARGEST:
            raise InputError(f"'{name}' has {math.prod(shape):,} elements for one sample, which is too many")
    for node in model.graph:
        if problem := emptiness(node, shapes):
            raise InputError(f"node '{node.name}' ({node.op_type}): {problem}")
