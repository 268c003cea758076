"""What each operator does to channels. To support another operator, add a function here:

    @rule("Mish")
    def mish(graph, node): _hand_on_same(graph, node)

A rule reads ``graph.channels(node.inputs[i])`` and says which channels the outputs have, what must be
cut together (`tie`), what may not be cut (`lock`) and which weights follow (`parameter`). It raises
`NoRuleError` where the node is of a form that it does not know; the node is then treated as unknown: all that
reaches it is kept whole.
"""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcompress.model import weights_of
from onnxcompress.pruning.channels import Atoms, ChannelGraph, Channels, Keep, Layer
from onnxcompress.pruning.lrn import write_as_band

Rule = Callable[[ChannelGraph, ir.Node], None]
RULES: dict[str, Rule] = {}


class NoRuleError(Exception):
    """This form of the operator is not covered."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators of the standard domain."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def analyse(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> ChannelGraph:
    """Follow the channels through a network.

    Args:
        model: a simplified network. `ChannelGraph.edits` and parameters refer to this very object.
        shapes: its concrete shapes.
    """
    graph = ChannelGraph(shapes)
    for value in model.graph.inputs:
        graph.hand_on(value, None, "the network's input")
    for node in model.graph:
        try:
            if node.domain or node.op_type not in RULES:
                raise NoRuleError
            RULES[node.op_type](graph, node)
        except (NoRuleError, KeyError):
            _unknown(graph, node)
    for value in model.graph.outputs:
        graph.lock(graph.channels(value), "the network's output")
    for parameter in list(graph.parameters):
        followed = {entry.node for entry in graph.parameters if entry.parameter is parameter.parameter}
        for reader, _ in parameter.parameter.uses():
            if reader not in followed:
                graph.lock(Channels(0, parameter.atoms), f"weights shared with '{reader.name}'")
    return graph


def _unknown(graph: ChannelGraph, node: ir.Node) -> None:
    inner = [
        value
        for attribute in node.attributes.values()
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for subgraph in ([attribute.value] if attribute.type == ir.AttributeType.GRAPH else attribute.value)
        for inner_node in subgraph.all_nodes()
        for value in inner_node.inputs
    ]
    reason = f"no rule for {node.op_type} ('{node.name}')"
    for value in (*node.inputs, *inner):
        if (channels := graph.channels(value)) is not None:
            graph.lock(channels, reason)
            graph.unknown[str(node.name)] = node.op_type
    for value in node.outputs:
        graph.hand_on(value, None, reason)


# --- layers: operators whose filters start channels ----------------------------------------------


def _start_layer(
    graph: ChannelGraph,
    node: ir.Node,
    filter_axis: int,
    filters: Atoms,
    output: Channels,
    bias: ir.Value | None,
) -> None:
    weight = graph.parameter(_constant(node.inputs[1]), filter_axis, filters, node)
    bias_axis = None
    if bias is not None:
        shape = graph.shape(_constant(bias))
        if shape and shape[-1] == len(output.atoms):
            bias_axis = graph.parameter(bias, len(shape) - 1, output.atoms, node)
        elif math.prod(shape) != 1:
            raise NoRuleError
    graph.layers.append(Layer(node, output.atoms, weight, bias_axis))
    graph.hand_on(node.outputs[0], output)


def _read(graph: ChannelGraph, node: ir.Node, axis: int) -> Atoms | None:
    """The atoms that a layer reads along an axis of its first input, None when they are fixed."""
    channels = graph.channels(node.inputs[0])
    if channels is None:
        return None
    if channels.axis != axis:
        raise NoRuleError
    return channels.atoms


@rule("Conv", "ConvTranspose")
def convolution(graph: ChannelGraph, node: ir.Node) -> None:
    """Filters start channels; weights follow what is read. Groups are cut alike; depthwise goes along."""
    transposed = node.op_type == "ConvTranspose"
    groups = _int(node, "group", 1)
    weight = _constant(node.inputs[1])
    bias = _optional(node, 2)
    shape = graph.shape(weight)
    into = shape[0] if transposed else shape[1] * groups
    out = shape[1] * groups if transposed else shape[0]
    atoms = _read(graph, node, 1)
    if groups > 1 and into == groups:
        _depthwise(graph, node, atoms, out // groups, weight, bias)
        return
    if atoms is not None:
        by_group = atoms.reshape(groups, -1)
        for other in by_group[1:]:
            graph.tie(by_group[0], other)
        graph.parameter(weight, 0 if transposed else 1, atoms if transposed else by_group[0], node)
    filters = graph.start(out // groups)
    output = Channels(1, np.tile(filters, groups))
    if transposed:
        _start_layer(graph, node, 1, filters, output, bias)
    else:
        _start_layer(graph, node, 0, output.atoms, output, bias)


def _depthwise(
    graph: ChannelGraph,
    node: ir.Node,
    atoms: Atoms | None,
    multiplier: int,
    weight: ir.Value,
    bias: ir.Value | None,
) -> None:
    if atoms is None:
        graph.hand_on(node.outputs[0], None, graph.fixed(node.inputs[0]))
        return
    if node.op_type == "ConvTranspose" and multiplier > 1:
        raise NoRuleError
    filters = np.repeat(atoms, multiplier)
    graph.parameter(weight, 0, filters, node)
    if bias is not None:
        graph.parameter(_constant(bias), 0, filters, node)
    graph.hand_on(node.outputs[0], Channels(1, filters))

    def shrink(keep: Keep) -> None:
        node.attributes["group"] = ir.AttrInt64("group", int(keep(atoms).sum()))

    graph.edit(shrink)


@rule("Gemm")
def gemm(graph: ChannelGraph, node: ir.Node) -> None:
    """A fully connected layer: neurons start channels."""
    if _int(node, "transA", 0):
        raise NoRuleError
    transposed = _int(node, "transB", 0)
    weight = _constant(node.inputs[1])
    if (atoms := _read(graph, node, 1)) is not None:
        graph.parameter(weight, 1 if transposed else 0, atoms, node)
    filter_axis = 0 if transposed else 1
    neurons = graph.start(graph.shape(weight)[filter_axis])
    _start_layer(graph, node, filter_axis, neurons, Channels(1, neurons), _optional(node, 2))


@rule("MatMul")
def matmul(graph: ChannelGraph, node: ir.Node) -> None:
    """Like Gemm, along the last axis of an input of any rank, by a constant matrix on the right."""
    weight = _constant(node.inputs[1])
    rank = len(graph.shape(node.inputs[0]))
    if len(graph.shape(weight)) != 2:
        raise NoRuleError
    if (atoms := _read(graph, node, rank - 1)) is not None:
        graph.parameter(weight, 0, atoms, node)
    neurons = graph.start(graph.shape(weight)[1])
    _start_layer(graph, node, 1, neurons, Channels(rank - 1, neurons), None)


# --- operators that hand channels on --------------------------------------------------------------


def _hand_on_same(graph: ChannelGraph, node: ir.Node) -> None:
    channels = graph.channels(node.inputs[0])
    for output in node.outputs:
        graph.hand_on(output, channels, graph.fixed(node.inputs[0]))


@rule(
    *(
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
    ),
    *("Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf"),
    *("IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid"),
    *("Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
def unary(graph: ChannelGraph, node: ir.Node) -> None:
    """Elementwise functions of one tensor."""
    _hand_on_same(graph, node)


@rule(
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"),
    *("BatchNormalization", "InstanceNormalization"),
)
def per_channel(graph: ChannelGraph, node: ir.Node) -> None:
    """Operators that work on each channel of axis 1 by itself; weights, if any, lie along it."""
    channels = graph.channels(node.inputs[0])
    if channels is not None and channels.axis != 1:
        raise NoRuleError
    for weight in node.inputs[1:]:
        if channels is not None and weight is not None:
            graph.parameter(_constant(weight), 0, channels.atoms, node)
    _hand_on_same(graph, node)


@rule(
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min"),
    *("Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
def elementwise(graph: ChannelGraph, node: ir.Node) -> None:
    """Operands are broadcast together: their channels are tied, constants follow."""
    operands = [value for value in node.inputs if value is not None]
    rank = len(graph.shape(node.outputs[0]))
    aligned = [
        (value, channels, channels.axis + rank - len(graph.shape(value)))
        for value in operands
        if (channels := graph.channels(value)) is not None
    ]
    if not aligned:
        graph.hand_on(node.outputs[0], None, graph.fixed(operands[0]))
        return
    axis = max(aligned, key=lambda entry: len(entry[1].atoms))[2]
    size = graph.shape(node.outputs[0])[axis]
    leading = next((c for _, c, a in aligned if a == axis and len(c.atoms) == size), None)
    if leading is None:
        raise NoRuleError
    for value in operands:
        channels = graph.channels(value)
        own_axis = axis - rank + len(graph.shape(value))
        own_size = graph.shape(value)[own_axis] if own_axis >= 0 else 1
        if channels is not None and (channels.axis != own_axis or own_size != size):
            graph.lock(channels, f"broadcast by {node.op_type} ('{node.name}')")
            if channels.axis != own_axis and own_size == size and size > 1:
                graph.lock(leading, f"meets channels of another axis at {node.op_type} ('{node.name}')")
        elif channels is not None:
            graph.tie(leading.atoms, channels.atoms)
        elif own_size == size and own_axis >= 0:
            if weights_of(value) is not None:
                graph.parameter(value, own_axis, leading.atoms, node)
            else:
                graph.lock(leading, f"{node.op_type} ('{node.name}') with {graph.fixed(value)}")
    graph.hand_on(node.outputs[0], Channels(axis, leading.atoms))


@rule("Concat")
def concat(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: one after the other. Along another axis: the inputs' channels are tied."""
    axis = _axis(node, "axis", 0, len(graph.shape(node.outputs[0])))
    inputs = [value for value in node.inputs if value is not None]
    given = [graph.channels(value) for value in inputs]
    others = {channels.axis for channels in given if channels is not None}
    if not others:
        graph.hand_on(node.outputs[0], None, graph.fixed(inputs[0]))
    elif others == {axis}:
        pieces = []
        for value, channels in zip(inputs, given, strict=True):
            if channels is None:
                fixed = Channels(axis, graph.start(graph.shape(value)[axis]))
                graph.lock(fixed, graph.fixed(value))
                if weights_of(value) is not None:
                    graph.parameter(value, axis, fixed.atoms, node)
                channels = fixed
            pieces.append(channels.atoms)
        graph.hand_on(node.outputs[0], Channels(axis, np.concatenate(pieces)))
    elif len(others) == 1 and None not in given:
        first, *rest = [channels for channels in given if channels is not None]
        for channels in rest:
            graph.tie(first.atoms, channels.atoms)
        graph.hand_on(node.outputs[0], first)
    else:
        raise NoRuleError


