"""Split nodes, whose sizes are an attribute up to opset 12 and an input from there on."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.names import Names
from onnxcompress.weights import weights_of

SIZES_ARE_AN_INPUT = 13
"""Opset from which they are."""


def split(value: ir.Value, sizes: Sequence[int], name: str, names: Names) -> ir.Node:
    """A node that cuts a value along axis 1 into parts of these sizes; its outputs have no names yet."""
    inputs, attributes = [value], [ir.AttrInt64("axis", 1)]
    if names.graph.opset_imports.get("", SIZES_ARE_AN_INPUT) < SIZES_ARE_AN_INPUT:
        attributes.append(ir.AttrInt64s("split", sizes))
    else:
        inputs.append(names.initializer(f"{name}/sizes", np.array(sizes, np.int64)))
    return ir.Node("", "Split", inputs, attributes, num_outputs=len(sizes), name=name)


def sizes_of(node: ir.Node) -> list[int]:
    """Of the parts that a Split makes; none of another node, or where they are not given as numbers."""
    if node.op_type != "Split":
        return []
    if "split" in node.attributes:
        return list(node.attributes["split"].as_ints())
    stored = weights_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return [] if stored is None else stored.tolist()
