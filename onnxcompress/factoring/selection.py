"""Choosing the ranks at which layers are factored."""

import math
from collections.abc import Mapping
from math import ceil

import numpy as np

from onnxcompress.calibration.statistics import Moments
from onnxcompress.factoring.fitted import channel_slices, inputs
from onnxcompress.factoring.ranks import MatrixRank, tucker_ranks
from onnxcompress.layers import FactorLayer
from onnxcompress.plan import Ranks, matches
from onnxcompress.progress import Steps, counted

FEW_CHANNELS = 4
"""Input channels (per group) up to which only the output side is factored: those of images."""


def select(
    layers: list[FactorLayer],
    *,
    rank: MatrixRank,
    round_to: int,
    skip: tuple[str, ...],
    include: frozenset[str],
    moments: Mapping[str, Moments] | None = None,
    progress: Steps | None = None,
) -> tuple[dict[str, Ranks], dict[str, str]]:
    """Choose ranks by a rule; leave alone what would not have fewer MACs.

    Layers that read the same weights get the same ranks: factored together, or none of them. The layer
    that gives the network's output is factored as any other: its chain ends in as many filters.

    Args:
        layers: of the network to decompose.
        rank: rule for one matrix.
        round_to: ranks are rounded up to a multiple, at most to the layer's width.
        skip: glob patterns of layer names.
        include: kinds of layers to factor (see `FactorLayer.kind`).
        moments: of what layers read; where given, the rule sees a layer's response instead of its weights.
        progress: called with (layers done, layers in all).

    Returns:
        (ranks by layer, reason by layer of an included kind that is left alone)
    """
    decisions: dict[str, Ranks | str] = {}
    considered = [layer for layer in layers if layer.kind in include]
    for layer in counted(considered, len(considered), progress):
        known = moments.get(layer.name) if moments else None
        decisions |= dict.fromkeys(layer.names, _decision(layer, rank, round_to, skip, known))
    return (
        {name: decision for name, decision in decisions.items() if isinstance(decision, Ranks)},
        {name: decision for name, decision in decisions.items() if isinstance(decision, str)},
    )


def ranks_of(layer: FactorLayer, rank: MatrixRank, moments: Moments | None = None) -> Ranks | None:
    """The ranks that a rule gives a layer, before rounding; None when it cannot be factored.

    The first layer, known by its few input channels, keeps them: only its output side is factored.
    With moments, the rule gets the weights times a root of the covariance of what they are applied to: their
    squared singular values are the variances of the response's principal components.
    """
    if layer.obstacle:
        return None
    if moments is not None:
        return _response_ranks(layer, rank, moments)
    if layer.kind != "kxk":
        parts = np.split(layer.weight, layer.groups)
        shared = max(rank(part.reshape(layer.sides)) for part in parts)
        return Ranks(shared, shared)
    out_rank, in_rank = tucker_ranks(layer.weight, layer.groups, rank)
    return Ranks(out_rank, layer.sides[1] if layer.sides[1] <= FEW_CHANNELS else in_rank)


def _response_ranks(layer: FactorLayer, rank: MatrixRank, moments: Moments) -> Ranks:
    channels = layer.sides[1]
    outs, ins = [], []
    weights = layer.by_group
    if moments.rows.size:
        roots = moments.rows.swapaxes(1, 2) / math.sqrt(moments.count)
        highest = max(rank(weight @ root) for weight, root in zip(weights, roots, strict=True))
        return Ranks(highest, highest)
    for weight, covariance in zip(weights, moments.covariance, strict=True):
        read = inputs(covariance, channels)
        outs.append(rank(weight @ np.linalg.cholesky(read.covariance)))
        ins.append(rank(channel_slices(weight, read).T))
    if layer.kind != "kxk":
        return Ranks(max(outs), max(outs))
    return Ranks(max(outs), channels if channels <= FEW_CHANNELS else max(ins))


def _decision(
    layer: FactorLayer,
    rank: MatrixRank,
    round_to: int,
    skip: tuple[str, ...],
    moments: Moments | None,
) -> Ranks | str:
    if any(matches(name, skip) for name in layer.names):
        return "skipped as asked"
    chosen = ranks_of(layer, rank, moments)
    if chosen is None:
        return layer.obstacle
    ranks = _rounded(chosen, layer, round_to)
    before, after = layer.macs, layer.chain_macs(ranks)
    if after < before:
        return ranks
    return f"the chain at ranks {ranks} would need {after / before:.2f} times the MACs"


def _rounded(ranks: Ranks, layer: FactorLayer, round_to: int) -> Ranks:
    limits = layer.sides if layer.kind == "kxk" else (min(layer.sides),) * 2
    out, into = (
        min(ceil(each / round_to) * round_to, limit)
        for each, limit in zip((ranks.out, ranks.into), limits, strict=True)
    )
    # Neither unfolding of the core can have a higher rank than its other dimensions allow.
    kernel = math.prod(layer.shape[2:])
    few = layer.sides[1] <= FEW_CHANNELS
    return Ranks(min(out, into * kernel), into if few else min(into, out * kernel))
