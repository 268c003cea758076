"""Layers with weights: Conv, ConvTranspose, Gemm, MatMul."""

import math
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.gradients.rules.registry import NoGradientError, rule
from onnxcompress.gradients.tape import Gradients, Shape, Tape
from onnxcompress.windows import Windows, windows

SMALL_MAP, FEW_CHANNELS = 100, 16
"""Positions and channels below which the weight gradient is a convolution: matrices would be too thin."""

CONCATENATED = 9
"""Taps up to which all of them go into one matrix product."""


@rule("Conv")
def conv(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """The input's gradient is a Conv with turned kernels, or a ConvTranspose; see `_weight_gradient`."""
    y = tape.repeat(node, inputs)
    x, weight, *bias = inputs
    group = node.attributes.get_int("group", 1)
    shape, rank = tape.shape(weight), len(tape.shape(x))

    def pullback(g: ir.Value) -> Gradients:
        w = windows(node, shape[2:], tape.shape(x)[2:], tape.shape(y)[2:])
        return [
            _input_gradient(tape, g, weight, w, group) if tape.wants(x) else None,
            _weight_gradient(tape, x, g, shape, w, group) if tape.wants(weight) else None,
            *(tape.channel_sum(g, rank) if tape.wants(each) else None for each in bias),
        ]

    return y, pullback


def _input_gradient(tape: Tape, g: ir.Value, weight: ir.Value, w: Windows, group: int) -> ir.Value:
    pads = [span - 1 - each for span, each in zip(w.span, w.before, strict=True)]
    pads += [span - 1 - each + left for span, each, left in zip(w.span, w.behind, w.unread, strict=True)]
    if max(w.strides) == 1 and min(pads) >= 0:
        return tape.emit(
            "Conv",
            g,
            turned(tape, weight, group),
            group=group,
            dilations=w.dilations,
            pads=pads,
            kernel_shape=w.kernel,
        )
    return tape.emit(
        "ConvTranspose",
        g,
        weight,
        group=group,
        strides=w.strides,
        dilations=w.dilations,
        pads=w.pads,
        output_padding=w.unread,
        kernel_shape=w.kernel,
    )


def turned(tape: Tape, weight: ir.Value, group: int) -> ir.Value:
    """Kernels with their taps in reverse order, and filters and channels exchanged within each group."""
    filters, channels, *kernel = tape.shape(weight)
    if filters != group or channels > 1:
        rank = len(kernel) + 3
        parts = tape.reshape(weight, (group, filters // group, channels, *kernel))
        parts = tape.emit("Transpose", parts, perm=[0, 2, 1, *range(3, rank)])
        weight = tape.reshape(parts, (group * channels, filters // group, *kernel))
    axes = [axis for axis, size in enumerate(kernel, start=2) if size > 1]
    if not axes:
        return weight
    last, before_first, back = ([each] * len(axes) for each in (-1, -(2**31), -1))
    return tape.emit(
        "Slice", weight, tape.ints(last), tape.ints(before_first), tape.ints(axes), tape.ints(back)
    )


def _weight_gradient(tape: Tape, x: ir.Value, g: ir.Value, shape: Shape, w: Windows, group: int) -> ir.Value:
    """Gradient of the weights (M, C / group, *kernel), the quickest way that ONNX Runtime has.

    Large maps: g (M, positions) times the patches (positions, taps · C), a matrix product per sample.
    Otherwise a convolution over x with batch and channels exchanged, strides and dilations too, of which g is
    the kernel. On GoogLeNet's layers the products take 0.4 times as long.
    """
    pointwise = math.prod(w.kernel) == 1
    large = math.prod(w.count) >= SMALL_MAP and min(shape[:2]) >= FEW_CHANNELS
    if group == 1 and (pointwise or large):
        return _by_products(tape, x, g, shape, w)
    return _by_convolution(tape, x, g, shape, w, group)


def _by_products(tape: Tape, x: ir.Value, g: ir.Value, shape: Shape, w: Windows) -> ir.Value:
    filters, channels, *kernel = shape
    samples, positions, taps = tape.shape(x)[0], math.prod(w.count), math.prod(kernel)
    g = tape.reshape(g, (samples, filters, positions))
    if any(w.pads):
        x = tape.emit("Pad", x, tape.ints([0, 0, *w.before, 0, 0, *w.behind]))
    axes = tape.ints(range(2, 2 + len(kernel)))
    patches = []
    for tap in product(*map(range, kernel)):
        starts = [index * dilation for index, dilation in zip(tap, w.dilations, strict=True)]
        ends = [
            start + stride * (count - 1) + 1
            for start, stride, count in zip(starts, w.strides, w.count, strict=True)
        ]
        patch = x
        if taps > 1 or max(w.strides) > 1 or any(w.unread):
            patch = tape.emit("Slice", x, tape.ints(starts), tape.ints(ends), axes, tape.ints(w.strides))
        patches.append(tape.reshape(patch, (samples, channels, positions)))
    if len(patches) <= CONCATENATED:
        patches = [tape.emit("Concat", *patches, axis=1)] if len(patches) > 1 else patches
    sums = []
    for patch in patches:
        one = tape.emit("MatMul", g, tape.emit("Transpose", patch, perm=[0, 2, 1]))
        sums.append(tape.sum(one, [0]))
    rows = tape.emit("Concat", *sums, axis=1) if len(sums) > 1 else sums[0]
    if taps == 1:
        return tape.reshape(rows, shape)
    return tape.reshape(
        tape.emit("Transpose", tape.reshape(rows, (filters, taps, channels)), perm=[0, 2, 1]), shape
    )


def _by_convolution(tape: Tape, x: ir.Value, g: ir.Value, shape: Shape, w: Windows, group: int) -> ir.Value:
    samples, size = tape.shape(x)[0], list(w.size)
    behind = [each - left for each, left in zip(w.behind, w.unread, strict=True)]
    if min(behind) < 0:
        size = [each + min(0, more) for each, more in zip(size, behind, strict=True)]
        axes = range(2, 2 + len(size))
        x = tape.emit("Slice", x, tape.ints([0] * len(size)), tape.ints(size), tape.ints(axes))
    spatial = range(2, 2 + len(size))
    if group == 1:
        x = tape.emit("Transpose", x, perm=[1, 0, *spatial])
    else:
        x = tape.reshape(x, (samples, group, shape[1], *size))
        x = tape.emit("Transpose", x, perm=[2, 1, 0, *(axis + 1 for axis in spatial)])
        x = tape.reshape(x, (shape[1], group * samples, *size))
    found = tape.emit(
        "Conv",
        x,
        tape.emit("Transpose", g, perm=[1, 0, *spatial]),
        group=group,
        strides=w.dilations,
        dilations=w.strides,
        pads=[*w.before, *(max(0, each) for each in behind)],
        kernel_shape=w.count,
    )
    return tape.emit("Transpose", found, perm=[1, 0, *spatial])


@rule("ConvTranspose")
def conv_transpose(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """It is the input's gradient of a Conv with the same weights: that Conv leads back."""
    y = tape.repeat(node, inputs)
    x, weight, *bias = inputs
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise NoGradientError("auto_pad")
    if "output_shape" in node.attributes:
        raise NoGradientError("output_shape")
    group, shape = node.attributes.get_int("group", 1), tape.shape(weight)
    rank = len(shape)
    w = windows(node, shape[2:], tape.shape(x)[2:], tape.shape_in_network(node.outputs[0])[2:])

    def pullback(g: ir.Value) -> Gradients:
        back = None
        if tape.wants(x):
            # Lines that output_padding added behind the last window are not read.
            behind = [each - left for each, left in zip(w.behind, w.unread, strict=True)]
            source = g
            if min(behind) < 0:
                size = [each + min(0, more) for each, more in zip(w.size, behind, strict=True)]
                axes = range(2, rank)
                source = tape.emit("Slice", g, tape.ints([0] * len(size)), tape.ints(size), tape.ints(axes))
            back = tape.emit(
                "Conv",
                source,
                weight,
                group=group,
                strides=w.strides,
                dilations=w.dilations,
                pads=[*w.before, *(max(0, each) for each in behind)],
                kernel_shape=w.kernel,
            )
        gw = None
        if tape.wants(weight):
            tape.know(g, tape.shape(y))
            gw = _weight_gradient(tape, g, x, shape, w, group)
        return [back, gw, *(tape.channel_sum(g, rank) if tape.wants(each) else None for each in bias)]

    return y, pullback


@rule("Gemm")
def gemm(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Y = α A' B' + β C."""
    y = tape.repeat(node, inputs)
    a, b, *c = inputs
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    turn_a, turn_b = (bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB"))

    def pullback(g: ir.Value) -> Gradients:
        ga = gb = None
        if tape.wants(a):
            # dA' = α G B'ᵀ, and dA = dA'ᵀ where A' = Aᵀ
            ga = (
                tape.emit("Gemm", b, g, alpha=alpha, transA=int(turn_b), transB=1)
                if turn_a
                else tape.emit("Gemm", g, b, alpha=alpha, transB=int(not turn_b))
            )
        if tape.wants(b):
            gb = (
                tape.emit("Gemm", g, a, alpha=alpha, transA=1, transB=int(turn_a))
                if turn_b
                else tape.emit("Gemm", a, g, alpha=alpha, transA=int(not turn_a))
            )
        gc: list[ir.Value | None] = []
        for each in c:
            if tape.wants(each):
                total = tape.sum_to(g, tape.shape(y), tape.shape(each))
                gc.append(total if beta == 1 else tape.mul(total, beta))
            else:
                gc.append(None)
        return [ga, gb, *gc]

    return y, pullback


@rule("MatMul")
def matmul(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Y = A B, matrices in the last two axes; what was broadcast is summed."""
    y = tape.repeat(node, inputs)
    a, b = inputs
    sa, sb = tape.shape(a), tape.shape(b)

    def pullback(g: ir.Value) -> Gradients:
        wide_a, wide_b = (1, *sa) if len(sa) == 1 else sa, (*sb, 1) if len(sb) == 1 else sb
        batch = np.broadcast_shapes(wide_a[:-2], wide_b[:-2])
        if len(sa) == 1 or len(sb) == 1:
            g = tape.reshape(g, (*batch, wide_a[-2], wide_b[-1]))
        left = tape.reshape(a, wide_a) if len(sa) == 1 else a
        right = tape.reshape(b, wide_b) if len(sb) == 1 else b
        ga = gb = None
        if tape.wants(a):
            ga = tape.emit("MatMul", g, _transposed(tape, right, len(wide_b)))
            ga = tape.reshape(tape.sum_to(ga, (*batch, *wide_a[-2:]), wide_a), sa)
        if tape.wants(b):
            if len(wide_b) == 2 and len(wide_a) > 2:
                rows = math.prod(wide_a[:-1])
                flat = tape.reshape(left, (rows, wide_a[-1])), tape.reshape(g, (rows, wide_b[-1]))
                gb = tape.emit("Gemm", *flat, transA=1)
            else:
                gb = tape.emit("MatMul", _transposed(tape, left, len(wide_a)), g)
                gb = tape.sum_to(gb, (*batch, *wide_b[-2:]), wide_b)
            gb = tape.reshape(gb, sb)
        return [ga, gb]

    return y, pullback


def _transposed(tape: Tape, value: ir.Value, rank: int) -> ir.Value:
    return tape.emit("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])
