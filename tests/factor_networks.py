"""Random networks of layers that can be factored, in every geometry that ONNX allows them."""

import math

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import helper, numpy_helper

Shape = tuple[int, ...]


class Builder:
    """Collects nodes and weights; values are known by name, with their whole shape."""

    def __init__(self, seed: int, opset: int, dtype: str) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.shapes: dict[str, Shape] = {}
        self.outputs: list[str] = []

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        array = self.random.standard_normal(shape) / math.sqrt(fan_in)
        return self.constant(array.astype(self.dtype))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, operator: str, inputs: list[str], shape: Shape, **attributes) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}:0"], name=name, **attributes))
        self.shapes[f"{name}:0"] = shape
        return f"{name}:0"

    def reshape(self, x: str, shape: Shape) -> str:
        return self.add("Reshape", [x, self.constant(np.array(shape, np.int64))], shape)

    def transpose(self, x: str) -> str:
        return self.add("Transpose", [x], self.shapes[x][::-1], perm=[1, 0])

    def model(self) -> ir.Model:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", kind, self.shapes["x"])],
            [helper.make_tensor_value_info(y, kind, self.shapes[y]) for y in self.outputs],
            self.tensors,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(proto, full_check=True)
        return ir.from_proto(proto)


@st.composite
def networks(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32",), dims: int | None = None) -> ir.Model:
    """One to three layers, of which each may have readers of the same weights; every layer is an output."""
    b = Builder(draw(st.integers(0, 99)), draw(st.integers(7, 21)), draw(st.sampled_from(dtypes)))
    dims = dims or draw(st.integers(1, 3))
    sizes = _each(draw, 1, 6, dims)
    b.shapes["x"] = (draw(st.integers(1, 2)), draw(st.sampled_from([2, 6, 12])), *sizes)
    x = "x"
    for layer in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)):
        if len(b.shapes[x]) == 2:
            x = b.reshape(x, (*b.shapes[x], *[1] * dims))
        x = LAYERS[layer](draw, b, x)
    return b.model()


def _readers(draw: st.DrawFn, b: Builder, x: str) -> list[str]:
    """What the layers with the same weights read: each something else."""
    others = draw(st.lists(st.sampled_from(["Sigmoid", "Relu"]), max_size=2, unique=True))
    return [x, *(b.add(operator, [x], b.shapes[x]) for operator in others)]


def _each(draw: st.DrawFn, low: int, high: int, length: int) -> list[int]:
    return draw(st.lists(st.integers(low, high), min_size=length, max_size=length))


def _window(draw: st.DrawFn, channels: int, dims: int) -> tuple[int, int, list[int]]:
    """(groups, filters per group, kernel)"""
    groups = draw(st.sampled_from([1, 1, 2] if channels % 2 == 0 else [1]))
    kernel = draw(st.one_of(st.just([1] * dims), st.lists(st.integers(1, 4), min_size=dims, max_size=dims)))
    return groups, draw(st.integers(1, 8)), kernel


