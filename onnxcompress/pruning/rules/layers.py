"""Operators whose filters start channels, and recurrent ones, which read them."""

import math

import numpy as np
import onnx_ir as ir

from onnxcompress.lrn import is_band
from onnxcompress.pruning.channels import Atoms, ChannelGraph, Layer, NoRuleError
from onnxcompress.pruning.rules.atoms import hand_on, on_axis
from onnxcompress.pruning.rules.nodes import array_of, constant, optional
from onnxcompress.pruning.rules.registry import rule
from onnxcompress.weights import weights_of


@rule("Conv", "ConvTranspose")
def convolution(graph: ChannelGraph, node: ir.Node) -> None:
    """Filters start channels; weights follow what is read. Depthwise ones hand their channels on.

    Channels that lie along an axis that the kernel moves over (of a spectrum or a transposed map) stay.
    Of a grouped convolution either whole groups go, or filters (and input channels) alike in every group.
    """
    transposed = node.op_type == "ConvTranspose"
    groups = node.attributes.get_int("group", 1)
    weight = constant(node.inputs[1])
    first, second = graph.shape(weight)[:2]
    into, out = (first, second * groups) if transposed else (second * groups, first)
    if (given := graph.atoms(node.inputs[0])) is not None and given.shape[1] == 1:
        graph.lock(given, f"the kernel of {node.op_type} ('{node.name}') moves over them")
        atoms = None
    else:
        atoms = graph.along(node.inputs[0], 1)
    if groups > 1 and into == groups:
        _depthwise(graph, node, atoms, out // groups, weight)
        return
    if is_band(node):
        _band(graph, node, atoms)
        return
    filters = graph.start(out)
    by_group = [each.reshape(groups, -1) for each in (atoms, filters) if each is not None]
    if groups > 1:
        alike = [(each[:1], each[1:]) for each in by_group]
        whole = [(each[:, :1], each) for each in by_group] + [(by_group[0][:, :1], by_group[-1][:, :1])]
        graph.choose([alike] if atoms is None else [alike, whole])
        graph.edit(lambda keep: _set_groups(node, keep(by_group[0])))
    if atoms is not None:
        graph.parameter(weight, 0 if transposed else 1, atoms if transposed else by_group[0], node)
    graph.parameter(weight, 1 if transposed else 0, by_group[-1] if transposed else filters, node)
    _start_layer(graph, node, filters, 1, optional(node, 2))


def _band(graph: ChannelGraph, node: ir.Node, atoms: Atoms | None) -> None:
    """Of an LRN: what it sums for a channel goes with the channel."""
    if atoms is not None:
        for value, axes in zip(node.inputs[1:], ((0, 1), (0,)), strict=True):
            for axis in axes:
                graph.parameter(constant(value), axis, atoms, node)
    hand_on(graph, node, graph.atoms(node.inputs[0]))


def _depthwise(
    graph: ChannelGraph, node: ir.Node, atoms: Atoms | None, multiplier: int, weight: ir.Value
) -> None:
    if atoms is None:
        graph.hand_on(node.outputs[0], None, graph.fixed(node.inputs[0]))
        return
    filters = np.repeat(atoms, multiplier)
    graph.parameter(weight, 0, atoms if node.op_type == "ConvTranspose" else filters, node)
    if (bias := optional(node, 2)) is not None:
        graph.parameter(constant(bias), 0, filters, node)
    graph.hand_on(node.outputs[0], on_axis(filters, 1, len(graph.shape(node.outputs[0]))))
    graph.edit(lambda keep: _set_groups(node, keep(atoms)[:, None]))


def _set_groups(node: ir.Node, kept: np.ndarray) -> None:
    """The groups of a convolution are those of which something is kept: shape (groups, channels)."""
    node.attributes["group"] = ir.AttrInt64("group", int(kept.any(axis=1).sum()))


@rule("Gemm")
def gemm(graph: ChannelGraph, node: ir.Node) -> None:
    """A fully connected layer: neurons start channels. Channels that lie along its rows pass."""
    if weights_of(node.inputs[1]) is None:
        raise NoRuleError("its weights are not constant")
    weight = constant(node.inputs[1])
    if not len(graph.shape(weight)) == len(graph.shape(node.inputs[0])) == 2:
        raise NoRuleError("it does not multiply matrices")
    transposed = node.attributes.get_int("transB", 0)
    summed = 0 if node.attributes.get_int("transA", 0) else 1
    given = graph.atoms(node.inputs[0])
    if given is not None and given.shape[summed] == 1 < given.size:
        _hand_on_rows(graph, node, given.ravel())
        return
    if (atoms := graph.along(node.inputs[0], summed)) is not None:
        graph.parameter(weight, 1 if transposed else 0, atoms, node)
    filter_axis = 0 if transposed else 1
    neurons = graph.start(graph.shape(weight)[filter_axis])
    graph.parameter(weight, filter_axis, neurons, node)
    _start_layer(graph, node, neurons, 1, optional(node, 2))


def _hand_on_rows(graph: ChannelGraph, node: ir.Node, rows: Atoms) -> None:
    bias = optional(node, 2)
    if bias is not None and len(graph.shape(bias)) == 2 and graph.shape(bias)[0] > 1:
        graph.parameter(constant(bias), 0, rows, node)
    hand_on(graph, node, on_axis(rows, 0, 2))


@rule("MatMul")
def matmul(graph: ChannelGraph, node: ir.Node) -> None:
    """By a constant matrix, on either side: its columns (rows) start channels along the last (but one) axis.

    Channels along another axis than the one that is summed over pass, and none are started.
    """
    side = next((index for index in (1, 0) if weights_of(node.inputs[index]) is not None), None)
    if side is None:
        _product_of_activations(graph, node)
        return
    weight, data = constant(node.inputs[side]), node.inputs[1 - side]
    rank = len(graph.shape(data))
    if len(graph.shape(weight)) != 2 or rank < 2:
        raise NoRuleError("only products of a matrix with arrays of two or more axes are covered")
    axis = rank - 1 if side == 1 else rank - 2
    atoms = graph.atoms(data)
    if atoms is not None and atoms.shape[axis] == 1 < atoms.size:
        graph.hand_on(node.outputs[0], atoms)
        return
    if (read := graph.along(data, axis)) is not None:
        graph.parameter(weight, 1 - side, read, node)
    neurons = graph.start(graph.shape(weight)[side])
    graph.parameter(weight, side, neurons, node)
    _start_layer(graph, node, neurons, axis, None)


def _product_of_activations(graph: ChannelGraph, node: ir.Node) -> None:
    """As in attention: channels that are summed over are tied, and alike in every head; others pass."""
    left, right = node.inputs[0], node.inputs[1]
    summed: list[Atoms] = []
    passing: list[Atoms] = []
    for value, axis in ((left, -1), (right, -2)):
        atoms = graph.atoms(value)
        if atoms is not None:
            if atoms.ndim == 1:
                raise NoRuleError("multiplies a vector")
            is_summed = atoms.shape[axis] > 1
            found = graph.along(value, axis if is_summed else -3 - axis)
            (summed if is_summed else passing).extend([] if found is None else [found])
    if len(summed) == 1 or len(passing) == 2:
        raise NoRuleError("channels of one operand only are summed over")
    if summed:
        graph.tie(summed[0], summed[1])
        hand_on(graph, node, None, f"summed over by MatMul ('{node.name}')")
    elif passing:
        rank = len(graph.shape(node.outputs[0]))
        axis = rank - 2 if graph.atoms(left) is not None else rank - 1
        hand_on(graph, node, on_axis(passing[0], axis, rank))
    else:
        hand_on(graph, node, None)


@rule("Einsum")
def einsum(graph: ChannelGraph, node: ir.Node) -> None:
    """Channels along a subscript that the output has pass; along another they are summed over."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    given, _, result = equation.partition("->")
    terms = given.split(",")
    if "." in equation or not result or any(len(set(term)) < len(term) for term in (*terms, result)):
        raise NoRuleError(f"'{equation}' is not covered")
    found: dict[str, Atoms] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        atoms = graph.atoms(value)
        varying = [axis for axis in range(len(term)) if atoms is not None and atoms.shape[axis] > 1]
        for axis in sorted(varying, key=lambda axis: (term[axis] in result, given.count(term[axis])))[:1]:
            if (along := graph.along(value, axis)) is not None:
                graph.tie(found.setdefault(term[axis], along), along)
    passing = [subscript for subscript in found if subscript in result]
    if len(passing) > 1:
        raise NoRuleError("channels of two operands pass")
    for term, value in zip(terms, node.inputs, strict=True):
        for subscript in found.keys() & set(term):
            axis = term.index(subscript)
            if weights_of(value) is not None:
                graph.parameter(constant(value), axis, found[subscript], node)
            elif (along := graph.along(value, axis)) is not None:
                graph.tie(found[subscript], along)
            else:
                raise NoRuleError(f"channels meet what has none along '{subscript}'")
    if passing:
        graph.hand_on(node.outputs[0], on_axis(found[passing[0]], result.index(passing[0]), len(result)))
    else:
        hand_on(graph, node, None, f"summed over by Einsum ('{node.name}')")


def _start_layer(graph: ChannelGraph, node: ir.Node, atoms: Atoms, axis: int, bias: ir.Value | None) -> None:
    output = on_axis(atoms, axis, len(graph.shape(node.outputs[0])))
    if bias is not None:
        shape = graph.shape(constant(bias))
        if shape and shape[-1] == len(atoms):
            graph.parameter(bias, len(shape) - 1, atoms, node)
        elif math.prod(shape) != 1:
            raise NoRuleError("its bias does not fit")
    graph.layers.append(Layer(node, atoms, lambda: _filters(node), lambda: _biases(node)))
    graph.hand_on(node.outputs[0], output)


def _filters(node: ir.Node) -> np.ndarray:
    side = 1 if weights_of(node.inputs[1]) is not None else 0
    weight = array_of(node.inputs[side]).astype(np.float64)
    if node.op_type == "ConvTranspose":
        groups = node.attributes.get_int("group", 1)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        weight = np.moveaxis(by_group, 2, 1).reshape(groups * weight.shape[1], -1)
    elif side == 1 and node.op_type != "Conv" and not node.attributes.get_int("transB", 0):
        weight = weight.T
    return weight.reshape(len(weight), -1)


def _biases(node: ir.Node) -> np.ndarray:
    filters, bias = len(_filters(node)), optional(node, 2)
    if bias is None or array_of(bias).size % filters:
        return np.zeros((filters, 0))
    return array_of(bias).astype(np.float64).reshape(-1, filters).T


@rule("LSTM", "GRU", "RNN")
def recurrent(graph: ChannelGraph, node: ir.Node) -> None:
    """Reads channels along the last axis; its own states are kept whole."""
    if (atoms := graph.along(node.inputs[0], 2)) is not None:
        graph.parameter(constant(node.inputs[1]), 2, atoms, node)
    for value in node.inputs[3:]:
        graph.lock(graph.atoms(value), f"read by {node.op_type} ('{node.name}')")
    for value in node.outputs:
        graph.hand_on(value, None, f"states of {node.op_type} ('{node.name}')")
