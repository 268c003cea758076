"""Networks that are unusual in one way, through the verbs that look at data."""

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.measure.damage import Damage
from onnxcompress.runtime import run, session
from tests.onnx_text import network

CONVOLUTIONS = """
    a = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (x, w1, b1)  ra = Relu (a)
    b = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (ra, w2, b2)  rb = Relu (b)"""
CLASSIFIER = "p = GlobalAveragePool (rb)  f = Flatten (p)  y = Gemm <transB: int = 1> (f, w3, b3)"


def weights(*shape: int) -> np.ndarray:
    random = np.random.default_rng(shape)
    return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def cnn(end: str = CLASSIFIER, outputs: str = "float[N, 10] y", batch: str = "N", **more) -> ir.Model:
    given = {"w1": weights(8, 3, 3, 3), "w2": weights(16, 8, 3, 3), "w3": weights(10, 16)}
    given |= {"b1": weights(8), "b2": weights(16), "b3": weights(10)} | more
    outputs = outputs.replace("[N", f"[{batch}")
    nodes = f"{{ {CONVOLUTIONS} {end} }}"
    model = network(f"g (float[{batch}, 3, 8, 8] x) => ({outputs}) {nodes}", given)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def feeds(count: int = 40, size: int = 1) -> oc.Calibration:
    x = images(count)
    return oc.Calibration([{"x": x[at : at + size]} for at in range(0, count, size)])


def relative_error(model: ir.Model, other: ir.Model) -> float:
    x = images(200, 1)
    ours, theirs = (run(session(each), {"x": x})[0] for each in (other, model))
    return float(np.mean((ours - theirs) ** 2) / theirs.var())


def test_what_leads_to_a_single_output_matters():
    model = cnn(outputs="float[N, 1] y", w3=weights(1, 16), b3=weights(1))
    result = oc.compress(model, target="macs=0.5", data=feeds(100))
    share = result.stages[-1].cost.macs / result.stages[0].cost.macs
    assert 0.45 < share <= 0.5
    assert result.fitted is not None
    assert result.fitted.expected_damage > 0
    assert relative_error(model, result.model) < 0.3


@pytest.mark.parametrize("size", [1, 7])
def test_damage_of_outputs_does_not_depend_on_batches(size):
    random = np.random.default_rng(0)
    original, other = random.standard_normal((2, 21, 1)) + 5
    damage = Damage()
    for at in range(0, 21, size):
        damage.add([original[at : at + size]], [other[at : at + size]])
    expected = np.mean((original - other) ** 2, axis=1) / original.var()
    np.testing.assert_allclose(damage.of_samples(), expected)


def test_constant_outputs_are_compared_with_their_size():
    damage = Damage()
    damage.add([np.full((4, 1), 2.0)], [np.full((4, 1), 2.2)])
    np.testing.assert_allclose(damage.of_samples(), 0.01)


def test_the_band_of_an_lrn_is_no_layer():
    convolutions = CONVOLUTIONS.replace("ra = Relu (a)", "c = Relu (a)  ra = LRN <size: int = 5> (c)")
    given = {"w1": weights(24, 3, 3, 3), "b1": weights(24), "w2": weights(16, 24, 3, 3), "b2": weights(16)}
    given |= {"w3": weights(10, 16), "b3": weights(10)}
    model = network(f"g (float[N, 3, 8, 8] x) => (float[N, 10] y) {{ {convolutions} {CLASSIFIER} }}", given)
    options = {"include_pointwise": True, "ratio": 0.3, "rank": "fraction:0.5", "data": feeds()}
    result = oc.compress(model, **options)
    again = oc.compress(result.model, **options)
    for each in (result, again):
        assert not [name for name in each.plan.decompose if "band" in name]
        assert np.isfinite(run(session(each.model), {"x": images(100, 1)})[0]).all()


def test_what_fills_a_fixed_batch_up_is_no_sample():
    plan, x = oc.Plan(decompose={"b": oc.Ranks(6, 5)}), images(192, 1)
    expected = run(session(cnn()), {"x": x})[0]
    errors = []
    for batch in ("N", "8", "64"):
        model = session(oc.apply(cnn(batch=batch), plan, data=feeds()).model)
        size = len(x) if batch == "N" else int(batch)
        found = np.concatenate([run(model, {"x": x[at : at + size]})[0] for at in range(0, len(x), size)])
        errors.append(float(np.mean((found - expected) ** 2)))
    assert max(errors) < 1.2 * min(errors)


