"""Damaged networks, prototxts, caffemodels and plans: each must end in success or in one clear refusal.

    python -m benchmarks.fuzz --runs 5000

Every case follows from its number alone. A child process runs them through the command line, in bounded
time and memory; the parent notices when it dies. What fails is kept in benchmarks/results/fuzz.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from google.protobuf import text_format
from google.protobuf.message import Message
from onnx import helper, numpy_helper

from onnxcompress.caffe.schema import NetParameter

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "fuzz"
SECONDS = 90
"""That one case may take on a busy machine."""
BYTES = 6 * 2**30
"""Of address space that the process may take; most of it is taken by libraries and threads."""

Case = tuple[list[str], dict[str, bytes]]
"""A command line and the files that it reads."""


# --- damage -----------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 65536, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-38, 1e38, float("nan"), float("inf"), float("-inf"))
STRINGS = (
    "",
    "x",
    "y",
    "w0",
    "a" * 100_000,
    "a b",
    "../../../etc/passwd",
    "/etc/passwd",
    "%s%n",
    "é\u202e\x00",
    "\n",
)


def damage_bytes(content: bytes, source: random.Random) -> bytes:
    """The content with a few bytes flipped, cut, repeated or put in."""
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        start = source.randrange(len(content) + 1)
        end = min(start + source.choice((1, 1, 4, 50, 500)), len(content))
        match source.randrange(6):
            case 0:
                content = content[:start]
            case 1:
                content = content[:start] + content[end:]
            case 2:
                content = content[:start] + source.randbytes(end - start) + content[end:]
            case 3:
                content = content[:end] + content[start:]
            case 4:
                content = content[:start] + bytes(end - start) + content[end:]
            case 5:
                content = content[:start] + b"\xff" * 9 + content[start:]
        content = content or b"\x00"
    return content


def damage_message(message: Message, source: random.Random) -> None:
    """Change a few fields of a protobuf message, wherever they are: drop, repeat, swap, replace."""
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        parts = list(_parts(message))
        kind = source.choice(sorted({part.DESCRIPTOR.full_name for part in parts}))
        _damage_field(source.choice([p for p in parts if p.DESCRIPTOR.full_name == kind]), parts, source)


def _parts(message: Message) -> Iterable[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _parts(part)


def _damage_field(part: Message, parts: list[Message], source: random.Random) -> None:
    present = [field for field, _ in part.ListFields()]
    field = source.choice(present if present and source.random() < 0.8 else part.DESCRIPTOR.fields)
    if source.random() < 0.1:
        part.ClearField(field.name)
    elif field.is_repeated:
        _damage_list(getattr(part, field.name), field, parts, source)
    elif field.message_type is not None:
        like = [other for other in parts if other.DESCRIPTOR is field.message_type]
        if like:
            _copy(getattr(part, field.name), source.choice(like))
    else:
        with contextlib.suppress(ValueError, TypeError):  # out of the field's range
            setattr(part, field.name, _value(field, getattr(part, field.name), parts, source))


def _damage_list(values: Any, field: Any, parts: list[Message], source: random.Random) -> None:
    kind = source.randrange(5)
    if len(values) and kind == 0:
        del values[source.randrange(len(values))]
    elif len(values) > 1 and kind == 1:
        one, two = source.sample(range(len(values)), 2)
        order = list(range(len(values)))
        order[one], order[two] = two, one
        kept = [values[index] for index in order]
        if field.message_type is not None:
            kept = [_copied(each) for each in kept]
        del values[:]
        values.extend(kept)
    elif field.message_type is not None:
        like = [other for other in parts if other.DESCRIPTOR is field.message_type]
        if like:
            values.extend([_copied(source.choice(like))] * source.choice((1, 1, 2, 300)))
    else:
        with contextlib.suppress(ValueError, TypeError):
            old = values[source.randrange(len(values))] if len(values) else None
            new = _value(field, old, parts, source)
            if len(values) and kind < 4:
                values[source.randrange(len(values))] = new
            else:
                values.extend([new] * source.choice((1, 1, 2, 1000)))


def _value(field: Any, old: Any, parts: list[Message], source: random.Random) -> Any:
    if field.type == field.TYPE_BYTES:
        return damage_bytes(old or b"\x01", source)
    if field.type == field.TYPE_STRING:
        names = [p.name for p in parts if "name" in p.DESCRIPTOR.fields_by_name and isinstance(p.name, str)]
        outputs = [
            name
            for p in parts
            if "output" in p.DESCRIPTOR.fields_by_name
            for name in p.output
            if isinstance(name, str)
        ]
        operators = [p.op_type for p in parts if "op_type" in p.DESCRIPTOR.fields_by_name]
        return source.choice(source.choice([each for each in (STRINGS, names, outputs, operators) if each]))
    if field.enum_type is not None:
        return source.choice([*field.enum_type.values_by_number, 99])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return source.choice(FLOATS)
    return source.choice((*NUMBERS, (old or 0) + 1, (old or 0) - 1, source.randrange(40)))


def _copy(target: Message, other: Message) -> None:
    target.CopyFrom(_copied(other))


def _copied(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


# --- what is damaged --------------------------------------------------------------------------------

BRANCHES = """
<ir_version: 8, opset_import: ["": 17, "local": 1]>
branches (float[N, 3, 8, 8] x, float[8, 3, 3, 3] w0, float[8] w1, float[8] w2, float[8] w3, float[8] w4,
    float[8, 8, 3, 3] w5, float[8] w6, float[8, 1, 3, 3] w7, float[4, 8, 1, 1] w8, float[6, 8, 3, 3] w9,
    float[5, 10] w10, float[5] w11) => (float[N, 5] y)
