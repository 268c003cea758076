"""The ONNX graph that the layers' converters build, with the shape that Caffe computes for every value."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest
from operator import mul
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.caffe.network import Layer, Network, shape_text, unique
from onnxcompress.caffe.parameters import Parameter, Source
from onnxcompress.caffe.schema import ParamSpec
from onnxcompress.shapes import LAYERS

MULTIPLIERS = ("lr_mult", "decay_mult")
"""Of a parameter's rate and its decay; 1 where no layer gives them."""

FROZEN = 0.0, 0.0
"""Multipliers of what is never trained."""

BLOB_LIMIT = 2**31 - 1
"""Numbers in a blob, as in Caffe."""


@dataclass(frozen=True)
class Blob:
    """A value under way.

    Attributes:
        value: in the ONNX graph, where the batch is free.
        shape: as in Caffe, with the prototxt's batch size.
        batch: the axis whose size is a multiple of the batch size; None where no axis is.
    """

    value: ir.Value
    shape: tuple[int, ...]
    batch: int | None


@dataclass
class Graph:
    """What has been built so far.

    Attributes:
        source: gives the parameters of layers.
        batch_size: that of the prototxt.
        blobs: by value name.
        nodes: in the order of computation.
        initializers: by the identity of their arrays, which `shared` and the values keep alive.
        shared: parameters that a prototxt names, to share them between layers.
        learning: parameters, with the multipliers to their rate and their decay as far as some layer gives
            them, by their place in memory.
        value_names: taken already.
        node_names: taken already.
    """

    source: Source
    batch_size: int
    blobs: dict[str, Blob]
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[int, ir.Value] = field(default_factory=dict)
    shared: dict[str, np.ndarray] = field(default_factory=dict)
    learning: dict[int, tuple[np.ndarray, dict[str, float]]] = field(default_factory=dict)
    value_names: set[str] = field(default_factory=set)
    node_names: set[str] = field(default_factory=set)

    def bottom(self, layer: Layer, index: int = 0) -> Blob:
        """What the layer reads."""
        return self.blobs[layer.bottoms[index]]


def start(network: Network, source: Source) -> Graph:
    """A graph that has only the network's inputs.

    The first dimension of the first input is the batch size; it becomes free in every input that has it.
    """
    batch_size = next(iter(network.inputs.values()))[0] if network.inputs else 1
    graph = Graph(source, batch_size, {})
    graph.value_names = {
        *network.inputs,
        *(value for layer in network.layers for value in layer.tops),
        *(blob for blob, _ in network.outputs),
    }
    graph.node_names = {layer.name for layer in network.layers}
    for name, shape in network.inputs.items():
        graph.blobs[name] = _blob(graph, name, shape, 0 if shape[0] == batch_size else None)
    return graph


def emit(
    graph: Graph,
    layer: Layer,
    op: str,
    inputs: Iterable[Blob | ir.Value],
    shape: Sequence[int],
    batch: int | None,
    *,
    step: str = "",
    **attributes: Any,
) -> Blob:
    """Append a node with one output.

    Args:
        graph: to append to.
        layer: that the node belongs to.
        op: ONNX's operator.
        inputs: of the node.
        shape: of the output, with the prototxt's batch size.
        batch: the batch axis of the output.
        step: "" for the node that writes the layer's top and has its name; a word for one that comes before.
        attributes: of the node.

    Raises:
        InputError: when the output's shape is not possible.
    """
    name = unique(f"{layer.name}/{step}", graph.node_names) if step else layer.name
    output = unique(f"{layer.name}/{step}", graph.value_names) if step else layer.tops[0]
    (blob,) = emit_many(graph, layer, op, inputs, {output: shape}, batch, name=name, **attributes)
    return blob


def emit_many(
    graph: Graph,
    layer: Layer,
    op: str,
    inputs: Iterable[Blob | ir.Value],
    outputs: Mapping[str, Sequence[int]],
    batch: int | None,
    *,
    name: str,
    **attributes: Any,
) -> list[Blob]:
    """Append a node called `name` with several outputs, given by their names and shapes; else like `emit`."""
    for shape in outputs.values():
        if min(shape, default=1) < 1 or math.prod(shape) > BLOB_LIMIT:
            raise layer.error(f"its output would be {shape_text(shape)}; check the sizes in the prototxt")
    blobs = [_blob(graph, output, tuple(shape), batch) for output, shape in outputs.items()]
    graph.nodes.append(
        ir.node(
            op,
            [source.value if isinstance(source, Blob) else source for source in inputs],
            attributes or None,
            outputs=[blob.value for blob in blobs],
            name=name,
        )
    )
    graph.blobs.update(zip(outputs, blobs, strict=True))
    return blobs


