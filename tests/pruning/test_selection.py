"""Filters whose importance is known by construction: filter i is filled with i."""

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from tests.networks import Builder
from tests.onnx_text import network


def graded(b: Builder) -> ir.Model:
    """The network that was built, with filter i of each convolution filled with i + 1."""
    model = b.model([b.conv(b.nodes[-1].output[0], 2)])
    for node in model.graph:
        if node.op_type == "Conv":
            array = node.inputs[1].const_value.numpy()
            levels = np.arange(1, len(array) + 1, dtype=np.float32).reshape(-1, 1, 1, 1)
            node.inputs[1].const_value = ir.tensor(np.ones_like(array) * levels, name=node.inputs[1].name)
    return model


def test_the_least_important_go():
    b = Builder(0)
    b.conv("x", 10, bias=False)
    for criterion, expected in (("l1", [0, 1]), ("l2", [0, 1]), ("fpgm", [4, 5])):
        removed = oc.prune(graded(b), ratio=0.29, criterion=criterion).plan.prune
        assert removed == {"conv0": expected}, criterion
        b.nodes.pop()


def test_random_follows_its_seed():
    b = Builder(0)
    b.conv("x", 40)
    model = b.model([b.conv(b.nodes[-1].output[0], 2)])
    plans = [oc.prune(model, ratio=0.5, criterion="random", seed=seed).plan.prune for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_tied_layers_lose_the_same_filters():
    b = Builder(0)
    x = b.conv("x", 6, bias=False)
    y = b.conv("x", 6, kernel=3, bias=False)
    b.add("Add", [x, y], b.shapes[x])
    plan = oc.prune(graded(b), ratio=0.5).plan
    assert plan.prune == {"conv0": [0, 1, 2], "conv1": [0, 1, 2]}


def test_round_to_keeps_multiples_and_never_more_than_there_are():
    b = Builder(0)
    x = b.conv("x", 20, bias=False)
    b.conv(x, 6, bias=False)
    plan = oc.prune(graded(b), ratio=0.5, round_to=8).plan
    assert [20 - len(plan.prune["conv0"]), len(plan.prune.get("conv1", []))] == [16, 0]


def test_global_scope_leaves_one_and_says_that_it_is_short():
    b = Builder(0)
    b.conv(b.conv("x", 8), 8)
    result = oc.prune(b.model([b.conv(b.nodes[-1].output[0], 2)]), ratio=0.95, scope="global")
    assert {name: 8 - len(filters) for name, filters in result.plan.prune.items()} == {"conv0": 1, "conv1": 1}
    assert "1 had to stay" in result.shortfall


def test_skip_by_glob():
    b = Builder(0)
    b.conv(b.conv("x", 8), 8)
    model = b.model([b.conv(b.nodes[-1].output[0], 2)])
    result = oc.prune(model, ratio=0.5, skip=["*0"])
    assert list(result.plan.prune) == ["conv1"]
    assert result.plan.kept["conv0"] == "skipped as asked"
    with pytest.raises(oc.InputError, match="no layer matches 'nothing'"):
        oc.prune(model, skip=["nothing"])
    with pytest.raises(oc.InputError, match=r"give a list of patterns, as in \['\*0'\]"):
        oc.prune(model, skip="*0")


def test_what_is_tied_to_a_skipped_layer_says_so():
    b = Builder(0)
    first = b.conv("x", 8)
    model = b.model([b.conv(b.add("Add", [first, b.conv(first, 8)], b.shapes[first]), 2)])
    kept = oc.prune(model, ratio=0.5, skip=["conv0"]).plan.kept
    assert kept["conv0"] == "skipped as asked"
    assert kept["conv1"] == "tied to 'conv0', which is skipped"


def test_a_multilayer_perceptron_is_left_whole():
    b = Builder(0)
    flat = b.add("Flatten", ["x"], (192,))
    hidden = b.add("Relu", [b.add("Gemm", [flat, b.weight(192, 16)], (16,))], (16,))
    model = b.model([b.add("Gemm", [hidden, b.weight(16, 5)], (5,))])
    result = oc.prune(model, ratio=0.5)
    assert result.model is model
    assert set(result.plan.kept.values()) == {
        "only networks with convolutions on inner features are pruned",
        "the network's output",
    }


def test_of_a_grouped_convolution_whole_groups_go_where_they_are_dead():
    b = Builder(0)
    first = b.conv("x", 8)
    grouped = b.conv(first, 8, 3, group=4)
    model = b.model([b.conv(grouped, 2)])
    for node in list(model.graph)[:2]:
        for value in node.inputs[1:]:
            array = value.const_value.numpy().copy()
            array[:4] = 0
            value.const_value = ir.tensor(array, name=value.name)
    result = oc.prune(model, ratio=0.5)
    assert result.plan.prune == {"conv0": [0, 1, 2, 3], "conv1": [0, 1, 2, 3]}
    assert result.model.graph[1].attributes["group"].as_int() == 2


def test_a_zero_filter_stays_where_a_bias_makes_a_constant_of_it():
    b = Builder(0)
    x = b.conv("x", 6)
    depthwise = b.conv(x, 6, 3, group=6)
    model = b.model([b.conv(depthwise, 2)])
    for value in model.graph[0].inputs[1:]:
        array = value.const_value.numpy().copy()
        array[:3] = 0
        value.const_value = ir.tensor(array, name=value.name)
    bias = model.graph[1].inputs[2]
    array = bias.const_value.numpy().copy()
    array[0] = 0
    bias.const_value = ir.tensor(array, name=bias.name)
    assert oc.prune(model, ratio=0.5).plan.prune == {"conv0": [0]}


def test_a_product_too_wide_for_second_moments_leaves_the_others_to_be_scored(monkeypatch):
    monkeypatch.setattr("onnxcompress.calibration.patches.WIDEST", 300)
    random = np.random.default_rng(0)
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, u) b = Relu(a) c = Conv <pads = [1, 1, 1, 1]> (b, v)
            d = Relu(c) e = Flatten(d) y = Gemm(e, w)
        }""",
        {
            "u": random.standard_normal((6, 3, 3, 3)).astype(np.float32),
            "v": random.standard_normal((6, 6, 3, 3)).astype(np.float32),
            "w": random.standard_normal((6 * 64, 5)).astype(np.float32),
        },
    )
    x = random.standard_normal((20, 3, 8, 8)).astype(np.float32)
    result = oc.prune(model, ratio=0.5, data=[{"x": x}])
    assert [len(filters) for filters in result.plan.prune.values()] == [3, 3]