<float[4] w12 = {1, 2, 3, 4}>
{
    a = Conv <pads: ints = [1, 1, 1, 1]> (x, w0, w1)
    b = BatchNormalization (a, w1, w2, w3, w4)
    c = Relu (b)
    d = Conv <pads: ints = [1, 1, 1, 1], kernel_shape: ints = [3, 3]> (c, w5, w6)
    e = Add (c, d)
    f = Conv <group: int = 8, pads: ints = [1, 1, 1, 1]> (e, w7)
    g = local.Mish (f)
    h = Conv (g, w8, w12)
    i = Conv <auto_pad: string = "SAME_UPPER", dilations: ints = [2, 2]> (g, w9)
    j = Concat <axis: int = 1> (h, i)
    k, l = Split <axis: int = 1> (j)
    m = Concat <axis: int = 1> (l, k)
    n = GlobalAveragePool (m)
    o = Flatten (n)
    p = Gemm <transB: int = 1> (o, w10, w11)
    y = Softmax <axis: int = 1> (p)
}
<opset_import: ["": 17], domain: "local">
Mish (X) => (Y)
{
    S = Softplus (X)
    T = Tanh (S)
    Y = Mul (X, T)
}
"""

SHAPES = """
<ir_version: 10, opset_import: ["": 20]>
shapes (float[2, 3, H, W] x, float[8, 3, 3, 3] w0, float[1, 8, 1, 1] w1, float[8, 6, 2, 2] w2,
    float[6, 1, 1] w3, float[6, 10] w4, float[10, 4] w5) => (float[2, 4] y, float[2, 8, A, B] z)
{
    a = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x, w0)
    s = Constant <value_ints: ints = [0, 2, 4, 16, 16]> ()
    sh = Shape (a)
    b = Reshape (a, s)
    c = Transpose <perm: ints = [0, 2, 1, 3, 4]> (b)
    d = Reshape (c, sh)
    e = Add (d, w1)
    q = Constant <value_ints: ints = [0, 0, 1, 1, 0, 0, 0, 0]> ()
    f = Pad (e, q)
    g = LRN <size: int = 3, alpha: float = 0.1> (f)
    z = Identity (g)
    lo = Constant <value_float: float = 0.0> ()
    hi = Constant <value_float: float = 6.0> ()
    h = Clip (g, lo, hi)
    i = ConvTranspose <strides: ints = [2, 2]> (h, w2)
    j = PRelu (i, w3)
    r = Constant <value_floats: floats = [1.0, 1.0, 0.5, 0.5]> ()
    k = Resize (j, , r)
    l = MaxPool <kernel_shape: ints = [2, 2]> (k)
    t = Constant <value_ints: ints = [2, 3]> ()
    m = ReduceMean <keepdims: int = 0> (l, t)
    n = MatMul (m, w4)
    o = Relu (n)
    y = MatMul (o, w5)
}
"""

CONTROL = """
<ir_version: 7, opset_import: ["": 13]>
control (float[N, 3, 8, 8] x, bool cond, float[8, 3, 3, 3] w0, float[8, 8, 3, 3] w1, float[8] w2,
    float[5, 8, 1, 1] w3) => (float[N, 5, 8, 8] y)