def _conv(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, c, *sizes = b.shapes[x]
    dims = len(sizes)
    groups, filters, kernel = _window(draw, c, dims)
    kernel = [min(k, size) for k, size in zip(kernel, sizes, strict=True)]
    weight = b.weight(groups * filters, c // groups, *kernel, fan_in=c * math.prod(kernel))
    for reader in _readers(draw, b, x):
        strides, dilations = _each(draw, 1, 2, dims), _each(draw, 1, 2, dims)
        dilations = [d if d * (k - 1) < n else 1 for d, k, n in zip(dilations, kernel, sizes, strict=True)]
        attributes = {"strides": strides, "dilations": dilations, "group": groups}
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        padding = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
        if padding.startswith("SAME"):
            attributes |= {"auto_pad": padding, "dilations": [1] * dims}
            out = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        else:
            pads = _each(draw, 0, 2, 2 * dims) if padding == "NOTSET" else [0] * 2 * dims
            attributes |= {"pads": pads} if padding == "NOTSET" else {"auto_pad": padding}
            out = [
                (n + pads[i] + pads[dims + i] - span) // strides[i] + 1
                for i, (n, span) in enumerate(zip(sizes, spans, strict=True))
            ]
        if draw(st.booleans()):
            attributes["kernel_shape"] = kernel
        bias = [b.weight(groups * filters)] if draw(st.booleans()) else []
        shape = (b.shapes[x][0], groups * filters, *out)
        b.outputs.append(b.add("Conv", [reader, weight, *bias], shape, **attributes))
    return b.outputs[-1]


def _conv_transpose(draw: st.DrawFn, b: Builder, x: str) -> str:
    _, c, *sizes = b.shapes[x]
    dims = len(sizes)
    groups, filters, kernel = _window(draw, c, dims)
    weight = b.weight(c, filters, *kernel, fan_in=c * math.prod(kernel))
    for reader in _readers(draw, b, x):
        strides, dilations = _each(draw, 1, 2, dims), _each(draw, 1, 2, dims)
        extra = [draw(st.integers(0, stride - 1)) for stride in strides]
        attributes = {"strides": strides, "dilations": dilations, "group": groups}
        if any(extra):
            attributes["output_padding"] = extra
        whole = [
            s * (n - 1) + e + d * (k - 1) + 1
            for s, n, e, d, k in zip(strides, sizes, extra, dilations, kernel, strict=True)
        ]
        padding = draw(st.sampled_from(["pads", "auto_pad", "output_shape"]))
        if padding == "pads":
            pads = [draw(st.integers(0, min(1, (size - 1) // 2))) for size in whole * 2]
            attributes["pads"] = pads
            out = [size - pads[i] - pads[dims + i] for i, size in enumerate(whole)]
        elif padding == "output_shape":
            # ONNX's shape inference refuses one that is smaller than the input.
            out = [draw(st.integers(max(n, size - 2), size)) for n, size in zip(sizes, whole, strict=True)]
            attributes["output_shape"] = out
        elif not any(extra) and all(size >= n * s for size, n, s in zip(whole, sizes, strides, strict=True)):
            # With output_padding, ONNX's shape inference and ONNX Runtime differ.
            attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
            out = [n * s for n, s in zip(sizes, strides, strict=True)]
        else:
            attributes["auto_pad"] = "VALID"
            out = whole
        if draw(st.booleans()):
            attributes["kernel_shape"] = kernel
        bias = [b.weight(groups * filters)] if draw(st.booleans()) else []
        shape = (b.shapes[x][0], groups * filters, *out)
        b.outputs.append(b.add("ConvTranspose", [reader, weight, *bias], shape, **attributes))
    return b.outputs[-1]


def _gemm(draw: st.DrawFn, b: Builder, x: str) -> str:
    """Readers of one matrix, which is on the left or the right of all of them."""
    n, c, m = b.shapes[x][0], math.prod(b.shapes[x][1:]), draw(st.sampled_from([6, 12]))
    on_left, filters_first = draw(st.booleans()), draw(st.booleans())
    weight = b.weight(m, c, fan_in=c) if filters_first else b.weight(c, m, fan_in=c)
    for reader in _readers(draw, b, x):
        columns = draw(st.booleans())
        reader = b.reshape(reader, (n, c))
        reader = b.transpose(reader) if columns else reader
        if on_left:
            shape, operands = (m, n), [weight, reader]
            flags = {"transA": int(not filters_first), "transB": int(not columns)}
        else:
            shape, operands = (n, m), [reader, weight]
            flags = {"transA": int(columns), "transB": int(filters_first)}
        flags = {name: flag for name, flag in flags.items() if flag}
        for factor in ("alpha", "beta"):
            if draw(st.booleans()):
                flags[factor] = draw(st.sampled_from([0.5, 2.0]))
        if b.opset < 11 or draw(st.booleans()):
            bias = draw(st.sampled_from([(1,), (shape[1],), (1, shape[1]), (shape[0], 1), shape]))
            operands.append(b.weight(*bias))
        b.outputs.append(b.add("Gemm", operands, shape, **flags))
    return b.outputs[-1]


def _matmul(draw: st.DrawFn, b: Builder, x: str) -> str:
    """Likewise, for stacks of matrices."""
    *rest, rows, columns = b.shapes[x]
    m, on_left = draw(st.sampled_from([2, 6])), draw(st.booleans())
    side = rows if on_left else columns
    weight = b.weight(m, side, fan_in=side) if on_left else b.weight(side, m, fan_in=side)
    shape = (*rest, m, columns) if on_left else (*rest, rows, m)
    for reader in _readers(draw, b, x):
        b.outputs.append(b.add("MatMul", [weight, reader] if on_left else [reader, weight], shape))
    return b.outputs[-1]


LAYERS = {"conv": _conv, "conv transpose": _conv_transpose, "gemm": _gemm, "matmul": _matmul}
KINDS = [*LAYERS, "conv", "conv transpose"]
