import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.model import simplify
from onnxcompress.pruning.iterative import prune_in_steps
from onnxcompress.runtime import run, session
from tests.networks import Builder
from tests.onnx_text import network
from tests.oracle import outputs_with_removed_read_as_zero

FORMS = {
    "a slice at numbers of 32 bits": """
        <int32[1] start = {2}, int32[1] end = {7}, int32[1] axis = {1}, int32[1] step = {1}>
        { c = Conv (x, w8_3)  d = Slice (c, start, end, axis, step)  r = Relu (d)  f = Conv (r, w4_5)
          y = Conv (f, w2_4) }""",
    "a slice without axes": """
        <int64[2] start = {0, 1}, int64[2] end = {9, 7}>
        { c = Conv (x, w8_3)  d = Slice (c, start, end)  r = Relu (d)  f = Conv (r, w4_6)
          y = Conv (f, w2_4) }""",
    "one channel as a gate": """
        <int64[1] axis = {1}>
        { c = Conv (x, w8_3)  g = Gather <axis: int = 1> (c, third)  u = Unsqueeze (g, axis)
          s = Sigmoid (u)  m = Mul (c, s)  f = Conv (m, w4_8)  y = Conv (f, w2_4) }""",
    "a mean over part of the channels": """
        <int64[4] parts = {0, 4, 2, 64}>
        { c = Conv (x, w8_3)  r = Reshape (c, parts)  p = GlobalAveragePool (r)  f = Flatten (p)
          z = MatMul (f, w4__5)  i = Conv (x, w6_3)  y = Conv (i, w2_6) }""",
    "a maximum over part of the channels": """
        <int64[4] parts = {0, 2, 4, 64}, int64[4] whole = {0, 4, 8, 8}>
        { c = Conv (x, w8_3)  r = Reshape (c, parts)
          p = MaxPool <kernel_shape: ints = [2, 1], strides: ints = [2, 1]> (r)  q = Reshape (p, whole)
          f = Conv (q, w6_4)  y = Conv (f, w2_6) }""",
}
"""ONNX text; wM_C is a kernel of one element, wM__C a matrix."""


def random_weights(text: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    names = {each.strip("(),") for each in text.split() if each.startswith("w") and "_" in each}
    shapes = {each: [int(number) for number in each[1:].split("_") if number] for each in names}
    for name, shape in shapes.items():
        if "__" not in name:
            shape.extend((1, 1))
    third = {"third": np.array(2)} if "third" in text else {}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | third


@pytest.fixture
def model():
    b = Builder(0)
    x = b.conv("x", 6)
    y = b.conv("x", 6)
    z = b.conv(b.add("Add", [x, y], b.shapes[x]), 4)
    return b.model([b.conv(z, 2)])


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"nowhere": [0]}, "no layer 'nowhere'"),
        ({"conv3": [6]}, "out of range"),
        ({"conv4": [0]}, "must stay: the network's output"),
        ({"conv0": [2]}, "conv1: filter 2 is tied"),
        ({"conv3": [0, 1, 2, 3]}, "at least one filter must stay"),
    ],
)
def test_refuses_impossible_plans(model, filters, message):
    with pytest.raises(oc.InputError, match=message):
        oc.apply(model, oc.Plan(prune=filters))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [({"nowhere": (1, 1)}, "no layer"), ({"conv3": (5, 5)}, "at most 4"), ({"conv3": (2, 3)}, "given twice")],
)
def test_refuses_impossible_ranks(model, ranks, message):
    with pytest.raises(oc.InputError, match=message):
        oc.apply(model, oc.Plan(decompose={name: oc.Ranks(*pair) for name, pair in ranks.items()}))


def test_the_input_network_is_not_touched(model):
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    oc.compress(model, ratio=0.5, rank="fraction:0.5", include_pointwise=True)
    assert {name: value.const_value.numpy().shape for name, value in model.graph.initializers.items()} == {
        name: array.shape for name, array in before.items()
    }


def test_unknown_operators_hold_back_what_reaches_them_and_are_named():
    b = Builder(0)
    x = b.conv("x", 6)
    y = b.add("Trilu", [x], b.shapes[x])
    z = b.conv(y, 8)
    result = oc.prune(b.model([b.conv(z, 2)]), ratio=0.5)
    assert list(result.plan.prune) == ["conv2"]
    assert result.unknown == {"trilu1": "Trilu"}
    assert result.plan.kept["conv0"] == "no rule for Trilu ('trilu1')"


def test_weights_that_also_read_what_is_fixed_keep_their_inputs():
    b = Builder(0)
    weights = [b.weight(6, 3, 1, 1), b.weight(6)]
    inner = b.conv("x", 3)
    both = [b.add("Conv", [each, *weights], (6, 8, 8)) for each in ("x", inner)]
    result = oc.prune(b.model([b.conv(b.add("Add", both, (6, 8, 8)), 2)]), ratio=0.5)
    assert sorted(result.plan.prune) == ["conv1", "conv2"]
    assert result.plan.kept["conv0"] == "weights shared with 'conv1'"


