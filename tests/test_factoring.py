"""Chains compute what their layers do with the weights that the factors multiply out to."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import onnxcompress as oc
from onnxcompress.errors import InputError
from onnxcompress.layers import FactorLayer, factor_layers
from onnxcompress.model import simplify
from onnxcompress.plan import Plan, Ranks, from_yaml, to_yaml
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes
from tests.factor_networks import networks
from tests.onnx_text import network

SETTINGS = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TOLERANCE = {"float32": 1e-5, "float16": 3e-2}
"""Relative to the largest output: a chain of float16 rounds where a layer accumulates."""


def layers_of(model: ir.Model) -> list[FactorLayer]:
    simplified = simplify(model)
    return factor_layers(simplified, concrete_shapes(simplified))


def full_ranks(layer: FactorLayer) -> Ranks:
    return Ranks(*(layer.sides if layer.kind == "kxk" else (min(layer.sides),) * 2))


def assert_same_outputs(actual: ir.Model, expected: ir.Model) -> None:
    random = np.random.default_rng(0)
    feeds = {
        str(value.name): random.standard_normal(value.shape.numpy()).astype(value.dtype.numpy())
        for value in expected.graph.inputs
    }
    outputs = [run(session(model, optimize=False), feeds) for model in (actual, expected)]
    for a, e in zip(*outputs, strict=True):
        assert a.shape == e.shape
        scale = max(float(np.abs(e).max()), 0.1)  # in which sums of order 1 may cancel
        np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=TOLERANCE[a.dtype.name])


def multiplied_out(model: ir.Model, chains: ir.Model, plan: Plan) -> ir.Model:
    """The network with the weights that the chains of a factored copy of it stand for."""
    result = simplify(model)
    parts = {str(node.name): node for node in chains.graph}
    for node in result.graph:
        if node.name in plan.decompose:
            chain = {
                part: parts[f"{node.name}/{part}"]
                for part in ("in", "core", "out")
                if f"{node.name}/{part}" in parts
            }
            product = _convolution if "Conv" in node.op_type else _matrix
            index = 1 if node.inputs[1].is_initializer() else 0
            value = node.inputs[index]
            array = product(node, index, chain).astype(value.const_value.numpy().dtype)
            assert array.shape == value.const_value.numpy().shape
            value.const_value = ir.tensor(array, name=value.name)
    return result


def _weight(node: ir.Node, index: int = 1) -> np.ndarray:
    return node.inputs[index].const_value.numpy().astype(np.float64)


def _convolution(node: ir.Node, index: int, chain: dict[str, ir.Node]) -> np.ndarray:
    """Conv stores (filters, channels / groups, ...), ConvTranspose (channels, filters / groups, ...)."""
    groups = _integer(node, "group", 1)
    products = []
    for group in range(groups):
        step = []
        for part in chain.values():
            own = _integer(part, "group", 1) // groups
            weight = np.split(_weight(part), groups)[group]
            if own > 1:
                weight = _spread(weight)
            step.append(weight.swapaxes(0, 1) if part.op_type == "ConvTranspose" else weight)
        product = step[0]
        for weight in step[1:]:
            product = np.einsum("mr...,rc...->mc...", weight, product)
        products.append(product.swapaxes(0, 1) if node.op_type == "ConvTranspose" else product)
    return np.concatenate(products)


def _spread(weight: np.ndarray) -> np.ndarray:
    """Of a depthwise convolution, (R, 1, *kernel): as that of one which is not, (R, R, *kernel)."""
    assert weight.shape[1] == 1
    return np.einsum("rs,r...->rs...", np.eye(len(weight)), weight[:, 0])


def _matrix(node: ir.Node, index: int, chain: dict[str, ir.Node]) -> np.ndarray:
    flag = "transB" if index == 1 else "transA"
    factors = []
    for part in chain.values():
        weight = _weight(part, index)
        factors.append(weight.T if _integer(part, flag, 0) else weight)
    product = factors[0] @ factors[1] if index == 1 else factors[1] @ factors[0]
    return product.T if _integer(node, flag, 0) else product


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


@SETTINGS
@given(networks(("float32", "float32", "float16")))
def test_full_ranks_are_the_original(model):
    note(str(model))
    ranks: dict[str, Ranks] = {}
    for layer in layers_of(model):
        if not layer.obstacle:
            ranks |= dict.fromkeys(layer.names, full_ranks(layer))
    plan = Plan(decompose=ranks)
    assert_same_outputs(oc.apply(model, plan).model, model)


@SETTINGS
@given(networks(("float32", "float32", "float16")), st.data())
def test_any_ranks_are_the_original_with_the_weights_multiplied_out(model, data):
    note(str(model))
    ranks: dict[str, Ranks] = {}
    layers = [layer for layer in layers_of(model) if not layer.obstacle]
    for layer in layers:
        full = full_ranks(layer)
        chosen = Ranks(*(data.draw(st.integers(1, rank)) for rank in (full.out, full.into)))
        if layer.kind != "kxk":
            chosen = Ranks(chosen.out, chosen.out)
        elif data.draw(st.booleans()):
            rank = data.draw(st.integers(1, min(layer.highest_cp_rank, 12)))
            chosen = Ranks(rank, rank, depthwise=True)
        ranks |= dict.fromkeys(layer.names, chosen)
    result = oc.apply(model, Plan(decompose=ranks))
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    assert_same_outputs(result.model, multiplied_out(model, result.model, result.plan))
    expected = oc.cost(simplify(model)).macs
    for layer in layers:
        expected += layer.chain_macs(ranks[layer.name]) - layer.macs
    assert oc.cost(result.model).macs == expected


@SETTINGS
@given(
    networks(("float32", "float16")),
    st.sampled_from(["vbmf", "energy:0.7", "fraction:0.4"]),
    st.integers(1, 3),
)
def test_what_is_chosen_has_fewer_macs_is_stored_once_and_can_be_repeated(model, rank, round_to):
    note(str(model))
    options = {"rank": rank, "round_to": round_to, "include_pointwise": True, "include_gemm": True}
    result = oc.decompose(model, **options)
    assert set(result.plan.decompose).isdisjoint(result.plan.kept)
    again = oc.decompose(model, **options).model, oc.apply(model, from_yaml(to_yaml(result.plan))).model
    for repeated in again:
        assert ir.to_proto(repeated).SerializeToString() == ir.to_proto(result.model).SerializeToString()
    if not result.plan.decompose:
        return
    assert oc.cost(result.model).macs < oc.cost(simplify(model)).macs
    assert_same_outputs(result.model, multiplied_out(model, result.model, result.plan))
    nodes = {str(node.name): node for node in result.model.graph}
    for layer in layers_of(model):
        if layer.name in result.plan.decompose:
            assert len({result.plan.decompose[name] for name in layer.names}) == 1
            for part in ("in", "core", "out"):
                chains = [nodes.get(f"{name}/{part}") for name in layer.names]
                assert (
                    len(
                        {
                            node and node.inputs[each.constant].name
                            for node, each in zip(chains, layer.applications, strict=True)
                        }
                    )
                    == 1
                )


@SETTINGS
@given(networks())
def test_the_highest_cp_rank_is_nearly_the_original(model):
    note(str(model))
    layers = [layer for layer in layers_of(model) if layer.kind == "kxk" and not layer.obstacle]
    highest = {layer.name: Ranks(*[layer.highest_cp_rank] * 2, depthwise=True) for layer in layers}
    ranks = {name: highest[layer.name] for layer in layers for name in layer.names}
    chains = oc.apply(model, Plan(decompose=ranks))
    product = {layer.name: layer for layer in layers_of(multiplied_out(model, chains.model, chains.plan))}
    for layer in layers:
        assert np.sum((layer.weight - product[layer.name].weight) ** 2) < 1e-4 * np.sum(layer.weight**2)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: (random.standard_normal(shape) / np.sqrt(max(shape))).astype(np.float32)
        for name, shape in shapes.items()
    }


def chain_of(model: ir.Model, name: str) -> list[ir.Node]:
    return [node for node in model.graph if str(node.name).startswith(f"{name}/")]


def test_a_transposed_convolution_keeps_its_geometry_in_the_core():
    model = network(
        """g (float[1,12,5,5] x) => (float[1,8,11,9] y) {
            [up] y = ConvTranspose<strides=[2,2], pads=[1,1,0,1], output_padding=[1,0], group=2>(x, w, b)
        }""",
        weights(w=(12, 4, 3, 3), b=(8,)),
    )
    result = oc.apply(model, Plan(decompose={"up": Ranks(2, 3)})).model
    first, core, last = chain_of(result, "up")
    assert [node.op_type for node in (first, core, last)] == ["Conv", "ConvTranspose", "Conv"]
    assert [node.inputs[1].shape.numpy() for node in (first, core, last)] == [
        (6, 6, 1, 1),
        (6, 2, 3, 3),
        (8, 2, 1, 1),
    ]
    assert {name: core.attributes[name].value for name in ("strides", "pads", "output_padding", "group")} == {
        "strides": (2, 2),
        "pads": (1, 1, 0, 1),
        "output_padding": (1, 0),
        "group": 2,
    }
    assert [len(node.inputs) for node in (first, core, last)] == [2, 2, 3]
    assert [layer.macs for layer in oc.cost(result).layers] == [25 * 6 * 6, 25 * 6 * 2 * 9, 99 * 8 * 2]


@pytest.mark.parametrize(
    ("operator", "shape", "macs"),
    [("Conv", (16, 12, 1, 1), [16 * 12 * 3, 16 * 3 * 16]), ("ConvTranspose", (12, 16, 1, 1), [1764, 2352])],
)
def test_the_parts_of_a_strided_pointwise_layer_compute_at_its_fewer_positions(operator, shape, macs):
    size = "4,4" if operator == "Conv" else "13,13"
    model = network(
        f"g (float[1,12,7,7] x) => (float[1,16,{size}] y) {{ [c] y = {operator}<strides=[2,2]>(x, w) }}",
        weights(w=shape),
    )
    result = oc.apply(model, Plan(decompose={"c": Ranks(3, 3)})).model
    assert [layer.macs for layer in oc.cost(result).layers] == macs


SIAMESE = """g (float[1,12,9,9] x, float[1,12,5,5] y) => (float[1,16,9,9] p, float[1,16,3,3] q) {
    [left] p = Conv<pads=[1,1,1,1]>(x, w, a)
    [right] q = Conv(y, w, b)
}"""


def test_layers_that_share_weights_share_factors():
    model = network(SIAMESE, weights(w=(16, 12, 3, 3), a=(16,), b=(16,)))
    result = oc.decompose(model, rank="fraction:0.5")
    assert result.plan.decompose == {"left": Ranks(8, 6), "right": Ranks(8, 6)}
    assert {name for name in result.model.graph.initializers if name.startswith("left/")} == {
        "left/in.weight",
        "left/core.weight",
        "left/out.weight",
    }
    assert result.stages[-1].cost.params == 6 * 12 + 8 * 6 * 9 + 16 * 8 + 2 * 16
    assert_same_outputs(result.model, multiplied_out(model, result.model, result.plan))


@pytest.mark.parametrize("ranks", [{"left": Ranks(8, 6)}, {"left": Ranks(8, 6), "right": Ranks(8, 5)}])
def test_refuses_different_ranks_for_the_same_weights(ranks):
    model = network(SIAMESE, weights(w=(16, 12, 3, 3), a=(16,), b=(16,)))
    with pytest.raises(InputError, match="left and right read the same weights: give both the same ranks"):
        oc.apply(model, Plan(decompose=ranks))


def test_skipping_a_layer_skips_those_with_its_weights():
    model = network(SIAMESE, weights(w=(16, 12, 3, 3), a=(16,), b=(16,)))
    result = oc.decompose(model, rank="fraction:0.5", skip=["right"])
    assert result.plan.kept == dict.fromkeys(("left", "right"), "skipped as asked")
    assert result.model is model


def test_fewer_macs_is_judged_over_all_that_read_the_weights():
    """Alone, the one that computes a single position would not be worth the first part's 25 positions."""
    text = SIAMESE.replace("[1,1,1,1]", "[1,1,1,1], strides=[9,9]").replace("16,9,9", "16,1,1")
    model = network(text, weights(w=(16, 12, 3, 3), a=(16,), b=(16,)))
    kept = oc.decompose(model, rank="fraction:0.75").plan.kept
    (both,) = layers_of(model)
    right = replace(both, applications=both.applications[1:])
    ranks = Ranks(12, 9)
    assert right.chain_macs(ranks) < right.macs
    share = both.chain_macs(ranks) / both.macs
    assert kept["left"] == kept["right"]
    assert f"at ranks 12, 9 would need {share:.2f} times the MACs" in kept["left"]


