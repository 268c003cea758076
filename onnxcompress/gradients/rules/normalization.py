"""Normalization and Softmax."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.gradients.rules.registry import NoGradientError, rule
from onnxcompress.gradients.tape import Gradients, Shape, Tape
from onnxcompress.lrn import band, blocks


@rule("LRN")
def lrn(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """y = x s^−β, where s is the bias and α / size times the sum of squares over the neighbours.

    dx = g s^−β − 2 β x Σ (g y / s), the sum with weights α / size over the channels whose neighbour x is.
    Both sums are convolutions with a band of weights: ONNX Runtime takes 13 times as long for its own LRN.
    """
    (x,) = inputs
    shape = tape.shape(x)
    size = node.attributes["size"].as_int()
    alpha, beta, bias = (
        node.attributes.get_float(name, default)
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    window = band(shape[1], size, alpha)
    s = tape.add(_neighbours(tape, tape.mul(x, x), window, len(shape)), bias)
    if beta == 0.75:
        root = tape.emit("Sqrt", s)
        scale = tape.mul(root, tape.emit("Sqrt", root))
    else:
        scale = tape.emit("Pow", s, tape.constant(beta))
    y = tape.div(x, scale)

    def pullback(g: ir.Value) -> Gradients:
        inner = _neighbours(tape, tape.div(tape.mul(g, y), s), window.T, len(shape))
        return [tape.sub(tape.div(g, scale), tape.mul(tape.mul(x, inner), 2 * beta))]

    return y, pullback


def _neighbours(tape: Tape, value: ir.Value, matrix: NDArray[np.float64], rank: int) -> ir.Value:
    """The matrix, a band, times the channels."""
    weights, starts = blocks(matrix)
    point = (1,) * (rank - 2)
    if weights.size >= matrix.size:
        return tape.emit("Conv", value, tape.constant(matrix.reshape(*matrix.shape, *point)))
    read = (starts[:, None] + np.arange(weights.shape[1])).ravel()
    value = tape.emit("Gather", value, tape.ints(read), axis=1)
    value = tape.emit(
        "Conv", value, tape.constant(weights.reshape(*weights.shape, *point)), group=len(starts)
    )
    if len(weights) > len(matrix):
        value = tape.emit("Slice", value, tape.ints([0]), tape.ints([len(matrix)]), tape.ints([1]))
    return value


@rule("BatchNormalization")
def batch_normalization(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """With its statistics as they are (frozen): a factor and a term for every channel."""
    if node.attributes.get_int("training_mode", 0):
        raise NoGradientError("its training mode")
    y = tape.repeat(node, inputs)
    x, scale, bias, mean, variance = inputs
    shape = tape.shape(x)
    one_each = (1, shape[1]) + (1,) * (len(shape) - 2)

    def pullback(g: ir.Value) -> Gradients:
        deviation = tape.emit("Sqrt", tape.add(variance, node.attributes.get_float("epsilon", 1e-5)))
        gx = gs = gb = None
        if tape.wants(x):
            gx = tape.mul(g, tape.reshape(tape.div(scale, deviation), one_each))
        if tape.wants(scale):
            normal = tape.div(tape.sub(x, tape.reshape(mean, one_each)), tape.reshape(deviation, one_each))
            gs = tape.channel_sum(tape.mul(g, normal), len(shape))
        if tape.wants(bias):
            gb = tape.channel_sum(g, len(shape))
        return [gx, gs, gb, None, None]

    return y, pullback


@rule("LayerNormalization")
def layer_normalization(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Over the last axes, from one on; factors and terms are for their elements."""
    if len(node.outputs) > 1:
        raise NoGradientError("its mean or deviation as an output")
    shape = tape.shape(inputs[0])
    return _normalization(tape, node, inputs, shape, node.attributes.get_int("axis", -1) % len(shape), 0)


@rule("InstanceNormalization")
def instance_normalization(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Over the map of every channel, which has a factor and a term."""
    shape = tape.shape(inputs[0])
    return _normalization(tape, node, inputs, shape, 2, len(shape) - 2)


@rule("GroupNormalization")
def group_normalization(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """Over the maps of groups of channels; every channel has a factor and a term."""
    batch, channels, *size = tape.shape(inputs[0])
    if tape.shape(inputs[1]) != (channels,):
        raise NoGradientError("factors by group, as before opset 21")
    groups = node.attributes.get_int("num_groups", 1)
    grouped = (batch, groups, channels // groups, *size)
    return _normalization(tape, node, inputs, grouped, 2, len(size))


def _normalization(tape: Tape, node: ir.Node, inputs: Any, grouped: Shape, axis: int, behind: int) -> Any:
    """The rule of y = scale · n + bias with n of mean 0 and variance 1 over some axes.

    dx = (h − mean(h) − n mean(h n)) / deviation with h = g · scale.

    Args:
        tape: to write on.
        node: which is repeated.
        inputs: x, scale and perhaps bias.
        grouped: shape in which x is looked at.
        axis: of it, from which on to the last means are taken.
        behind: axes of x that come after those of scale and bias.
    """
    x, *parameters = inputs
    y = tape.repeat(node, inputs)
    shape = tape.shape(x)
    axes = tape.ints(range(axis, len(grouped)))
    wide = [tape.shape(each) + (1,) * behind for each in parameters]

    def mean(value: ir.Value) -> ir.Value:
        return tape.emit("ReduceMean", value, axes, keepdims=1)

    def as_groups(value: ir.Value) -> ir.Value:
        return value if grouped == shape else tape.reshape(value, grouped)

    def as_given(value: ir.Value) -> ir.Value:
        return value if grouped == shape else tape.reshape(value, shape)

    def pullback(g: ir.Value) -> Gradients:
        given = as_groups(x)
        centred = tape.sub(given, mean(given))
        variance = mean(tape.mul(centred, centred))
        deviation = tape.emit("Sqrt", tape.add(variance, node.attributes.get_float("epsilon", 1e-5)))
        normal = tape.div(centred, deviation)
        gx = None
        if tape.wants(x):
            h = as_groups(tape.mul(g, tape.reshape(parameters[0], wide[0])))
            along = tape.mul(normal, mean(tape.mul(h, normal)))
            gx = as_given(tape.div(tape.sub(tape.sub(h, mean(h)), along), deviation))
        products = (tape.mul(g, as_given(normal)), g)
        return [
            gx,
            *(
                tape.reshape(tape.sum_to(product, shape, each), tape.shape(parameter))
                if tape.wants(parameter)
                else None
                for product, parameter, each in zip(products, parameters, wide, strict=False)
            ),
        ]

    return y, pullback


@rule("Softmax")
def softmax(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """The gradient is y (g − Σ g y)."""
    y = tape.repeat(node, inputs)
    axis = node.attributes.get_int("axis", -1)
    return y, lambda g: [tape.mul(y, tape.sub(g, tape.sum(tape.mul(g, y), [axis], keep=True)))]


@rule("LogSoftmax")
def log_softmax(tape: Tape, node: ir.Node, inputs: Any) -> Any:
    """g − exp(y) Σ g."""
    y = tape.repeat(node, inputs)
    axis = node.attributes.get_int("axis", -1)
    return y, lambda g: [tape.sub(g, tape.mul(tape.emit("Exp", y), tape.sum(g, [axis], keep=True)))]