@rule("Split")
def split(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: each output has its part, and the sizes follow."""
    channels = graph.channels(node.inputs[0])
    axis = _axis(node, "axis", 0, len(graph.shape(node.inputs[0])))
    if channels is None or channels.axis != axis:
        _hand_on_same(graph, node)
        return
    sizes = [graph.shape(value)[axis] for value in node.outputs]
    parts = np.split(channels.atoms, np.cumsum(sizes)[:-1])
    for value, part in zip(node.outputs, parts, strict=True):
        graph.hand_on(value, Channels(axis, part))

    def resize(keep: Keep) -> None:
        kept = [int(keep(part).sum()) for part in parts]
        if "split" in node.attributes:
            node.attributes["split"] = ir.AttrInt64s("split", kept)
        else:
            node.attributes.pop("num_outputs", None)
            node.resize_inputs(2)
            node.replace_input_with(1, _new_constant(node, "split", np.array(kept, np.int64)))

    if len(node.inputs) > 1 and node.inputs[1] is not None:
        _constant(node.inputs[1])
    graph.edit(resize)


@rule("Transpose")
def transpose(graph: ChannelGraph, node: ir.Node) -> None:
    """The channels move to another axis."""
    channels = graph.channels(node.inputs[0])
    rank = len(graph.shape(node.inputs[0]))
    permutation = (
        list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(rank))[::-1]
    )
    moved = None if channels is None else Channels(permutation.index(channels.axis), channels.atoms)
    graph.hand_on(node.outputs[0], moved, graph.fixed(node.inputs[0]))


@rule("Flatten", "Squeeze", "Unsqueeze")
def flatten(graph: ChannelGraph, node: ir.Node) -> None:
    """The same elements in the same order under another shape."""
    graph.hand_on(node.outputs[0], _reinterpret(graph, node), graph.fixed(node.inputs[0]))


@rule("Reshape")
def reshape(graph: ChannelGraph, node: ir.Node) -> None:
    """As Flatten; the constant that holds the new shape follows the channels."""
    channels = _reinterpret(graph, node)
    graph.hand_on(node.outputs[0], channels, graph.fixed(node.inputs[0]))
    if channels is None:
        return
    target = weights_of(node.inputs[1])
    if target is None:
        raise NoRuleError
    axis, atoms = channels.axis, channels.atoms

    def follow(keep: Keep) -> None:
        if target[axis] > 0:
            changed = target.copy()
            changed[axis] = keep(atoms).sum()
            node.replace_input_with(1, _new_constant(node, "shape", changed))

    graph.edit(follow)


def _reinterpret(graph: ChannelGraph, node: ir.Node) -> Channels | None:
    """Channels of a tensor whose elements keep their row-major order under another shape.

    Axes of both shapes are matched in the shortest blocks of equal size. Where the block of the channels
    becomes several axes, the channels are tied so that whole indices of one of these axes can go.
    """
    channels = graph.channels(node.inputs[0])
    if channels is None:
        return None
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    start_before, end_before, start_after, end_after = _block(before, after, channels.axis)
    old, new = before[start_before:end_before], after[start_after:end_after]
    view = [1] * len(old)
    view[channels.axis - start_before] = -1
    atoms = np.broadcast_to(channels.atoms.reshape(view), old).reshape(new)
    wide = [axis for axis, size in enumerate(new) if size > 1] or [len(new) - 1]
    # A split in two is a channel shuffle (groups × members): members go. In more, (C, H, W): channels go.
    kept = max(wide, key=lambda axis: (new[axis], axis)) if len(wide) == 2 else wide[0]
    lines = np.moveaxis(atoms, kept, 0).reshape(new[kept], -1)
    if len(wide) > 1:
        for other in lines.T[1:]:
            graph.tie(lines[:, 0], other)
    return Channels(start_after + kept, np.ascontiguousarray(lines[:, 0]))


def _block(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> tuple[int, int, int, int]:
    """The shortest runs of axes, one of each shape, that hold the same elements and contain an axis."""
    i = j = 0
    while i < len(before):
        start_i, start_j = i, j
        size_before, size_after = before[i], after[j] if j < len(after) else 1
        i, j = i + 1, min(j + 1, len(after))
        while size_before != size_after:
            if size_before < size_after and i < len(before):
                size_before, i = size_before * before[i], i + 1
            elif j < len(after):
                size_after, j = size_after * after[j], j + 1
            else:
                raise NoRuleError
        if start_i <= axis < i and start_j < j:
            return start_i, i, start_j, j
    raise NoRuleError


@rule("Pad")
def pad(graph: ChannelGraph, node: ir.Node) -> None:
    """Around the other axes only."""
    channels = graph.channels(node.inputs[0])
    if channels is not None:
        rank = len(graph.shape(node.inputs[0]))
        given = node.attributes["pads"].as_ints() if "pads" in node.attributes else _array(node.inputs[1])
        axes = _array(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else range(rank)
        pads = np.reshape(given, (2, -1))[:, [axis % rank == channels.axis for axis in axes]]
        if pads.any():
            raise NoRuleError
    _hand_on_same(graph, node)


@rule("Resize", "Upsample")
def resample(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the other axes only; sizes that count the channels follow."""
    channels = graph.channels(node.inputs[0])
    if channels is None:
        _hand_on_same(graph, node)
        return
    axis, atoms = channels.axis, channels.atoms
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    region = _optional(node, 1) if len(node.inputs) > 2 else None
    if before[axis] != after[axis] or (region is not None and _array(region).size):
        raise NoRuleError
    _hand_on_same(graph, node)
    if (sizes := _optional(node, 3)) is None:
        return
    given, rank = _array(sizes), len(before)
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else range(rank)

    def follow(keep: Keep) -> None:
        counted = [
            int(keep(atoms).sum()) if each % rank == axis else int(size)
            for each, size in zip(axes, given, strict=True)
        ]
        node.replace_input_with(3, _new_constant(node, "sizes", np.array(counted, np.int64)))

    graph.edit(follow)


@rule(
    *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
    *("ReduceL1", "ReduceL2"),
)
def reduction(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the other axes: the channels stay, perhaps on another axis. Over the channels: they are kept."""
    channels = graph.channels(node.inputs[0])
    if channels is None:
        _hand_on_same(graph, node)
        return
    rank = len(graph.shape(node.inputs[0]))
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = _array(node.inputs[1]).tolist()
    else:
        axes = list(range(rank))
    axes = [axis % rank for axis in axes]
    if channels.axis in axes:
        _keep_whole(graph, node, channels)
    else:
        lost = 0 if _int(node, "keepdims", 1) else sum(axis < channels.axis for axis in axes)
        graph.hand_on(node.outputs[0], Channels(channels.axis - lost, channels.atoms))


@rule("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin")
def over_an_axis(graph: ChannelGraph, node: ir.Node) -> None:
    """Operators in which all elements along an axis take part."""
    channels = graph.channels(node.inputs[0])
    if channels is None:
        _hand_on_same(graph, node)
        return
    rank = len(graph.shape(node.inputs[0]))
    arg = node.op_type.startswith("Arg")
    since_13 = (node.graph.opset_imports.get("", 13) if node.graph is not None else 13) >= 13
    axis = _axis(node, "axis", 0 if arg else -1 if since_13 else 1, rank)
    if channels.axis == axis or (not arg and not since_13 and channels.axis >= axis):
        _keep_whole(graph, node, channels)
    else:
        lost = arg and not _int(node, "keepdims", 1) and axis < channels.axis
        graph.hand_on(node.outputs[0], Channels(channels.axis - int(lost), channels.atoms))


@rule("LRN")
def local_response_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Neighbours count by their position: once channels go, it is written as a band of weights."""
    channels = graph.channels(node.inputs[0])
    _hand_on_same(graph, node)
    if channels is None:
        return
    if channels.axis != 1:
        raise NoRuleError
    atoms = channels.atoms

    def to_band(keep: Keep) -> None:
        kept = keep(atoms)
        if not kept.all():
            write_as_band(node, kept)

    graph.edit(to_band)


def _keep_whole(graph: ChannelGraph, node: ir.Node, channels: Channels) -> None:
    reason = f"{node.op_type} over the channels ('{node.name}')"
    graph.lock(channels, reason)
    for output in node.outputs:
        graph.hand_on(output, None, reason)


# --- reading nodes --------------------------------------------------------------------------------


def _int(node: ir.Node, attribute: str, default: int) -> int:
    return node.attributes[attribute].as_int() if attribute in node.attributes else default


def _axis(node: ir.Node, attribute: str, default: int, rank: int) -> int:
    return _int(node, attribute, default) % rank


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _constant(value: ir.Value | None) -> ir.Value:
    if value is None or weights_of(value) is None:
        raise NoRuleError
    return value


def _array(value: ir.Value | None) -> np.ndarray:
    return np.asarray(weights_of(_constant(value)))


def _new_constant(node: ir.Node, suffix: str, array: np.ndarray) -> ir.Value:
    assert node.graph is not None
    value = ir.val(f"{node.name}.{suffix}", const_value=ir.tensor(array, name=f"{node.name}.{suffix}"))
    node.graph.initializers[str(value.name)] = value
    return value
