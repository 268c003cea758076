"""Pruning criteria: how much a filter matters. To add one, register a function here."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxcompress.pruning.channels import ChannelGraph, Layer

Array = NDArray[np.float64]
Criterion = Callable[[Array, np.random.Generator], Array]
CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a function of (filters (M, n), generator) that scores each filter: shape (M,), ≥ 0."""

    def register(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        return function

    return register


@criterion("l1")
def l1(filters: Array, _: np.random.Generator) -> Array:
    """Sum of absolute weights (Li et al. 2017)."""
    return np.abs(filters).sum(axis=1)


@criterion("l2")
def l2(filters: Array, _: np.random.Generator) -> Array:
    """Euclidean norm of the weights."""
    return np.linalg.norm(filters, axis=1)


@criterion("fpgm")
def fpgm(filters: Array, _: np.random.Generator) -> Array:
    """Sum of distances to the layer's other filters: those near the geometric median go (He et al. 2019)."""
    squares = np.sum(filters**2, axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * filters @ filters.T
    return np.sqrt(np.maximum(distances, 0)).sum(axis=1)


@criterion("random")
def random(filters: Array, generator: np.random.Generator) -> Array:
    """Uniformly random: the baseline that a criterion has to beat."""
    return generator.random(len(filters))


def relative_norms(layer: Layer) -> Array:
    """Euclidean norms of a layer's filters with their biases, divided by their mean: shape (M,)."""
    norms = np.linalg.norm(_with_biases(layer), axis=1)
    return norms / max(norms.mean(), np.finfo(np.float64).tiny)


def set_scores(graph: ChannelGraph, name: str, seed: int) -> Array:
    """Importance of every channel set, shape (number of sets,).

    A layer's scores are divided by their mean, so that layers compare; a set gets the mean over its
    filters in all layers. A set whose filters and biases are all zero has an l1 and l2 of exactly 0.
    """
    generator = np.random.default_rng(seed)
    count = graph.count
    total, members = np.zeros(count), np.zeros(count)
    for layer in graph.layers:
        scores = CRITERIA[name](_with_biases(layer), generator)
        sets = graph.set_of[layer.atoms]
        np.add.at(total, sets, scores / max(scores.mean(), np.finfo(np.float64).tiny))
        np.add.at(members, sets, 1)
    return total / np.maximum(members, 1)


def _with_biases(layer: Layer) -> Array:
    return np.hstack([layer.filters(), layer.biases()])
