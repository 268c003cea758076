"""Reading and changing nodes."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.names import Names
from onnxcompress.pruning.channels import ChannelGraph, NoRuleError
from onnxcompress.weights import weights_of

OF_SIZES = frozenset({"Add", "Cast", "Div", "Mul", "Sub"}) | frozenset(
    {"Concat", "Gather", "Identity", "Shape", "Slice", "Squeeze", "Unsqueeze"}
)
"""Operators by which exporters compute with sizes."""


def axis_of(node: ir.Node, attribute: str, default: int, rank: int) -> int:
    """An attribute that names an axis, counted from the front."""
    return node.attributes.get_int(attribute, default) % rank


def ints_of(node: ir.Node, name: str, default: Sequence[int], index: int | None = None) -> list[int]:
    """Numbers that are an attribute or, in newer opsets, the constant input of this index."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    if index is not None and (value := optional(node, index)) is not None:
        return [int(number) for number in np.ravel(array_of(value))]
    return list(default)


def set_ints(node: ir.Node, name: str, index: int, numbers: list[int]) -> None:
    """Change what `ints_of` reads."""
    if name in node.attributes:
        node.attributes[name] = ir.AttrInt64s(name, numbers)
    else:
        given = optional(node, index)
        stored = weights_of(given)
        dtype = np.dtype(np.int64) if stored is None else stored.dtype
        node.replace_input_with(index, new_constant(node, name, np.array(numbers, dtype)))


def opset_of(node: ir.Node) -> int:
    """Version of the standard domain by which a node is read."""
    return graph_of(node).opset_imports.get("", 0)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node is in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def optional(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[index] if len(node.inputs) > index else None


def constant(value: ir.Value | None) -> ir.Value:
    """A value that has weights.

    Raises:
        NoRuleError: when it has none.
    """
    if value is None or weights_of(value) is None:
        raise NoRuleError("what should be constant is computed in the graph")
    return value


def array_of(value: ir.Value | None) -> np.ndarray:
    """The array of a constant."""
    return np.asarray(weights_of(constant(value)))


def integers(graph: ChannelGraph, value: ir.Value | None) -> list[int]:
    """The integers of a constant, or of what the network computes from sizes that it does not leave open.

    Raises:
        NoRuleError: when they are computed from anything else.
    """
    first = computed(value, graph.shapes)
    if weights_of(value) is None and not np.array_equal(first, computed(value, graph.other_shapes())):
        raise NoRuleError("numbers are computed from sizes that the network leaves open")
    return [int(number) for number in np.ravel(first)]


def computed(value: ir.Value | None, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """A constant, or what the network computes where its values have these shapes.

    Raises:
        NoRuleError: when it is computed from anything but constants and sizes.
    """
    if (stored := weights_of(value)) is not None:
        return stored
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type not in OF_SIZES:
        raise NoRuleError("numbers are computed in the graph")
    if node.op_type == "Shape":
        source = node.inputs[0]
        if source is None or str(source.name) not in shapes:
            raise NoRuleError("a shape cannot be told")
        size = shapes[str(source.name)]
        part = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(size)))
        return np.array(size[part], np.int64)
    from onnx.reference import ReferenceEvaluator  # seldom needed

    given = {str(each.name): computed(each, shapes) for each in node.inputs if each is not None}
    (found,) = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset_of(node)}).run(None, given)
    return np.asarray(found)


def new_constant(node: ir.Node, suffix: str, array: np.ndarray) -> ir.Value:
    """A new initializer, named after a node."""
    return Names(graph_of(node)).initializer(f"{node.name}.{suffix}", array)


def new_node(
    node: ir.Node, suffix: str, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int
) -> ir.Node:
    """A new node with one output, named after another and not yet in the graph."""
    names = Names(graph_of(node))
    added = ir.node(op_type, inputs, attributes, name=names.fresh(f"{node.name}/{suffix}"))
    added.outputs[0].name = names.fresh(f"{added.name}:0")
    return added


def replaced(node: ir.Node, mask: np.ndarray, numbers: np.ndarray, given: ir.Value) -> list[ir.Node]:
    """New nodes, not yet in the graph: the last of them gives computed sizes, some of which are replaced.

    By a product and a sum: opsets before 9 have no Where.
    """
    others = new_constant(node, "others", (~mask).astype(np.int64))
    sizes = new_constant(node, "sizes", np.where(mask, numbers, 0).astype(np.int64))
    rest = new_node(node, "others", "Mul", [given, others])
    return [rest, new_node(node, "sizes", "Add", [rest.outputs[0], sizes])]
