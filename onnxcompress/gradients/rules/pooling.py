"""Pools and means."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.gradients.rules.registry import NoGradientError, rule
from onnxcompress.gradients.tape import Gradients, Shape, Tape
from onnxcompress.windows import Windows, windows


@rule("MaxPool")
def max_pool(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Each gradient is added where its window's (first) largest element is."""
    (x,) = inputs
    if len(node.outputs) > 1 or node.attributes.get_int("storage_order", 0) != 0:
        raise NoGradientError("positions as an output")
    shape = tape.shape(x)
    w = _windows_of(node, tape, shape)
    if not tape.wants(x):
        return tape.repeat(node, inputs), None
    y, positions = tape.emit(
        "MaxPool",
        x,
        outputs=2,
        kernel_shape=w.kernel,
        strides=w.strides,
        dilations=w.dilations,
        pads=w.pads,
    )

    def pullback(g: ir.Value) -> Gradients:
        flat = tape.emit(
            "ScatterElements",
            tape.zeros((int(np.prod(shape)),)),
            tape.reshape(positions, [-1]),
            tape.reshape(g, [-1]),
            axis=0,
            reduction="add",
        )
        return [tape.reshape(flat, shape)]

    return y, pullback


@rule("AveragePool")
def average_pool(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Each gradient is spread over its window, by a depthwise ConvTranspose."""
    (x,) = inputs
    shape = tape.shape(x)
    w = _windows_of(node, tape, shape)
    pads = list(node.attributes.get_ints("pads", [*w.before, *w.behind]))
    share = _shares(w, pads[len(w.size) :], bool(node.attributes.get_int("count_include_pad", 0)))
    y = tape.repeat(node, inputs)

    def pullback(g: ir.Value) -> Gradients:
        spread = tape.emit(
            "ConvTranspose",
            tape.mul(g, tape.constant(share[None, None])),
            tape.constant(np.ones((shape[1], 1, *w.kernel))),
            group=shape[1],
            strides=w.strides,
            dilations=w.dilations,
            pads=w.pads,
            output_padding=w.unread,
            kernel_shape=w.kernel,
        )
        return [spread]

    return y, pullback


def _shares(w: Windows, declared: list[int], padding_counts: bool) -> NDArray[np.float64]:
    """1 / the number of elements that count, for every window: the output's spatial shape."""
    counts = np.zeros(w.count)
    for tap in product(*map(range, w.kernel)):
        inside = np.ones(w.count, bool)
        for axis, index in enumerate(tap):
            at = np.arange(w.count[axis]) * w.strides[axis] + index * w.dilations[axis] - w.before[axis]
            # What ceil_mode adds behind the declared padding never counts.
            low, high = (
                (-w.before[axis], w.size[axis] + declared[axis]) if padding_counts else (0, w.size[axis])
            )
            line = (at >= low) & (at < high)
            inside &= np.expand_dims(line, [other for other in range(len(w.count)) if other != axis])
        counts += inside
    return 1 / counts


def _windows_of(node: ir.Node, tape: Tape, shape: tuple[int, ...]) -> Windows:
    kernel = tuple(node.attributes["kernel_shape"].as_ints())
    return windows(node, kernel, shape[2:], tape.shape_in_network(node.outputs[0])[2:])


@rule("GlobalAveragePool")
def global_average_pool(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Each gradient is spread over its map."""
    y = tape.repeat(node, inputs)
    shape = tape.shape(inputs[0])
    share = 1 / float(np.prod(shape[2:]))
    return y, lambda g: [tape.spread(tape.mul(g, share), shape)]


@rule("GlobalMaxPool")
def global_max_pool(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """As ReduceMax over the map."""
    y = tape.repeat(node, inputs)
    axes = range(2, len(tape.shape(inputs[0])))
    return y, lambda g: [_to_the_extreme(tape, inputs[0], y, g, axes)]


@rule("ReduceMean", "ReduceSum")
def reduction(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Each gradient is spread over what was summed."""
    y = tape.repeat(node, inputs)
    x = inputs[0]
    shape = tape.shape(x)
    axes = _axes(node, inputs, len(shape))
    share = 1 / float(np.prod([shape[axis] for axis in axes])) if node.op_type == "ReduceMean" else 1.0

    def pullback(g: ir.Value) -> Gradients:
        g = tape.reshape(g if share == 1 else tape.mul(g, share), _kept(shape, axes))
        return [tape.spread(g, shape), *(None for _ in inputs[1:])]

    return y, pullback


@rule("ReduceMax", "ReduceMin")
def extreme_of(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Each gradient goes where the largest (smallest) element is; equal ones share it."""
    y = tape.repeat(node, inputs)
    axes = _axes(node, inputs, len(tape.shape(inputs[0])))
    return y, lambda g: [_to_the_extreme(tape, inputs[0], y, g, axes), *(None for _ in inputs[1:])]


@rule("ReduceL2")
def euclidean_norm(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """The gradient is g x / y, and 0 at the origin."""
    y = tape.repeat(node, inputs)
    x = inputs[0]
    kept = _kept(tape.shape(x), _axes(node, inputs, len(tape.shape(x))))

    def pullback(g: ir.Value) -> Gradients:
        norm = tape.emit("Max", y, tape.constant(np.finfo(np.float32).tiny))
        return [tape.mul(x, tape.reshape(tape.div(g, norm), kept)), *(None for _ in inputs[1:])]

    return y, pullback


def _to_the_extreme(tape: Tape, x: ir.Value, y: ir.Value, g: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The gradient at x where it has the value that it was reduced to."""
    kept = _kept(tape.shape(x), axes)
    equal = tape.emit("Equal", x, tape.reshape(y, kept))
    there = tape.emit("Cast", equal, to=ir.DataType.from_numpy(tape.dtype))
    return tape.mul(there, tape.div(tape.reshape(g, kept), tape.sum(there, axes, keep=True)))


def _kept(shape: Shape, axes: Sequence[int]) -> Shape:
    """The shape with 1 for each of the axes."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _axes(node: ir.Node, inputs: Any, rank: int) -> list[int]:
    given = inputs[1] if len(inputs) > 1 else None
    axes = list(node.attributes.get_ints("axes", []))
    if given is not None:
        if given.const_value is None:
            raise NoGradientError("axes that are computed")
        axes = given.const_value.numpy().tolist()
    nothing = node.attributes.get_int("noop_with_empty_axes", 0)
    return [axis % rank for axis in (axes if axes or nothing else range(rank))]
