"""Weights that give the original network's responses on what the compressed network feeds them.

Layers are fitted from front to back: each sees what those before it have become and is fitted to what the
original gave (asymmetric reconstruction, Zhang et al. 2016, section 3.3; for pruned layers He et al. 2017,
equation 1). Where a Relu follows, an error counts only where it shows behind it (Zhang et al., section 3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnx_ir as ir
import scipy.linalg
from numpy.typing import NDArray

from onnxcompress.calibration.patches import fitted_layers, patches, per_sample
from onnxcompress.calibration.responses import Responses
from onnxcompress.calibration.samples import Samples
from onnxcompress.calibration.stages import Stages
from onnxcompress.data import spread
from onnxcompress.errors import InputError
from onnxcompress.factoring.fitted import (
    Factors,
    components,
    fit_factors,
    inputs,
    product_factors,
    responses_to,
)
from onnxcompress.layers import FactorLayer, factor_layers, reads, relu_after, set_weights
from onnxcompress.plan import Ranks
from onnxcompress.progress import Progress, counted, steps_of
from onnxcompress.pruning.surgery import filters_gone
from onnxcompress.runtime import own
from onnxcompress.shapes import concrete_shapes
from onnxcompress.threads import ahead, gram, product, side_by_side

Array = NDArray[np.float64]

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Pull toward the given weights, relative to the mean variance of the inputs; held-back samples choose."""

HELD_BACK = 50
"""Samples that choose the ridge, or a fifth of all where there are few."""

RELU_ROUNDS = 2
"""Times that the responses which a Relu hides are set anew."""


@dataclass(frozen=True)
class Fit:
    """A layer's new weights.

    Attributes:
        weight: (M, C / groups, *kernel), of a factored layer the product of its factors.
        bias: (M,).
        factors: by group; None for a layer that is not factored.
    """

    weight: Array
    bias: Array
    factors: tuple[Factors, ...] | None


