"""Parameters and multiply–accumulate operations (MACs), by layer and in total."""

import math
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxcompress.layers import CONVOLUTIONS, PRODUCTS, channel_axis
from onnxcompress.model import load
from onnxcompress.shapes import concrete_shapes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerCost:
    """One node that has weights.

    Attributes:
        name: the node's name.
        operator: its ONNX operator.
        input_shape, output_shape: for one sample.
        weight_shape: of its first weight tensor.
        params: elements of its weights; weights shared by several nodes count at the first.
        macs: multiply–accumulate operations for one sample.
        filters: channels that a convolution or product gives; 0 of other operators.
    """

    name: str
    operator: str
    input_shape: Shape
    output_shape: Shape
    weight_shape: Shape
    params: int
    macs: int
    filters: int


@dataclass(frozen=True)
class Cost:
    """A network's layers with weights, in order, and their sums."""

    layers: tuple[LayerCost, ...]

    @property
    def params(self) -> int:
        """Elements of all weights."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """MACs of convolutions and matrix products for one sample; other operators count nothing."""
        return sum(layer.macs for layer in self.layers)


def cost(model: ir.Model | str | Path) -> Cost:
    """Count parameters and MACs for one sample, or for as many as a network takes that takes no other number.

    Open dimensions are as in `shapes.concrete_shapes`.
    """
    model = load(model)
    shapes = concrete_shapes(model)
    counted: set[ir.Value] = set()
    layers = []
    for node in model.graph:
        weights = [value for value in node.inputs if value is not None and _is_weight(value)]
        macs = _macs(node, shapes)
        if not weights and not macs:
            continue
        params = sum(
            math.prod(shapes[str(value.name)]) for value in dict.fromkeys(weights) if value not in counted
        )
        counted.update(weights)
        layers.append(
            LayerCost(
                name=str(node.name),
                operator=node.op_type,
                input_shape=_shape(node.inputs[0], shapes),
                output_shape=_shape(node.outputs[0], shapes),
                weight_shape=_shape(weights[0], shapes) if weights else (),
                params=params,
                macs=macs,
                filters=_filters(node, shapes),
            )
        )
    return Cost(tuple(layers))


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and value.dtype is not None and value.dtype.is_floating_point()


def _macs(node: ir.Node, shapes: dict[str, Shape]) -> int:
    def size(value: ir.Value | None) -> int:
        return math.prod(_shape(value, shapes))

    if node.op_type == "Conv":
        return size(node.outputs[0]) * math.prod(_shape(node.inputs[1], shapes)[1:])
    if node.op_type == "ConvTranspose":
        return size(node.inputs[0]) * math.prod(_shape(node.inputs[1], shapes)[1:])
    if node.op_type in PRODUCTS:
        axis = 0 if node.attributes.get_int("transA", 0) else -1
        inner = _shape(node.inputs[0], shapes)[axis:][:1]
        return size(node.outputs[0]) * math.prod(inner)
    return 0


def _filters(node: ir.Node, shapes: dict[str, Shape]) -> int:
    shape = _shape(node.outputs[0], shapes)
    if node.op_type not in CONVOLUTIONS + PRODUCTS:
        return 0
    return next(iter(shape[channel_axis(node, len(shape)) :]), 0)


def _shape(value: ir.Value | None, shapes: dict[str, Shape]) -> Shape:
    return shapes.get(str(value.name), (0,)) if value is not None else (0,)