<int64 trip = {3}, bool yes = {1}>
{
    a = Conv <pads: ints = [1, 1, 1, 1]> (x, w0)
    b = If (cond) <
        then_branch = one () => (c) { c = Relu (a) },
        else_branch = two () => (d) { d = Conv <pads: ints = [1, 1, 1, 1]> (a, w1, w2) }
    >
    e = Conv <pads: ints = [1, 1, 1, 1]> (b, w1, w2)
    f = Loop (trip, yes, e) <
        body = three (int64 i, bool go, float[N, 8, 8, 8] s) => (bool on, float[N, 8, 8, 8] t) {
            on = Identity (go)
            t = Tanh (s)
        }
    >
    g = Conv (f, w3)
    y = Sigmoid (g)
}
"""

OLD = """
<ir_version: 3, opset_import: ["": 8]>
old (float16[1, 1, 8, 8] x, float16[8, 1, 5, 5] w0, float16[8] w1, float16[8, 8, 3, 3] w2, float16[8] w3,
    float16[288, 4] w4, float16[4] w5) => (float16[1, 4] y)
{
    a = Conv <kernel_shape: ints = [5, 5], auto_pad: string = "SAME_UPPER"> (x, w0)
    b = Add (a, a)
    c = Relu (b)
    d = Conv <kernel_shape: ints = [3, 3]> (c, w2, w3)
    e = Dropout <ratio: float = 0.5> (d)
    f = Flatten (e)
    y = Gemm (f, w4, w5)
}
"""

PROTOTXT = """
name: "net"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }
layer { name: "norm" type: "LRN" bottom: "bn" top: "norm" lrn_param { local_size: 3 } }
layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "pool" top: "up"
  convolution_param { num_output: 4 kernel_size: 2 stride: 2 group: 2 } }
layer { name: "slice" type: "Slice" bottom: "up" top: "one" top: "two" slice_param { slice_point: 1 } }
layer { name: "concat" type: "Concat" bottom: "two" bottom: "one" top: "concat" }
layer { name: "sum" type: "Eltwise" bottom: "concat" bottom: "up" top: "sum"
  eltwise_param { coeff: 1 coeff: -1 } }