@pytest.mark.parametrize(
    ("text", "shapes", "reasons"),
    [
        (
            """g (float[1,12,9,9] x, float[8,12,3,3] v) => (float[1,8,7,7] y) {
                [given] y = Conv(x, v)
            }""",
            {},
            {"given": "its weights are computed in the graph"},
        ),
        (
            """g (float[1,12,9,9] x) => (float[1,12,9,9] z) {
                [encoder] y = Conv(x, w)
                [decoder] z = ConvTranspose(y, w)
            }""",
            {"w": (16, 12, 3, 3)},
            {
                "encoder": "'decoder' reads its weights too, in another way",
                "decoder": "'encoder' reads its weights too, in another way",
            },
        ),
        (
            """g (int64[3] words) => (float[3,50] y) {
                [embedding] x = Gather(w, words)
                [logits] y = Gemm<transB=1>(x, w)
            }""",
            {"w": (50, 8)},
            {"logits": "'embedding' reads its weights too, in another way"},
        ),
        (
            "g (float[4,3,8] x) => (float[4,3,50] y) { [stack] y = MatMul(x, w) }",
            {"w": (4, 8, 50)},
            {"stack": "its weights are not one matrix of floating-point numbers"},
        ),
        (
            "g (float[1,12,9,9] x) => (float[1,12,7,7] y) { [each] y = Conv<group=12>(x, w) }",
            {"w": (12, 1, 3, 3)},
            {},
        ),
    ],
)
def test_what_is_left_alone_says_why(text, shapes, reasons):
    model = network(text, weights(**shapes))
    result = oc.decompose(model, rank="fraction:0.1", include_pointwise=True, include_gemm=True)
    assert result.plan.kept == reasons
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=f"{name} cannot be factored: {reason}"):
            oc.apply(model, Plan(decompose={name: Ranks(1, 1)}))


