"""Following the channels through a network, node by node."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir

from onnxcompress.pruning.channels import ChannelGraph, Layer, NoRuleError
from onnxcompress.pruning.importance import relative_norms
from onnxcompress.pruning.rules import RULES
from onnxcompress.shapes import concrete_shapes, free_size


def analyse(
    model: ir.Model,
    shapes: dict[str, tuple[int, ...]],
    importance: Callable[[Layer], np.ndarray] = relative_norms,
    twin: ir.Model | None = None,
    planned: bool = False,
) -> ChannelGraph:
    """Follow the channels through a network.

    Args:
        model: a simplified network. `ChannelGraph.edits` and parameters refer to this very object.
        shapes: its concrete shapes.
        importance: of a layer's filters, shape (M,). Where channels could be cut in one way or another (whole
            groups of a grouped convolution, or alike in every group), the way in which less is lost is taken.
        twin: a network of the same shapes, which stays as it is where ``model`` is going to be changed.
        planned: the importance is 0 of filters that go, 1 of those that stay: ways that tie both come last.
    """
    of_shapes = model if twin is None else twin
    graph = ChannelGraph(shapes, cache(lambda: concrete_shapes(of_shapes, 2, free_size(of_shapes) + 32)))
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
    graph.settle(importance, planned)
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
    followed: dict[tuple[ir.Value, int], set[ir.Node]] = {}
    for entry in graph.parameters:
        followed.setdefault((entry.parameter, entry.axis), set()).add(entry.node)
    for entry in graph.parameters:
        for reader, _ in entry.parameter.uses():
            if reader not in followed[entry.parameter, entry.axis]:
                graph.lock(entry.atoms, f"weights shared with '{reader.name}'")
