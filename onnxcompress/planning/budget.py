"""One budget for both: how many channels each group loses and at which ranks each layer is factored.

Every choice has a cost and an estimated damage to the network's output. For a price λ of the cost the sum

    Σ_groups D_g(removed) + Σ_layers D_l(ranks) + λ · cost

is made small by settling one group or layer after the other, the others given, until nothing changes; λ is
then sought for which the cost meets the budget. Pruning alone and factoring alone are among the choices.

An error in a layer's response matters less the less of that response is left: D_l, and the part of D_g that
is lost in layer l, count (1 − D(removed) / D(all removed)) times, with D of the group of l's own filters. A
branch of which one filter stays needs none of what leads to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcompress.plan import Ranks

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDS = 6
"""Times that all groups and layers are settled at most, for one price."""

TURNS = ("groups", "layers"), ("layers", "groups"), ("layers",), ("groups",)
"""Ways to settle: what comes first matters, and neither pruning nor factoring alone may come out better."""

BISECTIONS = 40

NEARLY = 0.99
"""Share of the budget from which what is left is spent choice by choice."""


@dataclass(frozen=True)
class LayerChoice:
    """What can be done to a layer, and what its cost depends on.

    Attributes:
        filters, channels: M and C, each per group of the convolution.
        groups: of the convolution.
        kernel: elements of its kernel; 1 for a product.
        at_input: cost of a multiplication by one weight of the part that reads the input (positions there,
            for MACs; 1 for parameters; bytes of a weight for size).
        at_core, at_output: of the core's, and of the part's that gives the output.
        options: ranks on offer, per group, n of them; the first entry is the layer as it is. The others are
            CP ranks; for a kernel of one element, those of a matrix.
        damage: of these, (n,).
    """

    filters: int
    channels: int
    groups: int
    kernel: int
    at_input: int
    at_core: int
    at_output: int
    options: Sequence[Ranks]
    damage: Array

    @cached_property
    def offered(self) -> Ints:
        """The ranks on offer, (n,)."""
        return np.array([ranks.out for ranks in self.options])

    def rank(self, index: int | slice, filters: Array | float, channels: Array | float) -> Any:
        """Of a choice (or all) with so many filters and channels per group left."""
        most = np.minimum(filters, channels)
        if self.kernel > 1:
            most = np.minimum(filters * channels, most * self.kernel)
        return np.minimum(self.offered[index], most)

    def unchanged(self, index: int | slice, filters: Array | float, channels: Array | float) -> Any:
        """Whether a choice leaves the layer as it is with so many filters and channels per group left."""
        given = np.arange(len(self.options))[index] == 0
        if self.kernel > 1:
            return given
        return given | (self.rank(index, filters, channels) >= np.minimum(filters, channels))

    def cost(self, index: int | slice, filters: Array | float, channels: Array | float) -> Array:
        """Of a choice (or all) when so many filters and channels per group are left."""
        if self.kernel > 1:
            each = filters * self.at_output + channels * self.at_input + self.kernel * self.at_core
        else:
            each = (filters + channels) * self.at_core
        whole = filters * channels * self.kernel * self.at_core
        chain = self.rank(index, filters, channels) * each
        return self.groups * np.where(self.unchanged(index, filters, channels), whole, chain)


@dataclass(frozen=True)
class GroupChoice:
    """How many channel sets a group can lose.

    Attributes:
        damage: when 0, 1 … sets are gone, (n,).
        whole: which of these numbers are on offer, (n,); the first one is.
        filters: by layer, filters (per group of the convolution) that go with each set.
        channels: by layer, input channels (per group) that go with each set.
        shares: of the damage, by the layer in whose response it is lost.
    """

    damage: Array
    whole: NDArray[np.bool_]
    filters: Mapping[str, float]
    channels: Mapping[str, float]
    shares: Mapping[str, float]

    @cached_property
    def standing(self) -> Array:
        """What is left of all that the sets do for the network when 0, 1 … of them are gone, (n,)."""
        return 1 - self.damage / self.damage[-1] if self.damage[-1] > 0 else np.ones(len(self.damage))


@dataclass
class Decision:
    """A settled state: sets that each group loses, and each layer's choice."""

    removed: list[int]
    picked: dict[str, int]
    damage: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True)
