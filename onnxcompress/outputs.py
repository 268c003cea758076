"""What a network gives: class scores, probabilities, or any of its values."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from scipy import special

from onnxcompress.errors import InputError
from onnxcompress.names import Names
from onnxcompress.shapes import concrete_shapes

PASSING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})
"""Operators that leave class scores as they are."""


def scores_of(model: ir.Model) -> ir.Value:
    """The class scores before the softmax, if there is one: (N, 2 classes or more), trailing ones aside.

    Raises:
        InputError: when no output is (N, classes).
    """
    shapes = concrete_shapes(model)
    for output in model.graph.outputs:
        shape = shapes.get(str(output.name), ())
        floating = output.dtype is None or output.dtype.is_floating_point()
        if not floating or len(shape) < 2 or shape[1] < 2 or int(np.prod(shape[2:])) != 1:
            continue
        value = output
        while (node := value.producer()) is not None and node.inputs[0] is not None:
            if node.op_type in ("Softmax", "LogSoftmax") and not node.domain:
                return node.inputs[0]
            if node.op_type not in PASSING:
                break
            value = node.inputs[0]
        return output
    raise InputError(
        "no output of the network is (N, classes): there are no class scores, which Taylor importance and "
        "training need, but for training after a teacher's layers (--teacher with --plan)"
    )


def scoring(model: ir.Model) -> ir.Model:
    """The network with its class scores before the softmax as its only output."""
    return giving(model, [str(scores_of(model).name)])


def giving(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The network with these of its values as its only outputs."""
    result = model.clone()
    by_name = {value.name: value for node in result.graph for value in node.outputs}
    result.graph.outputs[:] = [by_name[name] for name in names]
    return result


def answers(model: ir.Model) -> ir.Model:
    """The network with its class probabilities as its only output; one that has no class scores as it is."""
    try:
        result = scoring(model)
    except InputError:
        return model
    names = Names(result.graph)
    node = ir.node("Softmax", [result.graph.outputs[0]], {"axis": 1}, name=names.fresh("softmax"))
    node.outputs[0].name, node.outputs[0].dtype = names.fresh("probabilities"), ir.DataType.FLOAT
    result.graph.append(node)
    result.graph.outputs[0] = node.outputs[0]
    return result


def softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float32, (N, classes)."""
    return special.softmax(scores.astype(np.float64) / temperature, axis=1).astype(np.float32)
