"""Weights that give the original network's responses on what the compressed network feeds them.

Layers are fitted from front to back: each sees what those before it have become and is fitted to what the
original gave (asymmetric reconstruction, Zhang et al. 2016, section 3.3; for pruned layers He et al. 2017,
equation 1). Where a Relu follows, an error counts only where it shows behind it (Zhang et al., section 3.1).
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import scipy.linalg
from numpy.typing import NDArray

from onnxcompress.calibration.patches import fitted_layers, patches, per_sample
from onnxcompress.calibration.samples import Samples, own
from onnxcompress.calibration.stages import Stages
from onnxcompress.data import spread
from onnxcompress.errors import InputError
from onnxcompress.factoring.fitted import Factors, fit_factors
from onnxcompress.layers import FactorLayer, factor_layers, relu_after, set_weights
from onnxcompress.plan import Ranks
from onnxcompress.progress import Steps
from onnxcompress.pruning.surgery import filters_gone
from onnxcompress.shapes import concrete_shapes

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
    progress: Steps | None = None,
) -> tuple[ir.Model, dict[str, Fit]]:
    """Fit all layers of a network to the original's responses, front to back.

    Args:
        original: the simplified network before anything was removed.
        network: the same without `filters`, its layers not factored yet; not touched.
        filters: those that were removed, by layer.
        ranks: at which layers are to be factored.
        fit: samples to fit to.
        choose: samples that choose how much.
        progress: called with (stages done, stages in all).

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
    # Both networks are cut at the same layers.
    ours = Stages(result, layers, samples)
    theirs = Stages(original, [before[layer.name] for layer in layers], samples)
    fits: dict[str, Fit] = {}
    number = {layer.name: index for index, layer in enumerate(layers)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for stage, members in enumerate(ours.layers):
            seen = _observed(stage, members, before, ours, theirs, gone, number, fitted)
            names = [layer.name for layer in members]
            found = pool.map(_fit_layer, members, map(seen.pop, names), map(ranks.get, names))
            for layer, new in zip(members, found, strict=True):
                set_weights(layer, new.weight, new.bias if layer.bias is not None else None)
                fits[layer.name] = new
            if progress is not None:
                progress(stage + 1, len(ours.layers))
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
    stage: int,
    members: list[FactorLayer],
    before: dict[str, FactorLayer],
    ours: Stages,
    theirs: Stages,
    gone: Mapping[ir.Node, NDArray[np.bool_]],
    number: dict[str, int],
    fitted: int,
) -> dict[str, Observed]:
    found: dict[str, list[tuple[NDArray, NDArray]]] = {layer.name: [] for layer in members}
    count_fitted = dict.fromkeys(found, 0)
    runs = zip(
        ours.before(stage, [_input(layer) for layer in members]),
        theirs.before(stage, [_input(before[layer.name]) for layer in members]),
        strict=True,
    )
    seen = 0
    for batch, (mine, given) in enumerate(runs):
        places, rows = ours.batches[batch], ours.rows[batch]
        for layer in members:
            old = before[layer.name]
            count, seed = per_sample(old, len(ours.samples)), (number[layer.name], batch)
            x = patches(layer, own(mine[_input(layer)], places, rows), count, seed)
            weight = old.weight.reshape(old.groups, old.sides[0], -1)
            read = own(given[_input(old)], places, rows)
            y = patches(old, read, count, seed) @ weight.swapaxes(1, 2).astype(np.float32)
            if (bias := old.bias) is not None:
                y += bias.reshape(old.groups, 1, -1).astype(np.float32)
            found[layer.name].append((x, _kept(y, gone.get(old.node), layer.groups)))
            count_fitted[layer.name] += x.shape[1] * min(max(fitted - seen, 0), len(places)) // len(places)
        seen += len(places)
    observed = {}
    for layer in members:
        x, y = zip(*found.pop(layer.name), strict=True)
        observed[layer.name] = Observed(
            np.concatenate(x, axis=1), np.concatenate(y, axis=1), count_fitted[layer.name]
        )
    return observed


def _kept(y: NDArray, gone: NDArray[np.bool_] | None, groups: int) -> NDArray:
    """Responses (groups, n, M / groups) without those of removed filters."""
    if gone is None:
        return y
    flat = y.transpose(1, 0, 2).reshape(y.shape[1], -1)[:, ~gone]
    return flat.reshape(len(flat), groups, -1).transpose(1, 0, 2)


def _fit_layer(layer: FactorLayer, seen: Observed, ranks: Ranks | None) -> Fit:
    given = layer.weight.reshape(layer.groups, layer.sides[0], -1)
    relu = relu_after(layer.node) is not None
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
    ours, theirs = x[:fitted], x[fitted:]
    g, g_held = _product(ours, ours), _product(theirs, theirs)
    if not (np.isfinite(g).all() and np.isfinite(g_held).all() and np.isfinite(y).all()):
        raise InputError("the network computes NaN or infinite values on the calibration data")
    response = x @ given.T.astype(np.float32)
    solvers = _solvers(g)
    target, factors = y, None
    for _ in range(1 + RELU_ROUNDS * relu):
        mean = target[:fitted].mean(axis=0, dtype=np.float64) if bias else np.zeros(y.shape[1])
        left = target - mean.astype(np.float32) - response
        c, c_held = _product(left[:fitted], ours), _product(left[fitted:], theirs)
        weights = given + _best(solvers, c, g_held, c_held)
        if ranks is not None:
            factors = fit_factors(weights, g, channels, ranks, factors)
            weights = factors.weights
        if relu:
            found = x @ weights.T.astype(np.float32) + mean.astype(np.float32)
            target = np.where(y > 0, y, np.minimum(found, 0))
    return weights, mean - weights @ x_mean, factors


def _solvers(g: Array) -> list[Callable[[Array], Array]]:
    """Ridge regressions: from products of responses with inputs, (m, d), to weights, (m, d)."""
    scale = max(np.trace(g) / len(g), np.finfo(np.float64).tiny)

    def solver(ridge: float) -> Callable[[Array], Array]:
        factor = scipy.linalg.cho_factor(g + ridge * scale * np.eye(len(g)))
        return lambda c: scipy.linalg.cho_solve(factor, c.T).T

    return [solver(ridge) for ridge in RIDGES]


def _best(solvers: list[Callable[[Array], Array]], c: Array, g_held: Array, c_held: Array) -> Array:
    """The change of weights that does best on what is held back; none, where none does any good."""
    best, chosen = 0.0, np.zeros_like(c)
    for solve in solvers:
        change = solve(c)
        error = float(np.sum((change @ g_held) * change) - 2 * np.sum(change * c_held))
        if error < best:
            best, chosen = error, change
    return chosen


def _product(a: NDArray, b: NDArray) -> Array:
    """Mean of the outer products of rows."""
    return (a.T @ b).astype(np.float64) / max(len(a), 1)


def _input(layer: FactorLayer) -> str:
    return str(layer.node.inputs[0].name)  # type: ignore[union-attr]
