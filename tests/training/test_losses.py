import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.errors import InputError
from onnxcompress.model import simplify
from onnxcompress.outputs import scores_of, scoring, softmax
from onnxcompress.runtime import run, session
from onnxcompress.training.losses import Loss, Term
from onnxcompress.training.parameters import current, trainable, with_weights
from tests import onnx_text
from tests.training.small import network, samples


def test_scores_are_what_the_softmax_reads():
    model = network()
    assert scores_of(model).producer().op_type == "Gemm"
    x = samples(3).samples
    (probabilities,) = run(session(model), {"data": x})
    (scores,) = run(session(scoring(model)), {"data": x})
    np.testing.assert_allclose(softmax(scores), probabilities, rtol=1e-5)


def test_loss_is_the_weighted_cross_entropy():
    model, x = simplify(network()), samples(5).samples
    names = list(trainable(model))
    labels, teacher = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]], np.full((5, 4), 0.25, np.float32)
    loss = Loss(model, names, [Term(0.3), Term(0.7, 2.0)], samples=5)
    value, _ = loss(current(model, names), x, [labels, teacher])
    (scores,) = run(session(scoring(model)), {"data": x})
    hard = -(labels * np.log(softmax(scores))).sum() / 5
    soft = -(teacher * np.log(softmax(scores, 2.0))).sum() / 5
    assert value == pytest.approx(0.3 * hard + 0.7 * 4 * soft, rel=1e-4)


def between(steps):
    """Maps of a convolution, some steps in the opset in which the axes of a mean are an attribute, scores."""
    random = np.random.default_rng(0)
    shapes = {"w": (5, 1, 3, 3), "v": (5, 5, 1, 1), "u": (5, 4)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return onnx_text.network(
        f"""g (float[n, 1, 8, 8] data) => (float[n, 4] scores) <int64[1] one = {{1}}, int64[1] five = {{5}}>
        {{
            maps = Conv (data, w)
            {steps}
            pooled = ReduceMean <axes = [-1, -2], keepdims = 0> (last)
            scores = Gemm (pooled, u)
        }}""",
        weights,
    )


SQUEEZE_AND_EXCITATION = """
    squeezed = ReduceMean <axes = [2, 3], keepdims = 1> (maps)
    mixed = Conv (squeezed, v)
    gate = Sigmoid (mixed)
    last = Mul (maps, gate)
"""

SLICE_OF_TRANSPOSED = """
    turned = Transpose <perm = [0, 2, 3, 1]> (maps)
    rows = Slice (turned, one, five, one)
    last = Transpose <perm = [0, 3, 1, 2]> (rows)
"""


@pytest.mark.parametrize("given", [network(3), between(SQUEEZE_AND_EXCITATION), between(SLICE_OF_TRANSPOSED)])
def test_gradients_are_the_slopes_of_the_loss(given):
    model, data = simplify(given), samples(6, seed=1)
    names = list(trainable(model))
    targets = [
        np.eye(4, dtype=np.float32)[data.labels],
        softmax(np.random.default_rng(0).normal(size=(6, 4))),
    ]
    loss = Loss(model, names, [Term(0.5), Term(0.5, 3.0)], samples=6)
    weights = current(model, names)
    _, gradients = loss(weights, data.samples, targets)
    for name, gradient in gradients.items():
        direction, step = gradient / np.linalg.norm(gradient), np.float32(3e-3)
        ahead, _ = loss(weights | {name: weights[name] + step * direction}, data.samples, targets)
        behind, _ = loss(weights | {name: weights[name] - step * direction}, data.samples, targets)
        slope = (ahead - behind) / (2 * step)
        assert np.linalg.norm(gradient) == pytest.approx(slope, rel=0.02)


def test_weights_come_and_go():
    model = simplify(network())
    weights = current(model, list(trainable(model)))
    changed = with_weights(model, {name: w + 1 for name, w in weights.items()})
    for name, w in current(changed, list(weights)).items():
        np.testing.assert_array_equal(w, weights[name] + 1)


def test_an_operator_without_gradient_is_named():
    model = network()
    node = next(node for node in model.graph if node.op_type == "LRN")
    node.op_type = "Celu"
    node.attributes.clear()
    with pytest.raises(InputError, match=r"no gradient for Celu \(node 'norm1'\)"):
        Loss(model, list(trainable(model)), [Term()], samples=2)


def test_only_classifiers():
    x = ir.val("x", ir.DataType.FLOAT, (1, 3, 4, 4))
    node = ir.node("Relu", [x])
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    model = ir.Model(
        ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="relu"), ir_version=10
    )
    with pytest.raises(InputError, match="no class scores"):
        scores_of(model)