layer { name: "shape" type: "Reshape" bottom: "sum" top: "shape" reshape_param { shape { dim: 0 dim: -1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "shape" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

OPERATORS = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat", "Split", "Reshape", "Transpose"),
    *("Flatten", "Squeeze", "Unsqueeze", "Pad", "Resize", "Softmax", "LRN", "ReduceMean", "GlobalMaxPool"),
    *("AveragePool", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "PRelu", "Clip"),
    *("Dropout", "Identity", "Shape", "Gather", "Slice", "Expand", "Tile", "Where", "Cast", "Einsum"),
    *("ConstantOfShape", "DepthToSpace", "SpaceToDepth", "TopK", "NonZero", "GroupNormalization", "Loop"),
    *("ArgMax", "Erf", "Max", "Pow", "CumSum", "ScatterElements", "LSTM", "MaxUnpool", "OneHot", "Range"),
)

ATTRIBUTES = (
    *(("group", 2), ("group", 8), ("axis", 0), ("axis", -1), ("axis", 3), ("axis", 99), ("keepdims", 0)),
    *(("transA", 1), ("transB", 1), ("alpha", 2.0), ("beta", 0.0), ("perm", [1, 0]), ("perm", [0, 1, 3, 2])),
    *(("kernel_shape", [1, 1]), ("kernel_shape", [3]), ("strides", [3, 3]), ("strides", [0, 0])),
    *(("pads", [9, 9, 9, 9]), ("pads", [-1, 0, 0, 0]), ("dilations", [4, 4]), ("auto_pad", "VALID")),
    *(("auto_pad", "SAME_LOWER"), ("axes", [1]), ("axes", [2, 3]), ("split", [1, 9]), ("num_outputs", 2)),
    *(("blocksize", 2), ("mode", "linear"), ("mode", "cubic"), ("num_groups", 2), ("to", 10), ("to", 7)),
    *(("output_shape", [2**16, 2**16]), ("output_padding", [1, 1]), ("ceil_mode", 1), ("allowzero", 1)),
    *(("equation", "nchw,nc->nhw"), ("training_mode", 1), ("count_include_pad", 1), ("epsilon", 0.0)),
)

BLOBS = {
    "conv": [(8, 3, 3, 3), (8,)],
    "bn": [(8,), (8,), (1,)],
    "scale": [(8,), (8,)],
    "up": [(8, 2, 2, 2), (4,)],
    "fc": [(5, 144), (5,)],
}

PLAN = """
format: 1
prune: {a: [0, 3], d: [0, 3], i: [1, 2, 5]}
rewrite: []
decompose: {d: {out: 3, in: 4}, i: {out: 4, in: 4, depthwise: true}, p: {out: 2, in: 2}}
kept: {y: the network's output}
"""


def network(text: str, seed: int = 0) -> onnx.ModelProto:
    """A network in ONNX's text form: inputs called w0, w1, … become weights, nodes bear their output's."""
    model = onnx.parser.parse_model(text)
    values = np.random.default_rng(seed)
    for value in list(model.graph.input):
        if value.name.startswith("w"):
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            array = values.uniform(0.1, 1, shape).astype(dtype)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            if model.ir_version >= 4:
                model.graph.input.remove(value)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


# --- cases ------------------------------------------------------------------------------------------

COMMANDS = (
    ["prune", "--ratio", "0.5"],
    ["prune", "--ratio", "0.3", "--scope", "global"],
    ["decompose", "--rank", "fraction:0.5", "--include-gemm", "--include-pointwise"],
    ["compress", "--ratio", "0.3", "--rank", "vbmf"],
    ["apply", "plan.yaml"],
    ["inspect", "--groups"],
)


def case(number: int) -> Case:
    """The command line of one case and the files that it reads: one of them damaged."""
    source = random.Random(number)
    kind = source.choices(("layers", "message", "bytes", "nested", "caffe", "plan"), (45, 25, 5, 2, 15, 8))[0]
    if kind == "caffe":
        return _caffe(source)
    model = network(source.choice((BRANCHES, SHAPES, CONTROL, OLD)) if kind != "plan" else BRANCHES)
    files = {"plan.yaml": PLAN.encode()}
    if source.random() < 0.15:
        _move_weights_out(model, files)
    if kind == "message":
        damage_message(model, source)
    if kind == "layers":
        _damage_layers(model, source)
    nested = kind == "nested"
    files["model.onnx"] = _nested(model, source.choice((3, 20, 500))) if nested else model.SerializeToString()
    if kind == "bytes":
        name = source.choice(sorted(set(files) - {"plan.yaml"}))
        files[name] = damage_bytes(files[name], source)
    command = source.choice(COMMANDS)
    if kind == "plan":
        files["plan.yaml"] = _damaged_plan(source)
        command = ["apply", "plan.yaml"]
    return [command[0], "model.onnx", *command[1:]], files


def _damage_layers(model: onnx.ModelProto, source: random.Random) -> None:
    """Another network, that may well make sense: other operators, attributes, connections, weights."""
    nodes = model.graph.node
    for _ in range(source.choice((1, 1, 2, 3))):
        index = source.randrange(len(nodes))
        node = nodes[index]
        values = [value.name for value in (*model.graph.input, *model.graph.initializer)]
        values += [name for earlier in nodes[:index] for name in earlier.output]
        numbers = [each for each in node.attribute if each.type in (each.INT, each.INTS, each.FLOAT)]
        match source.randrange(7):
            case 0 if node.input:
                node.input[source.randrange(len(node.input))] = source.choice(values)
            case 1:
                node.op_type = source.choice(OPERATORS)
                schema = onnx.defs.get_schema(node.op_type)
                del node.input[schema.max_input :]
                del node.output[schema.max_output :]
                kept = [each for each in node.attribute if each.name in schema.attributes]
                del node.attribute[:]
                node.attribute.extend(kept)
            case 2 if numbers:
                attribute = source.choice(numbers)
                if attribute.type == attribute.INT:
                    attribute.i = source.choice((*NUMBERS, 1, 2, 4, 8))
                elif attribute.type == attribute.FLOAT:
                    attribute.f = source.choice(FLOATS)
                for axis, old in enumerate(attribute.ints):
                    attribute.ints[axis] = source.choice((old, old, 0, 1, 2, 3, -1, 100, 2**31))
            case 3 if node.attribute:
                del node.attribute[source.randrange(len(node.attribute))]
            case 4:
                known = onnx.defs.get_schema(node.op_type).attributes if not node.domain else {}
                fitting = [(name, value) for name, value in ATTRIBUTES if name in known]
                if fitting:
                    name, value = source.choice(fitting)
                    kept = [each for each in node.attribute if each.name != name]
                    del node.attribute[:]
                    node.attribute.extend([*kept, helper.make_attribute(name, value)])
            case 5:
                tensor = source.choice(model.graph.initializer)
                shape = [source.choice((size, size, 1, 2, 0, size * 2)) for size in tensor.dims]
                dtype = source.choice((np.float32, np.float32, np.float16, np.float64, np.int64, np.bool_))
                array = np.random.default_rng(0).uniform(-2, 2, shape).astype(dtype)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            case 6:
                value = source.choice((*model.graph.input, *model.graph.output))
                value.type.tensor_type.elem_type = source.choice((1, 1, 1, 7, 10, 11))
                for dim in value.type.tensor_type.shape.dim:
                    match source.randrange(5):
                        case 0:
                            dim.dim_param = source.choice(("N", "H", ""))
                        case 1:
                            dim.dim_value = source.choice((0, 1, 2, 3, 9, -1, 1000, 2**31))


def _caffe(source: random.Random) -> Case:
    net = text_format.Parse(PROTOTXT, NetParameter())
    trained = _trained()
    command = ["import-caffe", "net.prototxt", "net.caffemodel"]
    match source.randrange(4):
        case 0:
            damage_message(net, source)
        case 1:
            damage_message(trained, source)
        case 2:
            text = damage_bytes(PROTOTXT.encode(), source)
            return command, {"net.prototxt": text, "net.caffemodel": trained.SerializeToString()}
        case 3:
            content = damage_bytes(trained.SerializeToString(), source)
            return command, {"net.prototxt": PROTOTXT.encode(), "net.caffemodel": content}
    text = text_format.MessageToString(net).encode()
    return command, {"net.prototxt": text, "net.caffemodel": trained.SerializeToString()}


def _trained() -> Message:
    net, values = NetParameter(), np.random.default_rng(0)
    for name, shapes in BLOBS.items():
        layer = net.layer.add(name=name)
        for shape in shapes:
            layer.blobs.add(shape={"dim": shape}, data=values.uniform(0.1, 1, shape).astype("<f4").tobytes())
    return net


def _move_weights_out(model: onnx.ModelProto, files: dict[str, bytes]) -> None:
    """Weights into an external data file, as `onnx.save` would."""
    files["weights.bin"] = b""
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data"):
            place = {
                "location": "weights.bin",
                "offset": len(files["weights.bin"]),
                "length": len(tensor.raw_data),
            }
            tensor.external_data.extend(
                onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()
            )
            tensor.data_location = onnx.TensorProto.EXTERNAL
            files["weights.bin"] += tensor.raw_data
            tensor.ClearField("raw_data")


def _nested(model: onnx.ModelProto, depth: int) -> bytes:
    """The file of a network with a node in so many Ifs, by hand: protobuf itself refuses deep ones."""
    branch = helper.make_node("Relu", [model.graph.node[0].input[0]], ["inner"]).SerializeToString()
    result = helper.make_tensor_value_info("inner", 1, None).SerializeToString()
    for _ in range(depth):
        graph = _field(1, branch) + _field(2, b"branch") + _field(12, result)
        both = [
            _field(1, name) + b"\xa0\x01\x05" + _field(6, graph) for name in (b"then_branch", b"else_branch")
        ]
        attributes = b"".join(_field(5, attribute) for attribute in both[: 1 + (depth < 9)])
        branch = _field(1, b"always") + _field(2, b"inner") + _field(4, b"If") + attributes
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    return model.SerializeToString() + _field(7, _field(1, branch))


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size % 128 + 128)
        size //= 128
    return bytes([number * 8 + 2, *length, size]) + content


YAML = (
    "&a [*a]",
    "!!python/object/apply:os.system [ls]",
    "[" * 5000,
    "{a: " * 500,
    "1" * 5000,
    "0x" + "f" * 4000,
    "1" * 20 + ":" + "59:" * 2000 + "1",
    "!!binary abc",
    "2001-01-01",
    "? [a, b]\n: c",
    "<<: {a: 1}",
    "null",
    "~",
    "1e999",
    ".nan",
    "-1",
    "true",
    "[1, 1]",
    "{out: 99999999999999999999, in: 1}",
    "{out: 1.5, in: 2}",
    "[0, 99]",
    "\ud800",
    "\x00",
    "\t",
    "%TAG ! x",
    "--- a\n--- b",
    "'",
    "|",
    ">",
)
ENTRIES: tuple[object, ...] = (
    *([], [0], [0, 0], [7, 6, 5], list(range(8)), [-1], [99], [0.5], ["0"], [True], [[0]], {}, None, "x", 1),
    *({"out": rank, "in": rank} for rank in (-1, 0, 1, 2, 5, 8, 10**9, 2.0, True)),
    *({"out": rank, "in": rank, "depthwise": True} for rank in (-1, 0, 1, 4, 8, 20, 10**9, 2.0, True)),
    *({"out": 2, "in": 3}, {"out": 2}, {"out": 2, "in": 2, "depthwise": None}, {"depthwise": True}),
)
BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 30))]
)


