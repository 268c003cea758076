"""Functions of each channel by itself, and of all together."""

import numpy as np
import onnx_ir as ir

from onnxcompress.lrn import write_as_band
from onnxcompress.pruning.channels import Atoms, ChannelGraph, Keep, NoRuleError
from onnxcompress.pruning.rules.atoms import hand_on, on_axis
from onnxcompress.pruning.rules.nodes import (
    array_of,
    axis_of,
    constant,
    graph_of,
    ints_of,
    new_constant,
    new_node,
    opset_of,
)
from onnxcompress.pruning.rules.registry import rule


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
            graph.parameter(constant(value), 0, first, node)
    hand_on(graph, node, None if first is None else on_axis(first, 1, len(graph.shape(node.outputs[0]))))


@rule("InstanceNormalization")
def instance_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Over all axes but the first two. After a Reshape to groups, as which GroupNormalization is exported,
    whole groups go."""
    rank = len(graph.shape(node.inputs[0]))
    _keep_shape_mixed(graph, node, list(range(2, rank)))
    if graph.atoms(node.outputs[0]) is not None and (first := graph.along(node.inputs[0], 1)) is not None:
        for value in node.inputs[1:]:
            graph.parameter(constant(value), 0, first, node)


@rule("GroupNormalization")
def group_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Whole groups go, so that the statistics of the others do not change."""
    atoms = graph.along(node.inputs[0], 1)
    if atoms is not None:
        by_group = atoms.reshape(node.attributes.get_int("num_groups", 1), -1)
        graph.tie(by_group[:, :1], by_group)
        if len(by_group) == 1:
            graph.lock(atoms, f"normalized together ('{node.name}')")
        for value in node.inputs[1:]:
            per_group = graph.shape(value)[0] < len(atoms)
            graph.parameter(constant(value), 0, by_group.T if per_group else atoms, node)

        def shrink(keep: Keep) -> None:
            count = int(keep(by_group).any(axis=1).sum())
            node.attributes["num_groups"] = ir.AttrInt64("num_groups", count)

        graph.edit(shrink)
    hand_on(graph, node, graph.atoms(node.inputs[0]))


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def sum_reduction(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the channels: what is removed counts as zero."""
    if _over_all_channels(graph, node):
        hand_on(graph, node, None, f"{node.op_type} over the channels ('{node.name}')")
    else:
        reduction(graph, node)


@rule("ReduceMean")
def mean_reduction(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the channels: what is removed counts as zero, the sum is divided by the old number of channels.

    Not so where the mean is subtracted from the channels: zeros would not stay zeros.
    """
    atoms = graph.atoms(node.inputs[0])
    if atoms is None or not _over_all_channels(graph, node) or _is_subtracted(graph, node):
        reduction(graph, node)
        return
    hand_on(graph, node, None, f"ReduceMean over the channels ('{node.name}')")

    def rescale(keep: Keep) -> None:
        kept = keep(atoms)
        if not kept.all():
            dtype = (node.outputs[0].dtype or ir.DataType.FLOAT).numpy()
            share = new_constant(node, "share", np.array(kept.mean(), dtype))
            uses = list(node.outputs[0].uses())
            scaled = new_node(node, "share", "Mul", [node.outputs[0], share])
            graph_of(node).insert_after(node, scaled)
            for reader, index in uses:
                reader.replace_input_with(index, scaled.outputs[0])

    graph.edit(rescale)


def _over_all_channels(graph: ChannelGraph, node: ir.Node) -> bool:
    atoms, axes = graph.atoms(node.inputs[0]), _reduced_axes(graph, node)
    return atoms is not None and all(size == 1 or axis in axes for axis, size in enumerate(atoms.shape))


def _is_subtracted(graph: ChannelGraph, node: ir.Node) -> bool:
    return node.outputs[0].is_graph_output() or any(
        reader.op_type in ("Add", "Sub") and any(graph.atoms(value) is not None for value in reader.inputs)
        for reader, _ in node.outputs[0].uses()
    )


@rule("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def reduction(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the other axes: the channels stay, perhaps on another axis. Over the channels: they are kept."""
    axes = _reduced_axes(graph, node)
    atoms = _mix(graph, node, axes)
    if atoms is not None and not node.attributes.get_int("keepdims", 1):
        atoms = atoms.squeeze(tuple(axes))
    hand_on(graph, node, atoms)


def _reduced_axes(graph: ChannelGraph, node: ir.Node) -> list[int]:
    rank = len(graph.shape(node.inputs[0]))
    axes = ints_of(node, "axes", (), 1)
    nothing = node.attributes.get_int("noop_with_empty_axes", 0)
    return sorted(axis % rank for axis in (axes if len(axes) or nothing else range(rank)))


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(graph: ChannelGraph, node: ir.Node) -> None:
    """Over an axis; before opset 13 over all axes from it on."""
    rank = len(graph.shape(node.inputs[0]))
    if opset_of(node) >= 13:
        axes = [axis_of(node, "axis", -1, rank)]
    else:
        axes = list(range(axis_of(node, "axis", 1, rank), rank))
    _keep_shape_mixed(graph, node, axes)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Over the axes from one on."""
    rank = len(graph.shape(node.inputs[0]))
    _keep_shape_mixed(graph, node, list(range(axis_of(node, "axis", -1, rank), rank)))


@rule("MeanVarianceNormalization")
def mean_variance_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Over given axes."""
    rank = len(graph.shape(node.inputs[0]))
    _keep_shape_mixed(graph, node, [axis % rank for axis in ints_of(node, "axes", (0, 2, 3))])


@rule("CumSum", "LpNormalization", "TopK")
def over_an_axis(graph: ChannelGraph, node: ir.Node) -> None:
    """Operators in which all elements along an axis take part."""
    rank = len(graph.shape(node.inputs[0]))
    axis = (
        array_of(node.inputs[1]).item() if node.op_type == "CumSum" else node.attributes.get_int("axis", -1)
    )
    _keep_shape_mixed(graph, node, [axis % rank])


@rule("ArgMax", "ArgMin")
def arg(graph: ChannelGraph, node: ir.Node) -> None:
    """As a reduction over one axis."""
    axis = axis_of(node, "axis", 0, len(graph.shape(node.inputs[0])))
    atoms = _mix(graph, node, [axis])
    if atoms is not None and not node.attributes.get_int("keepdims", 1):
        atoms = atoms.squeeze(axis)
    hand_on(graph, node, atoms)


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
    hand_on(graph, node, atoms, f"{node.op_type} over the channels ('{node.name}')")


@rule("LRN")
def local_response_normalization(graph: ChannelGraph, node: ir.Node) -> None:
    """Neighbours count by their position: once channels go, it is written as a band of weights."""
    atoms = graph.along(node.inputs[0], 1)
    hand_on(graph, node, graph.atoms(node.inputs[0]))

    def to_band(keep: Keep) -> None:
        if atoms is not None and not (kept := keep(atoms)).all():
            write_as_band(node, kept)

    graph.edit(to_band)
