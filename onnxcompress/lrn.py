"""Local response normalization across channels, written as a 1×1 convolution with a band of weights."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.model import refresh

BLOCK = 8
"""Channels per group of the convolution. A dense band would be nearly all zeros: at 192 channels the groups
need a sixteenth of its MACs and 40 % of its time in ONNX Runtime, which takes 13 times as long for LRN."""


def band(channels: int, size: int, alpha: float) -> NDArray[np.float64]:
    """Weights of the sum over neighbours in ONNX's LRN: shape (channels, channels), α/size in the band."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return np.where((offset >= -((size - 1) // 2)) & (offset <= size // 2), alpha / size, 0.0)


def blocks(matrix: NDArray[np.float64], size: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut a band into groups that overlap on the input side.

    Args:
        matrix: (C, C), zero further than the neighbours of a window of ``size`` from the diagonal.
        size: of the window.

    Returns:
        (weights (groups · BLOCK, BLOCK + size − 1) of a grouped convolution, rows beyond C are zero;
        the channels (groups · (BLOCK + size − 1),) that the groups read, one group after the other)
    """
    count = len(matrix)
    groups = -(-count // BLOCK)
    rows = np.arange(groups * BLOCK)
    reach = np.arange(-((size - 1) // 2), BLOCK + size // 2)
    read = (rows[::BLOCK, None] + reach).repeat(BLOCK, axis=0)
    inside = (read >= 0) & (read < count) & (rows[:, None] < count)
    read = np.clip(read, 0, count - 1)
    weights = np.where(inside, matrix[np.minimum(rows, count - 1)[:, None], read], 0.0)
    return weights, read[::BLOCK].ravel()


def lrn_nodes(model: ir.Model) -> list[str]:
    """Names of the LRN nodes, in order."""
    return [str(node.name) for node in model.graph if node.op_type == "LRN" and not node.domain]


def rewrite_lrn(model: ir.Model, names: list[str]) -> ir.Model:
    """Return the network with these LRN nodes written as bands; it computes the same.

    Names that are no LRN (any more, since pruning has written them so) are passed over.
    """
    result = model.clone()
    for node in list(result.graph):
        shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "LRN" and node.name in names and shape is not None and isinstance(shape[1], int):
            write_as_band(node, np.ones(shape[1], bool))
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
        node.attributes[name].as_float() if name in node.attributes else default
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    nodes: list[ir.Node] = []

    def constant(suffix: str, array: NDArray) -> ir.Value:
        name = f"{node.name}.{suffix}"
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.initializers[name] = value
        return value

    def add(op_type: str, suffix: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(op_type, inputs, attributes, name=f"{node.name}/{suffix}"))
        nodes[-1].outputs[0].name = f"{y.name}/{suffix}"
        return nodes[-1].outputs[0]

    matrix = band(len(kept), size, alpha)[kept][:, kept]
    weights, read = blocks(matrix, size)
    if len(weights) == BLOCK:
        weights, read = matrix, np.arange(len(matrix))
    point = (1,) * (len(x.shape) - 2 if x.shape is not None else 2)
    base = add("Mul", "square", x, x)
    if len(read) > len(matrix):
        base = add("Gather", "neighbours", base, constant("neighbours", read), axis=1)
    base = add(
        "Conv",
        "band",
        base,
        constant("band", weights.reshape(*weights.shape, *point).astype(dtype)),
        constant("bias", np.full(len(weights), bias, dtype)),
        group=len(read) // weights.shape[1],
    )
    if len(weights) > len(matrix):
        base = add("Gather", "channels", base, constant("channels", np.arange(len(matrix))), axis=1)
    if beta == 0.75:
        root = add("Sqrt", "root", base)
        power = add("Mul", "power", root, add("Sqrt", "fourth_root", root))
    else:
        power = add("Pow", "power", base, constant("beta", np.array(beta, dtype)))
    nodes.append(ir.node("Div", [x, power], name=node.name))
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [y], [nodes[-1].outputs[0]])
