import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnxcompress as oc
from models.digits import SHIPPED
from onnxcompress.lrn import BLOCK, band, blocks, rewrite_lrn, whole_bands, write_as_band
from onnxcompress.runtime import run, session


def lrn_network(channels: int, **attributes) -> ir.Model:
    graph = helper.make_graph(
        [helper.make_node("LRN", ["x"], ["y"], name="norm", **attributes)],
        "lrn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", channels, 4, 4])],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("channels", [1, 7, 8, 16, 21, 40])
def test_band_equals_lrn(size, beta, channels):
    model = lrn_network(channels, size=size, beta=beta, alpha=0.3, bias=2.0)
    x = np.random.default_rng(0).standard_normal((2, channels, 4, 4)).astype(np.float32)
    expected = run(session(model), {"x": x})[0]
    model = rewrite_lrn(model, ["norm"])
    assert "LRN" not in {node.op_type for node in model.graph}
    np.testing.assert_allclose(run(session(model), {"x": x})[0], expected, rtol=2e-6)


def test_removed_channels_count_as_zero_at_their_old_distance():
    kept = np.tile([True, False, True, True, False, False, True], 5)
    x = np.random.default_rng(1).standard_normal((2, 35, 4, 4)).astype(np.float32)
    expected = run(session(lrn_network(35, size=3, alpha=0.9)), {"x": x * kept[:, None, None]})[0][:, kept]
    model = lrn_network(35, size=3, alpha=0.9)
    write_as_band(model.graph[0], kept)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(["N", int(kept.sum()), 4, 4])
    cut = rewrite_lrn(model, [])
    whole = whole_bands(cut)
    assert [len(list(each.graph)) for each in (cut, whole)] == [9, 6]
    for network in (model, cut, whole):
        np.testing.assert_allclose(run(session(network), {"x": x[:, kept]})[0], expected, rtol=2e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.sampled_from([1, 3, 5, 7, 17]), st.floats(0.2, 1), st.integers(0, 99))
def test_blocks_are_the_band(channels, size, share, seed):
    kept = np.random.default_rng(seed).random(channels) < share
    kept[0] = True
    matrix = band(channels, size, 1.0)[kept][:, kept]
    weights, starts = blocks(matrix)
    rebuilt = np.zeros((len(weights), len(matrix)))
    for row, start in enumerate(starts.repeat(BLOCK)):
        rebuilt[row, start : start + weights.shape[1]] = weights[row]
    np.testing.assert_array_equal(rebuilt[: len(matrix)], matrix)
    assert not rebuilt[len(matrix) :].any()


def test_channels_of_a_band_in_groups_can_go():
    first = oc.prune(SHIPPED, ratio=0.3)
    second = oc.prune(first.model, ratio=0.3)
    for layer in ("conv1/3x3", "conv2/3x3"):
        assert first.plan.prune[layer]
        assert second.plan.prune[layer]
    assert sum("windows" in str(node.name) for node in second.model.graph) == 2  # in groups again
