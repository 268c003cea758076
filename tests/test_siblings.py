import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.errors import InputError
from onnxcompress.factoring.surgery import factor
from onnxcompress.model import simplify
from onnxcompress.plan import Plan, Ranks, from_yaml, members, to_yaml
from onnxcompress.pruning.surgery import remove_filters
from onnxcompress.report.compressed import layers_json
from onnxcompress.runtime import run, session
from onnxcompress.siblings import among, joined, parted, siblings, stacked, unstacked
from tests.networks import networks

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
CHANNELS = 6


def block(
    widths: list[int],
    relus: list[bool],
    *,
    bias: bool = True,
    stride: int = 1,
    opset: int = 17,
    seed: int = 0,
    exposed: bool = False,
) -> ir.Model:
    """1×1 convolutions a0, a1, … of x, each with or without a Relu, read by one convolution each.

    Where they are exposed, what the first two give is an output of the network too.
    """
    random = np.random.default_rng(seed)
    nodes, weights, ends = [], [], []

    def conv(name: str, source: str, shape: tuple[int, ...], **attributes) -> str:
        arrays = {f"{name}.w": random.standard_normal(shape)}
        if bias:
            arrays[f"{name}.b"] = random.standard_normal(shape[0])
        weights.extend(numpy_helper.from_array(a.astype(np.float32), key) for key, a in arrays.items())
        nodes.append(helper.make_node("Conv", [source, *arrays], [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    for number, (width, relu) in enumerate(zip(widths, relus, strict=True)):
        value = conv(f"a{number}", "x", (width, CHANNELS, 1, 1), strides=[stride, stride])
        if relu:
            nodes.append(helper.make_node("Relu", [value], [f"r{number}"], name=f"relu{number}"))
            value = f"r{number}"
        ends.append(conv(f"b{number}", value, (3, width, 1, 1)))
    nodes.append(helper.make_node("Concat", ends, ["y"], axis=1))
    outputs = {"y": 3 * len(widths)} | ({"a0:0": widths[0], "r1": widths[1]} if exposed else {})
    graph = helper.make_graph(
        nodes,
        "siblings",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 8, 8])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width, 8 // stride, 8 // stride])
            for name, width in outputs.items()
        ],
        weights,
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )


