"""A network, stage by stage, to what a plan says."""

from dataclasses import replace

import onnx_ir as ir

from onnxcompress.calibration.given import Calibration
from onnxcompress.calibration.patches import obstacle
from onnxcompress.calibration.samples import Parts
from onnxcompress.errors import InputError
from onnxcompress.factoring.surgery import check_ranks, factor
from onnxcompress.layers import factor_layers
from onnxcompress.lrn import lrn_nodes, rewrite_lrn, sums_squares, whole_bands
from onnxcompress.measure.closeness import closeness
from onnxcompress.measure.cost import cost
from onnxcompress.model import simplify
from onnxcompress.plan import Plan
from onnxcompress.preprocessing import attach
from onnxcompress.progress import Progress
from onnxcompress.pruning.surgery import remove_filters
from onnxcompress.recovery.least_squares import refit
from onnxcompress.recovery.training import Training, in_words, trained
from onnxcompress.results import Compressed, Fitted, Stage
from onnxcompress.shapes import concrete_shapes
from onnxcompress.siblings import among, joined, parted, stacked


def prepared(original: ir.Model) -> ir.Model:
    """The network as plans are made for it: simplified, and an LRN that is written as a band in one piece."""
    return whole_bands(simplify(original))


def carry_out(
    original: ir.Model, network: ir.Model, plan: Plan, parts: Parts | None, progress: Progress | None
) -> Compressed:
    """Do what a plan says; with samples, fit the weights to the original's responses.

    Args:
        original: the network as it came.
        network: the prepared one that the plan is for.
        plan: what to do; it may say of training that was, which is not done again.
        parts: the samples.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: when the plan does not fit the network.
    """
    plan = replace(plan, trained={})
    stages = [Stage("original", original, cost(original))]
    if unknown := set(plan.rewrite) - set(lrn_nodes(network)):
        raise InputError(
            f"rewrite: there is no LRN node '{min(unknown)}': is this the plan of another network, or has it "
            "been applied already?"
        )
    together = among(plan.decompose, network)
    filters = stacked(plan.prune, network, together)
    given = network = joined(network, together)
    if parts is not None and parts.fit.preprocessing is not None:
        attach(network, parts.fit.preprocessing)
    if plan.prune:
        network = remove_filters(network, filters)
    network = rewrite_lrn(network, plan.rewrite)
    factors, unfitted = {}, dict[str, str]()
    if parts is not None and (plan.prune or plan.decompose):
        check_ranks(network, plan.decompose)
        layers = factor_layers(network, concrete_shapes(network))
        known = [layer for layer in layers if not sums_squares(layer.node)]
        unfitted = {name: why for layer in known if (why := obstacle(layer)) for name in layer.names}
        network, fits = refit(given, network, filters, plan.decompose, parts.fit, parts.choose, progress)
        factors = {name: fit.factors for name, fit in fits.items() if fit.factors is not None}
    if plan.prune or plan.rewrite:
        stages.append(_stage("pruned" if plan.prune else "rewritten", parted(network, together)))
    if plan.decompose:
        network = factor(network, plan.decompose, factors)
        stages.append(_stage("decomposed", parted(network, together)))
    fitted = measured(original, stages[-1].model, parts)
    return Compressed(tuple(stages), plan, fitted=fitted and replace(fitted, unfitted=unfitted))


def _stage(name: str, network: ir.Model) -> Stage:
    return Stage(name, network, cost(network))


def measured(original: ir.Model, network: ir.Model, parts: Parts | None) -> Fitted | None:
    """How close a network is to the original on the samples that nothing was fitted to or chosen by."""
    if parts is None:
        return None
    close = closeness(original, network, parts.report)
    return Fitted(parts.fit.count, parts.choose.count, parts.report.count, close)


def train(
    result: Compressed,
    training: Training | None,
    data: Calibration | None,
    parts: Parts | None,
    progress: Progress | None,
    whole: Plan | None = None,
) -> Compressed:
    """The result with one more stage; as it is where nothing was compressed or no training is wanted.

    Args:
        result: to train.
        training: how; None for not at all.
        data: where the samples are from.
        parts: the samples.
        progress: called with (what is done, steps done, steps in all).
        whole: the plan from the original on, where the result's own is only the last part of it.
    """
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
        whole or result.plan,
        preprocessing=data.preprocessing,
        mirror=data.mirror,
        progress=progress,
    )
    stage = Stage("trained", done.model, last.cost, done)
    close = closeness(original, done.model, parts.report)
    return replace(
        result,
        stages=(*result.stages, stage),
        plan=replace(result.plan, trained={last.name: in_words(done)}),
        fitted=replace(result.fitted, closeness=close),
    )
