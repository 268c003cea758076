"""Which of a network's outputs say how good it is."""

import numpy as np
import pytest
import scipy.special

from onnxcompress.calibration.samples import Samples, read_samples
from onnxcompress.data import Data
from onnxcompress.errors import InputError
from onnxcompress.measure.accuracy import evaluate
from onnxcompress.measure.closeness import closeness
from onnxcompress.measure.damage import Damage
from onnxcompress.outputs import judged, scores_of
from tests.onnx_text import network

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((12, 6)).astype(np.float32)
W = RANDOM.standard_normal((6, 5)).astype(np.float32)
NEAR = W + 0.3 * RANDOM.standard_normal(W.shape).astype(np.float32)

WITH_CLASS_NUMBERS = """g (float[n, 6] x) => (int64[n] best, float[n, 5] y, float[n, 2, 3] map) {
    y = MatMul(x, w)
    best = ArgMax <axis = 1, keepdims = 0> (y)
    shape = Constant <value_ints = [0, 2, 3]> ()
    map = Reshape(x, shape)
}"""


def test_class_numbers_beside_class_scores_do_not_count():
    damage = {}
    for beside in (False, True):
        found = Damage()
        outputs = [[X @ w, (X @ w).argmax(axis=1)] if beside else [X @ w] for w in (W, NEAR)]
        found.add(*outputs)
        damage[beside] = found.of_samples()
    np.testing.assert_array_equal(damage[True], damage[False])


def test_class_scores_are_found_behind_other_outputs():
    original, other = (network(WITH_CLASS_NUMBERS, {"w": w}) for w in (W, NEAR))
    agreement = np.mean((X @ W).argmax(1) == (X @ NEAR).argmax(1))
    assert 0 < agreement < 1
    assert closeness(original, other, Samples({"x": X}, np.arange(12))).agreement == pytest.approx(agreement)
    found = evaluate(other, Data("numbers", X, None), reference=original)
    assert found.agreement == pytest.approx(agreement)


def test_whole_numbers_count_where_there_are_no_others():
    assert judged([np.arange(3), ["a", "b"]])[0].dtype.kind == "i"
    with pytest.raises(InputError, match="no output of the network is a tensor of numbers"):
        judged([["a", "b"], np.array(["a"])])


def test_probabilities_of_several_positions_are_no_classes():
    """A Softmax over the letters of each place, flattened: what is before it is not (N, classes)."""
    model = network(
        """g (float[n, 6] x) => (float[n, 6] y) {
            letters = Constant <value_ints = [0, 2, 3]> ()
            all = Constant <value_ints = [0, 6]> ()
            a = Reshape(x, letters)
            b = Softmax <axis = 2> (a)
            y = Reshape(b, all)
        }"""
    )
    assert scores_of(model).name == "y"


@pytest.mark.parametrize(("axis", "before"), [(1, "a"), (-1, "y")])
def test_a_softmax_counts_where_it_is_over_the_classes(axis, before):
    model = network(
        f"""g (float[n, 6] x) => (float[n, 6, 1] y) {{
            shape = Constant <value_ints = [0, 6, 1]> ()
            a = Reshape(x, shape)
            y = Softmax <axis = {axis}> (a)
        }}"""
    )
    assert scores_of(model).name == before


def test_what_is_no_tensor_is_left_out():
    model = network(
        """g (float[n, 6] x) => (seq(float[n, 5]) s, float[n, 5] y) {
            y = MatMul(x, w)
            s = SequenceConstruct(y)
        }""",
        {"w": W},
    )
    found = evaluate(model, Data("numbers", X, None), reference=model)
    assert (found.agreement, found.damage) == (1.0, pytest.approx(0))


def test_as_many_entries_as_objects_in_every_sample(tmp_path):
    model = network(
        """g (float[1, 6] x) => (int64[1, found] y) {
            a = Relu(x)
            b = NonZero(a)
            y = ReduceSum <keepdims = 1> (b, zero)
        }""",
        {"zero": np.array([0], np.int64)},
    )
    with pytest.raises(InputError, match="as many entries as the network finds objects"):
        evaluate(model, Data("numbers", X, None), reference=model)


def test_nan_in_arrays_by_name_is_the_datas_fault(tmp_path):
    x = X.copy()
    x[7, 2] = np.nan
    np.savez(tmp_path / "d.npz", a=x, b=X)
    model = network("g (float[n, 6] a, float[n, 6] b) => (float[n, 6] y) { y = Add(a, b) }")
    with pytest.raises(InputError, match="sample 7 of 'a' holds NaN or infinite values"):
        read_samples(model, tmp_path / "d.npz")


def test_a_network_that_gives_nan_agrees_with_nothing():
    original = network("g (float[n, 6] x) => (float[n, 5] y) { y = MatMul(x, w) }", {"w": W})
    broken = network("g (float[n, 6] x) => (float[n, 5] y) { y = MatMul(x, w) }", {"w": np.nan * W})
    found = closeness(original, broken, Samples({"x": X}, np.arange(12)))
    assert found.agreement == 0


@pytest.mark.parametrize(
    "behind",
    [
        "y = ArgMax <axis = 1, keepdims = 0> (s)",
        """
            a = ArgMax <axis = 1> (s) i = Cast <to = 6> (a) axes = Constant <value_ints = [1]> ()
            y = Squeeze(i, axes)""",
    ],
)
def test_class_numbers_stand_for_the_scores_that_they_were_chosen_by(behind):
    kind = "int32" if "Cast" in behind else "int64"

    def of(weights, last=behind, y=f"{kind}[n] y"):
        return network(f"g (float[n, 6] x) => ({y}) {{ s = MatMul(x, w) {last} }}", {"w": weights})

    def scores(weights):
        return of(weights, "y = Identity(s)", "float[n, 5] y")

    other = W + np.random.default_rng(3).standard_normal(W.shape).astype(np.float32)
    samples = Samples({"x": X}, np.arange(len(X)))
    assert scores_of(of(W)).name == "s"
    assert closeness(of(W), of(other), samples) == closeness(scores(W), scores(other), samples)
    labels = (X @ W).argmax(axis=1)
    data = Data("numbers", X, labels)
    found, expected = (evaluate(given(other), data, reference=given(W)) for given in (of, scores))
    assert found == expected
    assert 0 < found.top1 == found.agreement < 1


def test_probabilities_that_are_rounded_do_no_negative_damage():
    random = np.random.default_rng(0)
    p = scipy.special.softmax(random.standard_normal((1000, 50)).astype(np.float32), axis=1)
    q = scipy.special.softmax(np.log(p) + random.normal(0, 1e-5, p.shape).astype(np.float32), axis=1)
    damage = Damage()
    damage.add([p], [q * np.float32(1 + 1e-6)])
    assert damage.of_samples().min() >= 0
    assert damage.of_samples().max() < 1e-8
