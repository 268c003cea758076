"""What each operator does to channels. To support another operator, add a function here:

    @rule("Mish")
    def mish(graph, node):
        graph.hand_on(node.outputs[0], graph.atoms(node.inputs[0]))

A rule reads the atoms of the inputs (`atoms`; `along` an axis, which ties those that differ along others)
and says which atoms the outputs have (`hand_on`), what must be cut together (`tie`), what may not be cut
(`lock`), which weights follow (`parameter`) and what else changes (`edit`). It raises `NoRuleError` where
the node is of a form that it does not know; the node is then treated as unknown: all that reaches it is
kept whole.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.model import weights_of
from onnxcompress.pruning.channels import Atoms, ChannelGraph, Keep, Layer, NoRuleError
from onnxcompress.pruning.importance import relative_norms
from onnxcompress.pruning.lrn import write_as_band
from onnxcompress.runtime import FREE_SIZE
from onnxcompress.shapes import concrete_shapes

Rule = Callable[[ChannelGraph, ir.Node], None]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators of the standard domain."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def analyse(model: ir.Model, importance: Callable[[Layer], np.ndarray] = relative_norms) -> ChannelGraph:
    """Follow the channels through a network.

    Args:
        model: a simplified network. `ChannelGraph.edits` and parameters refer to this very object.
        importance: of a layer's filters, shape (M,). Where channels could be cut in one way or another (whole
            groups of a grouped convolution, or alike in every group), the way in which less is lost is taken.
    """
    graph = ChannelGraph(concrete_shapes(model), concrete_shapes(model, batch=2, size=FREE_SIZE + 32))
    for value in model.graph.inputs:
        graph.hand_on(value, None, "the network's input")
    for node in model.graph:
        try:
            if node.domain or node.op_type not in RULES:
                raise NoRuleError
            RULES[node.op_type](graph, node)
        except NoRuleError as error:
            _unknown(graph, node, str(error))
    for value in model.graph.outputs:
        graph.lock(graph.atoms(value), "the network's output")
    _lock_weights_with_other_readers(graph)
    graph.settle(importance)
    return graph


def _unknown(graph: ChannelGraph, node: ir.Node, what: str) -> None:
    captured = [
        value
        for attribute in node.attributes.values()
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for subgraph in ([attribute.value] if attribute.type == ir.AttributeType.GRAPH else attribute.value)
        for inner_node in subgraph.all_nodes()
        for value in inner_node.inputs
    ]
    reason = (
        f"{node.op_type} ('{node.name}'): {what}" if what else f"no rule for {node.op_type} ('{node.name}')"
    )
    for value in (*node.inputs, *captured):
        if (atoms := graph.atoms(value)) is not None:
            graph.lock(atoms, reason)
            graph.unknown[str(node.name)] = node.op_type
    for value in node.outputs:
        graph.hand_on(value, None, reason)


def _lock_weights_with_other_readers(graph: ChannelGraph) -> None:
    followed: dict[ir.Value, set[ir.Node]] = {}
    for entry in graph.parameters:
        followed.setdefault(entry.parameter, set()).add(entry.node)
    for entry in graph.parameters:
        for reader, _ in entry.parameter.uses():
            if reader not in followed[entry.parameter]:
                graph.lock(entry.atoms, f"weights shared with '{reader.name}'")


# --- layers: operators whose filters start channels ----------------------------------------------


@rule("Conv", "ConvTranspose")
def convolution(graph: ChannelGraph, node: ir.Node) -> None:
    """Filters start channels; weights follow what is read. Depthwise ones hand their channels on.

    Of a grouped convolution either whole groups go, or filters (and input channels) alike in every group.
    """
    transposed = node.op_type == "ConvTranspose"
    groups = _int(node, "group", 1)
    weight = _constant(node.inputs[1])
    first, second = graph.shape(weight)[:2]
    into, out = (first, second * groups) if transposed else (second * groups, first)
    atoms = graph.along(node.inputs[0], 1)
    if groups > 1 and into == groups:
        _depthwise(graph, node, atoms, out // groups, weight)
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
    _start_layer(graph, node, filters, 1, _optional(node, 2))


def _depthwise(
    graph: ChannelGraph, node: ir.Node, atoms: Atoms | None, multiplier: int, weight: ir.Value
) -> None:
    if atoms is None:
        graph.hand_on(node.outputs[0], None, graph.fixed(node.inputs[0]))
        return
    filters = np.repeat(atoms, multiplier)
    graph.parameter(weight, 0, atoms if node.op_type == "ConvTranspose" else filters, node)
    if (bias := _optional(node, 2)) is not None:
        graph.parameter(_constant(bias), 0, filters, node)
    graph.hand_on(node.outputs[0], _on_axis(filters, 1, len(graph.shape(node.outputs[0]))))
    graph.edit(lambda keep: _set_groups(node, keep(atoms)[:, None]))


def _set_groups(node: ir.Node, kept: np.ndarray) -> None:
    """The groups of a convolution are those of which something is kept: shape (groups, channels)."""
    node.attributes["group"] = ir.AttrInt64("group", int(kept.any(axis=1).sum()))


@rule("Gemm")
def gemm(graph: ChannelGraph, node: ir.Node) -> None:
    """A fully connected layer: neurons start channels. Channels that lie along its rows pass."""
    if weights_of(node.inputs[1]) is None:
        raise NoRuleError("its weights are not constant")
    weight = _constant(node.inputs[1])
    transposed = _int(node, "transB", 0)
    summed = 0 if _int(node, "transA", 0) else 1
    given = graph.atoms(node.inputs[0])
    if given is not None and given.shape[summed] == 1 < given.size:
        _hand_on_rows(graph, node, given.ravel())
        return
    if (atoms := graph.along(node.inputs[0], summed)) is not None:
        graph.parameter(weight, 1 if transposed else 0, atoms, node)
    filter_axis = 0 if transposed else 1
    neurons = graph.start(graph.shape(weight)[filter_axis])
    graph.parameter(weight, filter_axis, neurons, node)
    _start_layer(graph, node, neurons, 1, _optional(node, 2))


def _hand_on_rows(graph: ChannelGraph, node: ir.Node, rows: Atoms) -> None:
    bias = _optional(node, 2)
    if bias is not None and len(graph.shape(bias)) == 2 and graph.shape(bias)[0] > 1:
        graph.parameter(_constant(bias), 0, rows, node)
    _hand_on(graph, node, _on_axis(rows, 0, 2))


@rule("MatMul")
def matmul(graph: ChannelGraph, node: ir.Node) -> None:
    """By a constant matrix, on either side: its columns (rows) start channels along the last (but one) axis.

    Channels along another axis than the one that is summed over pass, and none are started.
    """
    constant = next((index for index in (1, 0) if weights_of(node.inputs[index]) is not None), None)
    if constant is None:
        raise NoRuleError("a product of two activations is kept whole")
    weight, data = _constant(node.inputs[constant]), node.inputs[1 - constant]
    rank = len(graph.shape(data))
    if len(graph.shape(weight)) != 2 or rank < 2:
        raise NoRuleError("only constant matrices are covered")
    summed, new = (rank - 1, rank - 1) if constant == 1 else (rank - 2, rank - 2)
    atoms = graph.atoms(data)
    if atoms is not None and atoms.shape[summed] == 1 < atoms.size:
        graph.hand_on(node.outputs[0], atoms)
        return
    if (read := graph.along(data, summed)) is not None:
        graph.parameter(weight, 1 - constant, read, node)
    neurons = graph.start(graph.shape(weight)[constant])
    graph.parameter(weight, constant, neurons, node)
    _start_layer(graph, node, neurons, new, None)


def _start_layer(graph: ChannelGraph, node: ir.Node, atoms: Atoms, axis: int, bias: ir.Value | None) -> None:
    output = _on_axis(atoms, axis, len(graph.shape(node.outputs[0])))
    if bias is not None:
        shape = graph.shape(_constant(bias))
        if shape and shape[-1] == len(atoms):
            graph.parameter(bias, len(shape) - 1, atoms, node)
        elif math.prod(shape) != 1:
            raise NoRuleError("its bias does not fit")
    graph.layers.append(Layer(node, atoms, lambda: _filters(node)))
    graph.hand_on(node.outputs[0], output)


def _filters(node: ir.Node) -> np.ndarray:
    constant = 1 if weights_of(node.inputs[1]) is not None else 0
    weight = _array(node.inputs[constant]).astype(np.float64)
    if node.op_type == "ConvTranspose":
        groups = _int(node, "group", 1)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        weight = np.moveaxis(by_group, 2, 1).reshape(groups * weight.shape[1], -1)
    elif constant == 1 and node.op_type != "Conv" and not _int(node, "transB", 0):
        weight = weight.T
    rows = weight.reshape(len(weight), -1)
    bias = _optional(node, 2)
    if bias is not None and _array(bias).size % len(rows) == 0:
        return np.hstack([rows, _array(bias).astype(np.float64).reshape(-1, len(rows)).T])
    return rows


@rule("LSTM", "GRU", "RNN")
def recurrent(graph: ChannelGraph, node: ir.Node) -> None:
    """Reads channels along the last axis; its own states are kept whole."""
    if (atoms := graph.along(node.inputs[0], 2)) is not None:
        graph.parameter(_constant(node.inputs[1]), 2, atoms, node)
    for value in node.inputs[3:]:
        graph.lock(graph.atoms(value), f"read by {node.op_type} ('{node.name}')")
    for value in node.outputs:
        graph.hand_on(value, None, f"states of {node.op_type} ('{node.name}')")


# --- functions of single elements -----------------------------------------------------------------


@rule(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil"),
    *("Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
    *("HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal"),
    *("Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt"),
    *("Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
def unary(graph: ChannelGraph, node: ir.Node) -> None:
    """Elementwise functions of one tensor."""
    for value in node.inputs[1:]:
        graph.lock(graph.atoms(value), f"a parameter of {node.op_type} ('{node.name}')")
    _hand_on(graph, node, graph.atoms(node.inputs[0]))


@rule(
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow"),
    *("Sub", "Sum", "Where", "Xor"),
)
def elementwise(graph: ChannelGraph, node: ir.Node) -> None:
    """Operands are broadcast together: their channels are tied, constants follow."""
    operands = [value for value in node.inputs if value is not None]
    rank = len(graph.shape(node.outputs[0]))
    shapes = [(1,) * (rank - len(graph.shape(value))) + graph.shape(value) for value in operands]
    given = [graph.atoms(value) for value in operands]
    aligned = [
        None if atoms is None else atoms.reshape((1,) * (rank - atoms.ndim) + atoms.shape) for atoms in given
    ]
    result = max((atoms for atoms in aligned if atoms is not None), key=np.size, default=None)
    if result is None:
        _hand_on(graph, node, None)
        return
    varying = [axis for axis in range(rank) if result.shape[axis] > 1]
    here = f"{node.op_type} ('{node.name}')"
    for value, shape, atoms in zip(operands, shapes, aligned, strict=True):
        fixed_axes = [axis for axis in varying if shape[axis] > 1]
        if atoms is not None and _fits(atoms, result):
            graph.tie(atoms, result)
        elif atoms is not None:
            graph.lock(atoms, f"broadcast by {here}")
            if fixed_axes:
                graph.lock(result, f"meets channels of another axis at {here}")
        elif weights_of(value) is None:
            if fixed_axes:
                graph.lock(result, f"{here} with {graph.fixed(value)}")
        else:
            _follow_constant(graph, node, value, result, fixed_axes)
    _hand_on(graph, node, result)


def _fits(atoms: Atoms, result: Atoms) -> bool:
    return all(size in (1, other) for size, other in zip(atoms.shape, result.shape, strict=True))


def _follow_constant(
    graph: ChannelGraph, node: ir.Node, value: ir.Value, atoms: Atoms, axes: Iterable[int]
) -> None:
    """A constant operand, broadcast against atoms, follows along these axes (counted in the atoms' rank)."""
    for axis in axes:
        lines = np.moveaxis(atoms, axis, -1).reshape(-1, atoms.shape[axis])
        graph.parameter(value, axis - atoms.ndim + len(graph.shape(value)), lines, node)


# --- functions of each channel by itself, and of all together -------------------------------------


@rule(
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"),
    *("BatchNormalization", "GridSample", "RoiAlign", "MaxRoiPool"),
)
def per_channel(graph: ChannelGraph, node: ir.Node) -> None:
    """Operators that work on each channel of axis 1 by itself; weights, if any, lie along it."""
    first = graph.along(node.inputs[0], 1)
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        raise NoRuleError("its indices count the channels")
    for value in node.inputs[1:]:
        graph.lock(graph.atoms(value), f"a parameter of {node.op_type} ('{node.name}')")
        if first is not None and node.op_type == "BatchNormalization":
            graph.parameter(_constant(value), 0, first, node)
    _hand_on(graph, node, graph.atoms(node.inputs[0]))


@rule("InstanceNormalization")
def instance_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Over all axes but the first two. After a Reshape to groups, as which GroupNormalization is exported,
    whole groups go."""
    rank = len(graph.shape(node.inputs[0]))
    _keep_shape_mixed(graph, node, list(range(2, rank)))
    if graph.atoms(node.outputs[0]) is not None and (first := graph.along(node.inputs[0], 1)) is not None:
        for value in node.inputs[1:]:
            graph.parameter(_constant(value), 0, first, node)


@rule("GroupNormalization")
def group_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Whole groups go, so that the statistics of the others do not change."""
    atoms = graph.along(node.inputs[0], 1)
    if atoms is not None:
        by_group = atoms.reshape(_int(node, "num_groups", 1), -1)
        graph.tie(by_group[:, :1], by_group)
        if len(by_group) == 1:
            graph.lock(atoms, f"normalized together ('{node.name}')")
        for value in node.inputs[1:]:
            per_group = graph.shape(value)[0] < len(atoms)
            graph.parameter(_constant(value), 0, by_group.T if per_group else atoms, node)

        def shrink(keep: Keep) -> None:
            count = int(keep(by_group).any(axis=1).sum())
            node.attributes["num_groups"] = ir.AttrInt64("num_groups", count)

        graph.edit(shrink)
    _hand_on(graph, node, graph.atoms(node.inputs[0]))


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def sum_reduction(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the channels: what is removed counts as zero."""
    atoms = graph.atoms(node.inputs[0])
    axes = _reduced_axes(graph, node)
    if atoms is not None and all(atoms.shape[axis] == 1 for axis in range(atoms.ndim) if axis not in axes):
        _hand_on(graph, node, None, f"{node.op_type} over the channels ('{node.name}')")
    else:
        reduction(graph, node)


@rule("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def reduction(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the other axes: the channels stay, perhaps on another axis. Over the channels: they are kept."""
    axes = _reduced_axes(graph, node)
    atoms = _mix(graph, node, axes)
    if atoms is not None and not _int(node, "keepdims", 1):
        atoms = atoms.squeeze(tuple(axes))
    _hand_on(graph, node, atoms)


def _reduced_axes(graph: ChannelGraph, node: ir.Node) -> list[int]:
    rank = len(graph.shape(node.inputs[0]))
    axes = _ints(node, "axes", range(rank), 1)
    return sorted(axis % rank for axis in (axes if len(axes) else range(rank)))


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(graph: ChannelGraph, node: ir.Node) -> None:
    """Over an axis; before opset 13 over all axes from it on."""
    rank = len(graph.shape(node.inputs[0]))
    if _opset(node) >= 13:
        axes = [_axis(node, "axis", -1, rank)]
    else:
        axes = list(range(_axis(node, "axis", 1, rank), rank))
    _keep_shape_mixed(graph, node, axes)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the axes from one on."""
    rank = len(graph.shape(node.inputs[0]))
    _keep_shape_mixed(graph, node, list(range(_axis(node, "axis", -1, rank), rank)))


@rule("MeanVarianceNormalization")
def mean_variance_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Over given axes."""
    rank = len(graph.shape(node.inputs[0]))
    _keep_shape_mixed(graph, node, [axis % rank for axis in _ints(node, "axes", (0, 2, 3))])


@rule("CumSum", "LpNormalization", "TopK")
def over_an_axis(graph: ChannelGraph, node: ir.Node) -> None:
    """Operators in which all elements along an axis take part."""
    rank = len(graph.shape(node.inputs[0]))
    axis = _array(node.inputs[1]).item() if node.op_type == "CumSum" else _int(node, "axis", -1)
    _keep_shape_mixed(graph, node, [axis % rank])


@rule("ArgMax", "ArgMin")
def arg(graph: ChannelGraph, node: ir.Node) -> None:
    """As a reduction over one axis."""
    axis = _axis(node, "axis", 0, len(graph.shape(node.inputs[0])))
    atoms = _mix(graph, node, [axis])
    _hand_on(graph, node, atoms if atoms is None or _int(node, "keepdims", 1) else atoms.squeeze(axis))


def _mix(graph: ChannelGraph, node: ir.Node, axes: list[int]) -> Atoms | None:
    """All elements along these axes take part in each result: they are cut together or, if all, kept."""
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        return None
    first = atoms[tuple(slice(1) if axis in axes else slice(None) for axis in range(atoms.ndim))]
    graph.tie(first, atoms)
    if first.size == 1 < atoms.size:
        graph.lock(atoms, f"{node.op_type} over the channels ('{node.name}')")
        return None
    return first


def _keep_shape_mixed(graph: ChannelGraph, node: ir.Node, axes: list[int]) -> None:
    mixed = _mix(graph, node, axes)
    atoms = None if mixed is None else graph.atoms(node.inputs[0])
    _hand_on(graph, node, atoms, f"{node.op_type} over the channels ('{node.name}')")


@rule("LRN")
def local_response_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Neighbours count by their position: once channels go, it is written as a band of weights."""
    atoms = graph.along(node.inputs[0], 1)
    _hand_on(graph, node, graph.atoms(node.inputs[0]))

    def to_band(keep: Keep) -> None:
        if atoms is not None and not (kept := keep(atoms)).all():
            write_as_band(node, kept)

    graph.edit(to_band)


# --- operators that move elements -----------------------------------------------------------------


@rule("Concat")
def concat(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: one after the other. Along another axis: the inputs' channels are tied."""
    rank = len(graph.shape(node.outputs[0]))
    axis = _axis(node, "axis", 0, rank)
    inputs = [value for value in node.inputs if value is not None]
    given = [atoms for value in inputs if (atoms := graph.atoms(value)) is not None]
    others = sorted({each for atoms in given for each in range(rank) if atoms.shape[each] > 1} - {axis})
    if not given:
        _hand_on(graph, node, None)
    elif others:
        _concat_across(graph, node, inputs, max(given, key=np.size), axis, others)
    else:
        pieces = []
        for value in inputs:
            atoms, size = graph.atoms(value), graph.shape(value)[axis]
            if atoms is None:
                atoms = _on_axis(graph.start(size), axis, rank)
                if weights_of(value) is None:
                    graph.lock(atoms, graph.fixed(value))
                else:
                    graph.parameter(value, axis, atoms.ravel(), node)
            pieces.append(atoms)
        _hand_on(graph, node, np.concatenate(pieces, axis))


def _concat_across(
    graph: ChannelGraph, node: ir.Node, inputs: list[ir.Value], first: Atoms, axis: int, others: list[int]
) -> None:
    for value in inputs:
        atoms = graph.atoms(value)
        if first.shape[axis] > 1 or (atoms is not None and atoms.shape != first.shape):
            raise NoRuleError("its channels lie along several axes")
        if atoms is not None:
            graph.tie(first, atoms)
        elif weights_of(value) is not None:
            _follow_constant(graph, node, value, first, others)
        else:
            graph.lock(first, f"Concat ('{node.name}') with {graph.fixed(value)}")
    _hand_on(graph, node, first)


@rule("Split")
def split(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: each output has its part, and the sizes follow."""
    atoms = graph.atoms(node.inputs[0])
    axis = _axis(node, "axis", 0, len(graph.shape(node.inputs[0])))
    if atoms is None or atoms.shape[axis] == 1:
        _hand_on(graph, node, atoms)
        return
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        _constant(node.inputs[1])
    sizes = [graph.shape(value)[axis] for value in node.outputs]
    parts = np.split(atoms, np.cumsum(sizes)[:-1], axis)
    for value, part in zip(node.outputs, parts, strict=True):
        graph.hand_on(value, part)

    def resize(keep: Keep) -> None:
        kept = [int(_kept(keep, part, axis).sum()) for part in parts]
        if "split" in node.attributes:
            node.attributes["split"] = ir.AttrInt64s("split", kept)
        elif _opset(node) < 13:
            if len(set(kept)) > 1:
                node.attributes["split"] = ir.AttrInt64s("split", kept)
        else:
            node.attributes.pop("num_outputs", None)
            node.resize_inputs(2)
            node.replace_input_with(1, _new_constant(node, "split", np.array(kept, np.int64)))

    graph.edit(resize)


@rule("Slice")
def slice_(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: those in the range, which follows; where it has steps, a Gather comes before."""
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        _hand_on(graph, node, None)
        return
    sizes = graph.shape(node.inputs[0])
    axes = [axis % len(sizes) for axis in _ints(node, "axes", range(len(sizes)), 3)]
    cut = [(index, axis) for index, axis in enumerate(axes) if atoms.shape[axis] > 1]
    if not cut:
        _hand_on(graph, node, atoms)
        return
    starts, ends = _ints(node, "starts", (), 1), _ints(node, "ends", (), 2)
    steps = _ints(node, "steps", [1] * len(starts), 4)
    ranges = [range(sizes[axis])[slice(starts[i], ends[i], steps[i])] for i, axis in cut]
    result = atoms
    for (_, axis), taken in zip(cut, ranges, strict=True):
        result = result.take(list(taken), axis)
    _hand_on(graph, node, result)

    def follow(keep: Keep) -> None:
        if keep(atoms).all():
            return
        for (index, axis), taken in zip(cut, ranges, strict=True):
            kept = _kept(keep, atoms, axis)
            if taken.step == 1:
                starts[index], ends[index] = int(kept[: taken.start].sum()), int(kept[: taken.stop].sum())
            else:
                indices = _renumbered(kept, np.array(taken))
                _gather_before(node, indices, axis)
                starts[index], ends[index], steps[index] = 0, len(indices), 1
        _set_ints(node, "starts", 1, starts)
        _set_ints(node, "ends", 2, ends)
        if len(node.inputs) > 4 and node.inputs[4] is not None:
            _set_ints(node, "steps", 4, steps)

    graph.edit(follow)


def _gather_before(node: ir.Node, indices: np.ndarray, axis: int) -> None:
    name = f"{node.name}/gather"
    gather = ir.node(
        "Gather", [node.inputs[0], _new_constant(node, "indices", indices)], {"axis": axis}, name=name
    )
    gather.outputs[0].name = f"{name}:0"
    _graph_of(node).insert_before(node, gather)
    node.replace_input_with(0, gather.outputs[0])


@rule("Gather")
def gather(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: those at constant indices, which follow. Along another axis: any."""
    if (indices_atoms := graph.atoms(node.inputs[1])) is not None:
        graph.lock(indices_atoms, f"indices of Gather ('{node.name}')")
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        _hand_on(graph, node, None)
        return
    axis = _axis(node, "axis", 0, atoms.ndim)
    indices_rank = len(graph.shape(node.inputs[1]))
    if atoms.shape[axis] == 1:
        new = tuple(range(axis, axis + indices_rank))
        _hand_on(graph, node, np.expand_dims(atoms.squeeze(axis), new))
        return
    size = graph.shape(node.inputs[0])[axis]
    indices = _array(node.inputs[1]) % size
    if indices.ndim > 1:
        raise NoRuleError("its indices are a matrix")
    _hand_on(graph, node, atoms.take(indices, axis))

    def follow(keep: Keep) -> None:
        if not (kept := _kept(keep, atoms, axis)).all():
            node.replace_input_with(1, _new_constant(node, "indices", _renumbered(kept, indices)))

    graph.edit(follow)


@rule("Transpose")
def transpose(graph: ChannelGraph, node: ir.Node) -> None:
    """The axes change places."""
    atoms = graph.atoms(node.inputs[0])
    rank = len(graph.shape(node.inputs[0]))
    permutation = _ints(node, "perm", range(rank)[::-1])
    _hand_on(graph, node, None if atoms is None else atoms.transpose(permutation))


@rule("Flatten", "Squeeze", "Unsqueeze")
def flatten(graph: ChannelGraph, node: ir.Node) -> None:
    """The same elements in the same order under another shape."""
    _hand_on(graph, node, _reinterpret(graph, node))


@rule("Reshape")
def reshape(graph: ChannelGraph, node: ir.Node) -> None:
    """As Flatten; the new shape follows the channels."""
    atoms = _reinterpret(graph, node)
    _hand_on(graph, node, atoms)
    _sizes_follow(graph, node, 1, range(len(graph.shape(node.outputs[0]))))


@rule("Expand")
def expand(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the other axes; the new shape follows the channels."""
    atoms = graph.atoms(node.inputs[0])
    rank = len(graph.shape(node.outputs[0]))
    if atoms is not None:
        atoms = atoms.reshape((1,) * (rank - atoms.ndim) + atoms.shape)
    _hand_on(graph, node, atoms)
    _sizes_follow(graph, node, 1, range(rank - graph.shape(node.inputs[1])[0], rank))


@rule("Tile")
def tile(graph: ChannelGraph, node: ir.Node) -> None:
    """Repeats along any axis."""
    atoms = graph.atoms(node.inputs[0])
    if atoms is not None:
        before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
        repeats = [b // a if n > 1 else 1 for a, b, n in zip(before, after, atoms.shape, strict=True)]
        atoms = np.tile(atoms, repeats)
    _hand_on(graph, node, atoms)


@rule("DepthToSpace")
def depth_to_space(graph: ChannelGraph, node: ir.Node) -> None:
    """The channels that become one channel's block of pixels are tied."""
    first = graph.along(node.inputs[0], 1)
    if first is not None:
        block = _int(node, "blocksize", 1) ** 2
        crd = "mode" in node.attributes and node.attributes["mode"].as_string() == "CRD"
        by_pixel = first.reshape(-1, block).T if crd else first.reshape(block, -1)
        graph.tie(by_pixel[:1], by_pixel)
        first = _on_axis(by_pixel[0], 1, 4)
    _hand_on(graph, node, first)


@rule("SpaceToDepth")
def space_to_depth(graph: ChannelGraph, node: ir.Node) -> None:
    """A channel's block of pixels becomes that many channels."""
    first = graph.along(node.inputs[0], 1)
    if first is not None:
        first = _on_axis(np.tile(first, _int(node, "blocksize", 1) ** 2), 1, 4)
    _hand_on(graph, node, first)


@rule("Pad")
def pad(graph: ChannelGraph, node: ir.Node) -> None:
    """Around the other axes; channels of padding, at either end, go with what they are tied to."""
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        _hand_on(graph, node, None)
        return
    axes = [axis % atoms.ndim for axis in _ints(node, "axes", range(atoms.ndim), 3)]
    pads = _ints(node, "pads", (), 1)
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    ends = []
    for index, axis in enumerate(axes):
        before, after = pads[index], pads[index + len(axes)]
        if atoms.shape[axis] == 1 or before == after == 0:
            continue
        if mode != "constant" or min(before, after) < 0 or atoms.size > atoms.shape[axis]:
            raise NoRuleError(f"pads the channels by '{mode}'")
        parts = [graph.start(before), atoms.ravel(), graph.start(after)]
        atoms = _on_axis(np.concatenate(parts), axis, atoms.ndim)
        ends.append((index, parts))
    _hand_on(graph, node, atoms)

    def follow(keep: Keep) -> None:
        changed = list(pads)
        for index, (before, _, after) in ends:
            changed[index], changed[index + len(axes)] = int(keep(before).sum()), int(keep(after).sum())
        _set_ints(node, "pads", 1, changed)

    if ends:
        graph.edit(follow)


@rule("Resize", "Upsample")
def resample(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the other axes; sizes that count the channels follow."""
    atoms = graph.atoms(node.inputs[0])
    _hand_on(graph, node, atoms)
    if atoms is None:
        return
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    region = _optional(node, 1) if len(node.inputs) > 2 else None
    varying = [axis for axis, size in enumerate(atoms.shape) if size > 1]
    if any(before[axis] != after[axis] for axis in varying) or (region is not None and _array(region).size):
        raise NoRuleError("changes the channels")
    if _optional(node, 3) is not None:
        _sizes_follow(graph, node, 3, [axis % atoms.ndim for axis in _ints(node, "axes", range(atoms.ndim))])


@rule("Shape")
def shape(graph: ChannelGraph, node: ir.Node) -> None:
    """Says the sizes before the cut: what is computed from them (a scale, another shape) stays as it was."""
    atoms = graph.atoms(node.inputs[0])
    _hand_on(graph, node, None, "a shape")
    if atoms is None:
        return
    if node.outputs[0].is_graph_output():
        raise NoRuleError("is the network's output")
    sizes = graph.shape(node.inputs[0])
    part = slice(_int(node, "start", 0), _int(node, "end", len(sizes)))
    counted, varying = np.array(sizes, np.int64)[part], (np.array(atoms.shape) > 1)[part]

    def freeze(keep: Keep) -> None:
        if varying.any() and not keep(atoms).all():
            uses = list(node.outputs[0].uses())
            before = _where(node, varying, counted, node.outputs[0])
            _graph_of(node).insert_after(node, before)
            for reader, index in uses:
                reader.replace_input_with(index, before.outputs[0])

    graph.edit(freeze)


def _reinterpret(graph: ChannelGraph, node: ir.Node) -> Atoms | None:
    """Atoms of a tensor whose elements keep their row-major order under another shape.

    Axes of both shapes are matched in the shortest blocks of equal size. Channels that lie along several
    blocks are tied within a block that other axes join (the r × r pixels of a channel in a pixel shuffle).
    """
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        return None
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    found = _blocks(before, after)
    for (i, j), _ in found:
        within = math.prod(atoms.shape[i:j])
        if 1 < within < math.prod(before[i:j]) and within < atoms.size:
            first = atoms[(slice(None),) * i + (slice(1),) * (j - i)]
            graph.tie(first, atoms)
            atoms = first
    result = atoms
    for (i, j), (k, m) in reversed(found):
        middle = atoms.shape[i:j]
        if math.prod(middle) == 1:
            shape_ = (*result.shape[:i], *(1,) * (m - k), *result.shape[j:])
        else:
            result = np.broadcast_to(result, (*result.shape[:i], *before[i:j], *result.shape[j:]))
            shape_ = (*result.shape[:i], *after[k:m], *result.shape[j:])
        result = result.reshape(shape_)
    for axis, size in enumerate(result.shape):
        first = result.take([0], axis)
        if size > 1 and (result == first).all():
            result = first
    return result


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The shortest runs of axes of both shapes that hold the same elements: ((i, j), (k, m)) in order."""
    found = []
    i = k = 0
    while i < len(before) or k < len(after):
        j, m = min(i + 1, len(before)), min(k + 1, len(after))
        size_before, size_after = math.prod(before[i:j]), math.prod(after[k:m])
        while size_before != size_after:
            if size_before < size_after and j < len(before):
                size_before, j = size_before * before[j], j + 1
            elif m < len(after):
                size_after, m = size_after * after[m], m + 1
            else:
                raise NoRuleError("its shapes do not match")
        found.append(((i, j), (k, m)))
        i, k = j, m
    return found


# --- what rules share -----------------------------------------------------------------------------


def _hand_on(graph: ChannelGraph, node: ir.Node, atoms: Atoms | None, reason: str = "") -> None:
    """All outputs have these atoms; without any, they are fixed as the input is or for a reason given."""
    source = node.inputs[0] if node.inputs else None
    for value in node.outputs:
        graph.hand_on(value, atoms, reason or graph.fixed(source))


def _sizes_follow(graph: ChannelGraph, node: ir.Node, index: int, axes: Sequence[int]) -> None:
    """An input that holds the sizes of these axes of the output follows its channels.

    Sizes of 0 and −1 follow by themselves. Those of a computed input are replaced once they are computed.
    """
    atoms, sizes = graph.atoms(node.outputs[0]), node.inputs[index]
    if atoms is None or sizes is None:
        return
    given = weights_of(sizes)
    varying = np.array([atoms.shape[axis] > 1 for axis in axes])
    if given is None and not all(
        graph.is_static(node.outputs[0], axis) for axis in axes if atoms.shape[axis] > 1
    ):
        raise NoRuleError("its shape is computed from sizes that the network leaves open")

    def follow(keep: Keep) -> None:
        if keep(atoms).all():
            return
        counts = np.array([_kept(keep, atoms, axis).sum() for axis in axes], np.int64)
        if given is not None:
            changed = np.where(varying & (given > 0), counts, given)
            node.replace_input_with(index, _new_constant(node, "sizes", changed))
        else:
            after = _where(node, varying, counts, sizes)
            _graph_of(node).insert_before(node, after)
            node.replace_input_with(index, after.outputs[0])

    graph.edit(follow)


def _kept(keep: Keep, atoms: Atoms, axis: int) -> np.ndarray:
    """Which indices along an axis stay, shape (n,)."""
    return np.asarray(np.moveaxis(keep(atoms), axis, -1).reshape(-1, atoms.shape[axis]).any(axis=0))


def _renumbered(kept: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Indices into what is kept, without those that are not."""
    return (np.cumsum(kept) - 1)[indices[kept[indices]]]


def _on_axis(atoms: Atoms, axis: int, rank: int) -> Atoms:
    return atoms.reshape([-1 if each == axis else 1 for each in range(rank)])


# --- reading and changing nodes -------------------------------------------------------------------


def _int(node: ir.Node, attribute: str, default: int) -> int:
    return node.attributes[attribute].as_int() if attribute in node.attributes else default


def _axis(node: ir.Node, attribute: str, default: int, rank: int) -> int:
    return _int(node, attribute, default) % rank


def _ints(node: ir.Node, name: str, default: Sequence[int], index: int | None = None) -> list[int]:
    """Numbers that are an attribute or, in newer opsets, the constant input of this index."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    if index is not None and (value := _optional(node, index)) is not None:
        return [int(number) for number in np.ravel(_array(value))]
    return list(default)


def _set_ints(node: ir.Node, name: str, index: int, numbers: list[int]) -> None:
    if name in node.attributes:
        node.attributes[name] = ir.AttrInt64s(name, numbers)
    else:
        node.replace_input_with(index, _new_constant(node, name, np.array(numbers, np.int64)))


def _opset(node: ir.Node) -> int:
    return _graph_of(node).opset_imports.get("", 0)


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _constant(value: ir.Value | None) -> ir.Value:
    if value is None or weights_of(value) is None:
        raise NoRuleError("its weights are computed in the graph")
    return value


def _array(value: ir.Value | None) -> np.ndarray:
    return np.asarray(weights_of(_constant(value)))


def _new_constant(node: ir.Node, suffix: str, array: np.ndarray) -> ir.Value:
    value = ir.val(f"{node.name}.{suffix}", const_value=ir.tensor(array, name=f"{node.name}.{suffix}"))
    _graph_of(node).initializers[str(value.name)] = value
    return value


def _where(node: ir.Node, mask: np.ndarray, numbers: np.ndarray, otherwise: ir.Value) -> ir.Node:
    """A new node, not yet in the graph, that replaces some of the numbers that another computes."""
    inputs = [_new_constant(node, "mask", mask), _new_constant(node, "sizes", numbers), otherwise]
    where = ir.node("Where", inputs, name=f"{node.name}/where")
    where.outputs[0].name = f"{where.name}:0"
    return where
