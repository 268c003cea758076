"""Gradient rules that onnxsim's training loop lacks."""

import numpy as np
from onnxsim import graph_grad


def lrn(ctx, node, g):
    """Gradient of LRN: y = x · s^-β with s = bias + (alpha / size) · Σ x² over neighbouring channels.

    dx = g · s^-β − 2 β (alpha / size) x · Σ (g · x · s^(-β-1)) over the same neighbours. Both sums are 1×1
    convolutions with a banded matrix.
    """
    attributes = {a.name: (a.i or a.f) for a in node.attribute}
    size = int(attributes["size"])
    if size % 2 == 0:
        raise graph_grad.UnsupportedOpError(f"LRN {node.name!r}: only an odd size has a symmetric window")
    alpha, beta, bias = (attributes.get(k, v) for k, v in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    (x,) = node.input
    channels = np.arange(ctx.shape(x)[1])
    window = np.abs(channels[:, None] - channels) <= size // 2
    b = ctx.b
    band = b.const((window * alpha / size).astype(np.float32)[:, :, None, None])
    scale = b.op("Add", [b.op("Conv", [b.mul(x, x), band]), b.const(bias)])
    direct = b.mul(g, b.op("Pow", [scale, b.const(-beta)]))
    spread = b.op("Conv", [b.div(b.mul(direct, x), scale), band])
    return [b.sub(direct, b.mul(b.mul(x, spread), b.const(2 * beta)))]


def flatten(ctx, node, g):
    """Gradient of Flatten: the incoming gradient in the input's shape."""
    return [ctx.b.op("Reshape", [g, ctx.int64_const(ctx.shape(node.input[0]))])]
