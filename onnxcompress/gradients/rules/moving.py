"""Operators that move elements: what they put somewhere is taken back from there."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.gradients.rules.registry import NoGradientError, rule
from onnxcompress.gradients.tape import Gradients, Shape, Tape


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """To a shape that is known, and back."""
    x = inputs[0]
    y = tape.reshape(x, tape.shape_in_network(node.outputs[0]))
    return y, lambda g: [tape.reshape(g, tape.shape(x)), *(None for _ in inputs[1:])]


@rule("Transpose")
def transpose(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """The permutation the other way round."""
    y = tape.repeat(node, inputs)
    rank = len(tape.shape(inputs[0]))
    order = node.attributes.get_ints("perm", range(rank)[::-1])
    return y, lambda g: [tape.emit("Transpose", g, perm=np.argsort(order).tolist())]


@rule("Concat")
def concat(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Every input has its part."""
    y = tape.repeat(node, inputs)
    axis = node.attributes.get_int("axis", 0)
    sizes = [tape.shape(each)[axis] for each in inputs]

    def pullback(g: ir.Value) -> Gradients:
        if len(inputs) == 1:
            return [g]
        return list(tape.emit("Split", g, tape.ints(sizes), outputs=len(sizes), axis=axis))

    return y, pullback


@rule("Split")
def split(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """The parts one after the other; zeros for those that nobody reads."""
    y = tape.repeat(node, inputs)
    outputs = y if isinstance(y, tuple) else (y,)
    axis = node.attributes.get_int("axis", 0)

    def pullback(*gradients: ir.Value | None) -> Gradients:
        parts = [
            g if g is not None else tape.zeros(tape.shape(value))
            for g, value in zip(gradients, outputs, strict=True)
        ]
        return [tape.emit("Concat", *parts, axis=axis), *(None for _ in inputs[1:])]

    return y, pullback


@rule("Slice")
def slice_(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Back to where it was taken from, axis by axis."""
    y = tape.repeat(node, inputs)
    shape = tape.shape(inputs[0])
    starts, ends, axes, steps = (
        _numbers(inputs[index]) if len(inputs) > index and inputs[index] is not None else None
        for index in (1, 2, 3, 4)
    )
    assert starts is not None
    assert ends is not None
    axes = [axis % len(shape) for axis in axes] if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)

    def pullback(g: ir.Value) -> Gradients:
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            taken = range(shape[axis])[start:end:step]
            g = put_back(tape, g, axis, taken, shape)
        return [g, *(None for _ in inputs[1:])]

    return y, pullback


@rule("Gather")
def gather(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Back to where it was taken from; what was taken twice is summed."""
    x, indices = inputs
    if indices.const_value is None:
        raise NoGradientError("indices that are computed")
    y = tape.repeat(node, inputs)
    shape = tape.shape(x)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    taken = indices.const_value.numpy().ravel() % shape[axis]

    def pullback(g: ir.Value) -> Gradients:
        g = tape.reshape(g, (*shape[:axis], len(taken), *shape[axis + 1 :]))
        return [put_back(tape, g, axis, taken.tolist(), shape), None]

    return y, pullback


def put_back(tape: Tape, g: ir.Value, axis: int, taken: Sequence[int], shape: Shape) -> ir.Value:
    """The gradient of taking elements along an axis.

    Args:
        tape: the tape.
        g: gradient at what was taken.
        axis: along which it was.
        taken: indices, in order; any may occur more than once.
        shape: of what it was taken from, but for other axes that are not put back yet.
    """
    size, rank = shape[axis], len(shape)
    if list(taken) == list(range(size)):
        return g
    if list(taken) == list(range(taken[0], taken[0] + len(taken))):
        return tape.pad(g, rank, [axis], [taken[0], size - taken[0] - len(taken)])
    # With a line of zeros behind, every index is taken from where it went to, or from the zeros.
    g = tape.pad(g, rank, [axis], [0, 1])
    times = Counter(taken)
    parts = []
    for turn in range(max(times.values())):
        seen: Counter[int] = Counter()
        source = np.full(size, len(taken))
        for position, index in enumerate(taken):
            if seen[index] == turn:
                source[index] = position
            seen[index] += 1
        parts.append(tape.emit("Gather", g, tape.ints(source), axis=axis))
    return tape.total(parts)


@rule("Pad")
def pad(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Without the padding; zeros where negative padding cut something off."""
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        raise NoGradientError(f"mode {mode}")
    y = tape.repeat(node, inputs)
    x = inputs[0]
    shape, pads = tape.shape(x), _numbers(inputs[1])
    given = inputs[3] if len(inputs) > 3 else None
    axes = range(len(shape)) if given is None else [axis % len(shape) for axis in _numbers(given)]

    def pullback(g: ir.Value) -> Gradients:
        g = tape.pad(g, len(shape), axes, [-each for each in pads])
        return [g, *(None for _ in inputs[1:])]

    return y, pullback


@rule("Expand")
def expand(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """What was copied is summed."""
    x = inputs[0]
    y = tape.spread(x, tape.shape_in_network(node.outputs[0]))
    return y, lambda g: [tape.sum_to(g, tape.shape(y), tape.shape(x)), None]


@rule("DepthToSpace", "SpaceToDepth")
def depth_and_space(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Each undoes the other."""
    y = tape.repeat(node, inputs)
    (x,) = inputs
    n, channels, height, width = tape.shape(x)
    size = node.attributes["blocksize"].as_int()
    columns_first = node.attributes.get_string("mode") == "CRD"

    def pullback(g: ir.Value) -> Gradients:
        if node.op_type == "SpaceToDepth":
            return [tape.emit("DepthToSpace", g, blocksize=size)]
        if not columns_first:
            return [tape.emit("SpaceToDepth", g, blocksize=size)]
        g = tape.reshape(g, (n, channels // size**2, height, size, width, size))
        return [
            tape.reshape(tape.emit("Transpose", g, perm=[0, 1, 3, 5, 2, 4]), (n, channels, height, width))
        ]

    return y, pullback


@rule("Resize")
def resize(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Rows and columns are each multiplied by a matrix; its transpose leads back."""
    y = tape.repeat(node, inputs)
    x = inputs[0]
    shape, output = tape.shape(x), tape.shape_in_network(node.outputs[0])
    if len(shape) != 4 or shape[:2] != output[:2]:
        raise NoGradientError("other axes than height and width")
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoGradientError("a policy for the aspect ratio")
    rows, columns = (_resize_matrix(node, inputs, shape, output, axis) for axis in (2, 3))

    def pullback(g: ir.Value) -> Gradients:
        g = tape.emit("MatMul", tape.constant(rows.T), tape.emit("MatMul", g, tape.constant(columns)))
        return [g, *(None for _ in inputs[1:])]

    return y, pullback


def _resize_matrix(node: ir.Node, inputs: Any, shape: Shape, output: Shape, axis: int) -> np.ndarray:
    """How the axis is resized, (output, input): the operator's answer to each unit vector."""
    from onnx.reference import ReferenceEvaluator  # seldom needed

    size = shape[axis]
    unit = np.eye(size, dtype=np.float32).reshape(size, 1, *((size, 1) if axis == 2 else (1, size)))
    x, y = ir.val("x", ir.DataType.FLOAT, unit.shape), ir.val("y", ir.DataType.FLOAT, [None] * 4)
    scales = inputs[2].const_value if len(inputs) > 2 and inputs[2] is not None else None
    declared = [] if scales is None else scales.numpy().ravel()
    axes = [each % 4 for each in node.attributes.get_ints("axes", range(4))]
    how = np.array([*unit.shape[:axis], output[axis], *unit.shape[axis + 1 :]])
    if axis in axes[: len(declared)]:
        how = np.where(np.arange(4) == axis, declared[axes.index(axis)], 1).astype(np.float32)
    given = ir.val("how", const_value=ir.tensor(how, name="how"))
    attributes = [each for name, each in node.attributes.items() if name != "axes"]
    reads = [x, None, given] if how.dtype == np.float32 else [x, None, None, given]
    one = ir.Node("", "Resize", reads, attributes, outputs=[y])
    graph = ir.Graph([x], [y], nodes=[one], initializers=[given], opset_imports={"": 18}, name="resize")
    evaluator = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=8)))
    (found,) = evaluator.run(None, {"x": unit})
    return np.asarray(found).reshape(size, output[axis]).T.astype(np.float64)


def _numbers(value: ir.Value) -> list[int]:
    if value.const_value is None:
        raise NoGradientError("positions that are computed")
    return [int(each) for each in value.const_value.numpy().ravel()]
