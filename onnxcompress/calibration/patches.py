"""The input patches that a layer's weights are applied to, at sampled positions of its output."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.layers import CONVOLUTIONS, PRODUCTS, Application, FactorLayer
from onnxcompress.windows import Shape, size_given, windows

WIDEST = 9216
"""Inputs of one filter beyond which second moments are not kept: 324 MB of them."""

PER_INPUT = 10
"""Patches to sample for each input of a filter, so that least squares have enough equations."""

LEAST = 40
"""Patches to sample from each sample at least, where it has so many …"""

MOST = 2**15
"""… and all samples together do not give more than so many."""


def obstacle(layer: FactorLayer) -> str:
    """Why a layer's weights cannot be fitted to data; empty when they can."""
    if not layer.shape:
        return layer.obstacle
    if (reason := too_wide(layer)) and (layer.node.op_type in CONVOLUTIONS or layer.positions[1] != 1):
        return reason
    if len(layer.weights.uses()) > len(layer.applications):
        return "its weights are read in another way, too"
    if not all(_same(bias, layer.bias) for bias in layer.biases):
        return "its weights are shared, its biases are not"
    return next(filter(None, map(_obstacle, layer.applications)), "")


def _obstacle(applied: Application) -> str:
    """In how a node applies the weights."""
    attributes = applied.node.attributes
    if applied.node.op_type == "Gemm" and any(
        attributes.get_float(name, 1) != 1 for name in ("alpha", "beta")
    ):
        return "its Gemm is scaled"
    if applied.constant == 0 or attributes.get_int("transA", 0) != 0:
        return "its matrix is applied from the other side"
    if applied.node.op_type == "ConvTranspose" and {"auto_pad", "output_shape"} & set(attributes):
        return "its pads are computed"
    return ""


def _same(a: NDArray | None, b: NDArray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def too_wide(layer: FactorLayer) -> str:
    """Why second moments of what a layer reads are not kept; empty where they are.

    A product that reads one row of each sample, as VGG's first with its 25088 inputs, is known by these rows.
    """
    if layer.width <= WIDEST:
        return ""
    return f"a filter of {layer.width} inputs is too wide for second moments"


def per_sample(layer: FactorLayer, samples: int) -> list[int]:
    """Patches to take from each sample at each application, of those that its output has positions for.

    Applications have equal parts: a detector's coarse levels have few positions, and count as the others do.
    """
    least = min(LEAST, math.ceil(MOST / samples))
    wanted = max(least, math.ceil(PER_INPUT * layer.width / samples))
    part = math.ceil(wanted / len(layer.applications))
    return [min(part, each.output_size) for each in layer.applications]


def patches(
    layer: FactorLayer,
    values: Mapping[str, NDArray],
    samples: int,
    counts: Sequence[int],
    seed: tuple[int, ...],
) -> NDArray[np.float32]:
    """Patches at random positions of a layer's outputs; the same positions for the same seed and sizes.

    Args:
        layer: one without `obstacle`.
        values: what its applications read, by name.
        samples: whose input that is, one after the other.
        counts: patches of each sample, by application.
        seed: any integers.

    Returns:
        shape (groups, patches, C / groups · kernel): of all groups at the same positions, those of one sample
        after those of the other.
    """
    parts = [
        _patches(layer, each.node, values[each.reads], samples, count, seed)
        for each, count in zip(layer.applications, counts, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    owners = [np.arange(part.shape[1]) * samples // part.shape[1] for part in parts]
    return np.concatenate(parts, axis=1)[:, np.argsort(np.concatenate(owners), kind="stable")]


def _patches(
    layer: FactorLayer, node: ir.Node, x: NDArray, samples: int, count: int, seed: tuple[int, ...]
) -> NDArray[np.float32]:
    """Those of one application.

    Args:
        layer: whose weights are applied.
        node: that applies them.
        x: its input, (…, C, *size) of a convolution, (…, C) of a product. A sample may have several entries
            of the first dimension: windows of an image, frames.
        samples: whose input it is, one after the other.
        count: patches of each sample.
        seed: any integers.
    """
    random = np.random.default_rng(seed)
    entries_in_all = x.size // x.shape[-1] if node.op_type in PRODUCTS else len(x)
    if entries_in_all % samples:  # which are whose is not known
        samples, count = 1, samples * count

    def drawn(positions: int) -> NDArray[np.int64]:
        each = [
            random.permutation(positions)[:count] if count < positions else np.arange(positions)
            for _ in range(samples)
        ]
        return np.stack(each)

    if node.op_type in PRODUCTS:
        rows = x.reshape(samples, -1, x.shape[-1])
        chosen = np.take_along_axis(rows, drawn(rows.shape[1])[..., None], axis=1)
        return np.asarray(chosen, np.float32).reshape(1, -1, x.shape[-1])
    size, kernel = x.shape[2:], layer.shape[2:]
    given = size_given(node, kernel, size)
    places, entries, channels = math.prod(given), len(x) // samples, x.shape[1]
    entry, flat = np.divmod(drawn(entries * places), places)
    padded = np.zeros((len(x), channels, math.prod(size) + 1), np.float32)
    padded[..., :-1] = x.reshape(len(x), channels, -1)
    index = _places_read(node, size, kernel, given, flat) + entry[..., None] * padded.shape[-1]
    padded = padded.reshape(samples, entries, channels, -1).swapaxes(1, 2).reshape(samples, channels, -1)
    # (C, patches of one sample, kernel) of every sample
    found = np.stack([sample[:, at] for sample, at in zip(padded, index, strict=True)], axis=1)
    grouped = found.reshape(layer.groups, channels // layer.groups, -1, index.shape[-1]).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grouped).reshape(layer.groups, grouped.shape[1], -1)


def _places_read(
    node: ir.Node, size: Shape, kernel: Shape, given: Shape, positions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Flat input index that each element of the kernel reads at flat output positions; outside: past all.

    Shape (*positions.shape, prod(kernel)).

    Args:
        node: the convolution.
        size: of its input.
        kernel: its size.
        given: size of its output.
        positions: any of them.
    """
    window = windows(node, kernel, size, given)
    flat = np.zeros((*positions.shape, 1), np.int64)
    inside = np.ones((*positions.shape, 1), bool)
    for axis, at in enumerate(np.unravel_index(positions, given)):
        taps, stride = np.arange(kernel[axis]) * window.dilations[axis], window.strides[axis]
        if node.op_type == "ConvTranspose":
            read, rest = np.divmod(at[..., None] + window.before[axis] - taps, stride)
        else:
            read, rest = at[..., None] * stride - window.before[axis] + taps, np.int64(0)
        valid = (read >= 0) & (read < size[axis]) & (rest == 0)
        flat = (flat[..., None] * size[axis] + read[..., None, :]).reshape(*positions.shape, -1)
        inside = (inside[..., None] & valid[..., None, :]).reshape(*positions.shape, -1)
    return np.where(inside, flat, math.prod(size))


def fitted_layers(layers: list[FactorLayer]) -> list[FactorLayer]:
    """The layers whose weights can be fitted to data."""
    return [layer for layer in layers if not obstacle(layer)]
