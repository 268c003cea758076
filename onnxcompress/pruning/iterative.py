"""Pruning little by little, with training in between (Molchanov et al. 2017)."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.lrn import rewrite_lrn
from onnxcompress.progress import Progress, Steps, steps_of, within
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.channels import ChannelGraph
from onnxcompress.pruning.selection import select, skipped
from onnxcompress.pruning.surgery import filters_of, remove_filters
from onnxcompress.shapes import concrete_shapes

Score = Callable[[ir.Model, ChannelGraph, Steps | None], NDArray[np.float64]]
Recover = Callable[[ir.Model, Progress | None], ir.Model]


def prune_in_steps(
    network: ir.Model,
    *,
    ratio: float,
    step: float,
    score: Score,
    recover: Recover,
    scope: str = "global",
    round_to: int = 1,
    skip: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> tuple[ir.Model, dict[str, list[int]], int]:
    """Remove filters in several rounds: score, remove, recover.

    Args:
        network: a simplified network; not touched.
        ratio: share of the filters to remove in all, in [0, 1).
        step: share of the original filters to remove per round, in (0, 1).
        score: importance of every channel set of a network; told how far it is.
        recover: trains the weights of a network; likewise.
        scope: as for `selection.select`, like the next two.
        round_to: layers keep a multiple of so many filters.
        skip: glob patterns of layer names that keep all their filters.
        progress: called with (what is done, steps done, steps in all).

    Returns:
        (the network after the last recovery; the filters that were removed, by layer, with the numbers that
        they had in the beginning; how many channels more were to go in the end, but the last of their group)
    """
    rounds = max(1, int(np.ceil(ratio / step - 1e-9)))
    left: dict[str, NDArray[np.int64]] = {}
    removed: dict[str, list[int]] = {}
    available = missing = 0
    for number in range(1, rounds + 1):
        here = within(progress, f"round {number} of {rounds}")
        gone = sum(map(len, removed.values()))
        graph = analyse(network, concrete_shapes(network))
        if number == 1:
            left = {layer.name: np.arange(len(layer.atoms)) for layer in graph.layers}
            available = _available(graph, skip)
        chosen, missing = select(
            network,
            graph,
            ratio=min(1.0, max(0.0, (ratio * number / rounds * available - gone) / (available - gone))),
            scores=score(network, graph, steps_of(here, "scoring")),
            scope=scope,
            round_to=round_to,
            skip=skip,
        )
        filters = filters_of(graph, chosen)
        if filters:
            network = recover(remove_filters(network, filters), here)
        for name, indices in filters.items():
            removed.setdefault(name, []).extend(left[name][indices].tolist())
            left[name] = np.delete(left[name], indices)
    # Bands stay dense until now: cut into groups, they tie channels.
    network = rewrite_lrn(network, [])
    return network, {name: sorted(indices) for name, indices in removed.items()}, missing


def _available(graph: ChannelGraph, skip: tuple[str, ...]) -> int:
    """How many filters there are to choose from."""
    sets = [group.sets for group in graph.groups if not skipped(group, skip)]
    free = np.concatenate([np.zeros(0, np.int64), *sets])
    return max(1, sum(int(np.isin(graph.set_of[layer.atoms], free).sum()) for layer in graph.layers))
