"""What can be done to a network, with the cost and the estimated damage of each choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.calibration.statistics import Moments
from onnxcompress.factoring.fitted import (
    Components,
    Factors,
    cp_chains,
    inputs,
    product_errors,
    response_error,
)
from onnxcompress.layers import FactorLayer
from onnxcompress.plan import Plan, Ranks
from onnxcompress.planning.budget import Decision, GroupChoice, LayerChoice, Problem, ranks_of
from onnxcompress.pruning.channels import ChannelGraph, Group
from onnxcompress.pruning.elimination import Elimination, Reader, clusters, eliminate
from onnxcompress.pruning.selection import step_of
from onnxcompress.pruning.surgery import filters_of
from onnxcompress.threads import side_by_side

CP_SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Of a layer's MACs: where the error of a CP is looked at. It is interpolated between them."""

BLOCK = 8
"""CP ranks are multiples of this: runtimes compute depthwise convolutions in blocks of channels."""

TINY = np.finfo(np.float64).tiny

Options = Sequence[tuple[Ranks, float]]
"""Ranks that a layer can have, with the variance of its response that is lost."""


@dataclass(frozen=True)
class Choices:
    """The problem, and what its numbers stand for.

    Attributes:
        problem: to decide.
        eliminations: one per group of the problem: which sets go first.
        clusters: groups, by number, that the same layers read.
        graph: of the network's channels.
        layers: of the network, by name.
    """

    problem: Problem
    eliminations: Sequence[Elimination]
    clusters: Sequence[Sequence[int]]
    graph: ChannelGraph
    layers: Mapping[str, FactorLayer]

    def plan(self, decision: Decision) -> Plan:
        """What a decision does, by layer."""
        gone = [e.order[:count] for e, count in zip(self.eliminations, decision.removed, strict=True)]
        filters = filters_of(self.graph, np.concatenate([np.zeros(0, np.int64), *gone]))
        ranks = {name: ranks_of(self.problem, decision, name) for name in decision.picked}
        applied = {each: pair for name, pair in ranks.items() for each in self.layers[name].names}
        return Plan(
            prune=filters, decompose={name: pair for name, pair in applied.items() if pair is not None}
        )


def choices(
    graph: ChannelGraph,
    groups: Sequence[Group],
    layers: Sequence[FactorLayer],
    options: Mapping[str, Options],
    reading: Sequence[Reader],
    sensitivity: Mapping[str, float],
    *,
    kind: str,
    fixed: float,
    round_to: int = 1,
) -> Choices:
    """All choices for a network.

    Args:
        graph: its channels, settled.
        groups: of them, those that may lose some.
        layers: of the network.
        options: of layers that may be factored and whose responses are known (see `possible`), by layer.
        reading: what reads the channels (see `elimination.readers`).
        sensitivity: damage to the output for each unit of a response's variance that is lost, by layer.
        kind: of cost: ``macs``, ``params`` or ``size``.
        fixed: cost of all that is not among the layers.
        round_to: layers keep a multiple of so many filters, or all.
    """
    known = {layer.name: layer for layer in layers if layer.shape}
    offered = {
        name: layer_choice(layer, options.get(name, []), sensitivity.get(name, np.inf), kind)
        for name, layer in known.items()
    }
    entries = [(entry.node.name, entry) for entry in graph.parameters]
    together = clusters(groups, reading)
    eliminations: dict[int, Elimination] = {}
    orders = side_by_side(lambda cluster: eliminate([groups[i] for i in cluster], reading), together)
    for cluster, order in zip(together, orders, strict=True):
        eliminations.update(zip(cluster, order, strict=True))
    number = {index: place for place, index in enumerate(eliminations)}
    found = []
    for index, elimination in eliminations.items():
        group = groups[index]
        count = len(group.sets)
        filters: dict[str, float] = {}
        channels: dict[str, float] = {}
        for name, entry in entries:
            layer = known.get(str(name))
            if layer is None or entry.parameter is not layer.weights:
                continue
            share = np.isin(graph.set_of[entry.atoms], group.sets).sum() / len(entry.atoms) / count
            if not share:
                continue
            filter_axis = entry.axis == (1 if layer.mirrored else 0)
            if entry.atoms.shape[1] == layer.sides[not filter_axis]:
                per_group = share
            else:  # the axis has all groups one after the other
                per_group = share / layer.groups
            side = filters if filter_axis else channels
            if layer.kind == "depthwise":  # its groups go; the cost is that of as many filters
                side, per_group = filters, share / layer.groups
            side[layer.name] = side.get(layer.name, 0.0) + per_group
        whole = (count - np.arange(len(elimination.damage))) % step_of(graph, group, round_to) == 0
        whole[0] = True
        found.append(GroupChoice(elimination.damage, whole, filters, channels, elimination.shares))
    renumbered = [[number[index] for index in cluster] for cluster in together]
    return Choices(Problem(offered, found, fixed), list(eliminations.values()), renumbered, graph, known)


def layer_choice(layer: FactorLayer, possibilities: Options, sensitivity: float, kind: str) -> LayerChoice:
    """What a layer can become, and what that costs; see `choices`."""
    filters, channels = layer.sides
    options = [Ranks(filters, channels), *(ranks for ranks, _ in possibilities)]
    damages = [0.0, *(sensitivity * error for _, error in possibilities)]
    each = {"params": 1, "size": layer.itemsize}.get(kind)
    sizes = layer.positions if each is None else (each,) * 3
    return LayerChoice(filters, channels, layer.groups, layer.kernel, *sizes, options, np.array(damages))


def possible(
    layer: FactorLayer, moments: Moments, known: Sequence[Components], round_to: int = 1
) -> tuple[Options, list[Factors]]:
    """Ranks at which a layer costs less, with the variance of its response that is lost.

    Groups of a convolution share their ranks. For kernels of several elements these are CP ranks: at a third
    of the MACs, Tucker-2 and kernels of one column and one row lost 1.7 to 10 times as much in the layers of
    GoogLeNet that were looked at.

    Args:
        layer: to factor.
        moments: of what it reads.
        known: its `survey.products`.
        round_to: ranks are multiples of this; CP ranks of `BLOCK`, too.

    Returns:
        the options, the highest rank last; and of CP ranks, where there are any, the factors of each group at
        that one.
    """
    if layer.obstacle:
        return [], []
    if known:
        lost = np.sum([product_errors(response) for response in known], axis=0)
        ranks = range(round_to, min(layer.sides), round_to)
        return [(Ranks(rank, rank), float(lost[rank])) for rank in ranks], []
    block = math.lcm(BLOCK, round_to)
    each = layer.chain_macs(Ranks(1, 1, depthwise=True)) * block
    blocks = sorted({int(layer.macs * share / each) for share in CP_SHARES} - {0})
    looked_at = [block * count for count in blocks if block * count <= layer.highest_cp_rank]
    if not looked_at:
        return [], []
    weights = layer.by_group
    lost, highest = np.zeros(len(looked_at)), []
    for weight, covariance in zip(weights, moments.covariance, strict=True):
        chains = cp_chains(weight, inputs(covariance, layer.sides[1]), looked_at)
        lost += [response_error(weight, chain.weights, covariance) for chain in chains]
        highest.append(chains[-1])
    offered = np.arange(looked_at[0], looked_at[-1] + 1, block)
    errors = np.exp(np.interp(np.log(offered), np.log(looked_at), np.log(np.maximum(lost, TINY))))
    pairs = zip(offered.tolist(), errors.tolist(), strict=True)
    return [(Ranks(rank, rank, depthwise=True), error) for rank, error in pairs], highest
