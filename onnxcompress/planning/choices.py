"""What can be done to a network, with the cost and the estimated damage of each choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.calibration.statistics import Moments
from onnxcompress.factoring.fitted import error_curve
from onnxcompress.factoring.layers import FactorLayer
from onnxcompress.factoring.selection import FEW_CHANNELS
from onnxcompress.plan import Plan, matches
from onnxcompress.planning.budget import Decision, GroupChoice, LayerChoice, Problem, ranks_of
from onnxcompress.pruning.channels import ChannelGraph, Group
from onnxcompress.pruning.elimination import Elimination, eliminate, readers
from onnxcompress.pruning.surgery import filters_of


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
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, float],
    *,
    params: bool,
    fixed: float,
    skip: Sequence[str] = (),
) -> Choices:
    """All choices for a network.

    Args:
        graph: its channels, settled.
        groups: of them, those that may lose some.
        layers: of the network.
        moments: of what each layer reads, by layer.
        sensitivity: damage to the output for each unit of a response's variance that is lost, by layer.
        params: whether the cost is the number of weights instead of MACs.
        fixed: cost of all that is not among the layers.
        skip: glob patterns of layers that keep their ranks.
    """
    known = {layer.name: layer for layer in layers if layer.shape}
    offered = {
        name: _layer_choice(layer, moments, sensitivity, params, matches(name, skip))
        for name, layer in known.items()
    }
    reading = readers(graph, layers, moments, sensitivity)
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


def _layer_choice(
    layer: FactorLayer,
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, float],
    params: bool,
    skipped: bool,
) -> LayerChoice:
    filters, channels = layer.sides
    kernel = layer.width // channels
    options = [(filters, channels, 0.0)]
    if not layer.obstacle and not skipped and layer.name in moments:
        options += _ranks(layer, moments[layer.name], sensitivity.get(layer.name, np.inf))
    out, into, damage = (np.array(each) for each in zip(*options, strict=True))
    at = (1, 1, 1) if params else (layer.input_size, layer.size, layer.output_size)
    return LayerChoice(filters, channels, layer.groups, kernel, *at, out, into, damage, kernel == 1)


def _ranks(layer: FactorLayer, moments: Moments, sensitivity: float) -> list[tuple[int, int, float]]:
    """Pairs of ranks with less cost than the layer, and their damage; groups of a convolution share them."""
    filters, channels = layer.sides
    weights = layer.weight.reshape(layer.groups, filters, -1)
    curves = [
        error_curve(w, covariance, channels)
        for w, covariance in zip(weights, moments.covariance, strict=True)
    ]
    errors = np.sum([curve.errors for curve in curves], axis=0)
    kernel = layer.width // channels
    found = []
    for row, into in enumerate(curves[0].into.tolist()):
        if channels <= FEW_CHANNELS and into < channels:
            continue
        for out in range(1, min(filters, into * kernel) + 1):
            if kernel == 1 and (out >= min(filters, channels) or into < channels):
                continue
            if (out, into) == (filters, channels):
                continue
            found.append((out, out if kernel == 1 else into, sensitivity * float(errors[row, out])))
    return found
