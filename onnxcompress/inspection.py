"""What a network consists of, as the other verbs see it."""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxcompress.factoring.ranks import parse_rank
from onnxcompress.factoring.selection import ranks_of
from onnxcompress.layers import factor_layers
from onnxcompress.lrn import whole_bands
from onnxcompress.measure.cost import Cost, LayerCost, cost
from onnxcompress.measure.latency import node_times
from onnxcompress.model import load, simplify
from onnxcompress.plan import Ranks
from onnxcompress.progress import Progress, counted, steps_of
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.channels import Group
from onnxcompress.shapes import concrete_shapes


@dataclass(frozen=True)
class InspectedLayer:
    """One layer with weights.

    Attributes:
        cost: its shapes, parameters and MACs.
        ranks: VBMF ranks (per group) of a layer that `decompose` could factor, else None.
        tied: other layers that lose filters together with this one.
        kept: why its filters cannot be pruned; empty when they can; None where it has none that could be
            by themselves: depthwise convolutions, weights of other operators.
        milliseconds: measured in ONNX Runtime for one sample, where asked for.
    """

    cost: LayerCost
    ranks: Ranks | None
    tied: tuple[str, ...]
    kept: str | None
    milliseconds: float | None


@dataclass(frozen=True)
class Inspection:
    """A network's layers, totals, and the groups of channels that are cut together.

    Attributes:
        layers: those with weights, after simplification.
        cost: totals of the simplified network.
        groups: interchangeable channel sets (see `pruning.channels`).
        unknown: operators without a pruning rule that channels reach, by node.
        other_milliseconds: measured time of nodes without weights, by operator.
    """

    layers: tuple[InspectedLayer, ...]
    cost: Cost
    groups: tuple[Group, ...]
    unknown: dict[str, str]
    other_milliseconds: dict[str, float]


def inspect(
    model: ir.Model | str | Path, *, time: bool = False, progress: Progress | None = None
) -> Inspection:
    """Look at a network: what its layers cost, at which ranks they could be factored, what is tied.

    Args:
        model: the network or its path. It is looked at as the other verbs change it: simplified, that is,
            with BatchNormalization fused into convolutions and constants folded.
        time: measure each layer in ONNX Runtime on all cores.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: when the network cannot be read.
    """
    network = simplify(load(model))
    shapes = concrete_shapes(network)
    whole = whole_bands(network)
    graph = analyse(whole, concrete_shapes(whole))
    vbmf = parse_rank("vbmf")
    factored = factor_layers(network, shapes)
    told = counted(factored, len(factored), steps_of(progress, "looking at ranks"))
    ranks = {name: found for layer in told for found in [ranks_of(layer, vbmf)] for name in layer.names}
    kept = {layer.name: graph.reason(layer) or "" for layer in graph.layers}
    tied: dict[str, set[str]] = {}
    for group in graph.groups:
        for layer in group.layers:
            tied.setdefault(layer, set()).update(group.layers)
    times = node_times(network, progress=steps_of(progress, "timing")) if time else {}
    total = cost(network)
    layers = tuple(
        InspectedLayer(
            cost=layer,
            ranks=ranks.get(layer.name),
            tied=tuple(sorted(tied.get(layer.name, set()) - {layer.name})),
            kept=kept.get(layer.name),
            milliseconds=times.pop(layer.name, 0.0) if time else None,
        )
        for layer in total.layers
    )
    operators = {str(node.name): node.op_type for node in network.graph}
    others: dict[str, float] = {}
    for name, milliseconds in times.items():
        key = operators.get(name, name)
        others[key] = others.get(key, 0.0) + milliseconds
    others = dict(sorted(others.items(), key=lambda item: -item[1]))
    return Inspection(layers, total, tuple(graph.groups), graph.unknown, others)
