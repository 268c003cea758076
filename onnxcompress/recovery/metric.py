"""What an error in a layer's response costs further on: a metric on its filters.

An error δ in a response y becomes, behind the Relu, an error of the same size where y > 0, and W δ in a
reader with weights W. With the damage w that a unit of variance of its response does to the output, it costs
δᵀ S δ, S = Σ_readers w · Σ_kernel WᵀW, where each pair of filters counts as often as both are let through.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcompress.factoring.layers import FactorLayer
from onnxcompress.pruning.channels import ChannelGraph

Array = NDArray[np.float64]

OWN = 0.1
"""Share of the mean that an error costs in a filter that no reader cares about."""


def metrics(
    graph: ChannelGraph, layers: Sequence[FactorLayer], sensitivity: Mapping[str, float]
) -> dict[str, Array]:
    """The metric S of every layer whose channels have readers, (M, M), with a mean diagonal of 1.

    Args:
        graph: of the network's channels.
        layers: of the network.
        sensitivity: damage for each unit of variance of a layer's response that is lost, by layer.
    """
    by_node = {layer.node: layer for layer in layers if layer.shape and layer.kind != "depthwise"}
    reading = []
    for entry in graph.parameters:
        layer = by_node.get(entry.node)
        if (
            layer is None
            or entry.parameter is not layer.weights
            or entry.axis != (0 if layer.mirrored else 1)
        ):
            continue
        sets = graph.set_of[entry.atoms].reshape(layer.groups, layer.sides[1])
        weights = layer.weight.reshape(layer.groups, layer.sides[0], layer.sides[1], -1)
        for part, columns in zip(weights, sets, strict=True):
            rows = part.transpose(0, 2, 1).reshape(-1, layer.sides[1])
            reading.append((columns, sensitivity.get(layer.name, 0.0), rows))
    found = {}
    for start in graph.layers:
        if start.node not in by_node:
            continue
        sets = graph.set_of[start.atoms]
        order = np.argsort(sets)
        metric = np.zeros((len(sets), len(sets)))
        for columns, weight, rows in reading:
            place = order[np.minimum(np.searchsorted(sets[order], columns), len(sets) - 1)]
            hit = sets[place] == columns
            if weight and hit.any():
                metric[np.ix_(place[hit], place[hit])] += weight * (rows[:, hit].T @ rows[:, hit])
        scale = np.trace(metric) / len(metric)
        if scale > 0:
            found[start.name] = metric / scale + OWN * np.eye(len(metric))
    return found
