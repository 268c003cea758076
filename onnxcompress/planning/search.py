"""The plan for a budget: chosen by measured sensitivities, measured choice by choice, and corrected."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxcompress.factoring.fitted import Components
from onnxcompress.layers import FactorLayer
from onnxcompress.plan import Plan, matches
from onnxcompress.planning.budget import Decision, Problem, decide, expected_damage
from onnxcompress.planning.choices import Options, choices, possible
from onnxcompress.planning.costs import layer_cost, planned_cost
from onnxcompress.planning.survey import (
    Change,
    Survey,
    chained,
    changed,
    factored,
    halved,
    measured_damage,
    products,
)
from onnxcompress.progress import Progress, steps_of
from onnxcompress.pruning.elimination import readers, repaired, unseen
from onnxcompress.pruning.selection import is_convolutional, skipped
from onnxcompress.siblings import unstacked
from onnxcompress.threads import side_by_side

ROUNDS = 4
"""Plans that are made for a budget. All choices of each are measured, and the next one goes by that."""

BUDGET_SHARE = 0.99
"""Of the budget that is to be used at least, where there is something left to keep."""

ATTEMPTS = 8
"""Times that the budget of the model of costs is adjusted to the cost of the network itself."""

Choice = str | int
"""Ranks of a layer, by its name, or channels that a group loses, by its number."""

Case = tuple[tuple[Choice, int], ...]
"""Choices that are measured together."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Planned:
    """A plan and what is known of it.

    Attributes:
        plan: what to do.
        share: of the original's cost that it leaves.
        damage: what is expected of it (see `budget`), by what its choices did (`measure.damage`) one by one,
            before weights are fitted.
    """

    plan: Plan
    share: float
    damage: float


@dataclass(frozen=True)
class Look:
    """What a layer can become, and one such change, to see how sensitive the output is to the layer.

    Attributes:
        products: what its response consists of, see `survey.products`.
        options: that there are.
        tried: number of the option, from 1, that keeps about half the cost; 0 where there is none.
        change: the layer's weights then; half of each where there is no such option.
        lost: of the variance of its response.
    """

    products: list[Components]
    options: Options
    tried: int
    change: Change
    lost: float