def test_the_layer_of_an_image_keeps_its_input_side():
    model = network(
        "g (float[1,3,9,9] x) => (float[1,32,8,9] y) { [c] y = Conv<kernel_shape=[2,1]>(x, w) }",
        weights(w=(32, 3, 2, 1)),
    )
    assert oc.decompose(model, rank="energy:0.2").plan.decompose == {"c": Ranks(1, 3)}


@pytest.mark.parametrize("dtype", [ir.DataType.DOUBLE, ir.DataType.BFLOAT16, ir.DataType.FLOAT16])
def test_factors_are_stored_in_the_type_of_the_weights(dtype):
    text = "g (float[1,12,5,5] x) => (float[1,8,3,3] y) { [c] y = Conv(x, w) }"
    model = network(text.replace("float", str(dtype).lower()), {})
    weight = np.random.default_rng(0).standard_normal((8, 12, 3, 3)).astype(dtype.numpy())
    model.graph.initializers["w"] = ir.val("w", const_value=ir.tensor(weight, dtype=dtype, name="w"))
    model.graph.node(0).replace_input_with(1, model.graph.initializers["w"])
    result = oc.apply(model, Plan(decompose={"c": Ranks(8, 12)})).model
    (core,) = chain_of(result, "c")
    assert core.inputs[1].dtype == dtype
    np.testing.assert_array_equal(core.inputs[1].const_value.numpy(), weight)
    result = oc.apply(model, Plan(decompose={"c": Ranks(4, 5)})).model
    assert {node.inputs[1].dtype for node in chain_of(result, "c")} == {dtype}


def test_names_that_are_taken_are_not_given_again():
    text = """g (float[1,12,9,9] x) => (float[1,12,5,5] z) {
        [FIRST] "VALUE" = Conv(x, w)
        ["SECOND"] z = Conv("VALUE", "WEIGHTS")
    }"""
    results = []
    for names in (("c", "c/in:0", "c/core", "c/in.weight"), ("first", "value", "second", "v")):
        named = text
        for placeholder, name in zip(("FIRST", "VALUE", "SECOND", "WEIGHTS"), names, strict=True):
            named = named.replace(placeholder, name)
        model = network(named, weights(**{"w": (12, 12, 3, 3), names[3]: (12, 12, 3, 3)}))
        plan = Plan(decompose={names[0]: Ranks(12, 6), names[2]: Ranks(6, 12)})
        results.append(oc.apply(model, plan).model)
    assert_same_outputs(*results)
