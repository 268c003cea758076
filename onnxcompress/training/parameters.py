"""Which weights are trained, and how fast each."""

import json
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import InputError
from onnxcompress.lrn import sums_squares
from onnxcompress.shapes import LAYERS
from onnxcompress.weights import weights_of

NORMS = frozenset({"BatchNormalization", "LayerNormalization"})

STATISTICS = (3, 4)
"""Inputs of BatchNormalization that stay frozen."""


@dataclass(frozen=True)
class Multipliers:
    """As in Caffe's prototxt.

    Attributes:
        rate: factor to the learning rate (``lr_mult``).
        decay: factor to the weight decay (``decay_mult``).
    """

    rate: float = 1.0
    decay: float = 1.0


METADATA_KEY = "onnxcompress.multipliers"
"""Of nodes: JSON, a pair of rate and decay for the weights and one for the biases."""

BIAS = Multipliers(rate=2.0, decay=0.0)
"""Of biases, by the custom of Caffe's networks."""


def note_multipliers(node: ir.Node, multipliers: list[tuple[float, float]]) -> None:
    """Keep the multipliers of a layer's weights and biases with it, where they are not the usual ones."""
    usual = [(1.0, 1.0), (BIAS.rate, BIAS.decay)]
    if multipliers and multipliers != usual[: len(multipliers)]:
        node.metadata_props[METADATA_KEY] = json.dumps(multipliers)


def _noted(node: ir.Node, index: int) -> Multipliers:
    """Those of an input of a layer."""
    usual = BIAS if index == 2 else Multipliers()
    try:
        return Multipliers(*map(float, json.loads(node.metadata_props[METADATA_KEY])[index - 1]))
    except (KeyError, IndexError, ValueError, TypeError):
        return usual


def trainable(model: ir.Model) -> dict[str, Multipliers]:
    """The weights of a network that training may change, by name, in order.

    They are those of layers, the slopes of PRelu, and factors and terms with one number per channel, those of
    BatchNormalization included; not its statistics, nor the weights of an LRN written as convolutions.

    Raises:
        InputError: when there are none, or they are not float32.
    """
    found: dict[str, Multipliers] = {}
    fixed: set[str] = set()
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            array = weights_of(value)
            if value is None or array is None or array.dtype.kind != "f" or array.size < 2:
                continue
            name = str(value.name)
            if _is_fixed(node, index):
                fixed.add(name)
            elif node.op_type in LAYERS:
                found.setdefault(name, _noted(node, index))
            elif node.op_type in NORMS or (node.op_type in ("Add", "Mul", "PRelu") and _by_channel(array)):
                found.setdefault(
                    name, BIAS if node.op_type == "Add" or index == 2 else Multipliers(decay=0.0)
                )
    trained = {name: each for name, each in found.items() if name not in fixed}
    if not trained:
        raise InputError("the network has no weights that could be trained")
    for name in trained:
        dtype = model.graph.initializers[name].dtype
        if dtype != ir.DataType.FLOAT:
            raise InputError(f"the weights '{name}' are {dtype}: only float32 networks can be trained")
    return trained


def _by_channel(array: np.ndarray) -> bool:
    """Whether an operand has a number for each channel: masks, grids and the like are no weights."""
    return array.size == max(array.shape) and bool(np.isfinite(array).all())


def _is_fixed(node: ir.Node, index: int) -> bool:
    return sums_squares(node) or (node.op_type == "BatchNormalization" and index in STATISTICS)


def current(model: ir.Model, names: list[str]) -> dict[str, np.ndarray]:
    """Copies of weights, by name."""
    return {name: np.array(weights_of(model.graph.initializers[name])) for name in names}


def with_weights(model: ir.Model, weights: dict[str, np.ndarray]) -> ir.Model:
    """The network with other weights of the same shapes."""
    result = model.clone()
    for name, array in weights.items():
        result.graph.initializers[name].const_value = ir.tensor(array.copy(), name=name)
    return result
