"""Graphs that compute what a network does and how that changes with its weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxcompress.errors import InputError, one_line
from onnxcompress.gradients.rules import RULES
from onnxcompress.gradients.tape import NoGradientError, Pullback, Shape, Tape

OPSET = 18
"""The oldest in which the backward pass can be written (ScatterElements that adds, Pad of some axes)."""

CONVERTED = 8
"""IR version that goes with it. In old ones, the converter takes initializers for missing inputs."""


@dataclass
class Forward:
    """A network written on a tape.

    Attributes:
        tape: with the nodes.
        opsets: of the network.
        shapes: of the network's values, by name.
        watched: names of values that gradients are wanted at.
        inputs: the network's inputs, then the weights that are trained.
        values: by name in the network, those on the tape.
        steps: for every node that gradients pass through: its inputs, outputs and pullback.
    """

    tape: Tape
    opsets: dict[str, int]
    shapes: Mapping[str, Shape]
    watched: Collection[str]
    inputs: list[ir.Value]
    values: dict[str, ir.Value]
    steps: list[tuple[ir.Node, Sequence[ir.Value | None], tuple[ir.Value, ...], Pullback]]


def modern(model: ir.Model) -> ir.Model:
    """The network in an opset that gradients can be written in.

    Raises:
        InputError: when onnx cannot convert it.
    """
    if model.opset_imports.get("", OPSET) >= OPSET:
        return model
    proto = ir.to_proto(model)
    proto.ir_version = max(proto.ir_version, CONVERTED)
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(proto, OPSET))
    except Exception as error:  # the converter has many kinds
        raise InputError(
            f"the network cannot be converted to opset {OPSET}: {one_line(error)}; export it again"
        ) from None
    # Axes that were attributes come as Constant nodes.
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(converted)
    return converted


def record(
    model: ir.Model,
    shapes: Mapping[str, Shape],
    targets: Collection[str],
    *,
    trained: Collection[str] = (),
    watched: Collection[str] = (),
    dtype: npt.DTypeLike = np.float32,
) -> Forward:
    """Write down the part of a network that leads to some of its values.

    Args:
        model: a network of opset 18 or later without subgraphs on the way.
        shapes: its concrete shapes (see `shapes.concrete_shapes`).
        targets: names of the values to compute.
        trained: names of weights that become inputs, and that gradients are wanted at.
        watched: names of other values that gradients are wanted at.
        dtype: of all real numbers.

    Raises:
        InputError: naming the operator and the node that gradients cannot pass.
    """
    tape = Tape(dtype, shapes)
    real = ir.DataType.from_numpy(tape.dtype)
    values: dict[str, ir.Value] = {}
    inputs = []
    for value in model.graph.inputs:
        floating = value.dtype is not None and value.dtype.is_floating_point()
        given = ir.val(str(value.name), real if floating else value.dtype)
        inputs.append(tape.know(given, shapes[str(value.name)], wanted=value.name in watched))
        values[str(value.name)] = given
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if name in trained:
            weight = tape.know(ir.val(name, real), array.shape, wanted=True)
            inputs.append(weight)
        else:
            constant = array.astype(tape.dtype) if array.dtype.kind == "f" else array
            weight = ir.val(name, const_value=ir.tensor(constant, name=name))
        values[name] = weight
    forward = Forward(tape, dict(model.opset_imports), shapes, watched, inputs, values, [])
    needed = leading_to(model, targets)
    for node in model.graph:
        if node in needed:
            _step(forward, node)
    for value in values.values():
        if value.const_value is not None:
            tape.initializers.append(value)
    return forward


def leading_to(model: ir.Model, targets: Collection[str]) -> set[ir.Node]:
    """The nodes of a network that some of its values, given by name, are computed by."""
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    waiting = [by_name[name].producer() for name in targets if name in by_name]
    found: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found


def _step(forward: Forward, node: ir.Node) -> None:
    tape, values = forward.tape, forward.values
    inputs = [None if value is None else values[str(value.name)] for value in node.inputs]
    wanted = any(tape.wants(value) for value in inputs)
    pullback = None
    try:
        if any(each.type == ir.AttributeType.GRAPH for each in node.attributes.values()):
            raise NoGradientError("")
        if not wanted:
            outputs = tape.repeat(node, inputs)
        elif node.domain or node.op_type not in RULES:
            raise NoGradientError("")
        else:
            outputs, pullback = RULES[node.op_type](tape, node, inputs)
    except NoGradientError as error:
        what = f": {error}" if str(error) else ""
        raise InputError(
            f"no gradient for {node.op_type} (node '{node.name}'){what}: a network with it cannot be trained"
        ) from None
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for original, value in zip(node.outputs, outputs, strict=True):
        if original.name:
            values[original.name] = value
            if (shape := forward.shapes.get(original.name)) is not None:
                tape.know(value, shape, wanted=pullback is not None or original.name in forward.watched)
    if pullback is not None:
        forward.steps.append((node, inputs, outputs, pullback))


def back(forward: Forward, seeds: dict[ir.Value, ir.Value]) -> Callable[[ir.Value], ir.Value]:
    """Write the backward pass.

    Args:
        forward: the network on its tape.
        seeds: gradients of the loss at some values on the tape.

    Returns:
        The gradient at any value that was wanted: zeros where the loss does not depend on it.
    """
    tape = forward.tape
    parts: dict[ir.Value, list[ir.Value]] = {value: [seed] for value, seed in seeds.items()}
    whole: dict[ir.Value, ir.Value] = {}

    def gradient(value: ir.Value) -> ir.Value | None:
        if value not in whole and value in parts:
            whole[value] = tape.total(parts[value])
        return whole.get(value)

    for _, inputs, outputs, pullback in reversed(forward.steps):
        gradients = [gradient(value) for value in outputs]
        if all(each is None for each in gradients):
            continue
        for value, each in zip(inputs, pullback(*gradients), strict=True):
            if value is not None and each is not None and tape.wants(value):
                parts.setdefault(value, []).append(each)

    def at(value: ir.Value) -> ir.Value:
        found = gradient(value)
        return found if found is not None else tape.zeros(tape.shape(value))

    return at


def graph_of(forward: Forward, inputs: Sequence[ir.Value], outputs: dict[str, ir.Value]) -> ir.Model:
    """The tape as a network with these outputs, by name; it can be run, not looked at."""
    tape = forward.tape
    real = ir.DataType.from_numpy(tape.dtype)
    results = []
    for name, value in outputs.items():
        result = tape.emit("Identity", value)
        result.name, result.dtype = name, real
        results.append(result)
    graph = ir.Graph(
        inputs,
        results,
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports=forward.opsets,
        name="training",
    )
    return ir.Model(graph, ir_version=10)
