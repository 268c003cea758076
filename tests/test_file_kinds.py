"""Networks in every form that exporters write: opsets, IR versions, types, places for weights, subgraphs."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from models.digits import SHIPPED
from onnxcompress import checks, runtime
from onnxcompress.shapes import stand_ins

NEWEST = onnx.defs.onnx_opset_version()
OPSETS = (7, 9, 11, 13, 17, 21, NEWEST)
OWN_INITIALIZERS = 4


def node(operator: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    """A node called as its output; `inputs` are separated by spaces."""
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def value(name: str, *shape: int | str | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, *shape: int, dtype: type = np.float32) -> onnx.TensorProto:
    random = np.random.default_rng(len(name) + sum(shape))
    return numpy_helper.from_array((random.standard_normal(shape) / 4).astype(dtype), name)


def network(
    opset: int, *, ir_version: int = 0, dtype: type = np.float32, size=(8, 8), batch: int | str | None = "N"
):
    """x → conv1 (8) → relu1 → conv2 (16) → relu2 → pool → flat → y, a Gemm; weights w1, b1, … w3, b3."""
    nodes = [
        node("Conv", "x w1 b1", "conv1", pads=[1] * 4, kernel_shape=[3, 3]),
        node("Relu", "conv1", "relu1"),
        node("Conv", "relu1 w2 b2", "conv2", pads=[1] * 4, kernel_shape=[3, 3]),
        node("Relu", "conv2", "relu2"),
        node("GlobalAveragePool", "relu2", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat w3 b3", "y", transB=1),
    ]
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (16, 8, 3, 3), "b2": (16,), "w3": (5, 16), "b3": (5,)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "network",
            [value("x", batch, 3, *size, dtype=kind)],
            [value("y", batch, 5, dtype=kind)],
            [weight(name, *shape, dtype=dtype) for name, shape in shapes.items()],
        ),
        opset_imports=imports,
        ir_version=ir_version or helper.find_min_ir_version_for(imports),
    )
    return model


def finish(model: onnx.ModelProto, *added: onnx.TensorProto) -> onnx.ModelProto:
    """Before version 4 initializers are inputs too."""
    model.graph.initializer.extend(added)
    if model.ir_version < OWN_INITIALIZERS:
        list_among_inputs(model)
    return model


def list_among_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    known = {each.name for each in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in known:
            model.graph.input.append(value(tensor.name, *tensor.dims, dtype=tensor.data_type))
    return model


def insert(model: onnx.ModelProto, before: str, *nodes: onnx.NodeProto, reads: str = "") -> None:
    """Put nodes before another, whose input `reads` becomes the output of the last of them."""
    index = next(index for index, each in enumerate(model.graph.node) if each.name == before)
    reader = model.graph.node[index]
    if reads:
        reader.input[list(reader.input).index(reads)] = nodes[-1].output[0]
    for each in reversed(nodes):
        model.graph.node.insert(index, each)


def constant_nodes(opset: int) -> onnx.ModelProto:
    model = network(opset)
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, node("Constant", "", tensor.name, value=tensor))
    del model.graph.initializer[:]
    return model


def behind_identity(opset: int) -> onnx.ModelProto:
    model = network(opset)
    insert(model, "conv2", node("Identity", "w2", "same"), reads="w2")
    return finish(model)


def reshaped_as_computed(opset: int) -> onnx.ModelProto:
    model = network(opset, size=("H", "W"))
    insert(
        model, "pool", node("Shape", "conv2", "sizes"), node("Reshape", "relu2 sizes", "again"), reads="relu2"
    )
    return finish(model)


def shared(opset: int) -> onnx.ModelProto:
    model = network(opset)
    insert(
        model,
        "pool",
        node("Conv", "relu2 ws", "first", pads=[1] * 4),
        node("Conv", "first ws", "second", pads=[1] * 4),
        reads="relu2",
    )
    return finish(model, weight("ws", 16, 16, 3, 3))


def computed_from_constants(opset: int) -> onnx.ModelProto:
    model = network(opset)
    insert(model, "conv2", node("Mul", "w2 factor", "scaled"), reads="w2")
    return finish(model, weight("factor", 1))


def computed_from_an_input(opset: int) -> onnx.ModelProto:
    model = network(opset)
    model.graph.input.append(value("factor", 1))
    insert(model, "conv2", node("Mul", "w2 factor", "scaled"), reads="w2")
    return finish(model)


def normalized(opset: int) -> onnx.ModelProto:
    model = network(opset)
    insert(
        model, "relu2", node("BatchNormalization", "conv2 scale shift mean variance", "norm"), reads="conv2"
    )
    variance = numpy_helper.from_array(np.linspace(0.5, 2, 16, dtype=np.float32), "variance")
    return finish(model, weight("scale", 16), weight("shift", 16), weight("mean", 16), variance)


def branches_with_wrong_shapes(opset: int) -> onnx.ModelProto:
    model = branches(opset)
    for attribute in next(each for each in model.graph.node if each.op_type == "If").attribute:
        (first,) = attribute.g.node
        first.name, first.output[0] = "first", "first"
        attribute.g.node.append(node("Neg", "first", "inner"))
        attribute.g.value_info.append(value("first", 2, 3))
    return model


def branches(opset: int) -> onnx.ModelProto:
    """An If; one of its branches has a convolution, whose weights are outside."""
    model = network(opset)
    model.graph.input.append(value("condition", dtype=TensorProto.BOOL))
    inner = [value("inner", "N", 8, 8, 8)]
    one = helper.make_graph([node("Conv", "relu1 wi", "inner", pads=[1] * 4)], "one", [], inner)
    other = helper.make_graph([node("Abs", "relu1", "inner")], "other", [], inner)
    insert(model, "conv2", node("If", "condition", "if", then_branch=one, else_branch=other), reads="relu1")
    return finish(model, weight("wi", 8, 8, 3, 3))


def loop(opset: int) -> onnx.ModelProto:
    model = network(opset)
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
    insert(model, "pool", node("Loop", "trips yes relu2", "loop", body=body), reads="relu2")
    constants = {"trips": np.array(3, np.int64), "yes": np.array(True)}
    return finish(model, *(numpy_helper.from_array(array, name) for name, array in constants.items()))


def functions(opset: int) -> onnx.ModelProto:
    """Convolution and Relu as a model-local function, called twice, once within another one."""
    model = network(opset, ir_version=8 if opset < 18 else 0)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    body = [node("Conv", "X W B", "C", pads=[1] * 4), node("Relu", "C", "Y")]
    block = helper.make_function("local", "Block", ["X", "W", "B"], ["Y"], body, imports[:1])
    call = helper.make_node("Block", ["X", "W", "B"], ["Y"], domain="local")
    outer = helper.make_function("local", "Outer", ["X", "W", "B"], ["Y"], [call], imports)
    del model.graph.node[:4]
    for name, reads, number in (("Outer", "relu1", 2), ("Block", "x", 1)):
        inputs = [reads, f"w{number}", f"b{number}"]
        model.graph.node.insert(0, helper.make_node(name, inputs, [f"relu{number}"], domain="local"))
    model.functions.extend([block, outer])
    model.opset_import.append(imports[1])
    return model


def several_inputs_and_outputs(opset: int) -> onnx.ModelProto:
    model = network(opset)
    model.graph.input.append(value("second", "N", 3, 8, 8))
    model.graph.output.append(value("relu2", "N", 16, 8, 8))
    insert(model, "conv1", node("Add", "x second", "sum"), reads="x")
    return finish(model)


def of_microsoft(opset: int) -> onnx.ModelProto:
    model = network(opset)
    insert(
        model,
        "pool",
        helper.make_node("Gelu", ["relu2"], ["gelu"], "gelu", domain="com.microsoft"),
        reads="relu2",
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return finish(model)


WRONG = "If, its shapes wrong"

KINDS = {
    "plain": lambda opset: finish(network(opset)),
    "IR 3": lambda opset: finish(network(opset, ir_version=3)),
    "float16": lambda opset: finish(network(opset, dtype=np.float16)),
    "double": lambda opset: finish(network(opset, dtype=np.float64)),
    "dynamic height and width": lambda opset: finish(network(opset, size=("H", "W"))),
    "unnamed free batch": lambda opset: finish(network(opset, batch=None)),
    "negative batch": lambda opset: finish(network(opset, batch=-1)),
    "negative height and width": lambda opset: finish(network(opset, batch=-1, size=(-1, -1))),
    "fixed batch": lambda opset: finish(network(opset, batch=2)),
    "Constant nodes": constant_nodes,
    "behind Identity": behind_identity,
    "shared": shared,
    "computed from constants": computed_from_constants,
    "computed from an input": computed_from_an_input,
    "BatchNormalization": normalized,
    "If": branches,
    WRONG: branches_with_wrong_shapes,
    "reshaped as computed": reshaped_as_computed,
    "Loop": loop,
    "functions": functions,
    "several inputs and outputs": several_inputs_and_outputs,
    "com.microsoft": of_microsoft,
}


def interface(model: onnx.ModelProto) -> list[str]:
    """Inputs that are not weights, and outputs, with types and shapes. A negative dimension is a free one."""
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [each for each in (*model.graph.input, *model.graph.output) if each.name not in weights]
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_value < 0):
        dim.Clear()
    return list(map(str, values))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "opset"),
    [(kind, opset) for kind in KINDS for opset in (OPSETS if kind == "plain" else (7, 13, NEWEST))],
)
def test_kind_of_file(run, folder, kind, opset):
    model = KINDS[kind](opset)
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    code, out, _ = run(
        "compress", "model.onnx", "-o", "out.onnx", "--ratio", "0.5", "--rank", "fraction:0.5", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert found["stages"][-1]["params"] < found["stages"][0]["params"]
    result = onnx.load("out.onnx")
    assert interface(result) == interface(model)
    assert result.ir_version == model.ir_version
    assert [each.version for each in result.opset_import if not each.domain] == [opset]
    runnable = runtime.runner("out.onnx")
    y, *_ = runtime.run(runnable, runtime.random_feeds(runnable, stand_ins(oc.load("out.onnx"), 2)))
    assert y.shape[-1] == 5
    assert np.isfinite(y).all()


def test_wrong_shapes_are_left_out_even_where_nothing_changes(run, folder):
    onnx.save(KINDS[WRONG](13), "model.onnx")
    assert run("prune", "model.onnx", "-o", "out.onnx", "--ratio", "0", "-q")[0] == 0
    onnx.checker.check_model("out.onnx", full_check=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != WRONG])
def test_ratio_0_is_the_same_bytes_with_a_sentence(run, folder, kind):
    onnx.save(KINDS[kind](13), "model.onnx")
    code, out, _ = run("prune", "model.onnx", "-o", "out.onnx", "--ratio", "0")
    assert code == 0
    assert "nothing to do: the output is the input network" in out
    assert Path("out.onnx").read_bytes() == Path("model.onnx").read_bytes()


def test_what_is_kept_whole_is_named(run, folder):
    onnx.save(computed_from_an_input(13), "model.onnx")
    code, out, _ = run("prune", "model.onnx", "-o", "out.onnx", "--ratio", "0.5")
    assert code == 0
    assert "conv2" in out
    onnx.save(branches(13), "model.onnx")
    _, out, _ = run("prune", "model.onnx", "-o", "out.onnx", "--ratio", "0.5")
    assert "no pruning rule fits If (nodes if)" in out


def test_initializers_among_the_inputs_are_weights(run, folder):
    onnx.save(list_among_inputs(network(13)), "model.onnx")
    assert run("prune", "model.onnx", "-o", "out.onnx", "-q")[0] == 0
    assert [each.name for each in onnx.load("out.onnx").graph.input] == ["x"]


def test_metadata_stays(folder):
    model = network(18)
    model.doc_string, model.producer_name, model.producer_version = "what it is", "exporter", "1.2"
    model.domain, model.model_version, model.graph.doc_string = "org.example", 7, "how it is"
    model.metadata_props.add(key="licence", value="CC0")
    model.graph.node[2].metadata_props.add(key="module", value="features.2")
    model.graph.output[0].metadata_props.add(key="unit", value="metre")
    onnx.save(model, "model.onnx")
    result = ir.to_proto(oc.prune("model.onnx", ratio=0.5).model)
    fields = ("doc_string", "producer_name", "producer_version", "domain", "model_version")
    assert [getattr(result, field) for field in fields] == [getattr(model, field) for field in fields]
    assert result.graph.name == model.graph.name
    assert result.graph.doc_string == model.graph.doc_string
    assert list(result.metadata_props) == list(model.metadata_props)
    conv2 = next(each for each in result.graph.node if each.name == "conv2")
    assert list(conv2.metadata_props) == list(model.graph.node[2].metadata_props)
    assert list(result.graph.output[0].metadata_props) == list(model.graph.output[0].metadata_props)


def flattened(size: int) -> onnx.ModelProto:
    """Of free height and width, but with a Gemm layer that only images of one size fit."""
    model = network(17, size=("H", "W"))
    del model.graph.node[4]
    model.graph.node[4].input[0] = "relu2"
    model.graph.initializer[4].CopyFrom(weight("w3", 5, 16 * size * size))
    return model


@pytest.mark.parametrize("size", [32, 224])
def test_the_size_that_a_network_of_free_size_is_for_is_found(folder, size):
    onnx.save(flattened(size), "model.onnx")
    result = oc.prune("model.onnx", ratio=0.5)
    oc.save(result.model, "out.onnx", original=result.stages[0].model)
    assert list(result.model.graph.initializers["w3"].shape) == [5, 8 * size * size]


def test_at_an_unusual_size_what_depends_on_it_is_kept_whole(run, folder):
    onnx.save(flattened(20), "model.onnx")
    assert run("prune", "model.onnx", "-o", "out.onnx", "--ratio", "0.5", "-q")[0] == 0
    shapes = {each.name: list(each.dims) for each in onnx.load("out.onnx").graph.initializer}
    assert shapes["w1"] == [4, 3, 3, 3]
    assert shapes["w3"] == [5, 6400]


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"])
def test_quantized_networks_are_refused_wherever_the_operator_is(folder, operator):
    model = branches(13)
    branch = next(each for each in model.graph.node if each.op_type == "If").attribute[0].g
    branch.node[0].op_type = operator
    with pytest.raises(oc.InputError, match=f"quantized already .*{operator}.*: compress first, then"):
        checks.check_operators(ir.from_proto(model))


def test_operators_that_nobody_knows_are_named(run, folder):
    model = network(13)
    insert(
        model, "pool", helper.make_node("Swoosh", ["relu2"], ["s"], "swoosh", domain="ai.acme"), reads="relu2"
    )
    model.opset_import.append(helper.make_opsetid("ai.acme", 1))
    onnx.save(model, "model.onnx")
    for verb in ("prune", "inspect"):
        code, _, err = run(verb, "model.onnx", *(["-o", "out.onnx"] if verb == "prune" else []))
        assert code == 2
        assert "does not know the operator ai.acme.Swoosh (node 'swoosh')" in err


def test_what_onnx_runtime_refuses_is_refused_at_once(run, folder):
    model = of_microsoft(13)
    next(each for each in model.graph.node if each.domain).op_type = "Unheard"
    onnx.save(model, "model.onnx")
    np.savez("data.npz", x=np.zeros((2, 3, 8, 8), np.float32), y=[0, 1])
    for verb in (["decompose", "-o", "out.onnx"], ["bench"], ["evaluate", "--data", "data.npz"]):
        code, _, err = run(verb[0], "model.onnx", *verb[1:])
        assert code == 2
        assert "model.onnx: ONNX Runtime refuses the network" in err


@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_networks_that_onnx_runtime_optimized_are_refused(tmp_path, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(SHIPPED), options, providers=["CPUExecutionProvider"])
    with pytest.raises(
        oc.InputError, match=r"optimized\.onnx: optimized by ONNX Runtime .* as it was exported"
    ):
        oc.load(tmp_path / "optimized.onnx")