class Problem:
    """All that is to be decided.

    Attributes:
        layers: by name, in the order of the network; layers without a choice have just the first entry.
        groups: of channels that can be removed.
        fixed: cost of whatever no choice changes.
    """

    layers: Mapping[str, LayerChoice]
    groups: Sequence[GroupChoice]
    fixed: float = 0.0

    @cached_property
    def read(self) -> Mapping[str, Sequence[tuple[int, float]]]:
        """The groups, by number, that lose in each layer's response, and that share of their damage."""
        return {
            name: [
                (index, group.shares[name]) for index, group in enumerate(self.groups) if name in group.shares
            ]
            for name in self.layers
        }

    @property
    def worst(self) -> float:
        """Damage of the worst choices of all; 1 where there is none."""
        curves = [each.damage for each in self.layers.values()] + [each.damage for each in self.groups]
        return float(sum(curve[np.isfinite(curve)].max() for curve in curves)) or 1.0


def decide(problem: Problem, budget: float) -> Decision:
    """The least damage found at a cost within the budget; the smallest network where there is none within."""
    found = [_search(problem, budget, turns) for turns in TURNS]
    within = [decision for decision in found if decision.cost <= budget]
    if not within:
        return min(found, key=lambda decision: decision.cost)
    return min(within, key=lambda decision: decision.damage)


def expected_damage(problem: Problem, decision: Decision) -> float:
    """Of a decision; `decision` may have been taken for other damages of its choices."""
    return _State(problem, decision).decision().damage


def _search(problem: Problem, budget: float, turns: Sequence[str]) -> Decision:
    """The decision at the price for which the cost meets the budget."""
    low, high = None, _settle(problem, 0.0, turns)
    if high.cost <= budget:
        return high
    # Prices in units of all the damage there can be for all the cost.
    least, most = 1e-12, 1e6
    scale = problem.worst / max(high.cost, 1.0)
    for _ in range(BISECTIONS):
        price = (least * most) ** 0.5
        found = _settle(problem, price * scale, turns)
        if found.cost <= budget:
            most, low = price, found
        else:
            least = price
        if low is not None and low.cost >= budget * NEARLY:
            break
    if low is None:
        return _settle(problem, 1e12 * scale, turns)
    return _filled(problem, low, budget)


def _settle(problem: Problem, price: float, turns: Sequence[str]) -> Decision:
    state = _State(problem)
    for _ in range(ROUNDS):
        before = list(state.removed), dict(state.picked)
        for turn in turns:
            if turn == "groups":
                state.settle_groups(price)
            else:
                state.settle_layers(price)
        if before == (state.removed, state.picked):
            break
    return state.decision()


def _filled(problem: Problem, decision: Decision, budget: float) -> Decision:
    """Spend what is left of the budget where it helps most for its cost."""
    state = _State(problem, decision)
    while True:
        spare = budget - state.decision().cost
        best: tuple[float, str | int, int] = 0.0, "", 0
        curves: list[tuple[str | int, Array, int, Array]] = []
        for name in problem.layers:
            curves.append((name, state.layer_damage(name), state.picked[name], state.layer_costs(name)))
        for index, count in enumerate(state.removed):
            curves.append((index, state.group_damage(index), count, state.group_costs(index)))
        for choice, damage, now, costs in curves:
            more, gain = costs - costs[now], damage[now] - damage
            rate = np.where((more <= spare) & (gain > 0), gain / np.maximum(more, 1e-9), 0)
            if rate.max() > best[0]:
                best = rate.max(), choice, int(rate.argmax())
        if not best[0]:
            return state.decision()
        state.choose(*best[1:])


