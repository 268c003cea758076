"""The verbs that change a network: choose, apply, and say what became of it.

Each returns a `Compressed`: the network after every stage with its cost, and the plan that leads there.
Choosing (`pruning.selection`, `factoring.selection`) only looks; `apply` only does what a plan says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxcompress.errors import InputError
from onnxcompress.factoring import selection as rank_selection
from onnxcompress.factoring.layers import factor_layers
from onnxcompress.factoring.ranks import parse_rank
from onnxcompress.factoring.surgery import factor
from onnxcompress.measure.cost import Cost, cost
from onnxcompress.model import load, simplify
from onnxcompress.plan import Plan, Ranks, matches, read_plan
from onnxcompress.pruning import selection as filter_selection
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.importance import CRITERIA, set_scores
from onnxcompress.pruning.lrn import lrn_nodes, rewrite_lrn
from onnxcompress.pruning.surgery import filters_of, remove_filters
from onnxcompress.shapes import concrete_shapes

Progress = Callable[[int, int], None]

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Sums in the same order on any number of cores, for the same bytes; these matrices are too small for two."""


@dataclass(frozen=True)
class Stage:
    """A network on its way: ``original``, ``pruned`` (``rewritten`` when nothing was), ``decomposed``."""

    name: str
    model: ir.Model
    cost: Cost


@dataclass(frozen=True)
class Compressed:
    """The result of a verb.

    Attributes:
        stages: the original first, then one per stage that changed something.
        plan: what was done; `apply` does it again.
        unknown: operators without a pruning rule that held channels back, by node.
        shortfall: what was asked for and could not be done; empty when all was.
    """

    stages: tuple[Stage, ...]
    plan: Plan
    unknown: dict[str, str] = field(default_factory=dict)
    shortfall: str = ""

    @property
    def model(self) -> ir.Model:
        """The network after the last stage; the original itself when there was nothing to do."""
        return self.stages[-1].model


