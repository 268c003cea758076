"""A new classifier for a new task."""

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import InputError
from onnxcompress.model import refresh
from onnxcompress.names import Names
from onnxcompress.outputs import PASSING, scores_of
from onnxcompress.weights import weights_of

BETWEEN = PASSING | {"GlobalAveragePool", "AveragePool", "ReduceMean", "Relu"}
"""Operators that may lie between the classifier and the class scores."""

DEVIATION = 0.01
"""Of the new weights, as Caffe's examples of fine-tuning have it."""


def new_head(model: ir.Model, classes: int, seed: int) -> tuple[ir.Model, list[str]]:
    """Give the last layer new random weights for another number of classes.

    Args:
        model: a classifier.
        classes: of the new task.
        seed: of the weights.

    Returns:
        (a new network, names of the new weights)

    Raises:
        InputError: when no Gemm, Conv or MatMul gives the class scores.
    """
    if classes < 2:
        raise InputError(f"new-head: {classes} is not at least 2 classes")
    result = model.clone()
    node = scores_of(result).producer()
    bias: ir.Value | None = None
    while node is not None and node.op_type in BETWEEN | {"Add"}:
        data = [value for value in node.inputs if value is not None and weights_of(value) is None]
        if node.op_type == "Add" and len(data) == 1:
            (bias,) = (value for value in node.inputs if value is not None and value is not data[0])
        elif node.op_type == "Add":
            break
        node = data[0].producer()
    if node is None or node.op_type not in ("Gemm", "Conv", "MatMul") or weights_of(node.inputs[1]) is None:
        raise InputError("new-head: no Gemm, Conv or MatMul with weights of its own gives the class scores")
    weight = node.inputs[1]
    if len(node.inputs) > 2:
        bias = node.inputs[2]
    rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0
    random = np.random.default_rng(seed)
    count = np.asarray(weights_of(weight)).shape[0 if rows else -1]
    names = []
    for value, axis in ((weight, 0 if rows else -1), (bias, -1)):
        if value is None:
            continue
        if len(value.uses()) > 1:
            raise InputError(f"new-head: the weights '{value.name}' have other readers")
        old = np.asarray(weights_of(value))
        shape = list(old.shape)
        shape[axis] = classes
        new = random.standard_normal(shape) * DEVIATION if value is weight else np.zeros(shape)
        value.const_value = ir.tensor(new.astype(old.dtype), name=value.name)
        value.shape = ir.Shape(shape)
        names.append(str(value.name))
    reached = _following(node)
    for reshape in (each for each in reached if each.op_type == "Reshape"):
        sizes = weights_of(reshape.inputs[1])
        if sizes is not None and count in sizes:
            changed = np.where(sizes == count, classes, sizes)
            value = Names(result.graph).initializer(f"{reshape.name}.shape", changed)
            reshape.replace_input_with(1, value)
    for output in result.graph.outputs:
        own = output.producer() in reached
        if own and output.shape is not None and len(output.shape) > 1 and output.shape[1] == count:
            output.shape = ir.Shape([output.shape[0], classes, *output.shape[2:]])
    # A copy: the shapes of the network that it was are known already (see `concrete_shapes`).
    return refresh(result.clone()), names


def _following(node: ir.Node) -> list[ir.Node]:
    """A node and all that what it gives reaches."""
    found, reached = [node], set(node.outputs)
    assert node.graph is not None
    for each in node.graph:
        if reached & set(each.inputs):
            reached |= set(each.outputs)
            found.append(each)
    return found
