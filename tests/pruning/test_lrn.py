import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxcompress.pruning.lrn import write_as_band
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
def test_band_equals_lrn(size, beta):
    model = lrn_network(7, size=size, beta=beta, alpha=0.3, bias=2.0)
    x = np.random.default_rng(0).standard_normal((2, 7, 4, 4)).astype(np.float32)
    expected = run(session(model), {"x": x})[0]
    write_as_band(model.graph[0], np.ones(7, bool))
    assert "LRN" not in {node.op_type for node in model.graph}
    np.testing.assert_allclose(run(session(model), {"x": x})[0], expected, rtol=2e-6)


def test_removed_channels_count_as_zero_at_their_old_distance():
    kept = np.array([True, False, True, True, False, False, True])
    x = np.random.default_rng(1).standard_normal((2, 7, 4, 4)).astype(np.float32)
    expected = run(session(lrn_network(7, size=3, alpha=0.9)), {"x": x * kept[:, None, None]})[0][:, kept]
    model = lrn_network(7, size=3, alpha=0.9)
    write_as_band(model.graph[0], kept)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(["N", int(kept.sum()), 4, 4])
    np.testing.assert_allclose(run(session(model), {"x": x[:, kept]})[0], expected, rtol=2e-6)