class _State:
    """Widths and choices while they are settled."""

    def __init__(self, problem: Problem, decision: Decision | None = None) -> None:
        self.problem = problem
        self.removed = list(decision.removed) if decision else [0] * len(problem.groups)
        self.picked = dict(decision.picked) if decision else dict.fromkeys(problem.layers, 0)
        self.filters = {name: float(layer.filters) for name, layer in problem.layers.items()}
        self.channels = {name: float(layer.channels) for name, layer in problem.layers.items()}
        self.left = dict.fromkeys(problem.layers, 1.0)
        for group, count in zip(problem.groups, self.removed, strict=True):
            self._take(group, 0, count)

    def settle_layers(self, price: float) -> None:
        for name in self.problem.layers:
            self.choose(name, int(np.argmin(self.layer_damage(name) + price * self.layer_costs(name))))

    def settle_groups(self, price: float) -> None:
        for index in range(len(self.problem.groups)):
            self.choose(index, int(np.argmin(self.group_damage(index) + price * self.group_costs(index))))

    def layer_damage(self, name: str) -> Array:
        """Of a layer's choices."""
        return self.problem.layers[name].damage * self.left[name]

    def group_damage(self, index: int) -> Array:
        """When 0, 1 … sets of a group are gone, with what that changes for the layers which compute them.

        Infinite for numbers that are not on offer.
        """
        group = self.problem.groups[index]
        total = group.damage * sum(share * self.left[name] for name, share in group.shares.items())
        for name in group.filters:
            total = total + group.standing * self._part(group, name) * self._inside(name)
        return np.where(group.whole, total, np.inf)

    def layer_costs(self, name: str) -> Array:
        """Of a layer with each of its choices."""
        return self.problem.layers[name].cost(slice(None), self.filters[name], self.channels[name])

    def group_costs(self, index: int) -> Array:
        """Of the layers that a group touches, when 0, 1 … of its sets are gone."""
        group = self.problem.groups[index]
        more = np.arange(len(group.damage), dtype=np.float64) - self.removed[index]
        total = np.zeros(len(more))
        for name in {**group.filters, **group.channels}:
            filters = self.filters[name] - more * group.filters.get(name, 0.0)
            channels = self.channels[name] - more * group.channels.get(name, 0.0)
            total += self.problem.layers[name].cost(self.picked[name], filters, channels)
        return total

    def choose(self, choice: str | int, number: int) -> None:
        """Give a layer, by its name, a choice, or let a group, by its number, lose so many sets."""
        if isinstance(choice, int):
            self._take(self.problem.groups[choice], self.removed[choice], number)
            self.removed[choice] = number
        else:
            self.picked[choice] = number

    def decision(self) -> Decision:
        layers = self.problem.layers
        damage = sum(self.left[name] * self._inside(name) for name in layers)
        cost = sum(layers[n].cost(i, self.filters[n], self.channels[n]) for n, i in self.picked.items())
        return Decision(
            list(self.removed), dict(self.picked), float(damage), float(cost) + self.problem.fixed
        )

    def _inside(self, name: str) -> float:
        """Damage of all errors in a layer's response, as if all of that were left."""
        groups = self.problem.groups
        read = sum(share * groups[i].damage[self.removed[i]] for i, share in self.problem.read[name])
        return float(self.problem.layers[name].damage[self.picked[name]] + read)

    def _part(self, group: GroupChoice, name: str) -> float:
        """Share of a layer's filters that are in a group."""
        return min(1.0, group.filters[name] * len(group.damage) / self.problem.layers[name].filters)

    def _take(self, group: GroupChoice, before: int, now: int) -> None:
        for name, each in group.filters.items():
            self.filters[name] -= (now - before) * each
            self.left[name] += (group.standing[now] - group.standing[before]) * self._part(group, name)
        for name, each in group.channels.items():
            self.channels[name] -= (now - before) * each


def ranks_of(problem: Problem, decision: Decision, name: str) -> Ranks | None:
    """The ranks decided for a layer, as far as what is left of it allows; None for the layer as it is."""
    layer, index = problem.layers[name], decision.picked[name]
    state = _State(problem, decision)
    filters, channels = (round(width[name]) for width in (state.filters, state.channels))
    if layer.unchanged(index, filters, channels):
        return None
    rank = int(layer.rank(index, filters, channels))
    return layer.options[index]._replace(out=rank, into=rank)
