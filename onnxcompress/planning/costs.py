"""What a budget counts: the cost of layers, of networks, and of the network that a plan leads to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import InputError
from onnxcompress.factoring.fitted import Factors
from onnxcompress.factoring.surgery import factor
from onnxcompress.layers import FactorLayer, factor_layers
from onnxcompress.lrn import rewrite_lrn
from onnxcompress.measure.cost import cost
from onnxcompress.plan import Plan, Ranks
from onnxcompress.planning.survey import Survey
from onnxcompress.pruning.surgery import remove_filters
from onnxcompress.shapes import concrete_shapes
from onnxcompress.siblings import parted
from onnxcompress.weights import file_size

KINDS = ("macs", "params", "size")


@dataclass(frozen=True)
class Target:
    """A share of the original's cost that the network may keep.

    Attributes:
        kind: ``macs``, ``params`` or ``size``, that of the file.
        share: above 0, below 1.
    """

    kind: str
    share: float


def parse_target(text: str) -> Target:
    """The target that a text names: ``macs=0.5``, ``params=0.3``, ``size=0.3``.

    Raises:
        InputError: when it names none.
    """
    kind, _, number = str(text).partition("=")
    try:
        share = float(number)
    except ValueError:
        share = np.nan
    if kind not in KINDS or not 0 < share < 1:
        raise InputError(
            f"target: '{text}' is not one; give macs=0.5, params=0.3 or size=0.3: the share that may stay "
            "(macs=0.5 is 50 %, or two times smaller)"
        )
    return Target(kind, share)


def layer_cost(layer: FactorLayer, kind: str, ranks: Ranks | None = None) -> int:
    """Of a layer as it is, or of its chain at these ranks."""
    if kind == "macs":
        return layer.macs if ranks is None else layer.chain_macs(ranks)
    weights = math.prod(layer.shape) if ranks is None else layer.chain_params(ranks)
    return weights * (layer.itemsize if kind == "size" else 1)


def planned_cost(survey: Survey, plan: Plan, rewrite: Sequence[str], kind: str) -> int:
    """Of the network that a plan for the joined one leads to, with these LRN nodes rewritten."""
    network = survey.network
    if plan.prune:
        network = remove_filters(network, plan.prune)
    network = rewrite_lrn(network, rewrite)
    if plan.decompose:
        layers = [
            each for each in factor_layers(network, concrete_shapes(network)) if each.name in plan.decompose
        ]
        empty = {layer.name: _empty(layer, plan.decompose[layer.name]) for layer in layers}
        network = factor(network, plan.decompose, empty)
    # MACs and parameters are the same once siblings are apart.
    return network_cost(parted(network, survey.together) if kind == "size" else network, kind)


def network_cost(network: ir.Model, kind: str) -> int:
    """Of a network, at least 1."""
    if kind == "size":
        return file_size(network)
    found = cost(network)
    return max(1, found.macs if kind == "macs" else found.params)


def _empty(layer: FactorLayer, ranks: Ranks) -> list[Factors]:
    """Factors at these ranks, of zeros, for each group of a layer."""
    filters, channels = layer.sides
    out = np.zeros((filters, ranks.out))
    if ranks.depthwise:
        into = np.zeros((ranks.into, channels))
        one = Factors(out, np.zeros((ranks.out, layer.kernel)), into, depthwise=True)
    else:
        one = Factors(out, np.zeros((ranks.out, channels)), None)
    return [one] * layer.groups
