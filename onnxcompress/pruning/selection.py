"""Choosing the filters to remove."""

from collections.abc import Sequence
from math import ceil, gcd

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxcompress.layers import CONVOLUTIONS
from onnxcompress.plan import matches
from onnxcompress.pruning.channels import Atoms, ChannelGraph, Group
from onnxcompress.pruning.silence import all_zero, silent_sets, zero_filters


def select(
    model: ir.Model,
    graph: ChannelGraph,
    *,
    ratio: float,
    scores: np.ndarray,
    scope: str,
    round_to: int,
    skip: tuple[str, ...],
) -> tuple[Atoms, int]:
    """Choose the channel sets to remove, the least important first; one of every group stays.

    For a zero filter that stays, since it is tied to others or its channel becomes a constant further on,
    none that does something goes instead.

    Args:
        model: the network to prune.
        graph: its channels.
        ratio: share to remove, in [0, 1): of each layer's filters (scope ``layer``) or of all (``global``).
        scores: importance of every channel set, (sets,).
        scope: ``layer`` or ``global``.
        round_to: layers keep a multiple of so many filters (never more than they have).
        skip: glob patterns of layer names that keep all their filters.

    Returns:
        (ids of channel sets, ascending; how many more were among the least important, but the last of their
        group)
    """
    groups = [group for group in graph.groups if not skipped(group, skip)]
    scores = scores.copy()
    zero = zero_filters(graph)
    silent = silent_sets(model, graph, zero)
    silent[list(graph.locked)] = False
    scores[all_zero(graph, zero) & ~silent] = np.inf
    filters = np.zeros(len(scores), np.int64)
    for layer in graph.layers:
        filters += np.bincount(graph.set_of[layer.atoms], minlength=len(scores))
    chosen = [np.zeros(0, np.int64)]
    missing = 0
    for rivals in _sharing_layers(groups) if scope == "layer" else [groups]:
        ranked = [group.sets[np.argsort(scores[group.sets], kind="stable")] for group in rivals]
        available = np.concatenate([np.zeros(0, np.int64), *ranked])
        wanted = share(ratio, int(filters[available].sum()))
        names = {name for group in rivals for name in group.layers}
        staying = sum(
            int((~silent[graph.set_of[layer.atoms[zero[layer.name]]]]).sum())
            for layer in graph.layers
            if layer.name in names
        )
        wanted = min(wanted, max(int(filters[available[silent[available]]].sum()), wanted - staying))
        counts = _lowest([scores[sets] for sets in ranked], [filters[sets] for sets in ranked], wanted)
        for group, sets, count in zip(rivals, ranked, counts, strict=True):
            missing += count == len(sets)
            kept = _rounded(len(sets) - count, len(sets), step_of(graph, group, round_to))
            chosen.append(sets[: len(sets) - kept])
    return np.sort(np.concatenate(chosen)), missing


def is_convolutional(model: ir.Model, graph: ChannelGraph) -> bool:
    """Whether a convolution could lose filters, or one works on inner features without starting any channels.

    A multilayer perceptron is not, nor is a transformer whose only convolution cuts the image into patches.
    """
    starting = {name for group in graph.groups for name in group.layers}
    return any(
        node.name in starting or not (node.inputs[0] is None or node.inputs[0].is_graph_input())
        for node in model.graph
        if node.op_type in CONVOLUTIONS
    )


def skipped(group: Group, patterns: Sequence[str]) -> bool:
    """Whether one of the group's layers is to keep all its filters."""
    return any(matches(layer, patterns) for layer in group.layers)


def share(ratio: float, count: int) -> int:
    """The whole number that is a ratio of a count, rounded down."""
    return int(ratio * count + 1e-9)


def _sharing_layers(groups: list[Group]) -> list[list[Group]]:
    """Groups collected so that the filters of each layer compete with each other (a Split parts them)."""
    first_of: dict[str, int] = {}
    pairs = [(index, first_of.setdefault(name, index)) for index, g in enumerate(groups) for name in g.layers]
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    links = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(groups), len(groups)))
    part = connected_components(links, directed=False)[1] if groups else []
    return [[groups[index] for index in np.flatnonzero(part == each)] for each in np.unique(part)]


def _lowest(scores: list[np.ndarray], filters: list[np.ndarray], wanted: int) -> list[int]:
    """How many sets of each group are among the least important of all, which have ``wanted`` filters."""
    owner = np.repeat(np.arange(len(scores)), [len(each) for each in scores])
    order = np.argsort(np.concatenate([*scores, np.zeros(0)]), kind="stable")
    lost = np.cumsum(np.concatenate([*filters, np.zeros(0, np.int64)])[order])
    return np.bincount(owner[order[lost <= wanted]], minlength=len(scores)).tolist()


def step_of(graph: ChannelGraph, group: Group, round_to: int) -> int:
    """Sets per step, so that the widths of the group's layers are multiples of ``round_to``."""
    layer = next(layer for layer in graph.layers if layer.name in group.layers)
    filters_per_set = int(np.count_nonzero(graph.set_of[layer.atoms] == group.sets[0]))
    return round_to // gcd(round_to, filters_per_set)


def _rounded(kept: int, available: int, step: int) -> int:
    return min(available, ceil(max(kept, 1) / step) * step)