@dataclass(frozen=True)
class Observed:
    """What a layer reads and should give at sampled positions.

    Attributes:
        x: patches, (groups, n, d).
        y: the original's responses, (groups, n, M / groups).
        fitted: how many of the n, from the front, weights are fitted to; the rest choose the ridge.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    fitted: int


def refit(
    original: ir.Model,
    network: ir.Model,
    filters: dict[str, list[int]],
    ranks: dict[str, Ranks],
    fit: Samples,
    choose: Samples,
    progress: Progress | None = None,
) -> tuple[ir.Model, dict[str, Fit]]:
    """Fit all layers of a network to the original's responses, front to back.

    Args:
        original: the simplified network before anything was removed.
        network: the same without `filters`, its layers not factored yet; not touched.
        filters: those that were removed, by layer.
        ranks: at which layers are to be factored.
        fit: samples to fit to.
        choose: samples that choose how much.
        progress: called with (what is done, steps done, steps in all).

    Returns:
        the network with the fitted weights, factored ones as their products; the fits, by layer.
    """
    result = network.clone()
    before = {layer.name: layer for layer in factor_layers(original, concrete_shapes(original))}
    layers = [
        layer
        for layer in fitted_layers(factor_layers(result, concrete_shapes(network)))
        if layer.name in before
    ]
    gone = filters_gone(original, filters)
    samples, fitted = together(fit, choose)
    olds = [before[layer.name] for layer in layers]
    number = {layer.name: index for index, layer in enumerate(layers)}
    stages = Stages(result, layers, samples)
    order = [number[layer.name] for members in stages.layers for layer in members]
    given = Responses(original, olds, samples, order, steps_of(progress, "running the original network"))
    fits: dict[str, Fit] = {}
    steps = steps_of(progress, "fitting weights")
    for stage, members in counted(enumerate(stages.layers), len(stages.layers), steps):
        seen = _observed(stages, stage, before, given, gone, number, fitted)
        names = [layer.name for layer in members]
        found = side_by_side(_fit_layer, members, map(seen.pop, names), map(ranks.get, names))
        for layer, new in zip(members, found, strict=True):
            set_weights(layer, new.weight, new.bias if layer.bias is not None else None)
            fits[layer.name] = new
    return result, fits


def together(fit: Samples, choose: Samples) -> tuple[Samples, int]:
    """Both, those that choose the ridge last, and how many rows come before them.

    These are the second part, and some of the first where there are few. They are the same for all layers,
    and no layer is fitted to them: what comes before one is then no better on them than on samples never
    seen.
    """
    wanted = min(HELD_BACK, (fit.count + choose.count) // 5)
    more = max(wanted - choose.count, 0)
    held_back = np.zeros(fit.count, bool)
    held_back[spread(fit.count, more)] = True
    held_back = np.repeat(held_back, fit.views)
    rows = np.concatenate([fit.chosen[~held_back], fit.chosen[held_back], choose.chosen])
    return replace(fit, chosen=rows, views=1), int((~held_back).sum())


def _observed(
    stages: Stages,
    stage: int,
    before: Mapping[str, FactorLayer],
    given: Responses,
    gone: Mapping[ir.Node, NDArray[np.bool_]],
    number: Mapping[str, int],
    fitted: int,
) -> dict[str, Observed]:
    """What the layers of a stage read now, and what they gave in the original."""
    members = stages.layers[stage]
    found: dict[str, list[NDArray]] = {layer.name: [] for layer in members}
    count_fitted = dict.fromkeys(found, 0)
    seen = 0
    for batch, values in enumerate(ahead(stages.before(stage, reads(members)))):
        places, rows = stages.batches[batch], stages.rows[batch]
        values = {name: own(value, len(places), rows) for name, value in values.items()}
        for layer in members:
            counts = per_sample(before[layer.name], len(stages.samples))
            x = patches(layer, values, len(places), counts, (number[layer.name], batch))
            found[layer.name].append(x)
            count_fitted[layer.name] += x.shape[1] * min(max(fitted - seen, 0), len(places)) // len(places)
        seen += len(places)
    observed = {}
    for layer in members:
        x = np.concatenate(found.pop(layer.name), axis=1)
        y = np.concatenate(list(given.of(number[layer.name])), axis=1)
        y = _kept(y, gone.get(before[layer.name].node), layer.groups)
        observed[layer.name] = Observed(x, y, count_fitted[layer.name])
    return observed


def _kept(y: NDArray, gone: NDArray[np.bool_] | None, groups: int) -> NDArray:
    """Responses (groups, n, M / groups) without those of removed filters."""
    if gone is None:
        return y
    flat = y.transpose(1, 0, 2).reshape(y.shape[1], -1)[:, ~gone]
    return flat.reshape(len(flat), groups, -1).transpose(1, 0, 2)


def _fit_layer(layer: FactorLayer, seen: Observed, ranks: Ranks | None) -> Fit:
    given = layer.by_group
    relu = all(relu_after(each.node) is not None for each in layer.applications)
    weights, biases, factors = [], [], []
    for x, y, w in zip(seen.x, seen.y, given, strict=True):
        product, bias, chain = fit_group(
            x, y, w, seen.fitted, layer.sides[1], ranks, relu, layer.bias is not None
        )
        weights.append(product)
        biases.append(bias)
        factors.append(chain)
    chains = tuple(chain for chain in factors if chain is not None)
    return Fit(
        np.concatenate(weights).reshape(layer.shape),
        np.concatenate(biases),
        chains if ranks is not None else None,
    )


def fit_group(
    x: NDArray,
    y: NDArray,
    given: Array,
    fitted: int,
    channels: int,
    ranks: Ranks | None,
    relu: bool,
    bias: bool = True,
) -> tuple[Array, Array, Factors | None]:
    """Weights W and bias b for which W·x + b is near y.

    Args:
        x: patches, (n, d); taken off their mean.
        y: responses, (n, m).
        given: weights toward which the ridge pulls, (m, d).
        fitted: how many of the n, from the front, W is fitted to; the others choose the ridge.
        channels: C, of which each has d / C inputs.
        ranks: of the factors; None for weights of full rank.
        relu: whether errors of negative responses count only as far as they become positive.
        bias: whether the layer has one; without it b is 0.

    Returns:
        (W (m, d), b (m,), the factors of W or None)
    """
    x_mean = x[:fitted].mean(axis=0, dtype=np.float64) if bias else np.zeros(x.shape[1])
    x -= x_mean.astype(np.float32)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("the network computes NaN or infinite values on the calibration data")
    ridges = _Ridges(x[:fitted], x[fitted:])
    point = x.shape[1] == channels
    read = None if ranks is None or point else inputs(ridges.covariance(), channels)
    response = product(x, given.T.astype(np.float32))
    target, factors = y, None
    for _ in range(1 + RELU_ROUNDS * relu):
        mean = target[:fitted].mean(axis=0, dtype=np.float64) if bias else np.zeros(y.shape[1])
        left = target - mean.astype(np.float32) - response
        weights = given + ridges.best(left[:fitted], left[fitted:])
        if ranks is not None:
            factors = (
                fit_factors(weights, read, ranks, factors)
                if read is not None
                else product_factors(weights, components(responses_to(weights, x[:fitted])), ranks.out)
            )
            weights = factors.weights
        if relu:
            found = product(x, weights.T.astype(np.float32)) + mean.astype(np.float32)
            target = np.where(y > 0, y, np.minimum(found, 0))
    return weights, mean - weights @ x_mean, factors


class _Ridges:
    """Ridge regressions on inputs x, (n, d), whose equations are d × d, or n × n where those are fewer.

    Of the latter, (XᵀX + λ)⁻¹Xᵀ = Xᵀ(XXᵀ + λ)⁻¹.

    Args:
        x: off their mean.
        held: other inputs, which choose λ.
    """

    def __init__(self, x: NDArray[np.float32], held: NDArray[np.float32]) -> None:
        self._x, self._dual = x, len(x) < x.shape[1]
        self._held = product(held, x.T) if self._dual else held
        self._products = gram(x.T if self._dual else x).astype(np.float64) / max(len(x), 1)
        self._scale = max(np.trace(self._products) / x.shape[1], np.finfo(np.float32).tiny)
        self._factors: dict[int, tuple[Array, bool]] = {}
        self._chosen = len(RIDGES) // 2

    def covariance(self) -> Array:
        """That of x, (d, d)."""
        return gram(self._x).astype(np.float64) / max(len(self._x), 1) if self._dual else self._products

    def best(self, left: NDArray[np.float32], held: NDArray[np.float32]) -> Array:
        """The change of weights, (m, d), that does best on what is held back; none, where none does any good.

        Its λ is looked for downhill from the one that was best the last time.

        Args:
            left: what the responses to x lack, (n, m).
            held: what those to the other inputs lack.
        """
        right = (left if self._dual else product(self._x.T, left)).astype(np.float64) / max(len(left), 1)
        before = np.sum(np.square(held, dtype=np.float64))
        solutions: dict[int, Array] = {}

        @cache
        def error(index: int) -> float:
            solutions[index] = scipy.linalg.cho_solve(self._factor(index), right)
            found = product(self._held, solutions[index].astype(np.float32))
            return float(np.sum(np.square(found - held, dtype=np.float64)) - before)

        at, nearest = -1, self._chosen
        while nearest != at:
            at = nearest
            around = range(max(at - 1, 0), min(at + 2, len(RIDGES)))
            nearest = min(around, key=lambda index: (error(index), index != at))
        self._chosen = at
        chosen = solutions[at] if error(at) < 0 else np.zeros_like(right)
        return product(self._x.T, chosen.astype(np.float32)).astype(np.float64).T if self._dual else chosen.T

    def _factor(self, index: int) -> tuple[Array, bool]:
        if index not in self._factors:
            raised = self._products + RIDGES[index] * self._scale * np.eye(len(self._products))
            self._factors[index] = scipy.linalg.cho_factor(raised, overwrite_a=True)
        return self._factors[index]