@one_blas_thread
def prune(
    model: ir.Model | str | Path,
    *,
    ratio: float = 0.3,
    criterion: str = "l2",
    scope: str = "layer",
    round_to: int = 1,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> Compressed:
    """Remove whole filters, and neurons of Gemm layers, with everything tied to them.

    Args:
        model: the network or its path.
        ratio: share of the filters to remove, in [0, 1).
        criterion: ``l1``, ``l2``, ``fpgm`` or ``random``: those that matter least by it go.
        scope: ``layer``: the share of every layer; ``global``: of the whole network, wherever they are.
        round_to: layers keep a multiple of so many filters.
        skip: glob patterns of node names that keep all their filters.
        seed: of the random criterion.

    Raises:
        InputError: when the network cannot be read or an option is out of range.
    """
    original = load(model)
    network = simplify(original)
    choice = _choose_filters(network, ratio, criterion, scope, round_to, skip, seed)
    _check_skip(skip, choice.layers)
    plan = Plan(prune=choice.filters, kept=choice.kept)
    return Compressed(_stages(original, network, plan), plan, choice.unknown, choice.shortfall)


@one_blas_thread
def decompose(
    model: ir.Model | str | Path,
    *,
    rank: str = "vbmf",
    round_to: int = 1,
    skip: Sequence[str] = (),
    include_pointwise: bool = False,
    include_gemm: bool = False,
    progress: Progress | None = None,
) -> Compressed:
    """Factor convolutions larger than 1×1 by Tucker-2; leave alone what would not have fewer MACs.

    Of a layer with up to 4 input channels (the first one) only the output side is factored.

    Args:
        model: the network or its path.
        rank: ``vbmf``, ``energy:SHARE`` or ``fraction:SHARE``.
        round_to: ranks are rounded up to a multiple of this.
        skip: glob patterns of node names that stay as they are.
        include_pointwise: factor 1×1 convolutions too, by singular value decomposition.
        include_gemm: factor Gemm and MatMul layers too, likewise.
        progress: called with (layers done, layers in all).

    Raises:
        InputError: when the network cannot be read or an option is out of range.
    """
    original = load(model)
    network = simplify(original)
    include = _kinds(include_pointwise, include_gemm)
    ranks, kept, layers = _choose_ranks(network, rank, round_to, skip, include, progress)
    _check_skip(skip, layers)
    plan = Plan(decompose=ranks, kept=kept)
    return Compressed(_stages(original, network, plan), plan)


@one_blas_thread
def compress(
    model: ir.Model | str | Path,
    *,
    ratio: float = 0.3,
    criterion: str = "l2",
    scope: str = "layer",
    rank: str = "vbmf",
    round_to: int = 1,
    skip: Sequence[str] = (),
    include_pointwise: bool = False,
    include_gemm: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Prune, then decompose what is left: the order of Goyal et al. (2019). See `prune`, `decompose`.

    LRN nodes are written as banded convolutions, which is exact and several times as fast.
    """
    original = load(model)
    network = simplify(original)
    choice = _choose_filters(network, ratio, criterion, scope, round_to, skip, seed)
    pruned = remove_filters(network, choice.filters) if choice.filters else network
    include = _kinds(include_pointwise, include_gemm)
    ranks, kept, layers = _choose_ranks(pruned, rank, round_to, skip, include, progress)
    _check_skip(skip, [*choice.layers, *layers])
    plan = Plan(choice.filters, lrn_nodes(network), ranks, choice.kept | kept)
    return Compressed(_stages(original, network, plan), plan, choice.unknown, choice.shortfall)


@one_blas_thread
def apply(model: ir.Model | str | Path, plan: Plan | str | Path) -> Compressed:
    """Do what a plan says, no more and no less.

    Args:
        model: the network or its path.
        plan: the plan or its path.

    Raises:
        InputError: when either cannot be read, or the plan does not fit the network.
    """
    original = load(model)
    if not isinstance(plan, Plan):
        plan = read_plan(plan)
    return Compressed(_stages(original, simplify(original), plan), plan)


def _stages(original: ir.Model, network: ir.Model, plan: Plan) -> tuple[Stage, ...]:
    stages = [Stage("original", original, cost(original))]
    if unknown := set(plan.rewrite) - set(lrn_nodes(network)):
        raise InputError(f"rewrite: there is no LRN node '{min(unknown)}'")
    if plan.prune:
        network = remove_filters(network, plan.prune)
    if plan.rewrite:
        network = rewrite_lrn(network, plan.rewrite)
    if plan.prune or plan.rewrite:
        stages.append(Stage("pruned" if plan.prune else "rewritten", network, cost(network)))
    if plan.decompose:
        network = factor(network, plan.decompose)
        stages.append(Stage("decomposed", network, cost(network)))
    return tuple(stages)


@dataclass(frozen=True)
class _FilterChoice:
    filters: dict[str, list[int]]
    kept: dict[str, str]
    layers: list[str]
    unknown: dict[str, str]
    shortfall: str


def _choose_filters(
    network: ir.Model, ratio: float, criterion: str, scope: str, round_to: int, skip: Sequence[str], seed: int
) -> _FilterChoice:
    if not 0 <= ratio < 1:
        raise InputError(f"ratio: {ratio} is not in [0, 1)")
    if criterion not in CRITERIA:
        raise InputError(f"criterion: '{criterion}' is not one of {', '.join(CRITERIA)}")
    if scope not in ("layer", "global"):
        raise InputError(f"scope: '{scope}' is not one of layer, global")
    _check_round_to(round_to)
    graph = analyse(network, concrete_shapes(network))
    if not filter_selection.is_convolutional(network, graph):
        whole = "only networks with convolutions on inner features are pruned"
        kept = {layer.name: graph.reason(layer) or whole for layer in graph.layers}
        return _FilterChoice({}, kept, list(kept), {}, "")
    chosen, missing = filter_selection.select(
        network,
        graph,
        ratio=ratio,
        scores=set_scores(graph, criterion, seed),
        scope=scope,
        round_to=round_to,
        skip=tuple(skip),
    )
    kept = {}
    for layer in graph.layers:
        if matches(layer.name, skip):
            kept[layer.name] = "skipped as asked"
        elif reason := graph.reason(layer):
            kept[layer.name] = reason
    shortfall = ""
    if scope == "global" and round_to == 1 and missing:
        wanted = len(chosen) + missing
        shortfall = f"{len(chosen)} of {wanted} channels could go: one of every group stays"
    return _FilterChoice(
        filters_of(graph, chosen), kept, [layer.name for layer in graph.layers], graph.unknown, shortfall
    )


def _choose_ranks(
    network: ir.Model,
    rank: str,
    round_to: int,
    skip: Sequence[str],
    include: frozenset[str],
    progress: Progress | None,
) -> tuple[dict[str, Ranks], dict[str, str], list[str]]:
    rule = parse_rank(rank)
    _check_round_to(round_to)
    layers = factor_layers(network, concrete_shapes(network))
    ranks, kept = rank_selection.select(
        layers, rank=rule, round_to=round_to, skip=tuple(skip), include=include, progress=progress
    )
    return ranks, kept, [layer.name for layer in layers]


def _kinds(include_pointwise: bool, include_gemm: bool) -> frozenset[str]:
    return frozenset(
        {"kxk"} | ({"1x1"} if include_pointwise else set()) | ({"gemm"} if include_gemm else set())
    )


def _check_round_to(round_to: int) -> None:
    if round_to < 1:
        raise InputError(f"round-to: {round_to} is not at least 1")


def _check_skip(patterns: Sequence[str], layers: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(layer, [pattern]) for layer in layers):
            raise InputError(
                f"skip: no layer matches '{pattern}'; see `onnxcompress inspect` for their names"
            )
