"""Local response normalization across channels, written as a 1×1 convolution with a band of weights."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def band(channels: int, size: int, alpha: float) -> NDArray[np.float64]:
    """Weights of the sum over neighbours in ONNX's LRN: shape (channels, channels), α/size in the band."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return np.where((offset >= -((size - 1) // 2)) & (offset <= size // 2), alpha / size, 0.0)


def write_as_band(node: ir.Node, kept: NDArray[np.bool_]) -> None:
    """Replace an LRN node, of whose channels only some remain, by x / (band(x²) + bias)^β.

    The removed channels count as zero; neighbours keep their original distance. ONNX Runtime runs the
    convolution several times faster than the LRN node.

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

    def constant(suffix: str, array: NDArray) -> ir.Value:
        name = f"{node.name}.{suffix}"
        value = ir.val(name, const_value=ir.tensor(array.astype(dtype), name=name))
        graph.initializers[name] = value
        return value

    weight = band(len(kept), size, alpha)[kept][:, kept]
    spatial = [1] * (len(x.shape) - 2 if x.shape is not None else 2)
    nodes: list[ir.Node] = []

    def add(op_type: str, suffix: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(op_type, inputs, name=f"{node.name}/{suffix}"))
        nodes[-1].outputs[0].name = f"{y.name}/{suffix}"
        return nodes[-1].outputs[0]

    square = add("Mul", "square", x, x)
    base = add(
        "Conv",
        "band",
        square,
        constant("band", weight.reshape(*weight.shape, *spatial)),
        constant("bias", np.full(len(weight), bias)),
    )
    if beta == 0.75:
        root = add("Sqrt", "root", base)
        power = add("Mul", "power", root, add("Sqrt", "fourth_root", root))
    else:
        power = add("Pow", "power", base, constant("beta", np.array(beta)))
    nodes.append(ir.node("Div", [x, power], name=node.name))
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [y], [nodes[-1].outputs[0]])
