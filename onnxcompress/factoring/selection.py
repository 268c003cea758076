"""Choosing the ranks at which layers are factored."""

import math
from collections.abc import Callable
from math import ceil

from onnxcompress.factoring.layers import FactorLayer
from onnxcompress.factoring.ranks import MatrixRank, tucker_ranks
from onnxcompress.plan import Ranks, matches

FEW_CHANNELS = 4
"""Input channels (per group) up to which only the output side is factored: those of images."""


def select(
    layers: list[FactorLayer],
    *,
    rank: MatrixRank,
    round_to: int,
    skip: tuple[str, ...],
    include: frozenset[str],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Ranks], dict[str, str]]:
    """Choose ranks by a rule; leave alone what would not have fewer MACs.

    Args:
        layers: of the network to decompose.
        rank: rule for one matrix.
        round_to: ranks are rounded up to a multiple, at most to the layer's width.
        skip: glob patterns of layer names.
        include: kinds of layers to factor (see `FactorLayer.kind`).
        progress: called with (layers done, layers in all).

    Returns:
        (ranks by layer, reason by layer that is left alone)
    """
    chosen: dict[str, Ranks] = {}
    kept: dict[str, str] = {}
    considered = [layer for layer in layers if layer.kind in include]
    for done, layer in enumerate(considered):
        if progress is not None:
            progress(done, len(considered))
        if matches(layer.name, skip):
            kept[layer.name] = "skipped as asked"
            continue
        ranks = _rounded(ranks_of(layer, rank), layer, round_to)
        if layer.chain_macs(ranks) < layer.macs:
            chosen[layer.name] = ranks
        else:
            kept[layer.name] = (
                f"the chain at ranks {ranks.out}, {ranks.into} would need "
                f"{layer.chain_macs(ranks) / layer.macs:.2f} times the MACs"
            )
    return chosen, kept


def ranks_of(layer: FactorLayer, rank: MatrixRank) -> Ranks:
    """The ranks that a rule gives a layer, before rounding."""
    out, into = layer.sides
    if layer.kind != "kxk":
        shared = max(
            rank(layer.weight[group * out : (group + 1) * out].reshape(out, into))
            for group in range(layer.groups)
        )
        return Ranks(shared, shared)
    out_rank, in_rank = tucker_ranks(layer.weight, layer.groups, rank)
    return Ranks(out_rank, into if into <= FEW_CHANNELS else in_rank)


def _rounded(ranks: Ranks, layer: FactorLayer, round_to: int) -> Ranks:
    limits = layer.sides if layer.kind == "kxk" else (min(layer.sides),) * 2
    out, into = (
        min(ceil(each / round_to) * round_to, limit) for each, limit in zip(ranks, limits, strict=True)
    )
    # Neither unfolding of the core can have a higher rank than its other dimensions allow.
    kernel = math.prod(layer.weight.shape[2:])
    return Ranks(min(out, into * kernel), min(into, out * kernel))
