"""The verbs that change a network: choose, apply, repair, and say what became of it.

Each returns a `Compressed`: the network after every stage with its cost, and the plan that leads there.
Choosing (`pruning.selection`, `factoring.selection`, `planning.search`) only looks; applying only does
what a plan says. With calibration data, weights are then fitted to the original's responses (`recovery`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxcompress.calibration.samples import Parts, Samples, Source, read_samples, split
from onnxcompress.calibration.statistics import Moments, kept_statistics
from onnxcompress.data import Data
from onnxcompress.errors import InputError
from onnxcompress.factoring import selection as rank_selection
from onnxcompress.factoring.layers import factor_layers
from onnxcompress.factoring.ranks import parse_rank
from onnxcompress.factoring.surgery import check_ranks, factor
from onnxcompress.measure.closeness import Closeness, closeness
from onnxcompress.measure.cost import Cost, cost
from onnxcompress.model import load, simplify
from onnxcompress.plan import Plan, Ranks, matches, read_plan
from onnxcompress.planning.search import Planner, parse_target
from onnxcompress.planning.survey import survey
from onnxcompress.preprocessing import Preprocessing
from onnxcompress.pruning import selection as filter_selection
from onnxcompress.pruning.activations import DATA_CRITERIA, data_scores
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.importance import CRITERIA, set_scores
from onnxcompress.pruning.interleaved import TAYLOR, score_by_taylor
from onnxcompress.pruning.lrn import lrn_nodes, rewrite_lrn
from onnxcompress.pruning.surgery import filters_of, remove_filters
from onnxcompress.recovery.least_squares import refit
from onnxcompress.recovery.metric import metrics
from onnxcompress.shapes import concrete_shapes

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, and steps in all."""

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Sums in the same order on any number of cores, for the same bytes; these matrices are too small for two."""

SMALLEST = 0.1
"""Share of the MACs below which no network is looked for that keeps an accuracy."""

PRECISION = 0.1
"""Relative, of the share of the MACs at which such a network is found."""


TAYLOR_SAMPLES = 200
"""That filters are scored by; more change the order little."""


@dataclass(frozen=True)
class Stage:
    """A network on its way: ``original``, ``pruned`` (``rewritten`` when nothing was), ``decomposed``."""

    name: str
    model: ir.Model
    cost: Cost


@dataclass(frozen=True)
class Calibration:
    """Calibration data, and how they are read.

    Attributes:
        source: see `calibration.samples.read_samples`; labels are not used.
        preprocessing: from image to array; None takes what the network carries.
        limit: take at most so many samples, spread evenly.
        stats: file in which the statistics of the network on these data are kept from one call to the next.
    """

    source: Source
    preprocessing: Preprocessing | None = None
    limit: int | None = None
    stats: Path | None = None


@dataclass(frozen=True)
class Fitted:
    """What calibration samples were used for, each for one purpose.

    Attributes:
        fit: number of samples that weights were fitted to.
        choose: number of those that ranks and filters were chosen by.
        report: number of those that nothing was, on which `closeness` was measured.
        closeness: of the result to the original.
        expected_damage: of the plan, before the repair, as `Closeness.damage`; None without a target.
    """

    fit: int
    choose: int
    report: int
    closeness: Closeness
    expected_damage: float | None = None


@dataclass(frozen=True)
class Point:
    """One network of a trade-off.

    Attributes:
        share: of the original's cost that was asked for.
        macs, params: that it has.
        fitted: what was measured of it.
    """

    share: float
    macs: int
    params: int
    fitted: Fitted


@dataclass(frozen=True)
class Compressed:
    """The result of a verb.

    Attributes:
        stages: the original first, then one per stage that changed something.
        plan: what was done; `apply` does it again.
        unknown: operators without a pruning rule that held channels back, by node.
        shortfall: what was asked for and could not be done; empty when all was.
        fitted: what calibration data were used for; None without any.
    """

    stages: tuple[Stage, ...]
    plan: Plan
    unknown: dict[str, str] = field(default_factory=dict)
    shortfall: str = ""
    fitted: "Fitted | None" = None

    @property
    def model(self) -> ir.Model:
        """The network after the last stage; the original itself when there was nothing to do."""
        return self.stages[-1].model


@one_blas_thread
def prune(
    model: ir.Model | str | Path,
    *,
    ratio: float = 0.3,
    criterion: str = "",
    scope: str = "layer",
    round_to: int = 1,
    skip: Sequence[str] = (),
    seed: int = 0,
    data: Calibration | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Remove whole filters, and neurons of Gemm layers, with everything tied to them.

    Args:
        model: the network or its path.
        ratio: share of the filters to remove, in [0, 1).
        criterion: those that matter least by it go: ``l1``, ``l2``, ``fpgm`` or ``random``, and with data
            ``apoz``, ``activation``, ``reconstruction`` or ``taylor``. Empty: ``reconstruction`` with data,
            else ``l2``.
        scope: ``layer``: the share of every layer; ``global``: of the whole network, wherever they are.
        round_to: layers keep a multiple of so many filters.
        skip: glob patterns of node names that keep all their filters.
        seed: of the random criterion.
        data: to which the weights that stay are fitted.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: when the network or the data cannot be read or an option is out of range.
    """
    original = load(model)
    network = simplify(original)
    parts = _parts(original, data, progress)
    choice = _choose_filters(network, ratio, criterion, scope, round_to, skip, seed, data, parts, progress)
    _check_skip(skip, choice.layers)
    plan = Plan(prune=choice.filters, kept=choice.kept)
    return _result(original, network, plan, choice, parts, progress)


