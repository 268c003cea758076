"""The verbs that change a network: choose, carry out, and say what became of it.

Each returns a `Compressed`: the network after every stage with its cost, and the plan that leads there.
Choosing (`choosing`, `planning.search`) only looks; carrying out (`pipeline`) only does what a plan says.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from onnxcompress.calibration.given import Calibration, calibration, moments_on, read_parts
from onnxcompress.calibration.samples import Parts, Source
from onnxcompress.choosing import (
    TAYLOR_SAMPLES,
    FilterChoice,
    FilterRule,
    RankRule,
    check_round_to,
    check_skip,
    choose_filters,
    choose_ranks,
    reasons_to_keep,
    shortfall_of,
)
from onnxcompress.errors import InputError, naming
from onnxcompress.layers import factor_layers, names_of
from onnxcompress.lrn import lrn_nodes
from onnxcompress.measure.closeness import closeness
from onnxcompress.measure.cost import cost
from onnxcompress.model import load, simplify
from onnxcompress.pipeline import carry_out, measured, prepared, train
from onnxcompress.plan import Plan, members, read_plan
from onnxcompress.planning.costs import KINDS, network_cost, parse_target
from onnxcompress.planning.search import Planner
from onnxcompress.planning.survey import survey
from onnxcompress.progress import Progress
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.taylor import TAYLOR
from onnxcompress.recovery.interleaved import prune_and_train
from onnxcompress.recovery.training import Training
from onnxcompress.results import Compressed, Point, Stage
from onnxcompress.shapes import concrete_shapes
from onnxcompress.siblings import siblings
from onnxcompress.threads import one_blas_thread
from onnxcompress.training.finetuning import check_trainable
from onnxcompress.training.trainer import Recipe

SMALLEST = 0.1
"""Share of the MACs below which no network is looked for that keeps an accuracy."""

PRECISION = 0.1
"""Relative, of the share of the MACs at which such a network is found."""


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
    data: Calibration | Source | None = None,
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
    rule = FilterRule(ratio, criterion, scope, round_to, skip, seed, flops_weight)
    data = calibration(data)
    original = load(model)
    network = prepared(original)
    parts = read_parts(original, data, progress)
    if step is not None:
        return _pruned_in_rounds(original, network, rule, step, finetune_steps, data, parts, progress)
    choice = choose_filters(network, rule, data, parts, progress)
    check_skip(skip, choice.layers)
    plan = Plan(prune=choice.filters, kept=choice.kept)
    return _noting(choice, carry_out(original, network, plan, parts, progress))


@one_blas_thread
def decompose(
    model: ir.Model | str | Path,
    *,
    rank: str = "vbmf",
    round_to: int = 1,
    skip: Sequence[str] = (),
    include_pointwise: bool = False,
    include_gemm: bool = False,
    data: Calibration | Source | None = None,
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
    rule = RankRule(rank, round_to, skip, include_pointwise, include_gemm)
    data = calibration(data)
    original = load(model)
    network = prepared(original)
    parts = read_parts(original, data, progress)
    choice = choose_ranks(network, rule, moments_on(network, data, parts, progress), progress)
    check_skip(skip, choice.layers)
    return carry_out(original, network, Plan(decompose=choice.ranks, kept=choice.kept), parts, progress)


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
    data: Calibration | Source | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Prune and decompose. LRN nodes become banded convolutions: exact, and several times as fast.

    With a target, or an accuracy to keep, filters and ranks are chosen together under one budget, and the
    options of the single stages do not apply. Without: first prune, then decompose what is left, as Goyal et
    al. (2019) do; see `prune` and `decompose`.

    Args:
        model: the network or its path.
        target: ``macs=SHARE``, ``params=SHARE`` or ``size=SHARE`` of the original that may stay; needs data.
        keep_accuracy: for the smallest network that was found to keep this share of the original's top-1
            choices (of networks without classes, of its outputs' variance); needs data.
        method: ``joint`` or ``paper``: the first with a target or an accuracy, the second without.
        ratio, criterion, scope: as of `prune`.
        rank, include_pointwise, include_gemm: as of `decompose`.
        round_to: layers keep a multiple of so many filters, or with a target all; ranks are such multiples.
        skip: glob patterns of node names that keep their filters and are not factored.
        seed: of the random criterion.
        training: of the weights, when all is chosen and fitted; by the paper's method after each stage. Needs
            data. None for none.

    Raises:
        InputError: when the network or the data cannot be read or an option is out of range.
    """
    data = calibration(data)
    original = load(model)
    budgeted = bool(target) or keep_accuracy is not None
    if training is not None:
        if data is None:
            raise InputError("training needs calibration data: give some with --data")
        if data.labels and data.values:
            raise InputError("labels are of classes, values are numbers: leave out --labels or --values")
    if method not in ("", "joint", "paper"):
        raise InputError(f"method: '{method}' is not one of joint, paper")
    if method == "joint" and not budgeted:
        raise InputError("method: joint needs a target or an accuracy to keep")
    if method == "paper" and budgeted:
        raise InputError("method: paper takes no target and no accuracy to keep; leave out one or the other")
    if keep_accuracy is not None and not 0 < keep_accuracy <= 1:
        raise InputError(f"keep-accuracy: {keep_accuracy} is not in (0, 1]; 99 % is 0.99")
    if target and keep_accuracy is not None:
        raise InputError("give a target or an accuracy to keep, not both")
    if budgeted:
        if data is None:
            raise InputError("a target or an accuracy to keep needs calibration data: give some with --data")
        check_round_to(round_to)
        return _under_budget(original, target, keep_accuracy, round_to, skip, training, data, progress)
    filters = FilterRule(ratio, criterion, scope, round_to, skip, seed)
    ranks = RankRule(rank, round_to, skip, include_pointwise, include_gemm)
    return _by_the_paper(original, filters, ranks, training, data, progress)