def test_outputs_of_other_rows_and_scalars():
    rows = "t = Transpose <perm: ints = [0, 2, 3, 1]> (rb)  r = Reshape (t, shape)  z = MatMul (r, w4)"
    model = cnn(
        f"{CLASSIFIER} {rows}",
        "float[N, 10] y, float[M, 4] z",
        w4=weights(16, 4),
        shape=np.array([-1, 16]),
    )
    scalar = cnn("y = ReduceMean <keepdims: int = 0> (rb)", "float y")
    for each in (model, scalar):
        oc.compress(each, target="macs=0.5", data=feeds())


@pytest.mark.parametrize(("then", "otherwise"), [("Relu", "Neg"), ("Identity", "Identity")])
def test_branches_that_read_what_is_outside(then, otherwise):
    end = f"""s = ReduceMean <keepdims: int = 0> (ra)  c = Greater (s, zero)
        q = If (c) <then_branch = t () => (float[N, 16, 8, 8] o1) {{ o1 = {then} (rb) }},
                    else_branch = e () => (float[N, 16, 8, 8] o2) {{ o2 = {otherwise} (rb) }}>
        d = Conv <kernel_shape: ints = [1, 1]> (q, w5)  {CLASSIFIER.replace("(rb)", "(d)")}"""
    model = cnn(end, zero=np.array(0, np.float32), w5=weights(16, 16, 1, 1))
    assert oc.compress(model, target="macs=0.5", data=feeds()).stages[1:]


def test_a_gemm_that_adds_another_term_to_each_row():
    model = cnn(batch="8", w3=weights(8, 16), b3=3 * weights(8, 1), outputs="float[N, 8] y")
    result = oc.apply(model, oc.Plan(decompose={"y": oc.Ranks(7, 7)}), data=feeds(96))
    x = images(8, 1)
    ours, theirs = (run(session(each), {"x": x})[0] for each in (result.model, model))
    assert np.mean((ours - theirs) ** 2) < 0.05 * theirs.var()


@pytest.mark.parametrize(
    ("number", "verb"),
    [
        (3, partial(oc.apply, plan=oc.Plan(decompose={"b": oc.Ranks(6, 5)}))),
        (3, partial(oc.prune, criterion="l2")),
        (2, partial(oc.compress, target="macs=0.5")),
    ],
)
def test_nan_in_the_data_is_refused(number, verb):
    x = images(40)
    x[number, 0, 0, 0] = np.nan
    with pytest.raises(oc.InputError, match="NaN"):
        verb(cnn(), data=oc.Calibration([{"x": x}]))


def test_feeds_of_two_sizes_are_refused():
    data = [{"x": images(10)}, {"x": np.zeros((10, 3, 9, 9), np.float32)}]
    with pytest.raises(oc.InputError, match="do not go together"):
        oc.compress(cnn(), target="macs=0.5", data=oc.Calibration(data))


def test_weights_that_are_called_as_those_of_a_rewritten_lrn():
    text = CONVOLUTIONS.replace("ra = Relu (a)", "c = Relu (a)  ra = LRN <size: int = 5> (c)")
    given = {"w1": weights(24, 3, 3, 3), "b1": weights(24), "w2": weights(16, 24, 3, 3)}
    given |= {"ra.bias": weights(16), "w3": weights(10, 16), "b3": weights(10)}
    nodes = f"{text} {CLASSIFIER}"
    model = network(
        f"g (float[N, 3, 8, 8] x) => (float[N, 10] y) {{ {nodes} }}", given | {"b2": given["ra.bias"]}
    )
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == "b2":
                node.replace_input_with(index, model.graph.initializers["ra.bias"])
    (lrn,) = (node for node in model.graph if node.op_type == "LRN")
    lrn.name = "ra"
    result = oc.apply(model, oc.Plan(rewrite=["ra"]))
    assert relative_error(model, result.model) < 1e-6
