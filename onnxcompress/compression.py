"""The verbs that change a network: choose, apply, repair, and say what became of it.

Each returns a `Compressed`: the network after every stage with its cost, and the plan that leads there.
Choosing (`pruning.selection`, `factoring.selection`, `planning.search`) only looks; applying only does
what a plan says. With calibration data, weights are then fitted to the original's responses (`recovery`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxcompress.calibration.samples import Parts, Source, read_samples, split
from onnxcompress.calibration.statistics import Moments, kept_statistics
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
from onnxcompress.pruning.channels import ChannelGraph
from onnxcompress.pruning.importance import CRITERIA, set_scores
from onnxcompress.pruning.interleaved import TAYLOR, prune_and_train, score_by_taylor
from onnxcompress.pruning.lrn import lrn_nodes, rewrite_lrn
from onnxcompress.pruning.surgery import filters_of, remove_filters
from onnxcompress.recovery.least_squares import refit
from onnxcompress.recovery.training import Training, in_words, trained
from onnxcompress.shapes import concrete_shapes
from onnxcompress.training.finetuning import Finetuned
from onnxcompress.training.trainer import Recipe

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
    """A network on its way.

    Attributes:
        name: ``original``, ``pruned`` (``rewritten`` when nothing was), ``decomposed``, ``trained``.
        model: the network.
        cost: of it.
        training: what training did; None for other stages.
    """

    name: str
    model: ir.Model
    cost: Cost
    training: Finetuned | None = None


@dataclass(frozen=True)
class Calibration:
    """Calibration data, and how they are read.

    Attributes:
        source: see `calibration.samples.read_samples`.
        preprocessing: from image to array; None takes what the network carries.
        limit: take at most so many samples, spread evenly.
        stats: file in which the statistics of the network on these data are kept from one call to the next.
        labels: whether Taylor importance and training use the data's labels; nothing else does.
    """

    source: Source
    preprocessing: Preprocessing | None = None
    limit: int | None = None
    stats: Path | None = None
    labels: bool = False


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
    step: float | None = None,
    finetune_steps: int = 100,
    flops_weight: float = 0.0,
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
        seed: of the random criterion, of labels that Taylor's draws, and of training.
        step: for Taylor pruning in rounds, with training in between (Molchanov et al. 2017): the share of the
            filters that goes in each. None for one round, after which the weights are fitted.
        finetune_steps: of training after each of these rounds.
        flops_weight: λ of Taylor importance (see `taylor_scores`): preference for filters with many MACs.
        data: to which the weights that stay are fitted.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: when the network or the data cannot be read or an option is out of range.
    """
    original = load(model)
    network = simplify(original)
    parts = _parts(original, data, progress)
    if step is not None:
        if criterion not in ("", TAYLOR) or data is None or parts is None:
            raise InputError(f"pruning in rounds goes by {TAYLOR} importance and needs data to train on")
        steps = _steps(progress, "pruning in rounds")
        pruned, filters = prune_and_train(
            network,
            parts.fit.data,
            ratio=ratio,
            step=step,
            steps=finetune_steps,
            labels=data.labels,
            limit=TAYLOR_SAMPLES,
            flops_weight=flops_weight,
            scope=scope,
            round_to=round_to,
            skip=tuple(skip),
            recipe=Recipe(seed=seed),
            preprocessing=data.preprocessing,
            progress=steps,
        )
        rounds = {"pruned": f"{finetune_steps} steps after each round"} if filters else {}
        plan = Plan(filters, kept=_kept(analyse(network, concrete_shapes(network)), skip), trained=rounds)
        stages = (Stage("original", original, cost(original)), Stage("pruned", pruned, cost(pruned)))
        return Compressed(stages if filters else stages[:1], plan, fitted=_fitted(original, pruned, parts))
    choice = _choose_filters(
        network, ratio, criterion, scope, round_to, skip, seed, data, parts, progress, flops_weight
    )
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
        rank: ``vbmf``, ``vbmf:FACTOR``, ``energy:SHARE`` or ``fraction:SHARE``; with data, of the layers'
            responses.
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
    training: Training | None = None,
    data: Calibration | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Prune and decompose. LRN nodes become banded convolutions: exact, and several times as fast.

    With a target, or an accuracy to keep, filters and ranks are chosen together under one budget, and the
    options of the single stages do not apply. Without: first prune, then decompose what is left, as Goyal et
    al. (2019) do; see `prune` and `decompose`.

    Args:
        target: ``macs=SHARE``, ``params=SHARE`` or ``size=SHARE`` of the original that may stay; needs data.
        keep_accuracy: for the smallest network that was found to keep this share of the original's top-1
            choices (of networks without classes, of its outputs' variance); needs data.
        method: ``joint`` or ``paper``: the first with a target or an accuracy, the second without.
        training: of the weights, when all is chosen and fitted; by the paper's method after each stage. Needs
            data. None for none.

    Raises:
        InputError: when the network or the data cannot be read or an option is out of range.
    """
    original = load(model)
    network = simplify(original)
    budgeted = bool(target) or keep_accuracy is not None
    if training is not None and data is None:
        raise InputError("training needs calibration data: give some with --data")
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
            result = _planned(original, planner, goal.share, progress)
        else:
            assert keep_accuracy is not None
            result = _keeping(original, planner, keep_accuracy, progress)
        return _trained(result, training, data, parts, progress)
    parts = _parts(original, data, progress)
    choice = _choose_filters(network, ratio, criterion, scope, round_to, skip, seed, data, parts, progress)
    pruning = Plan(choice.filters, lrn_nodes(network) if training is not None else [], kept=choice.kept)
    first = _result(original, network, pruning, choice, parts, progress)
    first = _trained(first, training, data, parts, progress)
    pruned = first.model if len(first.stages) > 1 else network
    include = _kinds(include_pointwise, include_gemm)
    moments = _moments(pruned, None if choice.filters else data, parts, progress)
    ranks, kept, layers = _choose_ranks(pruned, rank, round_to, skip, include, moments, progress)
    _check_skip(skip, [*choice.layers, *layers])
    plan = Plan(choice.filters, lrn_nodes(network), ranks, choice.kept | kept)
    if training is None:
        return _result(original, network, plan, choice, parts, progress)
    second = _result(original, pruned, Plan(decompose=ranks), choice, parts, progress)
    second = _trained(second, training, data, parts, progress)
    plan = replace(plan, trained=first.plan.trained | second.plan.trained)
    return replace(second, stages=(*first.stages, *second.stages[1:]), plan=plan)


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
        kind: of cost, ``macs``, ``params`` or ``size``.
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
    result = _result(original, survey.network, planned.plan, None, survey.parts, progress)
    assert result.fitted is not None
    fitted = replace(result.fitted, expected_damage=planned.damage)
    shortfall = ""
    if planned.share > share:
        shortfall = (
            f"{planned.share:.3f} of the {planner.kind} are left, not {share:.3f}: nothing else can go"
        )
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
) -> Compressed:
    stages = _stages(original, network, plan, parts, progress)
    fitted = _fitted(original, stages[-1].model, parts)
    if choice is None:
        return Compressed(stages, plan, fitted=fitted)
    return Compressed(stages, plan, choice.unknown, choice.shortfall, fitted)


def _fitted(original: ir.Model, network: ir.Model, parts: Parts | None) -> Fitted | None:
    if parts is None:
        return None
    close = closeness(original, network, parts.report)
    return Fitted(parts.fit.count, parts.choose.count, parts.report.count, close)


def _trained(
    result: Compressed,
    training: Training | None,
    data: Calibration | None,
    parts: Parts | None,
    progress: Progress | None,
) -> Compressed:
    """The result with one more stage; as it is where nothing was compressed."""
    if training is None or not (result.plan.prune or result.plan.decompose):
        return result
    assert data is not None
    assert parts is not None
    assert result.fitted is not None
    original, last = result.stages[0].model, result.stages[-1]
    done = trained(
        original,
        last.model,
        parts,
        training,
        preprocessing=data.preprocessing,
        progress=_steps(progress, "training"),
    )
    stage = Stage("trained", done.model, last.cost, done)
    close = closeness(original, done.model, parts.report)
    return replace(
        result,
        stages=(*result.stages, stage),
        plan=replace(result.plan, trained={last.name: in_words(done)}),
        fitted=replace(result.fitted, closeness=close),
    )


def _stages(
    original: ir.Model,
    network: ir.Model,
    plan: Plan,
    parts: Parts | None,
    progress: Progress | None,
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
        network, fits = refit(given, network, plan.prune, plan.decompose, parts.fit, parts.choose, steps)
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
    samples = read_samples(
        original, data.source, preprocessing=data.preprocessing, limit=data.limit, progress=steps
    )
    origin = samples.origin
    if data.labels and (origin is None or origin.labels is None):
        raise InputError("the calibration data has no labels: give labelled data, or leave out --labels")
    if origin is not None and not data.labels:
        samples = replace(samples, origin=replace(origin, labels=None))
    return split(samples)


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
    flops_weight: float = 0.0,
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
        assert data is not None
        assert parts is not None
        score = score_by_taylor(
            parts.fit.data,
            limit=TAYLOR_SAMPLES,
            seed=seed,
            flops_weight=flops_weight,
            preprocessing=data.preprocessing,
        )
        scores = score(network, graph)
    else:
        moments = _moments(network, data, parts, progress)
        assert moments is not None
        layers = factor_layers(network, concrete_shapes(network))
        scores = data_scores(criterion, graph, layers, moments)
    chosen, missing = filter_selection.select(
        network, graph, ratio=ratio, scores=scores, scope=scope, round_to=round_to, skip=tuple(skip)
    )
    shortfall = ""
    if scope == "global" and round_to == 1 and missing:
        wanted = len(chosen) + missing
        shortfall = f"{len(chosen)} of {wanted} channels could go: one of every group stays"
    names = [layer.name for layer in graph.layers]
    return _FilterChoice(filters_of(graph, chosen), _kept(graph, skip), names, graph.unknown, shortfall)


def _kept(graph: ChannelGraph, skip: Sequence[str]) -> dict[str, str]:
    """Why layers keep their filters."""
    reasons = {
        layer.name: "skipped as asked" if matches(layer.name, skip) else graph.reason(layer)
        for layer in graph.layers
    }
    return {name: reason for name, reason in reasons.items() if reason}


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
