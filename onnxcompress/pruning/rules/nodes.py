"""Reading and changing nodes."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.model import weights_of
from onnxcompress.names import Names
from onnxcompress.pruning.channels import NoRuleError


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
        dtype = np.dtype(np.int64) if given is None else array_of(given).dtype
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
        raise NoRuleError("its weights are computed in the graph")
    return value


def array_of(value: ir.Value | None) -> np.ndarray:
    """The array of a constant."""
    return np.asarray(weights_of(constant(value)))


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
