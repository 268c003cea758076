"""Local response normalization across channels, written as a 1×1 convolution with a band of weights.

Pruning writes the band densely: each of its channels can go. In the end it is cut into groups.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.model import refresh
from onnxcompress.names import Names
from onnxcompress.weights import weights_of

BLOCK = 8
"""Channels per group of the convolution. A dense band would be nearly all zeros: at 192 channels the groups
need a sixteenth of its MACs and 40 % of its time in ONNX Runtime, which takes 13 times as long for LRN."""


def band(channels: int, size: int, alpha: float) -> NDArray[np.float64]:
    """Weights of the sum over neighbours in ONNX's LRN: shape (channels, channels), α/size in the band."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return np.where((offset >= -((size - 1) // 2)) & (offset <= size // 2), alpha / size, 0.0)


def blocks(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut a band into groups that overlap on the input side.

    Args:
        matrix: (C, C), zero but near the diagonal: within `reach` channels in all.

    Returns:
        (weights (groups · BLOCK, BLOCK + reach) of a grouped convolution, rows beyond C are zero; the
        channels (groups · (BLOCK + reach),) that the groups read, one group after the other)
    """
    count = len(matrix)
    offsets = np.subtract(*np.nonzero(matrix)[::-1])
    before, after = max(0, -offsets.min(initial=0)), max(0, offsets.max(initial=0))
    rows = np.arange(-(-count // BLOCK) * BLOCK)
    read = (rows[::BLOCK, None] + np.arange(-before, BLOCK + after)).repeat(BLOCK, axis=0)
    inside = (read >= 0) & (read < count) & (rows[:, None] < count)
    read = np.clip(read, 0, count - 1)
    weights = np.where(inside, matrix[np.minimum(rows, count - 1)[:, None], read], 0.0)
    return weights, read[::BLOCK].ravel()


def lrn_nodes(model: ir.Model) -> list[str]:
    """Names of the LRN nodes, in order."""
    return [str(node.name) for node in model.graph if node.op_type == "LRN" and not node.domain]


def sums_squares(node: ir.Node) -> bool:
    """Whether a node is the Conv of an LRN written as convolutions: its weights are no layer's."""
    if node.op_type != "Conv":
        return False
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is not None and source.op_type == "Gather" and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    return source is not None and source.op_type == "Mul" and source.inputs[0] is source.inputs[1]


def is_band(node: ir.Node) -> bool:
    """Whether it is one whose weights are dense: a 1×1 convolution with one number in all of its band."""
    if not sums_squares(node) or len(node.inputs) != 3:
        return False
    if node.attributes.get_int("group", 1) != 1:
        return False
    weights, bias = weights_of(node.inputs[1]), weights_of(node.inputs[2])
    if weights is None or bias is None or weights.shape[:2] != (len(bias),) * 2:
        return False
    alike = all(len(np.unique(numbers)) <= 1 for numbers in (weights[weights != 0], bias))
    return alike and weights.size == len(bias) ** 2


def rewrite_lrn(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return the network with these LRN nodes written as bands, and all bands cut into groups.

    It computes the same. Names that are no LRN (any more, since pruning has written them so) are passed over.
    """
    result = model.clone()
    for node in list(result.graph):
        shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "LRN" and node.name in names and shape is not None and isinstance(shape[1], int):
            write_as_band(node, np.ones(shape[1], bool))
    for node in list(result.graph):
        if is_band(node):
            _cut_into_groups(node)
    return refresh(result)


def write_as_band(node: ir.Node, kept: NDArray[np.bool_]) -> None:
    """Replace an LRN node, of whose channels only some remain, by x / (band(x²) + bias)^β.

    The removed channels count as zero; neighbours keep their original distance.

    Args:
        node: an LRN of its graph; its input already has only the kept channels.
        kept: by original channel, shape (C,).
    """
    graph, x, y = node.graph, node.inputs[0], node.outputs[0]
    assert graph is not None
    assert x is not None
    size = node.attributes["size"].as_int()
    alpha, beta, bias = (
        node.attributes.get_float(name, default)
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    nodes: list[ir.Node] = []
    names = Names(graph)

    def constant(suffix: str, array: NDArray) -> ir.Value:
        return names.initializer(f"{node.name}.{suffix}", array)

    def add(op_type: str, suffix: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(op_type, inputs, attributes, name=f"{node.name}/{suffix}"))
        nodes[-1].outputs[0].name = names.fresh(f"{y.name}/{suffix}")
        return nodes[-1].outputs[0]

    matrix = band(len(kept), size, alpha)[kept][:, kept]
    point = (1,) * (len(x.shape) - 2 if x.shape is not None else 2)
    base = add(
        "Conv",
        "band",
        add("Mul", "square", x, x),
        constant("band", matrix.reshape(*matrix.shape, *point).astype(dtype)),
        constant("bias", np.full(len(matrix), bias, dtype)),
    )
    if beta == 0.75:
        root = add("Sqrt", "root", base)
        power = add("Mul", "power", root, add("Sqrt", "fourth_root", root))
    else:
        power = add("Pow", "power", base, constant("beta", np.array(beta, dtype)))
    nodes.append(ir.node("Div", [x, power], name=node.name))
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [y], [nodes[-1].outputs[0]])


def _cut_into_groups(node: ir.Node) -> None:
    """Write a 1×1 convolution with a band of weights as one of groups, where these are fewer weights."""
    graph, y = node.graph, node.outputs[0]
    assert graph is not None
    dense, bias = np.asarray(weights_of(node.inputs[1])), np.asarray(weights_of(node.inputs[2]))
    weights, read = blocks(dense.reshape(len(dense), -1))
    if weights.size >= dense.size or y.is_graph_output():
        return
    names = Names(graph)

    def constant(suffix: str, array: NDArray) -> ir.Value:
        return names.initializer(f"{node.name}.{suffix}", array)

    def gather(value: ir.Value | None, suffix: str, channels: NDArray) -> ir.Node:
        inputs = [value, constant(suffix, channels)]
        added = ir.node("Gather", inputs, {"axis": 1}, name=names.fresh(f"{node.name}/{suffix}"))
        added.outputs[0].name = names.fresh(f"{y.name}/{suffix}")
        return added

    before, uses = gather(node.inputs[0], "neighbours", read), list(y.uses())
    graph.insert_before(node, before)
    shape = (*weights.shape, *dense.shape[2:])
    padded = np.pad(bias, (0, len(weights) - len(bias)), mode="edge")
    node.replace_input_with(0, before.outputs[0])
    node.replace_input_with(1, constant("groups", weights.reshape(shape).astype(dense.dtype)))
    node.replace_input_with(2, constant("offsets", padded))
    node.attributes["group"] = ir.AttrInt64("group", len(weights) // BLOCK)
    if len(weights) > len(dense):
        after = gather(y, "channels", np.arange(len(dense)))
        graph.insert_after(node, after)
        for reader, index in uses:
            reader.replace_input_with(index, after.outputs[0])
