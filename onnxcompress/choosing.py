"""Rules, as a user gives them, for which filters go and at which ranks layers are factored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.calibration.given import Calibration, moments_on
from onnxcompress.calibration.samples import Parts
from onnxcompress.calibration.statistics import Moments
from onnxcompress.errors import InputError
from onnxcompress.factoring import selection as rank_selection
from onnxcompress.factoring.ranks import parse_rank
from onnxcompress.layers import factor_layers, names_of
from onnxcompress.plan import Ranks, matches
from onnxcompress.progress import Progress, steps_of
from onnxcompress.pruning import selection as filter_selection
from onnxcompress.pruning.activations import DATA_CRITERIA, data_scores
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.channels import ChannelGraph
from onnxcompress.pruning.importance import CRITERIA, set_scores
from onnxcompress.pruning.surgery import filters_of
from onnxcompress.pruning.taylor import TAYLOR, score_by_taylor
from onnxcompress.shapes import concrete_shapes

TAYLOR_SAMPLES = 200
"""That filters are scored by; more change the order little."""

SCOPES = ("layer", "global")


@dataclass(frozen=True)
class FilterRule:
    """Which filters go.

    Attributes:
        ratio: share of them, in [0, 1).
        criterion: of importance; empty: ``reconstruction`` with data, else ``l2``.
        scope: ``layer``: the share of every layer; ``global``: of the whole network, wherever they are.
        round_to: layers keep a multiple of so many filters.
        skip: glob patterns of node names that keep all their filters.
        seed: of the random criterion, and of labels that Taylor's draws.
        flops_weight: λ of Taylor importance (see `taylor_scores`).

    Raises:
        InputError: when one of them is out of range.
    """

    ratio: float
    criterion: str
    scope: str
    round_to: int
    skip: Sequence[str]
    seed: int
    flops_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise InputError(f"ratio: {self.ratio} is not in [0, 1)")
        known = (*CRITERIA, *DATA_CRITERIA, TAYLOR)
        if self.criterion and self.criterion not in known:
            raise InputError(f"criterion: '{self.criterion}' is not one of {', '.join(known)}")
        if self.scope not in SCOPES:
            raise InputError(f"scope: '{self.scope}' is not one of {', '.join(SCOPES)}")
        check_round_to(self.round_to)


@dataclass(frozen=True)
class RankRule:
    """At which ranks layers are factored.

    Attributes:
        rank: ``vbmf``, ``vbmf:FACTOR``, ``energy:SHARE`` or ``fraction:SHARE``.
        round_to: ranks are rounded up to a multiple of this.
        skip: glob patterns of node names that stay as they are.
        include_pointwise: factor 1×1 convolutions too.
        include_gemm: factor Gemm and MatMul layers too.

    Raises:
        InputError: when one of them is out of range.
    """

    rank: str
    round_to: int
    skip: Sequence[str]
    include_pointwise: bool
    include_gemm: bool

    def __post_init__(self) -> None:
        parse_rank(self.rank)
        check_round_to(self.round_to)

    @property
    def kinds(self) -> frozenset[str]:
        """Of layers that are factored; see `FactorLayer.kind`."""
        asked = {"kxk": True, "1x1": self.include_pointwise, "gemm": self.include_gemm}
        return frozenset(kind for kind, wanted in asked.items() if wanted)


@dataclass(frozen=True)
class FilterChoice:
    """What goes.

    Attributes:
        filters: to remove, by layer.
        kept: why layers keep all of theirs, by layer.
        layers: that have filters.
        unknown: operators without a pruning rule that hold channels back, by node.
        shortfall: what was asked for and cannot be done; empty when all can.
    """

    filters: dict[str, list[int]]
    kept: dict[str, str]
    layers: list[str]
    unknown: dict[str, str]
    shortfall: str


@dataclass(frozen=True)
class RankChoice:
    """How layers are factored.

    Attributes:
        ranks: by layer.
        kept: why layers of a wanted kind stay as they are, by layer.
        layers: all that are known.
    """

    ranks: dict[str, Ranks]
    kept: dict[str, str]
    layers: list[str]


def choose_filters(
    network: ir.Model,
    rule: FilterRule,
    data: Calibration | None,
    parts: Parts | None,
    progress: Progress | None,
) -> FilterChoice:
    """What a rule removes from a simplified network.

    Raises:
        InputError: when the criterion needs data and there are none.
    """
    criterion = rule.criterion or ("l2" if data is None else "reconstruction")
    if criterion not in CRITERIA and data is None:
        raise InputError(f"criterion: {criterion} needs calibration data: give some with --data")
    graph = analyse(network, concrete_shapes(network))
    if not filter_selection.is_convolutional(network, graph):
        whole = "only networks with convolutions on inner features are pruned"
        kept = {layer.name: graph.reason(layer) or whole for layer in graph.layers}
        return FilterChoice({}, kept, list(kept), {}, "")
    chosen, missing = filter_selection.select(
        network,
        graph,
        ratio=rule.ratio,
        scores=_scores(network, graph, criterion, rule, data, parts, progress),
        scope=rule.scope,
        round_to=rule.round_to,
        skip=tuple(rule.skip),
    )
    names = [layer.name for layer in graph.layers]
    return FilterChoice(
        filters_of(graph, chosen),
        reasons_to_keep(graph, rule.skip),
        names,
        graph.unknown,
        shortfall_of(rule, missing),
    )


def shortfall_of(rule: FilterRule, missing: int) -> str:
    """What is said of channels that were to go but are the last of their group; empty where none is."""
    if not missing or rule.scope != "global" or rule.round_to != 1:
        return ""
    return f"of the channels that were to go, {missing} had to stay: one of every group does"


def _scores(
    network: ir.Model,
    graph: ChannelGraph,
    criterion: str,
    rule: FilterRule,
    data: Calibration | None,
    parts: Parts | None,
    progress: Progress | None,
) -> np.ndarray:
    """Importance of every channel set, (sets,)."""
    if criterion in CRITERIA:
        return set_scores(graph, criterion, rule.seed)
    assert data is not None
    assert parts is not None
    if criterion == TAYLOR:
        score = score_by_taylor(
            parts.fit.data,
            limit=TAYLOR_SAMPLES,
            seed=rule.seed,
            flops_weight=rule.flops_weight,
            preprocessing=data.preprocessing,
        )
        return score(network, graph, steps_of(progress, "scoring filters"))
    moments = moments_on(network, data, parts, progress)
    assert moments is not None
    return data_scores(criterion, graph, factor_layers(network, concrete_shapes(network)), moments)


def reasons_to_keep(graph: ChannelGraph, skip: Sequence[str]) -> dict[str, str]:
    """Why layers keep their filters, by layer."""
    reasons: dict[str, str] = {}
    for layer in graph.layers:
        skipped = [
            next((each for each in group.layers if matches(each, skip)), "")
            for group in graph.groups
            if layer.name in group.layers
        ]
        if matches(layer.name, skip):
            reasons[layer.name] = "skipped as asked"
        elif reason := graph.reason(layer):
            reasons[layer.name] = reason
        elif skipped and all(skipped):
            reasons[layer.name] = f"tied to '{skipped[0]}', which is skipped"
    return reasons


def choose_ranks(
    network: ir.Model, rule: RankRule, moments: Mapping[str, Moments] | None, progress: Progress | None
) -> RankChoice:
    """How a rule factors a simplified network; with moments it sees the layers' responses."""
    layers = factor_layers(network, concrete_shapes(network))
    ranks, kept = rank_selection.select(
        layers,
        rank=parse_rank(rule.rank),
        round_to=rule.round_to,
        skip=tuple(rule.skip),
        include=rule.kinds,
        moments=moments,
        progress=steps_of(progress, "choosing ranks"),
    )
    return RankChoice(ranks, kept, names_of(layers))


def check_skip(patterns: Sequence[str], layers: Sequence[str]) -> None:
    """Refuse patterns that name no layer.

    Raises:
        InputError: likewise.
    """
    if isinstance(patterns, str):
        raise InputError(f"skip: give a list of patterns, as in ['{patterns}']")
    for pattern in patterns:
        if not any(matches(layer, [pattern]) for layer in layers):
            raise InputError(
                f"skip: no layer matches '{pattern}'; see `onnxcompress inspect` for their names"
            )


def check_round_to(round_to: int) -> None:
    """Refuse a number that there are no multiples of.

    Raises:
        InputError: when it is below 1.
    """
    if round_to < 1:
        raise InputError(f"round-to: {round_to} is not at least 1")
