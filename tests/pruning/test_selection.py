"""Filters whose importance is known by construction: filter i is filled with i."""

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from tests.networks import Builder


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
    assert "14 of 15" in result.shortfall


def test_skip_by_glob():
    b = Builder(0)
    b.conv(b.conv("x", 8), 8)
    model = b.model([b.conv(b.nodes[-1].output[0], 2)])
    result = oc.prune(model, ratio=0.5, skip=["*0"])
    assert list(result.plan.prune) == ["conv1"]
    assert result.plan.kept["conv0"] == "skipped as asked"
    with pytest.raises(oc.InputError, match="no layer matches 'nothing'"):
        oc.prune(model, skip=["nothing"])