@one_blas_thread
def decompose(
    model: ir.Model | str | Path,
    *,
    rank: str = "vbmf",
    round_to: int = 1,
    skip: Sequence[str] = (),
    include_pointwise: bool = False,
    include_gemm: bool = False,
    data: Calibration | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Factor convolutions larger than 1×1 by Tucker-2; leave alone what would not have fewer MACs.

    Of a layer with up to 4 input channels (the first one) only the output side is factored.

    Args:
        model: the network or its path.
        rank: ``vbmf``, ``energy:SHARE`` or ``fraction:SHARE``; with data, of the layers' responses.
        round_to: ranks are rounded up to a multiple of this.
        skip: glob patterns of node names that stay as they are.
        include_pointwise: factor 1×1 convolutions too, by singular value decomposition.
        include_gemm: factor Gemm and MatMul layers too, likewise.
        data: to which the factors and all other weights are fitted.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: when the network or the data cannot be read or an option is out of range.
    """
    original = load(model)
    network = simplify(original)
    parts = _parts(original, data, progress)
    include = _kinds(include_pointwise, include_gemm)
    moments = _moments(network, data, parts, progress)
    ranks, kept, layers = _choose_ranks(network, rank, round_to, skip, include, moments, progress)
    _check_skip(skip, layers)
    return _result(original, network, Plan(decompose=ranks, kept=kept), None, parts, progress)


@one_blas_thread
def compress(
    model: ir.Model | str | Path,
    *,
    target: str = "",
    keep_accuracy: float | None = None,
    method: str = "",
    ratio: float = 0.3,
    criterion: str = "",
    scope: str = "layer",
    rank: str = "vbmf",
    round_to: int = 1,
    skip: Sequence[str] = (),
    include_pointwise: bool = False,
    include_gemm: bool = False,
    seed: int = 0,
    data: Calibration | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Prune and decompose. LRN nodes become banded convolutions: exact, and several times as fast.

    With a target, or an accuracy to keep, filters and ranks are chosen together under one budget, and the
    options of the single stages do not apply. Without: first prune, then decompose what is left, as Goyal et
    al. (2019) do; see `prune` and `decompose`.

    Args:
        target: ``macs=SHARE`` or ``params=SHARE`` of the original that may stay; needs data.
        keep_accuracy: for the smallest network that was found to keep this share of the original's top-1
            choices (of networks without classes, of its outputs' variance); needs data.
        method: ``joint`` or ``paper``: the first with a target or an accuracy, the second without.

    Raises:
        InputError: when the network or the data cannot be read or an option is out of range.
    """
    original = load(model)
    network = simplify(original)
    budgeted = bool(target) or keep_accuracy is not None
    if method not in ("", "joint", "paper"):
        raise InputError(f"method: '{method}' is not one of joint, paper")
    if method and budgeted != (method == "joint"):
        raise InputError("method: joint needs a target or an accuracy to keep; paper takes neither")
    if budgeted:
        if data is None:
            raise InputError("a target or an accuracy to keep needs calibration data: give some with --data")
        if target and keep_accuracy is not None:
            raise InputError("give a target or an accuracy to keep, not both")
        parts = _parts(original, data, progress)
        assert parts is not None
        goal = parse_target(target) if target else None
        moments = _moments(network, data, parts, progress)
        found = survey(network, parts, moments)
        _check_skip(skip, [layer.name for layer in found.layers])
        kind = goal.kind if goal else "macs"
        planner = Planner(found, kind, rewrite=lrn_nodes(network), skip=skip, progress=progress)
        if goal is not None:
            return _planned(original, planner, goal.share, progress)
        assert keep_accuracy is not None
        return _keeping(original, planner, keep_accuracy, progress)
    parts = _parts(original, data, progress)
    choice = _choose_filters(network, ratio, criterion, scope, round_to, skip, seed, data, parts, progress)
    pruned = remove_filters(network, choice.filters) if choice.filters else network
    if parts is not None:
        pruned, _ = refit(network, pruned, choice.filters, {}, parts.fit, _steps(progress, "fitting weights"))
    include = _kinds(include_pointwise, include_gemm)
    moments = _moments(pruned, None if choice.filters else data, parts, progress)
    ranks, kept, layers = _choose_ranks(pruned, rank, round_to, skip, include, moments, progress)
    _check_skip(skip, [*choice.layers, *layers])
    plan = Plan(choice.filters, lrn_nodes(network), ranks, choice.kept | kept)
    return _result(original, network, plan, choice, parts, progress)


@one_blas_thread
def apply(
    model: ir.Model | str | Path,
    plan: Plan | str | Path,
    *,
    data: Calibration | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Do what a plan says, no more and no less.

    Args:
        model: the network or its path.
        plan: the plan or its path.
        data: to which the weights are fitted; without any, factors are those of the weights.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: when one of them cannot be read, or the plan does not fit the network.
    """
    original = load(model)
    if not isinstance(plan, Plan):
        plan = read_plan(plan)
    return _result(original, simplify(original), plan, None, _parts(original, data, progress), progress)


@one_blas_thread
def tradeoff(
    model: ir.Model | str | Path,
    *,
    data: Calibration,
    kind: str = "macs",
    shares: Sequence[float] = (0.8, 0.65, 0.5, 0.4, 0.3),
    skip: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[Point]:
    """How much is lost at which cost: a network is built for every share of the original's cost.

    Args:
        model: the network or its path.
        data: to which the weights are fitted.
        kind: of cost, ``macs`` or ``params``.
        shares: of the original's cost, each above 0 and below 1.
        skip: glob patterns of node names that stay as they are.
        progress: called with (what is done, steps done, steps in all).

    Returns:
        one point per share, descending.
    """
    original = load(model)
    network = simplify(original)
    parts = _parts(original, data, progress)
    assert parts is not None
    goals = [parse_target(f"{kind}={share}").share for share in sorted(shares, reverse=True)]
    found = survey(network, parts, _moments(network, data, parts, progress))
    planner = Planner(found, kind, rewrite=lrn_nodes(network), skip=skip, progress=progress)
    points = []
    for share in goals:
        result = _planned(original, planner, share, progress)
        assert result.fitted is not None
        points.append(Point(share, result.stages[-1].cost.macs, result.stages[-1].cost.params, result.fitted))
    return points


def _planned(original: ir.Model, planner: Planner, share: float, progress: Progress | None) -> Compressed:
    planned = planner.plan(share)
    survey = planner.survey
    result = _result(
        original, survey.network, planned.plan, None, survey.parts, progress, planner.sensitivity
    )
    assert result.fitted is not None
    fitted = replace(result.fitted, expected_damage=planned.damage)
    shortfall = ""
    if (reached := planner.share_of(planned.plan)) > share:
        shortfall = f"{reached:.3f} of the {planner.kind} are left, not {share:.3f}: nothing else can go"
    return replace(result, unknown=survey.graph.unknown, fitted=fitted, shortfall=shortfall)


def _keeping(original: ir.Model, planner: Planner, wanted: float, progress: Progress | None) -> Compressed:
    """The smallest of some networks, found by bisection, that keeps enough on the samples for choosing."""
    if not 0 < wanted <= 1:
        raise InputError(f"keep-accuracy: {wanted} is not in (0, 1]")
    low, high, best = SMALLEST, 1.0, None
    while high / low > 1 + PRECISION:
        share = (low * high) ** 0.5
        result = _planned(original, planner, share, progress)
        close = closeness(original, result.model, planner.survey.parts.choose)
        if close.kept >= wanted and not result.shortfall:
            high, best = share, result
        else:
            low = share
    if best is not None:
        return best
    nothing = Compressed((Stage("original", original, cost(original)),), Plan())
    return replace(nothing, shortfall=f"no smaller network was found to keep {wanted}")


def _result(
    original: ir.Model,
    network: ir.Model,
    plan: Plan,
    choice: "_FilterChoice | None",
    parts: Parts | None,
    progress: Progress | None,
    sensitivity: Mapping[str, float] | None = None,
) -> Compressed:
    stages = _stages(original, network, plan, parts, progress, sensitivity)
    fitted = None
    if parts is not None:
        close = closeness(original, stages[-1].model, parts.report)
        fitted = Fitted(parts.fit.count, parts.choose.count, parts.report.count, close)
    if choice is None:
        return Compressed(stages, plan, fitted=fitted)
    return Compressed(stages, plan, choice.unknown, choice.shortfall, fitted)


def _stages(
    original: ir.Model,
    network: ir.Model,
    plan: Plan,
    parts: Parts | None,
    progress: Progress | None,
    sensitivity: Mapping[str, float] | None,
) -> tuple[Stage, ...]:
    stages = [Stage("original", original, cost(original))]
    if unknown := set(plan.rewrite) - set(lrn_nodes(network)):
        raise InputError(f"rewrite: there is no LRN node '{min(unknown)}'")
    given = network
    if plan.prune:
        network = remove_filters(network, plan.prune)
    if plan.rewrite:
        network = rewrite_lrn(network, plan.rewrite)
    factors = {}
    if parts is not None and (plan.prune or plan.decompose):
        check_ranks(network, plan.decompose)
        steps = _steps(progress, "fitting weights")
        costs = {}
        if sensitivity is not None:
            shapes = concrete_shapes(network)
            costs = metrics(analyse(network, shapes), factor_layers(network, shapes), sensitivity)
        network, fits = refit(given, network, plan.prune, plan.decompose, parts.fit, steps, costs)
        factors = {name: fit.factors for name, fit in fits.items() if fit.factors is not None}
    if plan.prune or plan.rewrite:
        stages.append(Stage("pruned" if plan.prune else "rewritten", network, cost(network)))
    if plan.decompose:
        network = factor(network, plan.decompose, factors)
        stages.append(Stage("decomposed", network, cost(network)))
    return tuple(stages)


def _parts(original: ir.Model, data: Calibration | None, progress: Progress | None) -> Parts | None:
    if data is None:
        return None
    steps = _steps(progress, "reading the data")
    return split(
        read_samples(
            original, data.source, preprocessing=data.preprocessing, limit=data.limit, progress=steps
        )
    )


def _moments(
    network: ir.Model, data: Calibration | None, parts: Parts | None, progress: Progress | None
) -> Mapping[str, Moments] | None:
    if parts is None:
        return None
    layers = factor_layers(network, concrete_shapes(network))
    steps = _steps(progress, "collecting statistics")
    return kept_statistics(data.stats if data is not None else None, network, layers, parts.fit, steps)


def _steps(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    report = progress
    return lambda done, total: report(what, done, total)


@dataclass(frozen=True)
class _FilterChoice:
    filters: dict[str, list[int]]
    kept: dict[str, str]
    layers: list[str]
    unknown: dict[str, str]
    shortfall: str


def _choose_filters(
    network: ir.Model,
    ratio: float,
    criterion: str,
    scope: str,
    round_to: int,
    skip: Sequence[str],
    seed: int,
    data: Calibration | None,
    parts: Parts | None,
    progress: Progress | None,
) -> _FilterChoice:
    if not 0 <= ratio < 1:
        raise InputError(f"ratio: {ratio} is not in [0, 1)")
    criterion = criterion or ("l2" if data is None else "reconstruction")
    known = (*CRITERIA, *DATA_CRITERIA, TAYLOR)
    if criterion not in known:
        raise InputError(f"criterion: '{criterion}' is not one of {', '.join(known)}")
    if criterion not in CRITERIA and parts is None:
        raise InputError(f"criterion: {criterion} needs calibration data: give some with --data")
    if scope not in ("layer", "global"):
        raise InputError(f"scope: '{scope}' is not one of layer, global")
    _check_round_to(round_to)
    graph = analyse(network, concrete_shapes(network))
    if not filter_selection.is_convolutional(network, graph):
        whole = "only networks with convolutions on inner features are pruned"
        kept = {layer.name: graph.reason(layer) or whole for layer in graph.layers}
        return _FilterChoice({}, kept, list(kept), {}, "")
    if criterion in CRITERIA:
        scores = set_scores(graph, criterion, seed)
    elif criterion == TAYLOR:
        assert parts is not None
        scores = score_by_taylor(_spread(parts.fit, TAYLOR_SAMPLES), seed=seed)(network, graph)
    else:
        moments = _moments(network, data, parts, progress)
        assert moments is not None
        layers = factor_layers(network, concrete_shapes(network))
        scores = data_scores(criterion, graph, layers, moments)
    chosen, missing = filter_selection.select(
        network, graph, ratio=ratio, scores=scores, scope=scope, round_to=round_to, skip=tuple(skip)
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


def _spread(samples: Samples, count: int) -> Data:
    """At most so many samples of a network with one input, without labels."""
    if len(samples.arrays) != 1:
        raise InputError(f"criterion: {TAYLOR} needs a network with one input")
    (array,) = samples.arrays.values()
    first = samples.chosen[:: samples.views]
    rows = first[:: max(1, len(first) // count)][:count]
    return Data("calibration data", np.asarray(array[rows]), None)


def _choose_ranks(
    network: ir.Model,
    rank: str,
    round_to: int,
    skip: Sequence[str],
    include: frozenset[str],
    moments: Mapping[str, Moments] | None,
    progress: Progress | None,
) -> tuple[dict[str, Ranks], dict[str, str], list[str]]:
    rule = parse_rank(rank)
    _check_round_to(round_to)
    layers = factor_layers(network, concrete_shapes(network))
    ranks, kept = rank_selection.select(
        layers,
        rank=rule,
        round_to=round_to,
        skip=tuple(skip),
        include=include,
        moments=moments,
        progress=_steps(progress, "choosing ranks"),
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