def parameters(graph: Graph, layer: Layer, *expected: Parameter) -> list[np.ndarray]:
    """The layer's parameters; those that the prototxt shares by name are the same arrays in all their layers.

    Raises:
        InputError: when they are not available or do not fit.
    """
    for parameter in expected:
        if min(parameter.shape, default=1) < 1 or math.prod(parameter.shape) > BLOB_LIMIT:
            raise layer.error(
                f"its parameters would be {shape_text(parameter.shape)}; check the sizes in the prototxt"
            )
    arrays = graph.source(layer, expected)
    for index, spec in enumerate(layer.message.param[: len(arrays)]):
        if spec.name:
            owned = graph.shared.setdefault(spec.name, arrays[index])
            if owned.shape != arrays[index].shape:
                raise layer.error(
                    f"shares the parameter '{spec.name}', but its shape is {shape_text(owned.shape)} in an "
                    f"earlier layer and {shape_text(arrays[index].shape)} here; only equal ones can be shared"
                )
            arrays[index] = owned
    for array, spec in zip_longest(arrays, layer.message.param[: len(arrays)], fillvalue=ParamSpec()):
        _, given = graph.learning.setdefault(array.ctypes.data, (array, {}))
        for name in filter(spec.HasField, MULTIPLIERS):
            value = getattr(spec, name)
            if given.setdefault(name, value) != value:
                raise layer.error(
                    f"shares the parameter '{spec.name}', but its {name} is {given[name]:g} in an earlier "
                    f"layer and {value:g} here; give both the same"
                )
    return arrays


def multipliers(graph: Graph, node: ir.Node) -> list[tuple[float, float]]:
    """Those to the learning rate and the weight decay of what a node reads besides the first of its inputs.

    Constants that are no parameters are frozen. A bias that a layer does not have, but may get when a
    BatchNormalization is folded into it, learns as its weights do.
    """
    constants = [value.const_value for value in node.inputs[1:] if value is not None]
    places = [tensor.numpy().ctypes.data for tensor in constants if tensor is not None]
    found = [
        _multipliers(graph.learning[place][1]) if place in graph.learning else FROZEN for place in places
    ]
    return found * 2 if len(found) == 1 and node.op_type in LAYERS else found


def _multipliers(given: Mapping[str, float]) -> tuple[float, float]:
    rate, decay = (given.get(name, 1.0) for name in MULTIPLIERS)
    return rate, decay


def initializer(graph: Graph, name: str, array: np.ndarray) -> ir.Value:
    """The constant that holds an array; for the same array the same one, under its first name."""
    if id(array) not in graph.initializers:
        tensor = ir.tensor(array)
        graph.initializers[id(array)] = ir.Value(
            name=unique(name, graph.value_names),
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
    return graph.initializers[id(array)]


def reshape(graph: Graph, layer: Layer, x: Blob, shape: Sequence[int], *, step: str = "") -> Blob:
    """Give `x` another shape of as many numbers, and find out where the batch goes.

    The batch axis of the result is the one with as many numbers before it as before that of `x`.

    Raises:
        InputError: when the count differs or the batch is split.
    """
    if math.prod(shape) != math.prod(x.shape):
        raise layer.error(f"cannot reshape {shape_text(x.shape)} to {shape_text(shape)}: the counts differ")
    batch = None
    if x.batch is not None:
        before = math.prod(x.shape[: x.batch])
        leading = accumulate(shape[:-1], mul, initial=1)
        fits = (
            axis
            for axis, (count, size) in enumerate(zip(leading, shape, strict=False))  # none of a scalar
            if count == before and size % graph.batch_size == 0
        )
        batch = next(fits, None)
        if batch is None:
            raise layer.error(
                f"cuts through the samples of a batch: {shape_text(x.shape)} to {shape_text(shape)}"
            )
    if len(shape) == 2 and x.batch == batch == 0 and shape[0] == x.shape[0]:
        return emit(graph, layer, "Flatten", [x], shape, batch, step=step, axis=1)
    target = np.array([-1 if axis == batch else size for axis, size in enumerate(shape)], np.int64)
    target_value = initializer(graph, f"{layer.name}.shape", target)
    return emit(graph, layer, "Reshape", [x, target_value], shape, batch, step=step)


def _blob(graph: Graph, name: str, shape: tuple[int, ...], batch: int | None) -> Blob:
    dims: list[int | str] = list(shape)
    if batch is not None:
        samples = shape[batch] // graph.batch_size
        dims[batch] = "N" if samples == 1 else f"{samples}*N"
    return Blob(
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims)), shape, batch
    )
