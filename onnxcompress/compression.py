"""The verbs that change a network: choose, carry out, and say what became of it.

Each returns a `Compressed`: the network after every stage with its cost, and the plan that leads there.
Choosing (`choosing`, `planning.search`) only looks; carrying out (`pipeline`) only does what a plan says;
`methods` are the ways that do so more than once.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxcompress.calibration.given import Calibration, calibration, moments_on, read_parts
from onnxcompress.calibration.samples import Source
from onnxcompress.choosing import (
    FilterRule,
    RankRule,
    check_round_to,
    check_skip,
    choose_filters,
    choose_ranks,
)
from onnxcompress.errors import InputError, naming
from onnxcompress.methods import by_the_paper, in_rounds, noting, planner_of, to_share, under_budget
from onnxcompress.model import load
from onnxcompress.pipeline import carry_out, prepared
from onnxcompress.plan import Plan, read_plan
from onnxcompress.planning.costs import KINDS
from onnxcompress.progress import Progress
from onnxcompress.recovery.training import Training
from onnxcompress.results import Compressed, Point
from onnxcompress.threads import one_blas_thread


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
        return in_rounds(original, network, rule, step, finetune_steps, data, parts, progress)
    choice = choose_filters(network, rule, data, parts, progress)
    check_skip(skip, choice.layers)
    plan = Plan(prune=choice.filters, kept=choice.kept)
    return noting(choice, carry_out(original, network, plan, parts, progress))


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
        return under_budget(original, target, keep_accuracy, round_to, skip, training, data, progress)
    filters = FilterRule(ratio, criterion, scope, round_to, skip, seed)
    ranks = RankRule(rank, round_to, skip, include_pointwise, include_gemm)
    return by_the_paper(original, filters, ranks, training, data, progress)


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
    planner = planner_of(original, kind, round_to, skip, data, parts, progress)
    points = []
    for share in sorted(shares, reverse=True):
        result = to_share(original, planner, share, progress)
        assert result.fitted is not None
        found = result.stages[-1].cost
        points.append(Point(share, found.macs, found.params, result.fitted, result.shortfall))
    return points
