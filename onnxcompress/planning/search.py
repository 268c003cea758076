"""The plan for a budget: chosen by measured sensitivities, measured choice by choice, and corrected."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import InputError
from onnxcompress.factoring.fitted import Factors
from onnxcompress.factoring.layers import FactorLayer, factor_layers
from onnxcompress.factoring.surgery import factor
from onnxcompress.measure.cost import cost
from onnxcompress.plan import Plan, Ranks
from onnxcompress.planning.budget import Decision, decide, ranks_of
from onnxcompress.planning.choices import Choices, Options, choices, possible
from onnxcompress.planning.survey import Change, Survey, changed, factored, measured_damage
from onnxcompress.pruning.elimination import readers, repaired
from onnxcompress.pruning.lrn import rewrite_lrn
from onnxcompress.pruning.selection import is_convolutional, skipped
from onnxcompress.pruning.surgery import remove_filters
from onnxcompress.shapes import concrete_shapes
from onnxcompress.weights import file_size

KINDS = ("macs", "params", "size")

CORRECTIONS = 2
"""Times that the damage of all choices of a plan is measured and the plan chosen anew."""

BUDGET_SHARE = 0.99
"""Of the budget that is to be used at least, where there is something left to keep."""

ATTEMPTS = 8
"""Times that the budget of the model of costs is adjusted to the cost of the network itself."""

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Target:
    """A share of the original's cost that the network may keep.

    Attributes:
        kind: ``macs``, ``params`` or ``size``, that of the file.
        share: above 0, below 1.
    """

    kind: str
    share: float


@dataclass(frozen=True)
class Planned:
    """A plan and the damage (`measure.damage`) that is expected of it before weights are fitted."""

    plan: Plan
    damage: float


def parse_target(text: str) -> Target:
    """The target that a text names: ``macs=0.5``, ``params=0.3``, ``size=0.3``.

    Raises:
        InputError: when it names none.
    """
    kind, _, number = text.partition("=")
    try:
        share = float(number)
    except ValueError:
        share = np.nan
    if kind not in KINDS or not 0 < share < 1:
        raise InputError(
            f"target: '{text}' is not one; give macs=0.5, params=0.3 or size=0.3: the share that may stay"
        )
    return Target(kind, share)


class Planner:
    """Finds plans for one network; what it measures for one budget serves the next ones.

    Attributes:
        survey: of the network.
        kind: of cost.
        sensitivity: damage for each unit of variance that a layer's response loses, by layer.
    """

    def __init__(
        self,
        survey: Survey,
        kind: str,
        *,
        rewrite: Sequence[str] = (),
        skip: Sequence[str] = (),
        progress: Advance | None = None,
    ) -> None:
        """Measure how sensitive the output is to every layer.

        Args:
            survey: of the network.
            kind: one of `KINDS`.
            rewrite: LRN nodes that the plans are to rewrite.
            skip: glob patterns of layers to leave as they are.
            progress: called with (what is done, steps done, steps in all).
        """
        self.survey, self.kind, self.progress = survey, kind, progress
        self.rewrite = list(rewrite)
        self.total = self._measure(survey.network)
        layers = survey.layers
        options = self._options()
        self.sensitivity = sensitivity = self._sensitivity(options)
        self.readers = readers(survey.graph, layers, survey.moments, sensitivity)
        groups = survey.graph.groups if is_convolutional(survey.network, survey.graph) else []
        own = sum(self._cost(layer) for layer in layers if layer.shape)
        self.choices = choices(
            survey.graph,
            [group for group in groups if not skipped(group, tuple(skip))],
            layers,
            options,
            self.readers,
            sensitivity,
            kind=kind,
            fixed=self.total - own,
            skip=skip,
        )

    def plan(self, share: float) -> Planned:
        """The best plan found that keeps at most this share of the cost."""
        decision = self._within(share)
        for round_ in range(CORRECTIONS):
            self._correct(decision, f"measuring the plan, {round_ + 1} of {CORRECTIONS}")
            decision = self._within(share)
        return Planned(replace(self.choices.plan(decision), rewrite=self.rewrite), decision.damage)

    def share_of(self, plan: Plan) -> float:
        """The share of the original's cost that a plan leaves."""
        return self._real_cost(plan) / self.total

    def _within(self, share: float) -> Decision:
        """A decision whose network has the cost that is asked for, whatever the model of costs leaves out."""
        budget, found = share * self.total, []
        for _ in range(ATTEMPTS):
            decision = decide(self.choices.problem, budget)
            real = self._real_cost(self.choices.plan(decision)) / self.total
            found.append((real > share, abs(share - real), decision))
            if share * BUDGET_SHARE <= real <= share:
                break
            budget *= min(share * (1 + BUDGET_SHARE) / 2 / real, 1.2)
        return min(found, key=lambda each: each[:2])[2]

    def _real_cost(self, plan: Plan) -> float:
        network = self.survey.network
        if plan.prune:
            network = remove_filters(network, plan.prune)
        if self.rewrite:
            network = rewrite_lrn(network, self.rewrite)
        if plan.decompose:
            layers = {layer.name: layer for layer in factor_layers(network, concrete_shapes(network))}
            empty = {name: _empty(layers[name], ranks) for name, ranks in plan.decompose.items()}
            network = factor(network, plan.decompose, empty)
        return self._measure(network)

    def _measure(self, network: ir.Model) -> int:
        if self.kind == "size":
            return file_size(network)
        found = cost(network)
        return max(1, found.macs if self.kind == "macs" else found.params)

    def _cost(self, layer: FactorLayer, ranks: Ranks | None = None) -> int:
        if self.kind == "macs":
            return layer.macs if ranks is None else layer.chain_macs(ranks)
        weights = math.prod(layer.shape) if ranks is None else layer.chain_params(ranks)
        return weights * (layer.itemsize if self.kind == "size" else 1)

    def _options(self) -> dict[str, Options]:
        """What each layer whose responses are known can become."""
        report = self._advance("looking at ranks")
        known = [layer for layer in self.survey.layers if layer.name in self.survey.moments]
        found: dict[str, Options] = {}
        for layer in known:
            found[layer.name] = possible(layer, self.survey.moments[layer.name])
            if report is not None:
                report(len(found), len(known))
        return found

    def _sensitivity(self, options: Mapping[str, Options]) -> dict[str, float]:
        """Damage for each unit of variance that a layer's response loses when half its cost goes."""
        cases: dict[str, list[Change]] = {}
        lost: dict[str, float] = {}
        for layer in self.survey.layers:
            if layer.name in options:
                ranks = self._half(layer, options[layer.name])
                change, lost[layer.name] = factored(layer, self.survey.moments[layer.name], ranks)
                cases[layer.name] = [change]
        damage = measured_damage(self.survey, cases, self._advance("measuring sensitivities"))
        return {name: damage[name] / lost[name] if lost[name] > 0 else 0.0 for name in cases}

    def _half(self, layer: FactorLayer, options: Options) -> Ranks:
        """Ranks at which a layer keeps about half its cost and loses least."""
        most = self._cost(layer) / 2
        halved = [option for option in options if self._cost(layer, option[0]) <= most]
        if not halved:
            return Ranks(1, layer.sides[1] if layer.kind == "kxk" else 1)
        return min(halved, key=lambda option: option[1])[0]

    def _correct(self, decision: Decision, what: str) -> None:
        """Measure the damage of each choice of a decision, and scale what is expected of others like it."""
        problem, survey = self.choices.problem, self.survey
        by_name = {layer.name: layer for layer in survey.layers}
        cases: dict[str, list[Change]] = {}
        for name in decision.picked:
            if (
                ranks := ranks_of(problem, replace(decision, removed=[0] * len(decision.removed)), name)
            ) is not None:
                cases[f"layer {name}"] = [factored(by_name[name], survey.moments[name], ranks)[0]]
        for index, (count, elimination) in enumerate(
            zip(decision.removed, self.choices.eliminations, strict=True)
        ):
            if count:
                cases[f"group {index}"] = self._pruned(elimination.order[:count])
        found = measured_damage(survey, cases, self._advance(what))
        layers = dict(problem.layers)
        for name, index in decision.picked.items():
            if f"layer {name}" in found:
                layers[name] = replace(
                    layers[name], damage=_scaled(layers[name].damage, index, found[f"layer {name}"])
                )
        groups = [
            replace(group, damage=_scaled(group.damage, count, found[f"group {index}"])) if count else group
            for index, (group, count) in enumerate(zip(problem.groups, decision.removed, strict=True))
        ]
        self.choices = Choices(
            replace(problem, layers=layers, groups=groups), self.choices.eliminations, survey.graph
        )

    def _pruned(self, gone: np.ndarray) -> list[Change]:
        weights: dict[str, np.ndarray] = {}
        layers: dict[str, FactorLayer] = {}
        for reader in self.readers:
            if np.isin(reader.sets, gone).any():
                name = reader.layer.name
                layers[name] = reader.layer
                if name not in weights:
                    weights[name] = reader.layer.weight.reshape(
                        reader.layer.groups, reader.layer.sides[0], -1
                    )
                weights[name][reader.part] = repaired(reader, gone)
        return [changed(layers[name], self.survey.moments[name], weights[name]) for name in weights]

    def _advance(self, what: str) -> Callable[[int, int], None] | None:
        if self.progress is None:
            return None
        report = self.progress
        return lambda done, total: report(what, done, total)


def _scaled(curve: np.ndarray, index: int, measured: float) -> np.ndarray:
    expected = curve[index]
    return curve * (measured / expected) if expected > 0 and measured > 0 else curve


def _empty(layer: FactorLayer, ranks: Ranks) -> list[Factors]:
    """Factors at these ranks, of zeros, for each group of a layer."""
    filters, _ = layer.sides
    seen = layer.unfolding(ranks.axis)
    if layer.kind != "kxk":
        one = Factors(seen, np.zeros((filters, ranks.out)), np.zeros((ranks.out, seen.columns)), None)
    else:
        one = Factors(
            seen,
            np.zeros((filters, ranks.out)) if ranks.out < filters else None,
            np.zeros((ranks.out, ranks.into * seen.rest)),
            np.zeros((ranks.into, seen.columns))
            if ranks.into < seen.columns or ranks.axis is not None
            else None,
        )
    return [one] * layer.groups
