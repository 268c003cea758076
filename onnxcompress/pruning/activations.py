"""Pruning criteria that look at what channels carry on data. To add one, register a function here."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcompress.calibration.statistics import Moments
from onnxcompress.layers import FactorLayer
from onnxcompress.pruning.channels import ChannelGraph
from onnxcompress.pruning.elimination import clusters, eliminate, has_covariance, readers, unseen
from onnxcompress.pruning.importance import set_scores

Array = NDArray[np.float64]
Scores = Callable[[ChannelGraph, Sequence[FactorLayer], Mapping[str, Moments]], Array]
DATA_CRITERIA: dict[str, Scores] = {}


def criterion(name: str) -> Callable[[Scores], Scores]:
    """Register a function that scores every channel set, shape (sets,); NaN where it cannot tell."""

    def register(function: Scores) -> Scores:
        DATA_CRITERIA[name] = function
        return function

    return register


@criterion("apoz")
def apoz(graph: ChannelGraph, layers: Sequence[FactorLayer], moments: Mapping[str, Moments]) -> Array:
    """One minus the average percentage of zeros (Hu et al. 2016): channels that are mostly off go."""
    return _mean_over_readers(graph, layers, moments, lambda m: 1 - m.zeros)


@criterion("activation")
def activation(graph: ChannelGraph, layers: Sequence[FactorLayer], moments: Mapping[str, Moments]) -> Array:
    """Root mean square of what the readers see, relative to the mean of their channels."""

    def size(m: Moments) -> Array:
        rms = np.sqrt(np.einsum("gii->gi", m.covariance) + m.mean**2)
        return rms / max(rms.mean(), np.finfo(np.float64).tiny)

    return _mean_over_readers(graph, layers, moments, size)


@criterion("reconstruction")
def reconstruction(
    graph: ChannelGraph, layers: Sequence[FactorLayer], moments: Mapping[str, Moments]
) -> Array:
    """What the readers' responses have lost of their variance when a channel goes (see `elimination`)."""
    variance = {
        layer.name: sum(
            float(np.sum((w @ g) * w))
            for w, g in zip(layer.by_group, moments[layer.name].covariance, strict=True)
        )
        for layer in layers
        if has_covariance(layer, moments)
    }
    reading = readers(graph, layers, moments, {name: 1 / v for name, v in variance.items() if v > 0})
    scores = np.full(graph.count, np.nan)
    unknown = list(unseen(graph, layers, moments))
    groups = [group for group in graph.groups if not np.isin(group.sets, unknown).any()]
    for cluster in clusters(groups, reading):
        for found in eliminate([groups[index] for index in cluster], reading):
            # The last one is never removed.
            scores[found.order] = np.append(found.damage[1:], np.inf)
    return scores


def data_scores(
    name: str, graph: ChannelGraph, layers: Sequence[FactorLayer], moments: Mapping[str, Moments]
) -> Array:
    """Scores of all channel sets by a criterion; by l2 where it cannot tell."""
    scores = DATA_CRITERIA[name](graph, layers, moments)
    unknown = np.isnan(scores)
    scores[unknown] = set_scores(graph, "l2", 0)[unknown]
    return scores


def _mean_over_readers(
    graph: ChannelGraph,
    layers: Sequence[FactorLayer],
    moments: Mapping[str, Moments],
    of: Callable[[Moments], Array],
) -> Array:
    count = graph.count
    total, seen = np.zeros(count), np.zeros(count)
    for reader in readers(graph, layers, moments, {}):
        values = of(moments[reader.layer.name])[reader.part].reshape(len(reader.sets), -1).mean(axis=1)
        free = reader.sets >= 0
        np.add.at(total, reader.sets[free], values[free])
        np.add.at(seen, reader.sets[free], 1)
    return np.divide(total, seen, out=np.full(count, np.nan), where=seen > 0)