class Planner:
    """Finds plans for one network; what it measures for one budget serves the next ones.

    Attributes:
        survey: of the network.
        kind: of cost.
        round_to: layers keep a multiple of so many filters, or all, and ranks are such.
        skip: patterns of layers that stay as they are.
        rewrite: LRN nodes that the plans rewrite.
        total: cost that shares are of, that of the network before it was simplified.
        readers: of the channel sets, see `elimination.readers`.
        progress: called with (what is done, steps done, steps in all).
        choices: that there are, with the damage that is expected of them before any is measured.
        measured: damage of choices, by how many channels a group loses, or by the number of a layer's option.
            Groups that the same layers read share what they do together.
        unseen: channel sets that stay because not all that reads them is known, with the reason.
        done: what was measured.
        products: what the responses of layers consist of, see `survey.products`.
    """

    measured: defaultdict[Choice, dict[int, float]]
    done: dict[Case, float]
    products: dict[str, list[Components]]

    def __init__(
        self,
        survey: Survey,
        kind: str,
        *,
        total: int,
        rewrite: Sequence[str] = (),
        round_to: int = 1,
        skip: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        """Measure how sensitive the output is to every layer.

        Args:
            survey: of the network.
            kind: one of `KINDS`.
            total: cost that shares are of.
            rewrite: LRN nodes that the plans are to rewrite.
            round_to: of filters that layers keep and of ranks.
            skip: glob patterns of layers to leave as they are.
            progress: called with (what is done, steps done, steps in all).
        """
        self.survey, self.kind, self.progress = survey, kind, progress
        self.round_to, self.skip = round_to, tuple(skip)
        self.measured = defaultdict(dict)
        self.done = {}
        self.rewrite = list(rewrite)
        self.total = total
        layers = survey.layers
        looks = self._looks()
        self.products = {name: look.products for name, look in looks.items()}
        options = {name: look.options for name, look in looks.items()}
        sensitivity = self._sensitivity(looks)
        del looks  # they hold other weights for all layers
        self.readers = readers(survey.graph, layers, survey.moments, sensitivity)
        self.unseen = unseen(survey.graph, layers, survey.moments)
        groups = survey.graph.groups if is_convolutional(survey.network, survey.graph) else []
        groups = [group for group in groups if not np.isin(group.sets, list(self.unseen)).any()]
        own = sum(layer_cost(layer, self.kind) for layer in layers if layer.shape)
        self.choices = choices(
            survey.graph,
            [group for group in groups if not skipped(group, self.skip)],
            layers,
            options,
            self.readers,
            sensitivity,
            kind=kind,
            fixed=planned_cost(survey, Plan(), [], kind) - own,
            round_to=round_to,
        )
        # All but one as well: by its first quarter a block that nothing gets past would seem cheap.
        for share in (0.25, 1.0):
            counts = [min(int(share * len(e.order)), len(e.order) - 1) for e in self.choices.eliminations]
            gone: dict[Choice, int] = {index: count for index, count in enumerate(counts) if count}
            self._measure_choices(gone, "measuring groups of channels")

    def plan(self, share: float) -> Planned:
        """The best plan found that keeps at most this share of the cost."""
        found: list[Planned] = []
        for round_ in range(ROUNDS):
            decision, left = self._within(share)
            self._measure_choices(_made(decision), f"measuring plan {round_ + 1} of {ROUNDS}")
            damage = expected_damage(self._problem(), decision)
            plan, survey = self.choices.plan(decision), self.survey
            filters = unstacked(plan.prune, survey.given, survey.together)
            found.append(Planned(replace(plan, prune=filters, rewrite=self.rewrite), left, damage))
        return min(found, key=lambda planned: (max(planned.share, share), planned.damage))

    def _within(self, share: float) -> tuple[Decision, float]:
        """A decision, and the share of the cost that its network has: what is asked for, not by the model."""
        problem, budget, found = self._problem(), share * self.total, []
        low, high = 0.0, np.inf
        for _ in range(ATTEMPTS):
            decision = decide(problem, budget)
            plan = self.choices.plan(decision)
            real = planned_cost(self.survey, plan, self.rewrite, self.kind) / self.total
            found.append((real > share, abs(share - real), decision, real))
            if share * BUDGET_SHARE <= real <= share:
                break
            low, high = (budget, high) if real <= share else (low, budget)
            guess = budget * min(share * (1 + BUDGET_SHARE) / 2 / real, 1.2)
            budget = guess if low < guess < high else (low + high) / 2
        return min(found, key=lambda each: each[:2])[2:]

    def _problem(self) -> Problem:
        """What is to be decided, with all that has been measured."""
        given = self.choices.problem
        layers = {
            name: replace(layer, damage=through(layer.damage, self.measured[name]))
            for name, layer in given.layers.items()
        }
        groups = [
            replace(group, damage=np.maximum.accumulate(through(group.damage, self.measured[index])))
            for index, group in enumerate(given.groups)
        ]
        return replace(given, layers=layers, groups=groups)

    def _looks(self) -> dict[str, Look]:
        """At each layer whose responses are known."""
        report = steps_of(self.progress, "looking at ranks")
        known = [layer for layer in self.survey.layers if layer.name in self.survey.moments]
        found: dict[str, Look] = {}
        for layer, look in zip(known, side_by_side(self._look, known), strict=True):
            found[layer.name] = look
            if report is not None:
                report(len(found), len(known))
        return found

    def _look(self, layer: FactorLayer) -> Look:
        moments = self.survey.moments[layer.name]
        parts = products(layer, moments)
        may_change = not any(matches(name, self.skip) for name in layer.names)
        options, chains = possible(layer, moments, parts, self.round_to) if may_change else ([], [])
        if chains:
            return Look(parts, options, len(options), *chained(layer, moments, chains))
        number = self._half(layer, options)
        if not number:
            return Look(parts, options, 0, *halved(layer, moments))
        return Look(parts, options, number, *factored(layer, moments, options[number - 1][0], parts))

    def _sensitivity(self, looks: Mapping[str, Look]) -> dict[str, float]:
        """Damage for each unit of variance that a layer's response loses."""
        cases = {name: [look.change] for name, look in looks.items()}
        damage = measured_damage(self.survey, cases, steps_of(self.progress, "measuring sensitivities"))
        for name, look in looks.items():
            if look.tried:
                self.measured[name][look.tried] = self.done[((name, look.tried),)] = damage[name]
        return {name: damage[name] / look.lost if look.lost > 0 else 0.0 for name, look in looks.items()}

    def _half(self, layer: FactorLayer, options: Options) -> int:
        """The option, from 1, at which a layer keeps about half its cost and loses least; 0 for none."""
        most = layer_cost(layer, self.kind) / 2
        halved = [i for i, (ranks, _) in enumerate(options, 1) if layer_cost(layer, self.kind, ranks) <= most]
        return min(halved, key=lambda i: options[i - 1][1], default=0)

    def _measure_choices(self, made: Mapping[Choice, int], what: str) -> None:
        """Measure what choices do, case by case (see `_cases`), unless it is known."""
        every = self._cases(made)
        new = [case for case in every if case not in self.done]
        cases = dict(zip(new, side_by_side(self._changes, new), strict=True))
        self.done |= measured_damage(self.survey, cases, steps_of(self.progress, what))
        for case in every:
            expected = [self._expected(choice, count) for choice, count in case]
            for (choice, count), each in zip(case, expected, strict=True):
                share = each / sum(expected) if sum(expected) > 0 else 1 / len(case)
                self.measured[choice][count] = share * self.done[case]

    def _cases(self, made: Mapping[Choice, int]) -> list[Case]:
        """What is measured together: the groups of a cluster, and each layer by itself."""
        of_groups = [
            tuple((index, made[index]) for index in cluster if index in made)
            for cluster in self.choices.clusters
        ]
        of_layers = [((name, number),) for name, number in made.items() if isinstance(name, str)]
        return [*filter(None, of_groups), *of_layers]

    def _expected(self, choice: Choice, count: int) -> float:
        problem = self.choices.problem
        of = problem.groups[choice] if isinstance(choice, int) else problem.layers[choice]
        return float(of.damage[count])

    def _changes(self, case: Case) -> list[Change]:
        """The weights that choices give to layers."""
        survey = self.survey
        choice, count = case[0]
        if isinstance(choice, int):
            orders = [self.choices.eliminations[i].order[:n] for i, n in case if isinstance(i, int)]
            return self._pruned(np.concatenate(orders))
        ranks = self.choices.problem.layers[choice].options[count]
        (layer,) = (layer for layer in survey.layers if layer.name == choice)
        return [factored(layer, survey.moments[choice], ranks, self.products[choice])[0]]

    def _pruned(self, gone: np.ndarray) -> list[Change]:
        weights: dict[str, np.ndarray] = {}
        layers: dict[str, FactorLayer] = {}
        for reader in self.readers:
            if np.isin(reader.sets, gone).any():
                name = reader.layer.name
                layers[name] = reader.layer
                if name not in weights:
                    weights[name] = reader.layer.by_group
                weights[name][reader.part] = repaired(reader, gone)
        return [changed(layers[name], self.survey.moments[name], weights[name]) for name in weights]


def _made(decision: Decision) -> dict[Choice, int]:
    """The choices that change anything."""
    made: list[tuple[Choice, int]] = [*decision.picked.items(), *enumerate(decision.removed)]
    return {choice: count for choice, count in made if count}


def through(expected: Array, measured: Mapping[int, float]) -> Array:
    """Expectations scaled so that they are what was measured, where it was.

    Between two measurements the ratio of measured to expected is a power of what was expected; beyond them
    it stays.

    Args:
        expected: of each choice, (n,).
        measured: by the number of the choice.
    """
    points = [
        (expected[i], each / expected[i]) for i, each in measured.items() if expected[i] > 0 and each > 0
    ]
    if not points:
        return expected
    at, ratios = np.log(sorted(points)).T
    with np.errstate(divide="ignore"):
        return expected * np.exp(np.interp(np.log(expected), at, ratios))