def _damaged_plan(source: random.Random) -> bytes:
    match source.randrange(5):
        case 0:
            plan = yaml.safe_load(PLAN)
            for _ in range(source.choice((1, 1, 2))):
                section = plan[source.choice(("prune", "decompose"))]
                section[source.choice((*"adfhip", "d + i", "nothing"))] = source.choice(ENTRIES)
            return yaml.safe_dump(plan).encode()
        case 1:
            return damage_bytes(PLAN.encode(), source)
        case 2:
            return (
                PLAN + source.choice((BOMB, f"kept2: {{{BOMB}}}", "kept: {a: " + "x" * 10**6 + "}"))
            ).encode()
        case 3:
            words = PLAN.split(" ")
            words[source.randrange(len(words))] = source.choice(YAML)
            return " ".join(words).encode("utf-8", "surrogatepass")
        case _:
            lines = PLAN.splitlines()
            key = source.choice(("prune", "rewrite", "decompose", "kept", "format"))
            value = source.choice(
                (*YAML, "{a: " + source.choice(YAML) + "}", BOMB.replace("\n", "\n  ").join(["\n  ", ""]))
            )
            kept = [line for line in lines if not line.startswith(key)]
            return "\n".join([*kept, f"{key}: {value}"]).encode("utf-8", "surrogatepass")


