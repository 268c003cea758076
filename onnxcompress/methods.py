"""Ways from a network to a smaller one: pruned in rounds, by the paper's order, under a budget."""

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxcompress.calibration.given import Calibration, moments_on, read_parts
from onnxcompress.calibration.samples import Parts
from onnxcompress.choosing import (
    TAYLOR_SAMPLES,
    FilterChoice,
    FilterRule,
    RankRule,
    check_skip,
    choose_filters,
    choose_ranks,
    reasons_to_keep,
    shortfall_of,
)
from onnxcompress.errors import InputError
from onnxcompress.layers import factor_layers, names_of
from onnxcompress.lrn import lrn_nodes
from onnxcompress.measure.closeness import closeness
from onnxcompress.measure.cost import cost
from onnxcompress.model import simplify
from onnxcompress.pipeline import carry_out, measured, prepared, train
from onnxcompress.plan import Plan, members
from onnxcompress.planning.costs import network_cost, parse_target
from onnxcompress.planning.search import Planner
from onnxcompress.planning.survey import survey
from onnxcompress.progress import Progress
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.taylor import TAYLOR
from onnxcompress.recovery.interleaved import prune_and_train
from onnxcompress.recovery.training import Training
from onnxcompress.results import Compressed, Stage
from onnxcompress.shapes import concrete_shapes
from onnxcompress.siblings import siblings
from onnxcompress.training.finetuning import check_trainable
from onnxcompress.training.trainer import Recipe

SMALLEST = 0.1
"""Share of the MACs below which no network is looked for that keeps an accuracy."""

PRECISION = 0.1
"""Relative, of the share of the MACs at which such a network is found."""


def in_rounds(
    original: ir.Model,
    network: ir.Model,
    rule: FilterRule,
    step: float,
    finetune_steps: int,
    data: Calibration | None,
    parts: Parts | None,
    progress: Progress | None,
) -> Compressed:
    """Prune a prepared network by Taylor importance, a share at a time, and train in between.

    Raises:
        InputError: when the rule has another criterion, or there are no samples.
    """
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


def by_the_paper(
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
        return noting(going, carry_out(original, network, plan, parts, progress))
    if not chain.ranks:
        return noting(going, replace(first, plan=replace(plan, trained=first.plan.trained)))
    second = carry_out(original, pruned, Plan(decompose=chain.ranks), parts, progress)
    second = train(second, training, data, parts, progress, whole=plan)
    plan = replace(plan, trained=first.plan.trained | second.plan.trained)
    return noting(going, replace(second, stages=(*first.stages, *second.stages[1:]), plan=plan))


def noting(choice: FilterChoice, result: Compressed) -> Compressed:
    """The result with what was found when its filters were chosen."""
    return replace(result, unknown=choice.unknown, shortfall=choice.shortfall)


def under_budget(
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
    planner = planner_of(original, kind, round_to, skip, data, parts, progress)
    if goal is not None:
        result = to_share(original, planner, goal.share, progress)
    else:
        assert keep_accuracy is not None
        result = _keeping(original, planner, keep_accuracy, progress)
    return train(result, training, data, parts, progress)


def planner_of(
    original: ir.Model,
    kind: str,
    round_to: int,
    skip: Sequence[str],
    data: Calibration,
    parts: Parts,
    progress: Progress | None,
) -> Planner:
    """Who plans for shares of the original's cost, of this kind."""
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


def to_share(original: ir.Model, planner: Planner, share: float, progress: Progress | None) -> Compressed:
    """The network that has a share of the original's cost, fitted; its shortfall says if it has more."""
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
        result = to_share(original, planner, share, progress)
        close = closeness(original, result.model, planner.survey.parts.choose)
        if close.kept >= wanted and not result.shortfall:
            high, best = share, result
        else:
            low = share
    if best is not None:
        return best
    nothing = Compressed((Stage("original", original, cost(original)),), Plan())
    return replace(nothing, shortfall=f"no smaller network was found to keep {wanted}")
