"""Replacing layers by chains of thinner ones, at the ranks that a plan names."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.errors import InputError
from onnxcompress.factoring.layers import FactorLayer, factor_layers
from onnxcompress.factoring.tucker import truncated_svd, tucker2
from onnxcompress.model import refresh
from onnxcompress.plan import Ranks
from onnxcompress.shapes import concrete_shapes

Array = NDArray[np.float64]

CORE_ATTRIBUTES = ("auto_pad", "dilations", "pads", "strides")

GEMM_WITHOUT_BIAS = 11
"""Opset from which Gemm's third input may be missing."""


def factor(model: ir.Model, ranks: dict[str, Ranks]) -> ir.Model:
    """Return the network with these layers factored.

    A k×k convolution becomes 1×1 → core → 1×1 (Kim et al. 2015, section 3.1): the core has the original's
    stride, pads and dilation, the last one its bias. A side at full rank has no 1×1 convolution. Groups
    stay groups in every part. 1×1 convolutions and Gemm become two of their kind.

    Args:
        model: a simplified network; not touched.
        ranks: by layer, per group.

    Raises:
        InputError: when a layer does not exist or cannot have such ranks.
    """
    result = model.clone()
    layers = {layer.name: layer for layer in factor_layers(result, concrete_shapes(result))}
    for name, wanted in ranks.items():
        if name not in layers:
            raise InputError(f"decompose: there is no layer '{name}' to factor; see `onnxcompress inspect`")
        layer = layers[name]
        _check(layer, wanted)
        if layer.kind == "kxk":
            _tucker_chain(layer, wanted)
        else:
            _pair(layer, wanted.out)
    return refresh(result)


def _check(layer: FactorLayer, ranks: Ranks) -> None:
    out, into = layer.sides
    per_group = " per group" if layer.groups > 1 else ""
    if layer.kind == "kxk":
        if ranks.out > out or ranks.into > into:
            raise InputError(
                f"decompose: {layer.name}: ranks {ranks.out}, {ranks.into} are impossible: "
                f"it has {out} filters and {into} input channels{per_group}"
            )
    elif ranks.out != ranks.into or ranks.out > min(out, into):
        raise InputError(
            f"decompose: {layer.name}: needs one rank, given twice, of at most {min(out, into)}{per_group}; "
            f"got {ranks.out}, {ranks.into}"
        )


def _tucker_chain(layer: FactorLayer, ranks: Ranks) -> None:
    parts = [tucker2(part, ranks.out, ranks.into) for part in np.split(layer.weight, layer.groups)]
    out, core, into = (np.concatenate(each) for each in zip(*((o, c, i.T) for o, c, i in parts), strict=True))
    point = (1,) * (layer.weight.ndim - 2)
    attributes = {
        name: layer.node.attributes[name] for name in CORE_ATTRIBUTES if name in layer.node.attributes
    }
    steps: list[tuple[str, Array, dict[str, ir.Attr]]] = []
    if ranks.into < layer.sides[1]:
        steps.append(("in", into.reshape(*into.shape, *point), {}))
    steps.append(("core", core, attributes))
    if ranks.out < layer.sides[0]:
        steps.append(("out", out.reshape(*out.shape, *point), {}))
    _replace(layer, steps)


def _pair(layer: FactorLayer, rank: int) -> None:
    parts = [
        truncated_svd(part.reshape(len(part), -1), rank) for part in np.split(layer.weight, layer.groups)
    ]
    left, right = (np.concatenate(each) for each in zip(*parts, strict=True))
    if layer.kind == "gemm":
        _replace(layer, [("in", right, {}), ("out", left, {})])
        return
    point = (1,) * (layer.weight.ndim - 2)
    attributes = {
        name: layer.node.attributes[name] for name in CORE_ATTRIBUTES if name in layer.node.attributes
    }
    steps = [
        ("in", right.reshape(*right.shape, *point), attributes),
        ("out", left.reshape(*left.shape, *point), {}),
    ]
    _replace(layer, steps)


def _replace(layer: FactorLayer, steps: list[tuple[str, Array, dict[str, ir.Attr]]]) -> None:
    """Put a chain of nodes in a layer's place; the last one has its bias and its output's name."""
    node = layer.node
    graph = node.graph
    assert graph is not None
    assert node.inputs[1] is not None
    dtype = (node.inputs[1].dtype or ir.DataType.FLOAT).numpy()
    chain: list[ir.Node] = []
    x: ir.Value | None = node.inputs[0]
    for suffix, weight, attributes in steps:
        name = f"{node.name}/{suffix}"
        matrix = weight.T if node.op_type == "MatMul" else weight
        tensor = ir.tensor(np.ascontiguousarray(matrix, dtype), name=f"{name}.weight")
        value = ir.val(tensor.name, const_value=tensor)
        graph.initializers[str(tensor.name)] = value
        last = suffix == steps[-1][0]
        inputs = [x, value, *(node.inputs[2:] if last else ())]
        if (
            node.op_type == "Gemm"
            and len(inputs) == 2
            and graph.opset_imports.get("", 11) < GEMM_WITHOUT_BIAS
        ):
            zero = ir.tensor(np.zeros(len(weight), dtype), name=f"{name}.bias")
            graph.initializers[str(zero.name)] = ir.val(zero.name, const_value=zero)
            inputs.append(graph.initializers[str(zero.name)])
        step = ir.Node("", node.op_type, inputs, name=name)
        for attribute in attributes.values():
            step.attributes[attribute.name] = attribute
        if node.op_type == "Conv":
            step.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", weight.shape[2:])
            step.attributes["group"] = ir.AttrInt64("group", layer.groups)
        elif node.op_type == "Gemm":
            step.attributes["transB"] = ir.AttrInt64("transB", 1)
        step.outputs[0].name = f"{name}:0"
        step.outputs[0].type = node.outputs[0].type
        chain.append(step)
        x = step.outputs[0]
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], chain, [node.outputs[0]], [chain[-1].outputs[0]]
    )