# --- running them -----------------------------------------------------------------------------------


def run(
    numbers: Iterable[int], keep: Path = RESULTS, progress: Callable[[int, str], None] | None = None
) -> dict[int, str]:
    """Run these cases.

    Args:
        numbers: of the cases.
        keep: folder for the files of those that fail.
        progress: called with each number and how it ended.

    Returns:
        What is wrong, by the number of the case.
    """
    wrong: dict[int, str] = {}
    context = multiprocessing.get_context("spawn")
    child: Any = None
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for number in numbers:
            if child is None:
                pipe, other = context.Pipe()
                child = context.Process(target=_child, args=(other, folder), daemon=True)
                child.start()
                other.close()
                pipe.recv()
            pipe.send(number)
            try:
                ended = pipe.recv() if pipe.poll(SECONDS) else f"WRONG: not done after {SECONDS} s"
            except (EOFError, ConnectionResetError):
                child.join()
                ended = f"WRONG: the process died, exit code {child.exitcode}"
            if ended.startswith("WRONG"):
                wrong[number] = ended
                (keep / str(number)).mkdir(parents=True, exist_ok=True)
                arguments, files = case(number)
                for name, content in files.items():
                    (keep / str(number) / name).write_bytes(content)
                (keep / str(number) / "command.txt").write_text(
                    f"onnxcompress {' '.join(arguments)}\n{ended}\n"
                )
            if "died" in ended or "not done" in ended:
                child.kill()
                child.join()
                child = None
            if progress is not None:
                progress(number, ended)
        if child is not None:
            child.kill()
            child.join()
    return wrong