@st.composite
def blocks(draw, exposed: bool = False):
    widths = draw(st.lists(st.integers(2, 7), min_size=2, max_size=4))
    relus = draw(
        st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)) | st.just([True] * len(widths))
    )
    return simplify(
        block(
            widths,
            relus,
            bias=draw(st.booleans()),
            stride=draw(st.sampled_from([1, 2])),
            opset=draw(st.sampled_from([11, 13, 18])),
            seed=draw(st.integers(0, 99)),
            exposed=exposed and relus[1] and draw(st.booleans()),
        )
    )


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    value = model.graph.inputs[0]
    shape = (2, *(dim if isinstance(dim, int) else 8 for dim in value.shape[1:]))
    return {value.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def assert_same(actual: ir.Model, expected: ir.Model) -> None:
    given = feeds(expected)
    for a, e in zip(run(session(actual), given), run(session(expected), given), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5 * max(np.ptp(e), 1e-3))


@SETTINGS
@given(blocks(exposed=True) | networks().map(simplify))
def test_joined_and_parted_networks_compute_the_same(model):
    names = siblings(model)
    whole = joined(model, names)
    assert_same(whole, model)
    back = parted(whole, names)
    assert_same(back, model)
    assert sorted(node.op_type for node in back.graph) == sorted(node.op_type for node in model.graph)
    assert {node.name for node in back.graph} >= {each for name in names for each in members(name)}


@SETTINGS
@given(blocks(), st.data())
def test_filters_removed_from_the_joined_layer_are_those_of_its_members(model, data):
    names = siblings(model)
    widths = {
        node.name: len(node.inputs[1].const_value.numpy())
        for node in model.graph
        if node.name in members(names[0])
    }
    filters = {
        name: gone
        for name, count in widths.items()
        if (
            gone := data.draw(
                st.lists(st.integers(0, count - 1), unique=True, max_size=count - 1).map(sorted)
            )
        )
    }
    inside = stacked(filters, model, names)
    assert unstacked(inside, model, names) == filters
    cut = remove_filters(joined(model, names), inside)
    assert_same(parted(cut, names), remove_filters(model, filters))


@SETTINGS
@given(blocks())
def test_a_shared_input_factor_at_full_rank_is_the_original(model):
    names = siblings(model)
    whole = joined(model, names)
    filters = sum(len(node.inputs[1].const_value.numpy()) for node in model.graph if node.name[0] == "a")
    rank = min(CHANNELS, filters)
    chain = parted(factor(whole, {names[0]: Ranks(rank, rank)}), names)
    assert_same(chain, model)
    shared = next(node for node in chain.graph if node.name == f"{names[0]}/in")
    assert {reader.name for reader, _ in shared.outputs[0].uses()} == set(members(names[0]))


def test_only_likes_are_siblings():
    model = simplify(block([4, 5, 6], [True, True, False]))
    assert siblings(model) == ["a0 + a1 + a2"]
    assert siblings(model, skip=["a1"]) == ["a0 + a2"]
    assert siblings(model, skip=["a0", "a1"]) == []
    by_name = {node.name: node for node in model.graph}
    by_name["a1"].attributes["strides"] = ir.AttrInt64s("strides", [2, 2])
    assert siblings(model) == ["a0 + a2"]
    by_name["a2"].replace_input_with(1, by_name["b2"].inputs[1])
    assert siblings(model) == []


def test_a_plan_with_a_shared_input_factor_is_applied_and_reported():
    model = block([4, 5, 6], [True, True, False])
    plan = Plan(prune={"a0": [1]}, decompose={"a0 + a2": Ranks(3, 3)})
    result = oc.apply(model, from_yaml(to_yaml(plan)))
    weights = {
        node.name: node.inputs[1].const_value.numpy() for node in result.model.graph if node.name[0] == "a"
    }
    assert {name: w.shape[:2] for name, w in weights.items()} == {
        "a0 + a2/in": (3, CHANNELS),
        "a0": (3, 3),
        "a1": (5, CHANNELS),
        "a2": (6, 3),
    }
    rows = {row["name"]: row for row in layers_json(result)}
    assert rows["a0"]["ranks"] == {"out": 3, "in": 3}
    assert rows["a0"]["macs_after"] == 64 * (3 * CHANNELS / 2 + 3 * 3)
    assert sum(row["macs_after"] for row in rows.values()) == result.stages[-1].cost.macs


def test_branches_that_read_a_subspace_share_it_under_a_budget():
    model = block([8, 8, 8], [True, True, True])
    random = np.random.default_rng(0)
    spanned = np.einsum(
        "ncx,cd->ndx", random.standard_normal((40, 2, 64)), random.standard_normal((2, CHANNELS))
    )
    data = oc.Calibration([{"x": spanned.reshape(40, CHANNELS, 8, 8).astype(np.float32)}])
    result = oc.compress(model, data=data, target="macs=0.7")
    assert result.plan.decompose["a0 + a1 + a2"] == (2, 2, False)
    assert result.fitted.closeness.damage < 1e-6
    again = oc.apply(model, from_yaml(to_yaml(result.plan)), data=data)
    assert ir.to_proto(again.model) == ir.to_proto(result.model)


@pytest.mark.parametrize("name", ["a0 + b1", "a0 + a0", "a0 + a1 + b0"])
def test_what_are_no_siblings_is_refused(name):
    model = simplify(block([4, 5, 6], [True, True, False]))
    assert among(["a0", "a0 + a2", "a0 + nothing"], model) == ["a0 + a2"]
    with pytest.raises(InputError, match="not different 1×1 convolutions of the same input"):
        among([name], model)


def test_a_layer_is_factored_with_others_only_once():
    model = block([3, 3], [True, True])
    with pytest.raises(InputError, match="a0 is factored with others twice"):
        among(["a0 + a1", "a1 + a0"], model)


def test_a_name_that_looks_like_two_is_that_of_one_layer():
    model = block([3, 3, 3], [True] * 3)
    model.graph[0].name = "a1 + a2"
    assert siblings(simplify(model), ()) == ["a1 + a2"]  # of the layers a1 and a2
    model.graph[0].name = "a1 + a9"
    joined(model, siblings(model, ()))
