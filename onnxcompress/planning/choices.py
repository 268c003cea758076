"""What can be done to a network, with the cost and the estimated damage of each choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.calibration.statistics import Moments
from onnxcompress.factoring.fitted import error_curve
from onnxcompress.factoring.selection import FEW_CHANNELS
from onnxcompress.layers import FactorLayer
from onnxcompress.plan import Plan, Ranks, matches
from onnxcompress.planning.budget import Decision, GroupChoice, LayerChoice, Problem, ranks_of
from onnxcompress.pruning.channels import ChannelGraph, Group
from onnxcompress.pruning.elimination import Elimination, Reader, eliminate
from onnxcompress.pruning.surgery import filters_of

STEPS = 16
"""Input ranks that a layer is offered, for each way to share its kernel."""

Options = Sequence[tuple[Ranks, float]]
"""Ranks that a layer can have, with the variance of its response that is lost."""


@dataclass(frozen=True)
class Choices:
    """The problem, and what its numbers stand for.

    Attributes:
        problem: to decide.
        eliminations: one per group of the problem: which sets go first.
        graph: of the network's channels.
    """

    problem: Problem
    eliminations: Sequence[Elimination]
    graph: ChannelGraph

    def plan(self, decision: Decision) -> Plan:
        """What a decision does, by layer."""
        gone = [e.order[:count] for e, count in zip(self.eliminations, decision.removed, strict=True)]
        filters = filters_of(self.graph, np.concatenate([np.zeros(0, np.int64), *gone]))
        ranks = {name: ranks_of(self.problem, decision, name) for name in decision.picked}
        return Plan(prune=filters, decompose={name: pair for name, pair in ranks.items() if pair is not None})


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
    skip: Sequence[str] = (),
) -> Choices:
    """All choices for a network.

    Args:
        graph: its channels, settled.
        groups: of them, those that may lose some.
        layers: of the network.
        options: of each layer whose responses are known (see `possible`), by layer.
        reading: what reads the channels (see `elimination.readers`).
        sensitivity: damage to the output for each unit of a response's variance that is lost, by layer.
        kind: of cost: ``macs``, ``params`` or ``size``.
        fixed: cost of all that is not among the layers.
        skip: glob patterns of layers that keep their ranks.
    """
    known = {layer.name: layer for layer in layers if layer.shape}
    offered = {
        name: layer_choice(
            layer,
            [] if matches(name, skip) else options.get(name, []),
            sensitivity.get(name, np.inf),
            kind,
        )
        for name, layer in known.items()
    }
    entries = [(entry.node.name, entry) for entry in graph.parameters]
    found, eliminations = [], []
    for group in groups:
        elimination = eliminate(group, reading)
        if elimination is None:
            continue
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
        found.append(GroupChoice(elimination.damage, filters, channels))
        eliminations.append(elimination)
    return Choices(Problem(offered, found, fixed), eliminations, graph)


def layer_choice(layer: FactorLayer, possibilities: Options, sensitivity: float, kind: str) -> LayerChoice:
    """What a layer can become, and what that costs; see `choices`."""
    filters, channels = layer.sides
    kernel = layer.width // channels
    options = [Ranks(filters, channels), *(ranks for ranks, _ in possibilities)]
    damages = [0.0, *(sensitivity * error for _, error in possibilities)]
    taken = [1 if ranks.axis is None else layer.shape[2 + ranks.axis] for ranks in options]
    between = [layer.input_size if ranks.axis is None else layer.between[ranks.axis] for ranks in options]
    each = {"params": 1, "size": layer.itemsize}.get(kind)
    return LayerChoice(
        filters,
        channels,
        layer.groups,
        kernel,
        np.array(between) if each is None else np.full(len(options), each),
        layer.size if each is None else each,
        layer.output_size if each is None else each,
        options,
        np.array(taken),
        np.array(damages),
        kernel == 1,
    )


def possible(layer: FactorLayer, moments: Moments) -> Options:
    """Ranks at which a layer costs less, with the variance of its response that is lost.

    Groups of a convolution share their ranks.
    """
    if layer.obstacle:
        return []
    filters, channels = layer.sides
    weights = layer.weight.reshape(layer.groups, filters, -1)
    found = []
    for axis in (None, *layer.axes):
        seen = layer.unfolding(axis)
        into = input_ranks(layer, axis)
        if not into:
            continue
        errors = sum(
            error_curve(w, covariance, seen, into).errors
            for w, covariance in zip(weights, moments.covariance, strict=True)
        )
        for rank, row in zip(into, np.asarray(errors), strict=True):
            if seen.rest == 1:
                found += [(Ranks(out, out), float(row[out])) for out in range(1, min(filters, channels))]
            else:
                most = min(filters, rank * seen.rest)
                every = (Ranks(out, rank, axis) for out in range(1, most + 1))
                found += [
                    (ranks, float(row[ranks.out])) for ranks in every if layer.chain_macs(ranks) < layer.macs
                ]
    return found


def input_ranks(layer: FactorLayer, axis: int | None) -> list[int]:
    """Some input ranks, descending: up to the highest at which the chain with all filters costs less."""
    filters, channels = layer.sides
    seen = layer.unfolding(axis)
    whole = [channels] if axis is None else []
    if seen.rest == 1 or (axis is None and channels <= FEW_CHANNELS):
        return whole
    each = layer.chain_macs(Ranks(filters, 1, axis))
    most = min(seen.columns - (axis is None), (layer.macs - 1) // each)
    return whole + sorted({math.ceil(most * step / STEPS) for step in range(1, STEPS + 1)} - {0})[::-1]