def _child(pipe: Connection, folder: str) -> None:
    from onnxcompress import cli, compression, inspection, model  # noqa: F401  # before memory is limited

    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        number = pipe.recv()
        arguments, files = case(number)
        for path in Path(folder).iterdir():
            path.unlink()
        for name, content in files.items():
            Path(name).write_bytes(content)
        start = time.perf_counter()
        code, out, err = _run(arguments if arguments[0] == "inspect" else [*arguments, "-o", "out.onnx"])
        seconds = time.perf_counter() - start
        pipe.send(f"{_verdict(code, out, err, files)} [{seconds:.2f} s]")


def _run(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error, of native code too."""
    from onnxcompress.__main__ import main

    sys.argv = ["onnxcompress", *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(errors="replace"), err.read().decode(errors="replace")


def _verdict(code: int, out: str, err: str, files: dict[str, bytes]) -> str:
    written = {path.name for path in Path().iterdir()} - set(files)
    lines = err.strip().splitlines()
    if any(Path(name).read_bytes() != content for name, content in files.items()):
        return "WRONG: an input file was changed"
    if code == 2:
        if len(lines) != 1 or "internal error" in err or "Traceback" in err or "out of memory" in err or out:
            return f"WRONG: {err[:1000]} {out[:200]}"
        if written:
            return f"WRONG: refused, but wrote {written}"
        return f"refused: {lines[0]}"
    if code not in (0, 1) or lines:
        return f"WRONG: exit code {code}: {err[:1000]}"
    if not written <= {"out.onnx", "out.plan.yaml"}:
        return f"WRONG: wrote {written}"
    return f"done, {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--verbose", action="store_true", help="print how every case ended")
    arguments = parser.parse_args()
    endings: dict[str, int] = {}
    start = time.perf_counter()

    def progress(number: int, ended: str) -> None:
        endings[ended.split(":")[0].split(",")[0]] = endings.get(ended.split(":")[0].split(",")[0], 0) + 1
        if arguments.verbose or ended.startswith("WRONG"):
            print(number, ended, flush=True)

    wrong = run(range(arguments.start, arguments.start + arguments.runs), progress=progress)
    print(f"{endings} in {time.perf_counter() - start:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
