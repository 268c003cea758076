"""What a network gives: class scores, probabilities, or any of its values."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from scipy import special

from onnxcompress.errors import InputError
from onnxcompress.shapes import concrete_shapes

PASSING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})
"""Operators that leave class scores as they are."""

SOFTMAX_OVER_LAST = 13
"""Opset from which on a Softmax without an axis is over the last one."""


def judged(outputs: Sequence[object]) -> list[np.ndarray]:
    """Of a run's outputs those that say how good it is: real numbers; where there are none, others.

    Class numbers beside class scores are left out, and what is no tensor of numbers.

    Raises:
        InputError: when no output is a tensor of numbers.
    """
    arrays = [y for y in outputs if isinstance(y, np.ndarray) and y.dtype.kind in "fiub"]
    if not arrays:
        raise InputError("no output of the network is a tensor of numbers: there is nothing to compare")
    return [y for y in arrays if y.dtype.kind == "f"] or arrays


def graded(model: ir.Model) -> list[ir.Value]:
    """The values that a network is judged by: its outputs, or what it chooses from.

    Where none of them is of real numbers, class numbers stand for the scores that ArgMax chose them by.
    """
    outputs = list(model.graph.outputs)
    if any(value.dtype is None or value.dtype.is_floating_point() for value in outputs):
        return outputs
    return [_chosen_from(value) for value in outputs]


def _chosen_from(output: ir.Value) -> ir.Value:
    value = output
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        if node.op_type == "ArgMax" and not node.domain:
            return value if value.producer() is not None else output
        if node.op_type not in {*PASSING, "Cast"}:
            break
    return output


def grades(model: ir.Model) -> ir.Model:
    """The network with what it is judged by as its outputs."""
    values = graded(model)
    return model if values == list(model.graph.outputs) else giving(model, [str(v.name) for v in values])


def are_scores(shape: Sequence[int]) -> bool:
    """Whether outputs of this shape can be class scores: (N, 2 classes or more), trailing ones aside."""
    return len(shape) >= 2 and shape[1] >= 2 and math.prod(shape[2:]) == 1


def scores_of(model: ir.Model) -> ir.Value:
    """The class scores before the softmax, if there is one: (N, 2 classes or more), trailing ones aside.

    Raises:
        InputError: when no output is (N, classes).
    """
    shapes = concrete_shapes(model)
    for output in graded(model):
        shape = shapes.get(str(output.name), ())
        floating = output.dtype is None or output.dtype.is_floating_point()
        if not floating or not are_scores(shape):
            continue
        value = output
        while (node := value.producer()) is not None and node.inputs[0] is not None:
            before = node.inputs[0]
            given = shapes.get(str(before.name), shape)
            if not are_scores(given) or given[1] != shape[1]:
                break
            if node.op_type in ("Softmax", "LogSoftmax") and not node.domain:
                default = 1 if model.opset_imports.get("", 1) < SOFTMAX_OVER_LAST else -1
                over_classes = node.attributes.get_int("axis", default) % len(given) == 1
                return before if over_classes else output
            if node.op_type not in PASSING:
                break
            value = before
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


def softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float32, (N, classes)."""
    return special.softmax(scores.astype(np.float64) / temperature, axis=1).astype(np.float32)