@one_blas_thread
def apply(
    model: ir.Model | str | Path,
    plan: Plan | str | Path,
    *,
    data: Calibration | Source | None = None,
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
    data = calibration(data)
    original = load(model)
    files = () if isinstance(plan, Plan) else (Path(plan),)
    if not isinstance(plan, Plan):
        plan = read_plan(plan)
    parts = read_parts(original, data, progress)
    with naming(files):
        return carry_out(original, prepared(original), plan, parts, progress)


@one_blas_thread
def tradeoff(
    model: ir.Model | str | Path,
    *,
    data: Calibration | Source,
    kind: str = "macs",
    shares: Sequence[float] = (0.8, 0.65, 0.5, 0.4, 0.3),
    round_to: int = 1,
    skip: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[Point]:
    """How much is lost at which cost: a network is built for every share of the original's cost.

    Args:
        model: the network or its path.
        data: to which the weights are fitted.
        kind: of cost, ``macs``, ``params`` or ``size``.
        shares: of the original's cost, each above 0 and below 1.
        round_to: layers keep a multiple of so many filters, or all, and ranks are such.
        skip: glob patterns of node names that stay as they are.
        progress: called with (what is done, steps done, steps in all).

    Returns:
        one point per share, descending.

    Raises:
        InputError: when kind, shares or data are none that can be worked with, or the network cannot be read.
    """
    data = calibration(data)
    if kind not in KINDS:
        raise InputError(f"kind: '{kind}' is not one of {', '.join(KINDS)}")
    if wrong := [share for share in shares if not 0 < share < 1]:
        raise InputError(f"shares: {wrong[0]:g} is not above 0 and below 1: the share that may stay")
    check_round_to(round_to)
    original = load(model)
    parts = read_parts(original, data, progress)
    assert parts is not None
    planner = _planner(original, kind, round_to, skip, data, parts, progress)
    points = []
    for share in sorted(shares, reverse=True):
        result = _planned(original, planner, share, progress)
        assert result.fitted is not None
        found = result.stages[-1].cost
        points.append(Point(share, found.macs, found.params, result.fitted, result.shortfall))
    return points


def _pruned_in_rounds(
    original: ir.Model,
    network: ir.Model,
    rule: FilterRule,
    step: float,
    finetune_steps: int,
    data: Calibration | None,
    parts: Parts | None,
    progress: Progress | None,
) -> Compressed:
    if rule.criterion not in ("", TAYLOR):
        raise InputError(f"criterion: pruning in rounds goes by {TAYLOR} importance, not {rule.criterion}")
    if data is None or parts is None:
        raise InputError("pruning in rounds trains in between: give samples with --data")
    graph = analyse(network, concrete_shapes(network))
    check_skip(rule.skip, [layer.name for layer in graph.layers])
    pruned, filters, missing = prune_and_train(
        network,
        parts.fit.data,
        ratio=rule.ratio,
        step=step,
        steps=finetune_steps,
        labels=data.labels,
        limit=TAYLOR_SAMPLES,
        flops_weight=rule.flops_weight,
        scope=rule.scope,
        round_to=rule.round_to,
        skip=tuple(rule.skip),
        recipe=Recipe(seed=rule.seed),
        preprocessing=data.preprocessing,
        mirror=data.mirror,
        progress=progress,
    )
    stages = [Stage("original", original, cost(original))]
    rounds = {}
    if filters:
        stages.append(Stage("pruned", pruned, cost(pruned)))
        rounds = {"pruned": f"{finetune_steps} steps after each round"}
    plan = Plan(filters, kept=reasons_to_keep(graph, rule.skip), trained=rounds)
    fitted = measured(original, pruned, parts)
    return Compressed(tuple(stages), plan, graph.unknown, shortfall_of(rule, missing), fitted)


def _trainable_parts(
    original: ir.Model, data: Calibration | None, training: Training | None, progress: Progress | None
) -> Parts | None:
    """The samples; where training is wanted, it is seen first that it can be done with them."""
    parts = read_parts(original, data, progress)
    if training is not None:
        assert parts is not None
        check_trainable(simplify(original), parts.fit.data, training.epochs, training.recipe)
    return parts


def _by_the_paper(
    original: ir.Model,
    filters: FilterRule,
    ranks: RankRule,
    training: Training | None,
    data: Calibration | None,
    progress: Progress | None,
) -> Compressed:
    """Prune, then decompose what is left; with training, after each stage."""
    network = prepared(original)
    parts = _trainable_parts(original, data, training, progress)
    going = choose_filters(network, filters, data, parts, progress)
    pruning = Plan(going.filters, lrn_nodes(network) if training is not None else [], kept=going.kept)
    first = carry_out(original, network, pruning, parts, progress)
    first = train(first, training, data, parts, progress)
    pruned = first.model if len(first.stages) > 1 else network
    moments = moments_on(pruned, None if going.filters else data, parts, progress)
    chain = choose_ranks(pruned, ranks, moments, progress)
    check_skip(filters.skip, [*going.layers, *chain.layers])
    plan = Plan(going.filters, lrn_nodes(network), chain.ranks, going.kept | chain.kept)
    if training is None:
        return _noting(going, carry_out(original, network, plan, parts, progress))
    if not chain.ranks:
        return _noting(going, replace(first, plan=replace(plan, trained=first.plan.trained)))
    second = carry_out(original, pruned, Plan(decompose=chain.ranks), parts, progress)
    second = train(second, training, data, parts, progress, whole=plan)
    plan = replace(plan, trained=first.plan.trained | second.plan.trained)
    return _noting(going, replace(second, stages=(*first.stages, *second.stages[1:]), plan=plan))


def _noting(choice: FilterChoice, result: Compressed) -> Compressed:
    return replace(result, unknown=choice.unknown, shortfall=choice.shortfall)


def _under_budget(
    original: ir.Model,
    target: str,
    keep_accuracy: float | None,
    round_to: int,
    skip: Sequence[str],
    training: Training | None,
    data: Calibration,
    progress: Progress | None,
) -> Compressed:
    """Choose filters and ranks together."""
    goal = parse_target(target) if target else None
    parts = _trainable_parts(original, data, training, progress)
    assert parts is not None
    kind = goal.kind if goal else "macs"
    planner = _planner(original, kind, round_to, skip, data, parts, progress)
    if goal is not None:
        result = _planned(original, planner, goal.share, progress)
    else:
        assert keep_accuracy is not None
        result = _keeping(original, planner, keep_accuracy, progress)
    return train(result, training, data, parts, progress)


def _planner(
    original: ir.Model,
    kind: str,
    round_to: int,
    skip: Sequence[str],
    data: Calibration,
    parts: Parts,
    progress: Progress | None,
) -> Planner:
    network = prepared(original)
    moments = moments_on(network, data, parts, progress)
    assert moments is not None
    check_skip(skip, names_of(factor_layers(network, concrete_shapes(network))))
    found = survey(network, parts, moments, siblings(network, skip))
    return Planner(
        found,
        kind,
        total=network_cost(original, kind),
        rewrite=lrn_nodes(network),
        round_to=round_to,
        skip=skip,
        progress=progress,
    )


def _planned(original: ir.Model, planner: Planner, share: float, progress: Progress | None) -> Compressed:
    planned = planner.plan(share)
    survey = planner.survey
    result = carry_out(original, survey.given, planned.plan, survey.parts, progress)
    assert result.fitted is not None
    fitted = replace(result.fitted, expected_damage=planned.damage)
    shortfall = ""
    if planned.share > share:
        shortfall = (
            f"{planned.share:.3f} of the {planner.kind} are left, not {share:.3f}: no more was found to go"
        )
    elif len(result.stages) == 1:  # to simplify it was enough
        result = replace(
            result, stages=(*result.stages, Stage("simplified", survey.given, cost(survey.given)))
        )
    plan = replace(result.plan, kept=_reasons(planner, planned.plan))
    return replace(result, plan=plan, unknown=survey.graph.unknown, fitted=fitted, shortfall=shortfall)


def _reasons(planner: Planner, plan: Plan) -> dict[str, str]:
    """Why layers that keep all their filters cannot lose any, by layer."""
    graph = planner.survey.graph
    reasons = reasons_to_keep(graph, planner.skip)
    for group in graph.groups:
        if why := next((planner.unseen[each] for each in group.sets.tolist() if each in planner.unseen), ""):
            reasons |= dict.fromkeys(group.layers, why)
    return {
        layer: reason
        for name, reason in reasons.items()
        for layer in members(name)
        if layer not in plan.prune
    }


def _keeping(original: ir.Model, planner: Planner, wanted: float, progress: Progress | None) -> Compressed:
    """The smallest of some networks, found by bisection, that keeps enough on the samples for choosing."""
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
