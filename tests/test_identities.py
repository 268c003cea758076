"""Every structural rewrite equals something that can be computed without it."""

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import onnxcompress as oc
from onnxcompress.layers import factor_layers
from onnxcompress.model import simplify
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes
from tests.networks import networks
from tests.oracle import outputs_with_removed_read_as_zero

RANDOM = np.random.default_rng(7)
SETTINGS = settings(
    max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def feeds_for(model: ir.Model, batch: int = 2) -> dict[str, np.ndarray]:
    value = model.graph.inputs[0]
    assert value.shape is not None
    return {str(value.name): RANDOM.standard_normal((batch, *value.shape[1:])).astype(np.float32)}


def outputs(model: ir.Model, feeds: dict[str, np.ndarray], optimize: bool = True) -> list[np.ndarray]:
    return run(session(model, optimize=optimize), feeds)


def assert_close(actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(np.ptp(e), 1e-3))


@SETTINGS
@given(
    networks(),
    st.floats(0.05, 0.95),
    st.sampled_from(["l1", "l2", "fpgm", "random"]),
    st.sampled_from(["layer", "global"]),
    st.sampled_from([1, 2]),
)
def test_pruned_equals_original_whose_readers_read_zero(model, ratio, criterion, scope, round_to):
    result = oc.prune(model, ratio=ratio, criterion=criterion, scope=scope, round_to=round_to)
    feeds = feeds_for(model)
    network = simplify(model)  # may fuse layers; the plan names those that remain
    assert_close(outputs(network, feeds), outputs(model, feeds), 1e-5)
    expected = outputs_with_removed_read_as_zero(network, result.plan.prune, feeds)
    for optimize in (False, True):
        assert_close(outputs(result.model, feeds, optimize), expected, 1e-4)


@SETTINGS
@given(networks(), st.floats(0.05, 0.6), st.sampled_from(["layer", "global"]))
def test_a_pruned_network_can_be_pruned_again(model, ratio, scope):
    """What pruning adds to a network it also follows."""
    first = oc.prune(model, ratio=ratio, criterion="random", scope=scope).model
    second = oc.prune(first, ratio=ratio, criterion="random", scope=scope)
    feeds = feeds_for(model)
    expected = outputs_with_removed_read_as_zero(simplify(first), second.plan.prune, feeds)
    assert_close(outputs(second.model, feeds), expected, 1e-4)


@SETTINGS
@given(networks(), st.sampled_from(["vbmf", "energy:0.8", "fraction:0.5"]))
def test_factoring_is_what_the_plan_says_and_full_ranks_are_the_original(model, rank):
    feeds = feeds_for(model)
    result = oc.decompose(model, rank=rank, include_pointwise=True, include_gemm=True)
    assert_close(outputs(result.model, feeds, False), outputs(result.model, feeds, True), 1e-4)
    assert result.model.graph.outputs[0].name == model.graph.outputs[0].name
    network = simplify(model)
    layers = [layer for layer in factor_layers(network, concrete_shapes(network)) if not layer.obstacle]
    full = {
        name: oc.Ranks(*(layer.sides if layer.kind == "kxk" else [min(layer.sides)] * 2))
        for layer in layers
        if layer.kind != "depthwise"
        for name in layer.names
    }
    assert_close(outputs(oc.apply(model, oc.Plan(decompose=full)).model, feeds), outputs(model, feeds), 1e-5)


@SETTINGS
@given(networks(), st.floats(0.1, 0.8))
def test_the_saved_plan_gives_the_same_bytes(model, ratio):
    first = oc.compress(model, ratio=ratio, rank="fraction:0.5")
    again = oc.apply(model, first.plan)
    assert ir.to_proto(first.model).SerializeToString() == ir.to_proto(again.model).SerializeToString()


@SETTINGS
@given(networks())
def test_ratio_zero_changes_nothing(model):
    result = oc.prune(model, ratio=0)
    assert result.model is model
    assert not result.plan.prune


@SETTINGS
@given(networks(), st.sampled_from(["l1", "l2"]), st.floats(0.1, 0.5))
def test_dead_filters_go_first_and_nothing_changes(model, criterion, ratio):
    """The first half of every layer's filters is zero, with zero bias."""
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            for value in node.inputs:
                if value.is_initializer():
                    array = value.const_value.numpy().copy()
                    filters_first(node, array)[: -(-len(filters_first(node, array)) // 2)] = 0
                    value.const_value = ir.tensor(array, name=value.name)
    result = oc.prune(model, ratio=ratio, criterion=criterion)
    feeds = feeds_for(model)
    assert_close(outputs(result.model, feeds), outputs(model, feeds), 1e-5)


def filters_first(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """A view of weights or biases with the filters along the first axis."""
    if node.op_type == "ConvTranspose" and array.ndim > 1:
        groups = node.attributes["group"].as_int()
        return array if groups > 1 else array.swapaxes(0, 1)
    return array.T if node.op_type == "MatMul" and node.inputs[1].is_initializer() else array
