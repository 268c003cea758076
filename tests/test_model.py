"""Files of every kind, in and out."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.errors import InputError
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


@pytest.mark.parametrize(
    "shape",
    ["float[N, H, W, 3]", "float[N, 3, H, W]"],
)
def test_a_result_is_saved_without_the_network_that_it_came_from(shape, tmp_path):
    """At sizes at which it works, also where these are not the usual ones."""
    random = np.random.default_rng(0)
    last = shape.endswith("3]")
    model = from_text(
        f"g ({shape} x) => (float[N, 4] y) {{"
        + ("t = Transpose <perm = [0, 3, 1, 2]> (x)" if last else "t = Identity(x)")
        + "a = Conv <pads = [1, 1, 1, 1]> (t, v) b = Relu(a) "
        + "c = Conv <pads = [1, 1, 1, 1]> (b, w) d = Relu(c)"
        + ("e = GlobalAveragePool(d)" if last else "e = Identity(d)")
        + "f = Flatten(e) y = Gemm <transB = 1> (f, u) }",
        {
            "v": random.standard_normal((8, 3, 3, 3)).astype(np.float32),
            "w": random.standard_normal((8, 8, 3, 3)).astype(np.float32),
            "u": random.standard_normal((4, 8 if last else 8 * 64 * 64)).astype(np.float32),
        },
    )
    oc.save(oc.decompose(model, rank="fraction:0.3").model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").exists()


def test_devices_and_pipes_are_left_alone_and_links_followed(network, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is a device or a pipe"):
        oc.save(network, tmp_path / "pipe")
    (tmp_path / "there").mkdir()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "there" / "real.onnx")
    oc.save(network, tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert (tmp_path / "there" / "real.onnx").exists()


def test_functions_of_another_opset_are_fitted_behind(tmp_path):
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, v)
            b = my.Act(a)
            c = Conv <pads = [1, 1, 1, 1]> (b, w)
            d = my.Act(c)
            e = GlobalAveragePool(d)
            f = Flatten(e)
            y = Gemm <transB = 1> (f, u)
        }
        <opset_import: ["" : 16], domain: "my">
        Act (a) => (b) { b = Relu(a) }"""
    )
    for name, shape in (("v", (8, 3, 3, 3)), ("w", (8, 8, 3, 3)), ("u", (4, 8))):
        proto.graph.initializer.append(
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        )
    onnx.save(proto, tmp_path / "m.onnx")
    data = oc.Calibration([{"x": random.standard_normal((40, 3, 8, 8)).astype(np.float32)}])
    result = oc.decompose(tmp_path / "m.onnx", rank="fraction:0.5", data=data)
    assert result.fitted is not None
    oc.save(result.model, tmp_path / "out.onnx")


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


DIGEST = """
import hashlib, sys, onnx_ir as ir
import onnxcompress as oc
from onnxcompress.model import simplify
print(hashlib.sha256(ir.to_proto(simplify(oc.load(sys.argv[1]))).SerializeToString()).hexdigest())
"""


def test_every_process_gives_the_same_bytes(tmp_path):
    """Though each has another order for its sets."""
    chains = " ".join(
        f"c{i} = Conv (a{i}, w{i}) a{i + 1} = Mul (c{i}, k{i}) "
        f"d{i} = Conv (b{i}, w{i}) b{i + 1} = Mul (d{i}, l{i})"
        for i in range(4)
    )
    random = np.random.default_rng(0)
    arrays = {f"w{i}": random.random((3, 3, 1, 1), np.float32) for i in range(4)}
    arrays |= {f"{name}{i}": random.random((1,), np.float32) for name in "kl" for i in range(4)}
    text = f"a0 = Relu (x) b0 = Tanh (x) {chains} y = Relu (a4) z = Relu (b4)"
    oc.save(
        from_text(f"g (float[N,3,8,8] x) => (float[N,3,8,8] y, float[N,3,8,8] z) {{ {text} }}", arrays),
        tmp_path / "model.onnx",
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, tmp_path / "model.onnx"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_weights_that_several_convolutions_read_stay_shared():
    """Though onnxsim would fuse another factor into each of them."""
    text = """g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) {
        a = Relu (x)  c = Conv (a, w, b)  y = Mul (c, small)
        s = Tanh (x)  d = Conv (s, w, b)  z = Mul (d, large)
    }"""
    random = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "small": (1,), "large": (1,)}
    model = from_text(text, {name: random.random(shape, np.float32) for name, shape in shapes.items()})
    simplified = simplify(model)
    assert len({node.inputs[1].name for node in simplified.graph if node.op_type == "Conv"}) == 1
    feeds = {"x": random.standard_normal((2, 3, 8, 8)).astype(np.float32)}
    for found, expected in zip(run(session(simplified), feeds), run(session(model), feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_bias_of_one_number_is_one_for_each_output(shape):
    text = "g (float[N,3] x) => (float[N,4] y) { y = Gemm <transB = 1> (x, w, b) }"
    model = from_text(text, {"w": np.ones((4, 3), np.float32), "b": np.full(shape, 0.5, np.float32)})
    (node,) = simplify(model).graph
    np.testing.assert_array_equal(node.inputs[2].const_value.numpy(), np.full(4, 0.5))
