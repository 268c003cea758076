"""What is known of a network before anything is decided: moments of layers' inputs, and what errors do."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.calibration.patches import fitted_layers
from onnxcompress.calibration.samples import Parts
from onnxcompress.calibration.stages import Stages
from onnxcompress.calibration.statistics import Moments
from onnxcompress.data import spread
from onnxcompress.factoring.fitted import (
    Components,
    Factors,
    components,
    fit_factors,
    inputs,
    layer_responses,
    product_errors,
    product_factors,
    response_error,
)
from onnxcompress.layers import FactorLayer, factor_layers, set_weights
from onnxcompress.measure.damage import Damage
from onnxcompress.outputs import graded, judged
from onnxcompress.plan import Ranks
from onnxcompress.progress import Steps
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.channels import ChannelGraph
from onnxcompress.runtime import own
from onnxcompress.shapes import concrete_shapes
from onnxcompress.siblings import joined, members

Name = TypeVar("Name", bound=Hashable)

HOPELESS = 1e6
"""Damage of outputs that are no numbers any more."""

PROBES = 48
"""Samples that damage to the output is measured on, spread over those kept for choosing."""


@dataclass(frozen=True)
class Survey:
    """A network and what calibration data say about it.

    Attributes:
        given: the simplified network.
        together: siblings of it that are looked at as one layer.
        network: it with these joined; its weights are changed and put back while damage is measured.
        layers: Conv, ConvTranspose, Gemm and MatMul of `network`.
        graph: its channels.
        moments: of what layers read, by layer.
        parts: the samples.
    """

    given: ir.Model
    together: Sequence[str]
    network: ir.Model
    layers: list[FactorLayer]
    graph: ChannelGraph
    moments: Mapping[str, Moments]
    parts: Parts


@dataclass(frozen=True)
class Change:
    """Other weights for a layer."""

    layer: FactorLayer
    weight: NDArray[np.float64]
    bias: NDArray[np.float64] | None


def survey(
    given: ir.Model,
    parts: Parts,
    moments: Mapping[str, Moments],
    together: Sequence[str] = (),
) -> Survey:
    """Analyse a network.

    Args:
        given: a simplified network; not touched.
        parts: the samples.
        moments: of its layers.
        together: siblings (see `siblings`) that are looked at as one layer.
    """
    network = joined(given, together)
    shapes = concrete_shapes(network)
    alike = {name: moments[members(name)[0]] for name in together if members(name)[0] in moments}
    layers = factor_layers(network, shapes)
    return Survey(given, together, network, layers, analyse(network, shapes), {**moments, **alike}, parts)


def products(layer: FactorLayer, moments: Moments) -> list[Components]:
    """What the response of each of its groups consists of; none of a kernel of several elements."""
    if layer.kind == "kxk" or layer.obstacle:
        return []
    weights = layer.by_group
    return [components(response) for response in layer_responses(weights, moments)]


def factored(
    layer: FactorLayer, moments: Moments, ranks: Ranks, known: Sequence[Components]
) -> tuple[Change, float]:
    """A layer with the weights of its fitted factors and an exact bias, and the variance that it loses.

    Args:
        layer: to factor.
        moments: of what it reads.
        ranks: of the factors.
        known: its `products`.
    """
    given = layer.by_group
    if not known:
        read = [inputs(covariance, layer.sides[1]) for covariance in moments.covariance]
        chains = [fit_factors(*part, ranks, trial=True) for part in zip(given, read, strict=True)]
        return chained(layer, moments, chains)
    pairs = zip(given, known, strict=True)
    weights = [product_factors(weight, response, ranks.out).weights for weight, response in pairs]
    lost = sum(float(product_errors(response)[ranks.out]) for response in known)
    return changed(layer, moments, np.stack(weights)), lost


def chained(layer: FactorLayer, moments: Moments, chains: Sequence[Factors]) -> tuple[Change, float]:
    """A layer with the weights of these factors, one of each group, likewise."""
    given = layer.by_group
    weights = np.stack([chain.weights for chain in chains])
    parts = zip(given, weights, moments.covariance, strict=True)
    return changed(layer, moments, weights), sum(response_error(*part) for part in parts)


def halved(layer: FactorLayer, moments: Moments) -> tuple[Change, float]:
    """A layer with weights half as large and an exact bias, and the variance that it loses."""
    half = layer.by_group / 2
    lost = np.einsum("gii->", layer_responses(half, moments))
    return changed(layer, moments, half), float(lost)


def changed(layer: FactorLayer, moments: Moments, weights: NDArray[np.float64]) -> Change:
    """A layer with other weights, (groups, M / groups, d), and the bias that keeps its mean response."""
    given = layer.by_group
    bias = layer.bias
    if bias is not None:
        bias = bias + np.einsum("gmd,gd->gm", given - weights, moments.mean).ravel()
    return Change(layer, weights.reshape(layer.shape), bias)


def measured_damage(
    survey: Survey, changes: Mapping[Name, Sequence[Change]], progress: Steps | None = None
) -> dict[Name, float]:
    """Mean damage to the network's output when some layers have other weights, each case by itself.

    Args:
        survey: of the network.
        changes: by any name, the layers that change together.
        progress: called with (cases done, cases in all).
    """
    if not changes:
        return {}
    network = survey.network
    chosen = survey.parts.choose
    samples = replace(chosen, chosen=chosen.chosen[spread(len(chosen), PROBES)])
    stages = Stages(network, fitted_layers(survey.layers), samples)
    place = {layer.name: stage for stage, members in enumerate(stages.layers) for layer in members}
    outputs = [str(value.name) for value in graded(network)]
    original: list[list[np.ndarray]] = []
    found: dict[Name, float] = {}
    for stage in range(len(stages.layers)):
        cases = [n for n, case in changes.items() if min(place[c.layer.name] for c in case) == stage]
        if not cases:
            continue
        for _ in stages.before(stage, []):
            pass
        if not original:
            original = _outputs(stages, outputs)
        for name in cases:
            given = [Change(c.layer, c.layer.weight, c.layer.bias) for c in changes[name]]
            for change in changes[name]:
                set_weights(change.layer, change.weight, change.bias)
            try:
                runs = _outputs(stages, outputs)
            finally:
                for change in given:
                    set_weights(change.layer, change.weight, change.bias)
            damage = Damage(samples.values)
            for a, b in zip(original, runs, strict=True):
                damage.add(a, b)
            mean = float(damage.of_samples().mean())
            found[name] = mean if np.isfinite(mean) else HOPELESS
            if progress is not None:
                progress(len(found), len(changes))
    return found


def _outputs(stages: Stages, names: Sequence[str]) -> list[list[np.ndarray]]:
    """Batch by batch, what the network gives for the samples."""
    batches = zip(stages.rest(names), stages.batches, stages.rows, strict=True)
    return [
        [own(y, len(places), rows) for y in judged([values[name] for name in names])]
        for values, places, rows in batches
    ]
