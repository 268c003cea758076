"""Files of every kind, in and out."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.model import simplify
from onnxcompress.runtime import run, session
from tests.networks import Builder
from tests.onnx_text import network as from_text


@pytest.fixture
def network():
    b = Builder(0)
    x = b.conv("x", 16, 3)
    flat = b.add("Flatten", [x], (16 * 64,))
    return b.model([b.add("Gemm", [flat, b.weight(5, 16 * 64)], (5,), transB=1)])


def test_external_data_is_read_and_small_outputs_are_one_file(network, tmp_path):
    oc.save(network, tmp_path / "whole.onnx")
    proto = onnx.load(tmp_path / "whole.onnx")
    onnx.save(
        proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    result = oc.prune(tmp_path / "model.onnx", ratio=0.5)
    oc.save(result.model, tmp_path / "out.onnx")
    (tmp_path / "weights").unlink()
    x = {"x": np.ones((1, 3, 8, 8), np.float32)}
    expected = oc.prune(network, ratio=0.5).model
    np.testing.assert_array_equal(run(session(tmp_path / "out.onnx"), x)[0], run(session(expected), x)[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.onnx", "whole.onnx"]


def test_weights_too_large_for_one_file_lie_beside_it(network, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcompress.weights.EMBEDDED_LIMIT", 100)
    oc.save(network, tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    x = {"x": np.ones((1, 3, 8, 8), np.float32)}
    np.testing.assert_array_equal(run(session(tmp_path / "out.onnx"), x)[0], run(session(network), x)[0])


def test_opset_7_with_initializers_among_the_inputs(tmp_path):
    random = np.random.default_rng(0)
    weights = {"w": random.random((8, 3, 3, 3)), "v": random.random((5, 8)), "b": random.random(5)}
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])]
    inputs += [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph(nodes, "old", inputs, outputs, tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3),
        tmp_path / "m.onnx",
    )
    pruned = oc.prune(tmp_path / "m.onnx", ratio=0.5)
    assert [len(filters) for filters in pruned.plan.prune.values()] == [4]
    oc.save(pruned.model, tmp_path / "pruned.onnx")
    factored = oc.decompose(tmp_path / "m.onnx", rank="fraction:0.3", include_gemm=True)
    oc.save(factored.model, tmp_path / "factored.onnx")
    assert onnx.load(tmp_path / "factored.onnx").opset_import[0].version == 7
    assert {node.op_type for node in factored.model.graph if "/in" in (node.name or "")} == {"Gemm"}


def test_infinite_constants_are_fine_outside_layers(tmp_path):
    b = Builder(0)
    x = b.conv("x", 4)
    floor = b.weight(low=-1, high=-0.5)
    b.weights[-1].CopyFrom(numpy_helper.from_array(np.array(-np.inf, np.float32), floor))
    padded = b.add("Pad", [x, b.constant([0, 0, 1, 1, 0, 0, 1, 1]), floor], (4, 10, 10))
    pooled = b.add("MaxPool", [padded], (4, 8, 8), kernel_shape=[3, 3])
    oc.save(b.model([b.conv(pooled, 2)]), tmp_path / "infinite.onnx")
    assert oc.prune(tmp_path / "infinite.onnx", ratio=0.5).plan.prune


def test_copies_of_a_shared_bias_take_no_name_that_is_there():
    random = np.random.default_rng(0)
    text = """g (float[1,3,8,8] x) => (float[1,4,4,4] y) {
        a = Conv(x, w, s) b = Conv(a, v, s) y = Conv(b, u, other) }"""
    shapes = {"w": (4, 3, 5, 5), "v": (4, 4, 1, 1), "u": (4, 4, 1, 1), "s": (4,), "other": (4,)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    proto = ir.to_proto(from_text(text, weights))
    proto.graph.node[2].input[2] = proto.graph.initializer[4].name = "s.1"
    model, x = ir.from_proto(proto), {"x": random.normal(size=(1, 3, 8, 8)).astype(np.float32)}
    expected = run(session(model), x)[0]
    np.testing.assert_allclose(run(session(simplify(model)), x)[0], expected, rtol=1e-4, atol=1e-5)
    assert oc.prune(model, ratio=0.5).plan.prune
