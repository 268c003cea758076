"""Files that are damaged or hostile: one clear line each, at once, and nothing is written."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.test_file_kinds import finish, insert, network, node, value, weight

Entries = dict[str, onnx.StringStringEntryProto]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, in a folder that holds secret.bin."""
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def entry(key: str, text: str) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        entries[key].value = text

    return change


def cut(entries: Entries) -> None:
    Path("weights").write_bytes(Path("weights").read_bytes()[:2000])


def link(entries: Entries) -> None:
    os.symlink("../secret.bin", "link.bin")
    entries["location"].value = "link.bin"


def pipe(entries: Entries) -> None:
    os.mkfifo("pipe.bin")
    entries["location"].value = "pipe.bin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: Path("weights").unlink(), "'w1' lie in weights, which is missing"),
        (cut, "do not fit what"),
        (link, "symbolic link"),
        (pipe, "'w1' lie in pipe.bin, which is missing"),
        (entry("location", "../secret.bin"), "'w1' point out of the network's folder: '../secret.bin'"),
        (entry("location", "a/../../secret.bin"), "'w1' point out of the network's folder"),
        (entry("location", "/etc/passwd"), "'w1' point out of the network's folder: '/etc/passwd'"),
        (entry("location", ""), "'w1' point out of the network's folder"),
        (entry("location", "a\0b"), "which is missing"),
        (entry("location", "."), "which is missing"),
        (entry("location", "model.onnx"), "do not fit what"),
        (entry("offset", "-4"), "not a valid ONNX file"),
        (entry("offset", "four"), "not a valid ONNX file"),
        (entry("offset", "99999999"), "'w1' do not fit what"),
        (entry("offset", "9" * 30), "'w1' do not fit what"),
        (entry("length", "-8"), "not a valid ONNX file"),
        (entry("length", "8"), "'w1' do not fit what"),
        (entry("length", "99999999"), "'w1' do not fit what"),
    ],
)
@pytest.mark.parametrize("path", ["model.onnx", "../here/model.onnx"])
def test_files_of_weights(run, folder, path, change, message):
    onnx.save(network(13), "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    model = onnx.load("model.onnx", load_external_data=False)
    change({each.key: each for each in model.graph.initializer[0].external_data})
    Path("model.onnx").write_bytes(model.SerializeToString())
    before = sorted(os.listdir())
    code, out, err = run("prune", path, "-o", "out.onnx")
    assert (code, out) == (2, "")
    assert message.replace("lie in ", f"lie in {path[:-10]}") in err
    assert sorted(os.listdir()) == before


def test_outputs_do_not_overwrite_the_input_s_weights(run, folder):
    for location in ("out.onnx", "out.onnx.data", "out.plan.yaml"):
        onnx.save(network(13), "model.onnx", save_as_external_data=True, location=location, size_threshold=0)
        content = Path(location).read_bytes()
        code, _, err = run("prune", "model.onnx", "-o", "out.onnx")
        assert code == 2
        assert "would overwrite the input" in err
        assert Path(location).read_bytes() == content
        Path(location).unlink()


def ints(name: str, *numbers: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def after_relu2(*nodes: onnx.NodeProto, constants: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    model = network(13)
    insert(model, "pool", *nodes, reads="relu2")
    return finish(model, *constants)


def function_bomb() -> onnx.ModelProto:
    """Each function calls the next one twice."""
    model = network(13, ir_version=8)
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    for level in range(40):
        calls = [helper.make_node(f"F{level + 1}", [x], [y], domain="local") for x, y in ("XT", "TY")]
        nodes = calls if level < 39 else [node("Relu", "X", "Y")]
        model.functions.append(helper.make_function("local", f"F{level}", ["X"], ["Y"], nodes, imports))
    model.opset_import.append(imports[1])
    insert(model, "pool", helper.make_node("F0", ["relu2"], ["bomb"], domain="local"), reads="relu2")
    return model


def function_cycle() -> onnx.ModelProto:
    model = function_bomb()
    model.functions[39].node[0].CopyFrom(helper.make_node("F0", ["X"], ["Y"], domain="local"))
    return model


def sparse() -> onnx.ModelProto:
    model = network(13)
    tensor = helper.make_sparse_tensor(weight("w1", 1), ints("", 3), [8, 3, 3, 3])
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(tensor)
    return model


def odd_groups() -> onnx.ModelProto:
    model = network(13)
    model.graph.node[2].attribute.append(helper.make_attribute("group", 3))
    return model


def empty_layer() -> onnx.ModelProto:
    model = network(13)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
    return model


def with_zero_variance() -> onnx.ModelProto:
    model = network(13)
    norm = node("BatchNormalization", "conv2 b2 b2 b2 variance", "norm", epsilon=0.0)
    insert(model, "relu2", norm, reads="conv2")
    return finish(model, numpy_helper.from_array(np.zeros(16, np.float32), "variance"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (function_bomb, "its model-local functions stand for 549,755,813,8"),
        (function_cycle, "not a valid ONNX file"),
        (sparse, "'w1' are sparse"),
        (odd_groups, "node 'conv2' (Conv): its weights of 16×8×3×3 do not fit"),
        (empty_layer, "there is nothing in 'x', which is ?×3×0×8"),
        (with_zero_variance, "NaN or infinite"),
        (lambda: after_relu2(node("Resize", "relu2", "z")), "node 'z' (Resize) has neither scales nor sizes"),
        (lambda: after_relu2(node("Add", "relu2 w1", "z")), "[ShapeInferenceError]"),
        (
            lambda: after_relu2(
                node("ConstantOfShape", "shape", "c"),
                node("ReduceSum", "c", "r", keepdims=0),
                node("Add", "relu2 r", "z"),
                constants=(ints("shape", 2**20, 2**20),),
            ),
            "'c' has 1,099,511,627,776 elements",
        ),
        (
            lambda: after_relu2(
                node("ConvTranspose", "relu2 w", "z", strides=[10**5] * 2),
                constants=(weight("w", 16, 16, 2, 2),),
            ),
            "'z' has 7,840,044,800,064 elements",
        ),
        (
            lambda: after_relu2(
                node("Pad", "relu2 pads", "z"), constants=(ints("pads", 0, 0, 2**30, 0, 0, 0, 0, 0),)
            ),
            "'z' has 137,438,954,496 elements",
        ),
    ],
)
def test_hostile_networks(run, folder, model, message):
    Path("model.onnx").write_bytes(model().SerializeToString())
    code, out, err = run("prune", "model.onnx", "-o", "out.onnx")
    assert (code, out) == (2, "")
    assert message in err
    assert os.listdir() == ["model.onnx"]


def test_a_loop_without_end_is_left_after_a_while(run, folder, monkeypatch):
    monkeypatch.setattr("onnxcompress.model.VALIDATION_SECONDS", 0.5)
    monkeypatch.setattr("onnxcompress.shapes.SECONDS", 0.5)
    body = helper.make_graph(
        [node("Identity", "go", "on"), node("Tanh", "state", "next")],
        "body",
        [
            value("i", dtype=TensorProto.INT64),
            value("go", dtype=TensorProto.BOOL),
            value("state", "N", 16, 8, 8),
        ],
        [value("on", dtype=TensorProto.BOOL), value("next", "N", 16, 8, 8)],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    trips = numpy_helper.from_array(np.array(2**62, np.int64), "trips")
    model = after_relu2(node("Loop", "trips yes relu2", "z", body=body), constants=(trips, yes))
    onnx.save(model, "model.onnx")
    assert run("prune", "model.onnx", "-o", "out.onnx", "-q") == (0, "", "")


def test_names_cannot_break_the_line(run, folder):
    model = network(13)
    model.graph.node[0].name = "\n\x1b[2J" + "long" * 10_000
    model.graph.node[0].domain = "strange\n"
    model.opset_import.append(helper.make_opsetid("strange\n", 1))
    onnx.save(model, "model.onnx")
    code, _, err = run("prune", "model.onnx", "-o", "out.onnx")
    assert code == 2
    assert "\x1b" not in err
    assert err.count("\n") == 1
    assert len(err) < 1200
