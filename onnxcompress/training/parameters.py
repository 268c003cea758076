"""Which weights are trained, and how fast each."""

import json
from dataclasses import astuple, dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import InputError
from onnxcompress.lrn import sums_squares
from onnxcompress.shapes import LAYERS
from onnxcompress.weights import weights_of

NORMS = frozenset({"BatchNormalization", "LayerNormalization"})

BY_CHANNEL = frozenset({"Add", "Mul", "PRelu"})

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
"""Of nodes: JSON, a pair of rate and decay for each input from the second on, as weights and biases are."""

BIAS = Multipliers(rate=2.0, decay=0.0)
"""Of biases, by the custom of Caffe's networks."""


def note_multipliers(node: ir.Node, multipliers: list[tuple[float, float]]) -> None:
    """Keep those of a node's inputs from the second on with it, where they are not the usual ones."""
    if node.op_type not in LAYERS | NORMS | BY_CHANNEL:
        return
    usual = [astuple(_usual(node, index)) for index in range(1, 1 + len(multipliers))]
    if multipliers != usual:
        node.metadata_props[METADATA_KEY] = json.dumps(multipliers)


def _usual(node: ir.Node, index: int) -> Multipliers:
    if node.op_type == "Add" or index == 2:
        return BIAS
    return Multipliers() if node.op_type in LAYERS else Multipliers(decay=0.0)


def _multipliers(node: ir.Node, index: int) -> Multipliers:
    """Those of an input of a node: as they were noted, else the usual ones."""
    try:
        return Multipliers(*map(float, json.loads(node.metadata_props[METADATA_KEY])[index - 1]))
    except (KeyError, IndexError, ValueError, TypeError):
        return _usual(node, index)


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
            if value is None or array is None or array.dtype.kind != "f" or not array.size:
                continue
            name = str(value.name)
            if _is_fixed(node, index):
                fixed.add(name)
            elif node.op_type in LAYERS | NORMS or (node.op_type in BY_CHANNEL and _by_channel(node, array)):
                found.setdefault(name, _multipliers(node, index))
    trained = {name: each for name, each in found.items() if name not in fixed}
    if not trained:
        raise InputError("the network has no weights that could be trained")
    for name in trained:
        dtype = model.graph.initializers[name].dtype
        if dtype != ir.DataType.FLOAT:
            raise InputError(f"the weights '{name}' are {dtype}: only float32 networks can be trained")
    return trained


def _by_channel(node: ir.Node, array: np.ndarray) -> bool:
    """Whether an operand has a number for each channel: masks, grids and the like are no weights.

    A single number is one for all of them if it is a slope; else it is a constant.
    """
    if array.size == 1:
        return node.op_type == "PRelu"
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