@pytest.mark.parametrize("form", FORMS)
def test_pruning_is_exact_around(form):
    text = FORMS[form]
    outputs = "float[1, 5] z, float[1, 2, 8, 8] y" if "z =" in text else "float[1, 2, 8, 8] y"
    model = network(f"g (float[1, 3, 8, 8] x) => ({outputs}) {text}", random_weights(text))
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    result = oc.prune(model, ratio=0.5)
    assert result.plan.prune
    expected = outputs_with_removed_read_as_zero(simplify(model), result.plan.prune, {"x": x})
    for ours, theirs in zip(run(session(result.model), {"x": x}), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_factors_of_a_product_of_vectors_stay():
    text = """
        <int64[3] axes = {0, 2, 3}>
        { c = Conv (x, w8_3)  p = GlobalAveragePool (c)  a = Squeeze (p, axes)  q = GlobalMaxPool (c)
          b = Squeeze (q, axes)  d = MatMul (a, b)  i = Conv (x, w6_3)  o = Conv (i, w2_6)
          y = Add (o, d) }"""
    model = network(f"g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) {text}", random_weights(text))
    result = oc.prune(model, ratio=0.5)
    assert len(result.plan.prune) == 1
    assert run(session(result.model), {"x": np.ones((1, 3, 8, 8), np.float32)})[0].shape == (1, 2, 8, 8)


def test_channels_that_a_kernel_moves_over_stay():
    text = """
        { c = Conv (x, w8_3)  t = Transpose <perm: ints = [0, 2, 1, 3]> (c)  f = Conv (t, w6_8)  r = Relu (f)
          y = Conv (r, w2_6) }"""
    model = network(f"g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) {text}", random_weights(text))
    result = oc.prune(model, ratio=0.5)
    assert list(result.plan.prune) == ["Conv_2"]
    assert "moves over" in result.plan.kept["Conv_0"]
    assert not result.unknown


def test_a_reduction_over_no_axes_changes_nothing():
    """The oracle does not know of these."""
    text = "{{ c = Conv (x, w8_3)  d = {} (c)  r = Relu (d)  f = Conv (r, w4_8)  y = Conv (f, w2_4) }}"
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    found = []
    for operator in ("Identity", "ReduceSum <noop_with_empty_axes: int = 1>"):
        graph = text.format(operator)
        model = network(f"g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) {graph}", random_weights(graph))
        result = oc.prune(model, ratio=0.5)
        assert len(result.plan.prune) == 2
        found.append(run(session(result.model), {"x": x})[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("groups", [(4, 2), (2, 4)])
def test_a_plan_for_grouped_convolutions_in_a_row_can_be_carried_out(groups):
    for seed in range(40):
        b = Builder(seed)
        x = b.conv(b.conv("x", 16), 16, 3, groups[0])
        y = b.conv(b.add("Relu", [x], b.shapes[x]), 16, 3, groups[1])
        z = b.conv(b.add("Relu", [y], b.shapes[y]), 4)
        assert oc.prune(b.model([b.conv(z, 2)]), ratio=0.3, scope="global").plan.prune


def test_channels_before_an_lrn_that_has_lost_some_are_free_in_later_rounds():
    b = Builder(0)
    x = b.conv("x", 40)
    normalized = b.add("LRN", [x], b.shapes[x], size=5)
    model = b.model([b.conv(normalized, 2)])
    network, removed, missing = prune_in_steps(
        simplify(model),
        ratio=0.5,
        step=0.1,
        score=lambda network, graph, progress: np.random.default_rng(0).random(graph.set_of.max() + 1),
        recover=lambda pruned, progress: pruned,
    )
    assert len(removed["conv0"]) == 20
    assert missing == 0
    at_once = oc.apply(model, oc.Plan(prune=removed)).model
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(*(run(session(each), {"x": x})[0] for each in (network, at_once)), atol=1e-5)


HALVES = """
    <int64[3] rest = {-1, 8, 8}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}>
    { c = Conv (x, w8_3)  n = Shape <start: int = 0, end: int = 1> (x)  s = Concat <axis: int = 0> (n, rest)
      d = Reshape (c, s)  k = Shape <start: int = 1, end: int = 2> (d)  h = Div (k, two)  e = Mul (h, two)
      a = Slice (d, zero, h, one, one)  b = Slice (d, h, e, one, one)  r = Relu (b)
      q = Concat <axis: int = 1> (r, a)  f = Conv (q, w4_8)  y = Conv (f, w2_4) }"""


def test_pruning_is_exact_around_halves_that_the_network_computes():
    """As exporters write chunks where the batch is open; inference does not tell the number of channels."""
    model = network(f"g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {HALVES}", random_weights(HALVES))
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    first, *_ = [node.name for node in simplify(model).graph if node.op_type == "Conv"]
    result = oc.apply(model, oc.Plan(prune={first: [0, 2, 3, 6]}))
    expected = outputs_with_removed_read_as_zero(simplify(model), result.plan.prune, {"x": x})
    for ours, theirs in zip(run(session(result.model), {"x": x}), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    open_ = HALVES.replace("Shape <start: int = 1, end: int = 2> (d)", "Mul (n, two)")
    held = network(f"g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {open_}", random_weights(HALVES))
    assert "computed from sizes that the network leaves open" in oc.prune(held).plan.kept[first]


SHAPES = """
    <int64[1] zero = {0}, int64[1] one = {1}, int64[3] rest = {-1, 8, 8}>
    { c = Conv (x, w8_3)  r = Relu (c)  n = Shape (r)  d = Reshape (c, n)  b = Slice (n, zero, one)
      s = Concat <axis: int = 0> (b, rest)  e = Reshape (d, s)  y = Conv (e, w2_8) }"""


def test_shapes_that_are_right_by_themselves_stay_as_they_are():
    """Converters of edge runtimes recognise what exporters write."""
    model = network(f"g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {SHAPES}", random_weights(SHAPES))
    before = simplify(model)
    assert "Shape" in {node.op_type for node in before.graph}
    result = oc.prune(model, ratio=0.5)
    assert [node.op_type for node in result.model.graph] == [node.op_type for node in before.graph]
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = outputs_with_removed_read_as_zero(before, result.plan.prune, {"x": x})
    for ours, theirs in zip(run(session(result.model), {"x": x}), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


RECURRENT = """g (float[N, 3, 1, 6] x) => (float[6, D, N, 4] y) {
  c = Conv (x, w8_3)  r = Relu (c)  s = Squeeze (r, height)  t = Transpose <perm = [2, 0, 1]> (s)
  y, last, cell = LSTM <hidden_size = 4, direction = "bidirectional"> (t, input, state)
}"""


def test_what_a_recurrent_layer_reads_can_go():
    """It keeps its outputs, read or not: MNN's converter crashes on an LSTM with one."""
    random = np.random.default_rng(0)
    shapes = {"w8_3": (8, 3, 1, 1), "input": (2, 16, 8), "state": (2, 16, 4)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["height"] = np.array([2])
    result = oc.prune(network(RECURRENT, weights), ratio=0.5)
    ((_, gone),) = result.plan.prune.items()
    assert len(gone) == 4
    assert len(next(node for node in result.model.graph if node.op_type == "LSTM").outputs) == 3
    weights["input"][..., gone] = 0
    x = random.standard_normal((2, 3, 1, 6)).astype(np.float32)
    pair = (result.model, network(RECURRENT, weights))
    np.testing.assert_allclose(*(run(session(each), {"x": x})[0] for each in pair), rtol=1e-5, atol=1e-6)


def shuffle_net(seed, groups=8, width=32, middle=16, units=2):
    """Units of ShuffleNet (Zhang et al. 2018): grouped, shuffled, depthwise and grouped convolutions."""
    random = np.random.default_rng(seed)
    arrays = {
        "first": random.standard_normal((width, 3, 1, 1)),
        "last": random.standard_normal((2, width, 1, 1)),
    }
    lines = ["f = Conv (x, first)  a0 = Relu (f)"]
    for i in range(units):
        arrays[f"in{i}"] = random.standard_normal((middle, width // groups, 1, 1))
        arrays[f"deep{i}"] = random.standard_normal((middle, 1, 1, 1))
        arrays[f"out{i}"] = random.standard_normal((width, middle // groups, 1, 1))
        lines.append(
            f"b{i} = Conv <group: int = {groups}> (a{i}, in{i})  c{i} = Relu (b{i})"
            f"  d{i} = Reshape (c{i}, parts)  e{i} = Transpose <perm: ints = [0, 2, 1, 3, 4]> (d{i})"
            f"  g{i} = Reshape (e{i}, whole)"
            f"  h{i} = Conv <group: int = {middle}> (g{i}, deep{i})"
            f"  k{i} = Conv <group: int = {groups}> (h{i}, out{i})  s{i} = Add (a{i}, k{i})"
            f"  a{i + 1} = Relu (s{i})"
        )
    lines.append(f"y = Conv (a{units}, last)")
    weights = {name: array.astype(np.float32) for name, array in arrays.items()}
    weights["parts"] = np.array([0, groups, middle // groups, 4, 4])
    weights["whole"] = np.array([0, middle, 4, 4])
    body = "  ".join(lines)
    return network(f"g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {{ {body} }}", weights)


@pytest.mark.parametrize("seed", range(6))
def test_channels_that_are_shuffled_are_not_all_tied_together(seed):
    """Whatever the weights: by these it is chosen how grouped convolutions lose channels."""
    model = shuffle_net(seed)
    result = oc.prune(model, ratio=0.5)
    assert result.stages[-1].cost.macs < 0.75 * result.stages[0].cost.macs
    again = oc.apply(model, result.plan)
    assert again.stages[-1].cost == result.stages[-1].cost
