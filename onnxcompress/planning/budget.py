"""One budget for both: how many channels each group loses and at which ranks each layer is factored.

Every choice has a cost and an estimated damage to the network's output. For a price λ of the cost the sum

    Σ_groups D_g(removed) + Σ_layers D_l(ranks) + λ · cost

is made small by settling one group or layer after the other, the others given, until nothing changes; λ is
then sought for which the cost meets the budget. Pruning alone and factoring alone are among the choices.
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
            for MACs; 1 for parameters; bytes of a weight for size), (n,).
        at_core, at_output: of the core's, and of the part's that gives the output.
        options: ranks on offer, per group, n of them; the first entry is the layer as it is.
        taken: elements of the kernel that the input factor has, (n,).
        damage: of these, (n,).
        point: whether one rank makes two parts instead of three.
    """

    filters: int
    channels: int
    groups: int
    kernel: int
    at_input: Ints
    at_core: int
    at_output: int
    options: Sequence[Ranks]
    taken: Ints
    damage: Array
    point: bool

    @cached_property
    def out(self) -> Ints:
        """Output ranks on offer, (n,)."""
        return np.array([ranks.out for ranks in self.options])

    @cached_property
    def into(self) -> Ints:
        """Input ranks on offer, (n,)."""
        return np.array([ranks.into for ranks in self.options])

    @cached_property
    def shared(self) -> NDArray[np.bool_]:
        """Whether the input factor has an axis of the kernel, (n,)."""
        return np.array([ranks.axis is not None for ranks in self.options])

    def ranks(self, index: int | slice, filters: Array | float, channels: Array | float) -> tuple[Any, Any]:
        """Output and input ranks of a choice (or all) with so many filters and channels per group left."""
        taken = self.taken[index]
        rest = self.kernel // taken
        out, into = np.minimum(self.out[index], filters), np.minimum(self.into[index], channels * taken)
        return np.minimum(out, into * rest), np.minimum(into, out * rest)

    def unchanged(self, index: int | slice, filters: Array | float, channels: Array | float) -> Any:
        """Whether a choice leaves the layer as it is with so many filters and channels per group left."""
        out, into = self.ranks(index, filters, channels)
        if self.point:
            full = out >= np.minimum(filters, channels)
        else:
            full = ~self.shared[index] & (out >= filters) & (into >= channels)
        return full | (np.arange(len(self.options))[index] == 0)

    def cost(self, index: int | slice, filters: Array | float, channels: Array | float) -> Array:
        """Of a choice (or all) when so many filters and channels per group are left."""
        out, into = self.ranks(index, filters, channels)
        if self.point:
            chain = out * (channels * self.at_core + filters * self.at_output)
        else:
            taken = self.taken[index]
            columns = np.asarray(channels * taken, np.float64)
            chain = into * out * (self.kernel // taken) * self.at_core
            read = (into < columns) | self.shared[index]
            chain = chain + np.where(read, columns * into * self.at_input[index], 0)
            chain = chain + np.where(out < filters, filters * out * self.at_output, 0)
        whole = filters * channels * self.kernel * self.at_core
        return self.groups * np.where(self.unchanged(index, filters, channels), whole, chain)


@dataclass(frozen=True)
class GroupChoice:
    """How many channel sets a group can lose.

    Attributes:
        damage: when 0, 1 … sets are gone, (n,).
        filters: by layer, filters (per group of the convolution) that go with each set.
        channels: by layer, input channels (per group) that go with each set.
    """

    damage: Array
    filters: Mapping[str, float]
    channels: Mapping[str, float]


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
        spare, best = budget - state.decision().cost, (0.0, "", 0)
        for name, layer in problem.layers.items():
            costs = layer.cost(slice(None), state.filters[name], state.channels[name])
            now = state.picked[name]
            more, gain = costs - costs[now], layer.damage[now] - layer.damage
            rate = np.where((more <= spare) & (gain > 0), gain / np.maximum(more, 1e-9), 0)
            if rate.max() > best[0]:
                best = rate.max(), name, int(rate.argmax())
        if not best[1]:
            return state.decision()
        state.picked[best[1]] = best[2]


class _State:
    """Widths and choices while they are settled."""

    def __init__(self, problem: Problem, decision: Decision | None = None) -> None:
        self.problem = problem
        self.removed = list(decision.removed) if decision else [0] * len(problem.groups)
        self.picked = dict(decision.picked) if decision else dict.fromkeys(problem.layers, 0)
        self.filters = {name: float(layer.filters) for name, layer in problem.layers.items()}
        self.channels = {name: float(layer.channels) for name, layer in problem.layers.items()}
        for group, count in zip(problem.groups, self.removed, strict=True):
            self._take(group, count)

    def settle_layers(self, price: float) -> None:
        for name, layer in self.problem.layers.items():
            cost = layer.cost(slice(None), self.filters[name], self.channels[name])
            self.picked[name] = int(np.argmin(layer.damage + price * cost))

    def settle_groups(self, price: float) -> None:
        for index, group in enumerate(self.problem.groups):
            self._take(group, -self.removed[index])
            removed = np.arange(len(group.damage), dtype=np.float64)
            total = group.damage.copy()
            for name in {**group.filters, **group.channels}:
                filters = self.filters[name] - removed * group.filters.get(name, 0.0)
                channels = self.channels[name] - removed * group.channels.get(name, 0.0)
                total += price * self.problem.layers[name].cost(self.picked[name], filters, channels)
            self.removed[index] = int(np.argmin(total))
            self._take(group, self.removed[index])

    def decision(self) -> Decision:
        layers = self.problem.layers
        damage = sum(layers[name].damage[index] for name, index in self.picked.items())
        damage += sum(g.damage[count] for g, count in zip(self.problem.groups, self.removed, strict=True))
        cost = sum(layers[n].cost(i, self.filters[n], self.channels[n]) for n, i in self.picked.items())
        return Decision(
            list(self.removed), dict(self.picked), float(damage), float(cost) + self.problem.fixed
        )

    def _take(self, group: GroupChoice, count: int) -> None:
        for name, each in group.filters.items():
            self.filters[name] -= count * each
        for name, each in group.channels.items():
            self.channels[name] -= count * each


def ranks_of(problem: Problem, decision: Decision, name: str) -> Ranks | None:
    """The ranks decided for a layer, as far as what is left of it allows; None for the layer as it is."""
    layer, index = problem.layers[name], decision.picked[name]
    state = _State(problem, decision)
    filters, channels = (round(width[name]) for width in (state.filters, state.channels))
    if layer.unchanged(index, filters, channels):
        return None
    out, into = layer.ranks(index, filters, channels)
    return Ranks(int(out), int(into), layer.options[index].axis)
