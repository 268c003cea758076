"""Functions of single elements: of one tensor, or of several that are broadcast together."""

import numpy as np
import onnx_ir as ir

from onnxcompress.pruning.channels import Atoms, ChannelGraph
from onnxcompress.pruning.rules.atoms import follow_constant, hand_on
from onnxcompress.pruning.rules.registry import rule
from onnxcompress.weights import weights_of


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
    hand_on(graph, node, graph.atoms(node.inputs[0]))


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
        hand_on(graph, node, None)
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
            follow_constant(graph, node, value, result, fixed_axes)
    hand_on(graph, node, result)


def _fits(atoms: Atoms, result: Atoms) -> bool:
    return all(size in (1, other) for size, other in zip(atoms.shape, result.shape, strict=True))
