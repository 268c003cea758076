"""Operators in float64, where onnx's reference is wrong (groups, padding, positions), slow or in float32."""

from itertools import product

import numpy as np
from onnx.reference.op_run import OpRun
from scipy.special import erf


def taps(kernel, dilations):
    for tap in product(*map(range, kernel)):
        yield tap, [index * dilation for index, dilation in zip(tap, dilations, strict=True)]


def convolve(x, w, group, strides, dilations, pads):
    spatial = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    count = [(size - span) // s + 1 for size, span, s in zip(x.shape[2:], spans, strides, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *count))
    for tap, offset in taps(w.shape[2:], dilations):
        at = tuple(slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, strides, count, strict=True))
        patch = x[(slice(None), slice(None), *at)].reshape(x.shape[0], group, -1, *count)
        kernel = w[(slice(None), slice(None), *tap)].reshape(group, -1, w.shape[1])
        y += np.einsum("ngc...,gmc->ngm...", patch, kernel).reshape(y.shape)
    return y


def transposed(x, w, group, strides, dilations, pads, output_padding):
    spatial = x.ndim - 2
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    full = [
        s * (n - 1) + span + more
        for s, n, span, more in zip(strides, x.shape[2:], spans, output_padding, strict=True)
    ]
    y = np.zeros((x.shape[0], w.shape[1] * group, *full))
    for tap, offset in taps(w.shape[2:], dilations):
        at = tuple(
            slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, strides, x.shape[2:], strict=True)
        )
        kernel = w[(slice(None), slice(None), *tap)].reshape(group, -1, w.shape[1])
        source = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        part = np.einsum("ngc...,gcm->ngm...", source, kernel)
        y[(slice(None), slice(None), *at)] += part.reshape(x.shape[0], -1, *x.shape[2:])
    cut = tuple(slice(b, size - e) for b, e, size in zip(pads[:spatial], pads[spatial:], full, strict=True))
    return y[(slice(None), slice(None), *cut)]


def resolved(x, w, strides, dilations, pads, auto_pad):
    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    pads = pads or [0] * 2 * spatial
    if auto_pad.startswith("SAME"):
        front, behind = [], []
        for size, k, s, d in zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True):
            needed = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            front.append(needed // 2 if auto_pad == "SAME_UPPER" else needed - needed // 2)
            behind.append(needed - front[-1])
        pads = front + behind
    return strides, dilations, pads


class Conv(OpRun):
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None, pads=None,
             strides=None):  # fmt: skip
        y = convolve(x, w, group, *resolved(x, w, strides, dilations, pads, auto_pad or "NOTSET"))
        return (y if b is None else y + b.reshape(1, -1, *[1] * (y.ndim - 2)),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None,
             output_padding=None, output_shape=None, pads=None, strides=None):  # fmt: skip
        options = resolved(x, w, strides, dilations, pads, "NOTSET")
        y = transposed(x, w, group, *options, output_padding or [0] * (x.ndim - 2))
        return (y if b is None else y + b.reshape(1, -1, *[1] * (y.ndim - 2)),)


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, pads=None,
             storage_order=0, strides=None):  # fmt: skip
        (n, c, *size), k = x.shape, kernel_shape
        spatial = len(size)
        strides, dilations, pads = (
            strides or [1] * spatial,
            dilations or [1] * spatial,
            pads or [0] * 2 * spatial,
        )
        count = []
        for axis in range(spatial):
            reach = size[axis] + pads[axis] + pads[axis + spatial] - (k[axis] - 1) * dilations[axis] - 1
            windows = -(-reach // strides[axis]) + 1 if ceil_mode else reach // strides[axis] + 1
            # A window that begins behind the input is left out.
            count.append(windows - (ceil_mode and (windows - 1) * strides[axis] >= size[axis] + pads[axis]))
        places = np.arange(x.size).reshape(x.shape)
        y, positions = np.zeros((n, c, *count)), np.zeros((n, c, *count), np.int64)
        for where in product(*map(range, count)):
            best, at = np.full((n, c), -np.inf), np.zeros((n, c), np.int64)
            for _, offset in taps(k, dilations):
                spot = [
                    i * s + o - p for i, s, o, p in zip(where, strides, offset, pads[:spatial], strict=True)
                ]
                if all(0 <= each < limit for each, limit in zip(spot, size, strict=True)):
                    here = (slice(None), slice(None), *spot)
                    larger = x[here] > best
                    best, at = np.where(larger, x[here], best), np.where(larger, places[here], at)
            y[(slice(None), slice(None), *where)] = best
            positions[(slice(None), slice(None), *where)] = at
        return (y, positions) if len(self.output) > 1 else (y,)


class Pad(OpRun):
    op_domain = ""

    def _run(self, x, pads, value=None, axes=None, mode=None):
        axes = range(x.ndim) if axes is None else axes
        for axis, before, behind in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
            width = [(0, 0)] * x.ndim
            width[axis] = (max(0, before), max(0, behind))
            x = np.pad(x, width, constant_values=0 if value is None else value)
            cut = [slice(None)] * x.ndim
            cut[axis] = slice(max(0, -before), x.shape[axis] - max(0, -behind))
            x = x[tuple(cut)]
        return (x,)


class Erf(OpRun):
    op_domain = ""

    def _run(self, x):
        return (erf(x),)


class Gelu(OpRun):
    op_domain = ""

    def _run(self, x, approximate=None):
        if approximate == "tanh":
            return (x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (x / 2 * (1 + erf(x / np.sqrt(2))),)


class GroupNormalization(OpRun):
    op_domain = ""

    def _run(self, x, scale, bias, epsilon=None, num_groups=None, stash_type=None):
        grouped = x.reshape(len(x), num_groups, -1)
        normal = grouped - grouped.mean(axis=2, keepdims=True)
        normal /= np.sqrt(normal.var(axis=2, keepdims=True) + epsilon)
        each = (-1, *[1] * (x.ndim - 2))
        return (normal.reshape(x.shape) * scale.reshape(each) + bias.reshape(each),)


OPERATORS = [Conv, ConvTranspose, MaxPool, Pad, Erf, Gelu, GroupNormalization]
