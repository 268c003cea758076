"""Chains compute what their layers do with the weights that the factors multiply out to."""

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import onnxcompress as oc
from onnxcompress.factoring.layers import FactorLayer, factor_layers, sharing
from onnxcompress.model import simplify
from onnxcompress.plan import Plan, Ranks, from_yaml, to_yaml
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes
from tests.factor_networks import networks

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TOLERANCE = {"float32": 1e-5, "float16": 3e-2}
"""Relative to the largest output: a chain of float16 rounds where a layer accumulates."""


def layers_of(model: ir.Model) -> list[FactorLayer]:
    simplified = simplify(model)
    return factor_layers(simplified, concrete_shapes(simplified))


def full_ranks(layer: FactorLayer) -> Ranks:
    return Ranks(*layer.sides) if layer.kind == "kxk" else Ranks(*(min(layer.sides),) * 2)


def assert_same_outputs(actual: ir.Model, expected: ir.Model) -> None:
    value = expected.graph.inputs[0]
    assert value.shape is not None
    assert value.dtype is not None
    x = np.random.default_rng(0).standard_normal(value.shape.numpy()).astype(value.dtype.numpy())
    outputs = [run(session(model, optimize=False), {str(value.name): x}) for model in (actual, expected)]
    for a, e in zip(*outputs, strict=True):
        assert a.shape == e.shape
        scale = max(float(np.abs(e).max()), 1e-3)
        np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=TOLERANCE[value.dtype.numpy().name])


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
    groups = node.attributes["group"].as_int()
    products = []
    for group in range(groups):
        step = []
        for part in chain.values():
            assert part.attributes["group"].as_int() == groups
            weight = np.split(_weight(part), groups)[group]
            step.append(weight.swapaxes(0, 1) if part.op_type == "ConvTranspose" else weight)
        product = step[0]
        for weight in step[1:]:
            product = np.einsum("mr...,rc...->mc...", weight, product)
        products.append(product.swapaxes(0, 1) if node.op_type == "ConvTranspose" else product)
    return np.concatenate(products)


def _matrix(node: ir.Node, index: int, chain: dict[str, ir.Node]) -> np.ndarray:
    flag = "transB" if index == 1 else "transA"
    factors = []
    for part in chain.values():
        transposed = flag in part.attributes and part.attributes[flag].as_int()
        factors.append(_weight(part, index).T if transposed else _weight(part, index))
    product = factors[0] @ factors[1] if index == 1 else factors[1] @ factors[0]
    return product.T if flag in node.attributes and node.attributes[flag].as_int() else product


@SETTINGS
@given(networks(("float32", "float32", "float16")))
def test_full_ranks_are_the_original(model):
    note(str(model))
    plan = Plan(decompose={layer.name: full_ranks(layer) for layer in layers_of(model) if not layer.obstacle})
    assert_same_outputs(oc.apply(model, plan).model, model)


@SETTINGS
@given(networks(("float32", "float32", "float16")), st.data())
def test_any_ranks_are_the_original_with_the_weights_multiplied_out(model, data):
    note(str(model))
    ranks: dict[str, Ranks] = {}
    layers = [layer for layer in layers_of(model) if not layer.obstacle]
    for readers in sharing(layers):
        chosen = Ranks(*(data.draw(st.integers(1, full)) for full in full_ranks(readers[0])))
        if readers[0].kind != "kxk":
            chosen = Ranks(chosen.out, chosen.out)
        ranks |= {layer.name: chosen for layer in readers}
    result = oc.apply(model, Plan(decompose=ranks))
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
    for readers in sharing(layers_of(model)):
        assert len({result.plan.decompose.get(layer.name) for layer in readers}) == 1
        for part in ("in", "core", "out"):
            chains = [nodes.get(f"{layer.name}/{part}") for layer in readers]
            assert len({node and node.inputs[readers[0].constant].name for node in chains}) == 1
