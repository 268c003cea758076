"""Gradients of a single operator against central differences in float64."""

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxcompress.gradients.backward import back, graph_of, record
from onnxcompress.runtime import session
from onnxcompress.shapes import concrete_shapes
from tests.gradients.numpy_operators import OPERATORS

OPSET = 20


def network(operator, inputs, constants=(), outputs=1, opset=OPSET, **attributes):
    """One node on real inputs, then integer constants (None: left out)."""
    given = [ir.val(f"x{i}", ir.DataType.DOUBLE, x.shape) for i, x in enumerate(inputs)]
    stored = [
        None if c is None else ir.val(f"c{i}", const_value=ir.tensor(np.asarray(c), name=f"c{i}"))
        for i, c in enumerate(constants)
    ]
    node = ir.node(operator, [*given, *stored], attributes, num_outputs=outputs, name="node")
    for i, value in enumerate(node.outputs):
        value.name, value.dtype = f"y{i}", ir.DataType.DOUBLE
    graph = ir.Graph(
        given,
        node.outputs,
        nodes=[node],
        initializers=[each for each in stored if each is not None],
        opset_imports={"": opset},
        name="one",
    )
    return ir.Model(graph, ir_version=10)


def gradients(model, inputs, weights, dtype):
    """The outputs and the gradients of Σ weights · outputs at all inputs, by the rule."""
    shapes = concrete_shapes(model) | {f"y{i}": w.shape for i, w in enumerate(weights)}
    names = [f"x{i}" for i in range(len(inputs))]
    forward = record(model, shapes, [f"y{i}" for i in range(len(weights))], watched=names, dtype=dtype)
    tape = forward.tape
    seeds = {forward.values[f"y{i}"]: tape.constant(w) for i, w in enumerate(weights)}
    at = back(forward, seeds)
    found = {f"g{i}": at(forward.values[name]) for i, name in enumerate(names)}
    computed = {f"out{i}": forward.values[f"y{i}"] for i in range(len(weights))}
    graph = graph_of(forward, forward.inputs, computed | found)
    feeds = {name: x.astype(dtype) for name, x in zip(names, inputs, strict=True)}
    if dtype == np.float32:
        results = session(graph).run(None, feeds)
    else:
        results = ReferenceEvaluator(ir.to_proto(graph), new_ops=OPERATORS).run(None, feeds)
    return results[: len(weights)], results[len(weights) :]


def check(operator, inputs, constants=(), outputs=1, step=1e-6, seed=0, function=None, **attributes):
    """See that the rule's forward and backward are those of the operator (or of the function given)."""
    random = np.random.default_rng(seed)
    inputs = [np.asarray(x, np.float64) for x in inputs]
    model = network(operator, inputs, constants, outputs, **attributes)
    original = ReferenceEvaluator(ir.to_proto(model), new_ops=OPERATORS)

    def run(xs):
        if function is not None:
            return [function(*xs)]
        return [np.asarray(y) for y in original.run(None, {f"x{i}": x for i, x in enumerate(xs)})]

    expected = run(inputs)
    weights = [random.standard_normal(y.shape) for y in expected]
    computed, found = gradients(model, inputs, weights, np.float64)
    for y, z in zip(expected, computed, strict=True):
        np.testing.assert_allclose(z, y, rtol=1e-7, atol=1e-9)
    for i, x in enumerate(inputs):
        assert found[i].shape == x.shape
        for _ in range(3):
            direction = random.standard_normal(x.shape)
            ahead, behind = ([*inputs[:i], x + sign * step * direction, *inputs[i + 1 :]] for sign in (1, -1))
            slope = sum(
                np.sum(w * (a - b)) for w, a, b in zip(weights, run(ahead), run(behind), strict=True)
            ) / (2 * step)
            np.testing.assert_allclose(np.sum(found[i] * direction), slope, rtol=1e-5, atol=1e-6)
    in_runtime = gradients(model, inputs, weights, np.float32)
    for ours, reference in zip((*in_runtime[0], *in_runtime[1]), (*expected, *found), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-3, atol=2e-4)
