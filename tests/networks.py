"""Random networks for the identities: branches, Adds, Concats, Splits, groups, shuffles, normalizations."""

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and weights; values are known by name, with shape (C, H, W)."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": (3, 8, 8)}

    def weight(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1)) if len(shape) > 1 and shape[1:] != (1, 1) else 1
        self.weights.append(
            numpy_helper.from_array((self.random.uniform(low, high, shape) * scale).astype(np.float32), name)
        )
        return name

    def constant(self, array: list[int]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, np.int64), name))
        return name

    def add(self, operator: str, inputs: list[str], shape: tuple[int, ...], **attributes) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}:0"], name=name, **attributes))
        self.shapes[f"{name}:0"] = shape
        return f"{name}:0"

    def conv(
        self, x: str, filters: int, kernel: int = 1, group: int = 1, bias: bool = True, stride: int = 1
    ) -> str:
        c, h, w = self.shapes[x]
        inputs = [x, self.weight(filters, c // group, kernel, kernel)] + (
            [self.weight(filters)] if bias else []
        )
        pad = kernel // 2
        return self.add(
            "Conv",
            inputs,
            (filters, -(-h // stride), -(-w // stride)),
            kernel_shape=[kernel] * 2,
            pads=[pad] * 4,
            group=group,
            strides=[stride] * 2,
        )

    def batch_norm(self, x: str) -> str:
        c = self.shapes[x][0]
        parameters = [self.weight(c), self.weight(c), self.weight(c), self.weight(c, low=0.5, high=2.0)]
        return self.add("BatchNormalization", [x, *parameters], self.shapes[x])

    def shuffle(self, x: str, groups: int) -> str:
        c, h, w = self.shapes[x]
        split = self.add(
            "Reshape", [x, self.constant([0, groups, c // groups, h, w])], (groups, c // groups, h, w)
        )
        swapped = self.add("Transpose", [split], (c // groups, groups, h, w), perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", [swapped, self.constant([0, c, h, w])], (c, h, w))

    def split(self, x: str, first: int) -> tuple[str, str]:
        c, h, w = self.shapes[x]
        name = f"split{len(self.nodes)}"
        outputs = [f"{name}:0", f"{name}:1"]
        self.nodes.append(
            helper.make_node("Split", [x, self.constant([first, c - first])], outputs, name=name, axis=1)
        )
        self.shapes[outputs[0]], self.shapes[outputs[1]] = (first, h, w), (c - first, h, w)
        return outputs[0], outputs[1]

    def model(self, outputs: list[str], inputs: tuple[str, ...] = ("x",)) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", *self.shapes[x]]) for x in inputs],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", *self.shapes[y]]) for y in outputs],
            self.weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(proto)


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """A network of 2 to 7 random blocks on an 8×8 image, ending in a classifier; float32, opset 21."""
    b = Builder(draw(st.integers(0, 2**32 - 1)))
    x = b.conv("x", draw(st.sampled_from([4, 6, 8])), draw(st.sampled_from([1, 3])))
    for block in draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=6)):
        x = BLOCKS[block](draw, b, x)
    second = b.conv(x, 2) if draw(st.booleans()) else None
    c, h, w = b.shapes[x]
    if draw(st.booleans()):
        x, c, h, w = b.add("GlobalAveragePool", [x], (c, 1, 1)), c, 1, 1
    x = _flat(draw, b, x)
    if draw(st.booleans()):
        hidden = draw(st.sampled_from([5, 8]))
        x = b.add("Gemm", [x, b.weight(hidden, c * h * w), b.weight(hidden)], (hidden,), transB=1)
        x = b.add("Relu", [x], (hidden,))
    x = b.add("Gemm", [x, b.weight(5, b.shapes[x][0]), b.weight(5)], (5,), transB=1)
    if draw(st.booleans()):
        x = b.add("Softmax", [x], (5,))
    return b.model([x] if second is None else [x, second])


def _flat(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    kind = draw(st.sampled_from(["Flatten", "Reshape", "computed shape"]))
    if kind == "Flatten":
        return b.add("Flatten", [x], (c * h * w,))
    if kind == "Reshape":
        return b.add("Reshape", [x, b.constant([0, c * h * w])], (c * h * w,))
    size = b.add("Shape", [x], (4,))
    batch = b.add("Gather", [size, b.constant([0])], (1,))
    target = b.add("Concat", [batch, b.constant([c * h * w])], (2,), axis=0)
    return b.add("Reshape", [x, target], (c * h * w,))


def _activation(draw: st.DrawFn, b: Builder, x: str) -> str:
    kind = draw(st.sampled_from(["Relu", "Sigmoid", "PRelu", "Tanh"]))
    return b.add(kind, [x, b.weight(b.shapes[x][0], 1, 1)] if kind == "PRelu" else [x], b.shapes[x])


def _conv(draw: st.DrawFn, b: Builder, x: str) -> str:
    bias, stride = draw(st.booleans()), draw(st.sampled_from([1, 1, 2]))
    return b.conv(x, draw(st.sampled_from([4, 6])), draw(st.sampled_from([1, 3])), bias=bias, stride=stride)


def _grouped(draw: st.DrawFn, b: Builder, x: str) -> str:
    return b.conv(b.conv(x, 8), draw(st.sampled_from([4, 8])), 3, group=2)


def _depthwise(draw: st.DrawFn, b: Builder, x: str) -> str:
    c = b.shapes[x][0]
    return b.conv(x, c * draw(st.sampled_from([1, 2])), 3, group=c)


def _residual(draw: st.DrawFn, b: Builder, x: str) -> str:
    branch = b.conv(x, b.shapes[x][0], 3)
    return b.add(draw(st.sampled_from(["Add", "Mul", "Max"])), [x, branch], b.shapes[x])


def _inception(draw: st.DrawFn, b: Builder, x: str) -> str:
    branches = [b.conv(x, 3), b.conv(b.conv(x, 4), 5, 3)]
    if draw(st.booleans()):
        branches.append(x)
    if draw(st.booleans()):
        branches.append(branches[0])
    _, h, w = b.shapes[x]
    return b.add("Concat", branches, (sum(b.shapes[each][0] for each in branches), h, w), axis=1)


def _split(draw: st.DrawFn, b: Builder, x: str) -> str:
    first, second = b.split(b.conv(x, 6), draw(st.integers(1, 5)))
    changed = b.add("Relu", [second], b.shapes[second])
    return b.add("Concat", [changed, first], (6, *b.shapes[x][1:]), axis=1)


def _excite(draw: st.DrawFn, b: Builder, x: str) -> str:
    c = b.shapes[x][0]
    pooled = b.add("GlobalAveragePool", [x], (c, 1, 1))
    gate = b.add("Sigmoid", [b.conv(b.add("Relu", [b.conv(pooled, 3)], (3, 1, 1)), c)], (c, 1, 1))
    return b.add("Mul", [x, gate], b.shapes[x])


def _constants(draw: st.DrawFn, b: Builder, x: str) -> str:
    c = b.shapes[x][0]
    shape = draw(st.sampled_from([(c, 1, 1), (1, 1, 1), b.shapes[x]]))
    return b.add(draw(st.sampled_from(["Add", "Mul"])), [x, b.weight(*shape)], b.shapes[x])


def _pad(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    return b.add("Pad", [x, b.constant([0, 0, 1, 0, 0, 0, 0, 2])], (c, h + 1, w + 2))


def _clip(draw: st.DrawFn, b: Builder, x: str) -> str:
    return b.add("Clip", [x, b.weight(low=-1, high=-0.5), b.weight(low=0.5, high=1)], b.shapes[x])


def _pool(draw: st.DrawFn, b: Builder, x: str) -> str:
    kind = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return b.add(kind, [x], b.shapes[x], kernel_shape=[3, 3], pads=[1] * 4)


def _resize(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    if draw(st.booleans()):
        sizes = b.constant([c, 2 * h, w])
        return b.add("Resize", [x, "", "", sizes], (c, 2 * h, w), axes=[1, 2, 3])
    region = draw(st.sampled_from(["", b.weight(8)]))
    scales = f"w{len(b.weights)}"
    b.weights.append(numpy_helper.from_array(np.array([1, 1, 2, 1], np.float32), scales))
    return b.add("Resize", [x, region, scales], (c, 2 * h, w))


def _spatial_attention(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, h, w = b.shapes[x]
    return b.add("Mul", [x, b.add("Sigmoid", [b.conv(x, 1, 3)], (1, h, w))], b.shapes[x])


def _slice(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, h, w = b.shapes[x]
    start, end, step = draw(
        st.sampled_from([(0, 3, 1), (2, 100, 1), (-4, -1, 1), (0, 7, 2), (1, 6, 3), (7, 0, -2)])
    )
    count = len(range(8)[start:end:step])
    ends = [b.constant([each]) for each in (start, end, 1, step)]
    return b.add("Slice", [b.conv(x, 8), *ends], (count, h, w))


def _gather(draw: st.DrawFn, b: Builder, x: str) -> str:
    indices = draw(st.lists(st.integers(-6, 5), min_size=2, max_size=7))
    return b.add("Gather", [b.conv(x, 6), b.constant(indices)], (len(indices), *b.shapes[x][1:]), axis=1)


def _exported_group_norm(draw: st.DrawFn, b: Builder, x: str) -> str:
    x = b.conv(x, 8)
    shape = b.shapes[x]
    x = b.add("Reshape", [x, b.constant([0, 4, -1])], (4, 2 * shape[1] * shape[2]))
    x = b.add("InstanceNormalization", [x, b.weight(4), b.weight(4)], b.shapes[x])
    x = b.add("Reshape", [x, b.constant([0, *shape])], shape)
    return b.add("Add", [b.add("Mul", [x, b.weight(8, 1, 1)], shape), b.weight(8, 1, 1)], shape)


def _group_norm(draw: st.DrawFn, b: Builder, x: str) -> str:
    x = b.conv(x, 8)
    return b.add("GroupNormalization", [x, b.weight(8), b.weight(8)], b.shapes[x], num_groups=4)


def _norm_of_channels(draw: st.DrawFn, b: Builder, x: str) -> str:
    c = b.shapes[x][0]
    if draw(st.booleans()):
        return b.add("InstanceNormalization", [x, b.weight(c), b.weight(c)], b.shapes[x])
    last = _channels_last(b, x)
    return _channels_first(b, b.add("LayerNormalization", [last, b.weight(c), b.weight(c)], b.shapes[last]))


def _channels_last(b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    return b.add("Transpose", [x], (h, w, c), perm=[0, 2, 3, 1])


def _channels_first(b: Builder, x: str) -> str:
    h, w, c = b.shapes[x]
    return b.add("Transpose", [x], (c, h, w), perm=[0, 3, 1, 2])


def _pointwise_by_matmul(draw: st.DrawFn, b: Builder, x: str) -> str:
    y = _channels_last(b, x)
    h, w, c = b.shapes[y]
    y = b.add("Add", [b.add("MatMul", [y, b.weight(c, 6)], (h, w, 6)), b.weight(6)], (h, w, 6))
    y = b.add("MatMul", [b.add("Gelu", [y], (h, w, 6)), b.weight(6, c)], (h, w, c))
    return b.add("Add", [x, _channels_first(b, y)], (c, h, w))


def _matmul_from_the_left(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    flat = b.add("Reshape", [x, b.constant([0, 0, -1])], (c, h * w))
    y = b.add("MatMul", [b.weight(6, c), flat], (6, h * w))
    return b.add("Reshape", [y, b.constant([0, 6, h, w])], (6, h, w))


def _conv_over_channels(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    return b.conv(b.add("Transpose", [x], (h, c, w), perm=[0, 2, 1, 3]), 5)


def _depth_to_space(draw: st.DrawFn, b: Builder, x: str) -> str:
    x = b.conv(x, 12)
    _, h, w = b.shapes[x]
    if draw(st.booleans()):
        mode = draw(st.sampled_from(["DCR", "CRD"]))
        return b.add("DepthToSpace", [x], (3, 2 * h, 2 * w), blocksize=2, mode=mode)
    x = b.add("Reshape", [x, b.constant([0, 3, 2, 2, h, w])], (3, 2, 2, h, w))
    x = b.add("Transpose", [x], (3, h, 2, w, 2), perm=[0, 1, 4, 2, 5, 3])
    return b.add("Reshape", [x, b.constant([0, 3, 2 * h, 2 * w])], (3, 2 * h, 2 * w))


def _space_to_depth(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    if h % 2 or w % 2:
        return x
    return b.add("SpaceToDepth", [x], (4 * c, h // 2, w // 2), blocksize=2)


def _transposed(draw: st.DrawFn, b: Builder, x: str) -> str:
    group = draw(st.sampled_from([1, 2]))
    x = b.conv(x, 4)
    _, h, w = b.shapes[x]
    return b.add(
        "ConvTranspose",
        [x, b.weight(4, 6 // group, 2, 2), b.weight(6)],
        (6, 2 * h, 2 * w),
        strides=[2, 2],
        group=group,
    )


def _padded_shortcut(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    padded = b.add("Pad", [x, b.constant([0, 1, 0, 0, 0, 2, 0, 0])], (c + 3, h, w))
    return b.add("Add", [padded, b.conv(x, c + 3)], (c + 3, h, w))


def _shared_weights(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    weights = [b.weight(6, c, 1, 1), b.weight(6)]
    other = b.add("Tanh", [b.conv(x, c)], b.shapes[x])
    branches = [b.add("Conv", [each, *weights], (6, h, w)) for each in (x, other)]
    return b.add("Concat", branches, (12, h, w), axis=1)


def _normalized(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    norm = b.add("ReduceL2", [x, b.constant([1])], (1, h, w))
    return b.add("Div", [x, b.add("Add", [norm, b.weight(low=0.5, high=1)], (1, h, w))], (c, h, w))


def _excite_by_gemm(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    pooled = b.add("ReduceMean", [x, b.constant([2, 3])], (c,), keepdims=0)
    gate = b.add("Sigmoid", [b.add("Gemm", [pooled, b.weight(c, c), b.weight(c)], (c,), transB=1)], (c,))
    gate = b.add("Unsqueeze", [gate, b.constant([2, 3])], (c, 1, 1))
    return b.add("Mul", [x, b.add("Expand", [gate, b.constant([1, c, h, w])], (c, h, w))], (c, h, w))


def _attention_over_branches(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, h, w = b.shapes[x]
    logits = b.add("Reshape", [b.conv(x, 8), b.constant([0, 2, 4, h, w])], (2, 4, h, w))
    weights = b.add("Softmax", [logits], (2, 4, h, w), axis=1)
    values = b.add("Reshape", [b.conv(x, 8), b.constant([0, 2, 4, h, w])], (2, 4, h, w))
    weighted = b.add("Mul", [weights, values], (2, 4, h, w))
    return b.add("ReduceSum", [weighted, b.constant([1])], (4, h, w), keepdims=0)


def _response_normalization(draw: st.DrawFn, b: Builder, x: str) -> str:
    c, h, w = b.shapes[x]
    norm = b.add("ReduceL2", [x, b.constant([2, 3])], (c, 1, 1))
    mean = b.add("ReduceMean", [norm, b.constant([1])], (1, 1, 1))
    scale = b.add("Div", [norm, b.add("Add", [mean, b.weight(low=0.5, high=1)], (1, 1, 1))], (c, 1, 1))
    return b.add("Mul", [x, scale], (c, h, w))


def _handmade_layer_norm(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, h, w = b.shapes[x]
    mean = b.add("ReduceMean", [x, b.constant([1])], (1, h, w))
    centred = b.add("Sub", [x, mean], b.shapes[x])
    squares = b.add("Mul", [centred, centred], b.shapes[x])
    variance = b.add("ReduceMean", [squares, b.constant([1])], (1, h, w))
    deviation = b.add("Sqrt", [b.add("Add", [variance, b.weight(low=0.5, high=1)], (1, h, w))], (1, h, w))
    return b.add("Div", [centred, deviation], b.shapes[x])


def _attention(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, h, w = b.shapes[x]
    query, key, value = (
        b.add("Reshape", [b.conv(x, 8), b.constant([0, 2, 4, -1])], (2, 4, h * w)) for _ in "qkv"
    )
    query = b.add("Transpose", [query], (2, h * w, 4), perm=[0, 1, 3, 2])
    scores = b.add("Softmax", [b.add("MatMul", [query, key], (2, h * w, h * w))], (2, h * w, h * w))
    value = b.add("Transpose", [value], (2, h * w, 4), perm=[0, 1, 3, 2])
    mixed = b.add("MatMul", [scores, value], (2, h * w, 4))
    mixed = b.add("Transpose", [mixed], (2, 4, h * w), perm=[0, 1, 3, 2])
    return b.add("Reshape", [mixed, b.constant([0, 8, h, w])], (8, h, w))


def _attention_by_einsum(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, h, w = b.shapes[x]
    query, key, value = b.conv(x, 4), b.conv(x, 4), b.conv(x, 6)
    scores = b.add("Einsum", [query, key], (h, w, h, w), equation="nchw,ncyx->nhwyx")
    mixed = b.add(
        "Einsum", [b.add("Tanh", [scores], (h, w, h, w)), value], (6, h, w), equation="nhwyx,ncyx->nchw"
    )
    return b.add("Einsum", [mixed, b.weight(5, 6)], (5, h, w), equation="nchw,kc->nkhw")


BLOCKS = {
    "activation": _activation,
    "batch norm": lambda draw, b, x: b.batch_norm(x),
    "clip": _clip,
    "constants": _constants,
    "conv": _conv,
    "depthwise": _depthwise,
    "conv over channels": _conv_over_channels,
    "dropout": lambda draw, b, x: b.add("Dropout", [x], b.shapes[x]),
    "excite": _excite,
    "grouped": _grouped,
    "inception": _inception,
    "lrn": lambda draw, b, x: b.add(
        "LRN", [x], b.shapes[x], size=3, alpha=0.5, beta=draw(st.sampled_from([0.75, 0.5]))
    ),
    "pad": _pad,
    "pool": _pool,
    "residual": _residual,
    "resize": _resize,
    "shuffle": lambda draw, b, x: b.shuffle(b.conv(x, 8), 2),
    "spatial attention": _spatial_attention,
    "split": _split,
    "slice": _slice,
    "gather": _gather,
    "exported group norm": _exported_group_norm,
    "group norm": _group_norm,
    "norm of channels": _norm_of_channels,
    "pointwise by MatMul": _pointwise_by_matmul,
    "MatMul from the left": _matmul_from_the_left,
    "depth to space": _depth_to_space,
    "space to depth": _space_to_depth,
    "transposed": _transposed,
    "padded shortcut": _padded_shortcut,
    "shared weights": _shared_weights,
    "normalized": _normalized,
    "excite by Gemm": _excite_by_gemm,
    "attention": _attention,
    "attention by Einsum": _attention_by_einsum,
    "hand-made layer norm": _handmade_layer_norm,
    "response normalization": _response_normalization,
    "attention over branches": _attention_over_branches,
}
