"""Which channels the others can replace: they go one after the other, and the readers are repaired each time.

A reader of patches x with covariance G and weights W loses, when the columns c of W go and the others are
fitted anew, tr(W_c [(G⁻¹)_cc]⁻¹ W_cᵀ) of its response's variance: the optimal brain surgeon (Hassibi and
Stork 1993, equation 5) for whole channels and squared response error. The channel for which that is least
goes; then the same again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.calibration.patches import obstacle, too_wide
from onnxcompress.calibration.statistics import Moments
from onnxcompress.factoring.fitted import regular
from onnxcompress.layers import FactorLayer
from onnxcompress.pruning.channels import ChannelGraph, Group
from onnxcompress.shapes import LAYERS

Array = NDArray[np.float64]

MIXING = LAYERS | {"Einsum", "GRU", "LSTM", "RNN"}
"""Operators whose weights mix the channels that they read."""

STEPS = 40
"""In which a group is eliminated: larger groups lose several channel sets at a time."""


@dataclass(frozen=True)
class Reader:
    """One group of a layer's filters, all of which read the same channels.

    Attributes:
        layer: its layer.
        part: which of the layer's groups.
        weights: (M / groups, C / groups · kernel).
        covariance: of the patches.
        sets: channel set of every channel that is read, (C / groups,); -1 for one that cannot go.
        weight: of an error in its response among those of other readers.
    """

    layer: FactorLayer
    part: int
    weights: Array
    covariance: NDArray
    sets: NDArray[np.int64]
    weight: float


@dataclass(frozen=True)
class Elimination:
    """The order in which the channel sets of a group go.

    Attributes:
        order: ids of the sets, (n,); the last one stays.
        damage: when the first 0, 1 … n − 1 of them are gone, (n,), not decreasing.
        shares: of the whole damage, those that the responses of each reading layer have, by its name.
    """

    order: NDArray[np.int64]
    damage: Array
    shares: Mapping[str, float]


def readers(
    graph: ChannelGraph,
    layers: Sequence[FactorLayer],
    moments: Mapping[str, Moments],
    sensitivity: Mapping[str, float],
) -> list[Reader]:
    """The readers of channels that could go, with what is known of their input.

    Args:
        graph: of the network.
        layers: of it.
        moments: by layer; those without a covariance are no readers here.
        sensitivity: damage for each unit of variance of a layer's response that is lost, by layer.
    """
    axes = {(entry.node, entry.parameter, entry.axis): entry for entry in graph.parameters}
    found = []
    for layer in layers:
        entry = axes.get((layer.node, layer.weights, 0 if layer.mirrored else 1)) if layer.shape else None
        if entry is None or layer.kind == "depthwise" or not has_covariance(layer, moments):
            continue
        sets = graph.set_of[entry.atoms].reshape(layer.groups, layer.sides[1])
        sets = np.where(np.isin(sets, list(graph.locked)), -1, sets)
        weight = layer.by_group
        for part, each in enumerate(zip(weight, moments[layer.name].covariance, sets, strict=True)):
            found.append(Reader(layer, part, *each, sensitivity.get(layer.name, 0.0)))
    return found


def unseen(
    graph: ChannelGraph, layers: Sequence[FactorLayer], moments: Mapping[str, Moments]
) -> dict[int, str]:
    """Channel sets whose loss cannot be told, with the reason: not all that reads them is known.

    Args:
        graph: of the network.
        layers: of it.
        moments: by layer.
    """
    known = {
        each.node
        for layer in layers
        if has_covariance(layer, moments) or layer.kind == "depthwise"
        for each in layer.applications
    }
    obstacles = {
        each.node: obstacle(layer) or too_wide(layer) for layer in layers for each in layer.applications
    }
    own = {layer.node: layer.atoms for layer in graph.layers}
    found: dict[int, str] = {}
    for entry in graph.parameters:
        node = entry.node
        if node.op_type not in MIXING or node in known or entry.parameter not in node.inputs[:2]:
            continue
        if not np.isin(entry.atoms, own.get(node, ())).all():
            why = obstacles.get(node) or f"nothing is fitted to what {node.op_type} reads"
            for each in np.unique(graph.set_of[entry.atoms]).tolist():
                found.setdefault(each, f"read by '{node.name}': {why}")
    return found


def has_covariance(layer: FactorLayer, moments: Mapping[str, Moments]) -> bool:
    """Whether the covariance of what a layer reads is there."""
    return layer.name in moments and moments[layer.name].covariance.size > 0


def repaired(reader: Reader, gone: NDArray[np.int64]) -> Array:
    """The reader's weights once these sets are gone: theirs are zero, the others' fitted anew."""
    kernel = len(reader.covariance) // len(reader.sets)
    out = np.repeat(np.isin(reader.sets, gone), kernel)
    g = regular(reader.covariance)
    weights = reader.weights.copy()
    weights[:, ~out] += np.linalg.solve(g[np.ix_(~out, ~out)], g[np.ix_(~out, out)] @ weights[:, out].T).T
    weights[:, out] = 0
    return weights


def clusters(groups: Sequence[Group], of: Sequence[Reader]) -> list[list[int]]:
    """Groups, by number, that the same readers read: the branches of a block. None without a reader."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index, group in enumerate(groups):
        reading = tuple(number for number, reader in enumerate(of) if np.isin(reader.sets, group.sets).any())
        if reading:
            found.setdefault(reading, []).append(index)
    return list(found.values())


def eliminate(groups: Sequence[Group], of: Sequence[Reader]) -> list[Elimination]:
    """The order in which the sets of a cluster's groups go, and the damage, by group.

    They go together: a group's damage is that of its own sets in the order in which all go, so that the sum
    over the groups is what is lost together. Where one branch could stand in for another, both cannot go.
    """
    sets = np.concatenate([group.sets for group in groups])
    owner = np.repeat(np.arange(len(groups)), [len(group.sets) for group in groups])
    reading = [_State(reader, sets) for reader in of if np.isin(reader.sets, sets).any()]
    left, count = np.arange(len(sets)), np.bincount(owner)
    order: list[list[int]] = [[] for _ in groups]
    damage: list[list[float]] = [[0.0] for _ in groups]
    each = np.zeros((len(groups), len(reading)))
    step = max(1, len(left) // STEPS // len(groups))
    while len(left) > len(groups):
        losses = np.sum([state.losses() for state in reading], axis=0)
        free = left[count[owner[left]] > 1]
        gone = free[np.argsort(losses[free], kind="stable")[:step]]
        gone = gone[_rank_among(owner[gone]) < count[owner[gone]] - 1]
        lost = np.array([state.remove(gone) for state in reading])
        # Within a step the sets share what they cost together.
        alone = losses[gone] if losses[gone].sum() > 0 else np.ones(len(gone))
        for index, part in zip(gone, alone / alone.sum(), strict=True):
            order[owner[index]].append(index)
            damage[owner[index]].append(damage[owner[index]][-1] + part * lost.sum())
            each[owner[index]] += part * lost
        left = np.setdiff1d(left, gone)
        count = np.bincount(owner[left], minlength=len(groups))
    found = []
    for group in range(len(groups)):
        last = left[owner[left] == group]
        shares: dict[str, float] = {}
        for state, part in zip(reading, each[group].tolist(), strict=True):
            share = part / damage[group][-1] if damage[group][-1] > 0 else 1 / len(reading)
            shares[state.name] = shares.get(state.name, 0.0) + share
        found.append(
            Elimination(sets[np.array([*order[group], *last], np.int64)], np.array(damage[group]), shares)
        )
    return found


def _rank_among(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each entry, how many equal ones are before it."""
    return np.array([np.sum(owner[:i] == each) for i, each in enumerate(owner)], np.int64)


class _State:
    """A reader on the way: its weights, repaired so far, and the inverse covariance of what is left."""

    def __init__(self, reader: Reader, sets: NDArray[np.int64]) -> None:
        self.name, self.weight, self.weights = reader.layer.name, reader.weight, reader.weights.copy()
        kernel = len(reader.covariance) // len(reader.sets)
        self.inverse = np.linalg.inv(regular(reader.covariance))
        columns = np.arange(len(reader.covariance)).reshape(-1, kernel)
        self.columns = [columns[reader.sets == each].ravel() for each in sets]

    def losses(self) -> Array:
        """For each set, what would be lost with it."""
        widths = np.array([len(columns) for columns in self.columns])
        found = np.zeros(len(widths))
        for width in np.unique(widths[widths > 0]):
            alike = np.flatnonzero(widths == width)
            at = np.stack([self.columns[index] for index in alike])
            blocks = self.inverse[at[:, :, None], at[:, None, :]]
            w = self.weights[:, at].transpose(1, 2, 0)
            found[alike] = np.sum(w * np.linalg.solve(blocks, w), axis=(1, 2))
        return self.weight * found

    def remove(self, gone: NDArray[np.int64]) -> float:
        """Take these sets out, repair the weights of the rest, and say what was lost."""
        at = np.concatenate([self.columns[index] for index in gone])
        if not len(at):
            return 0.0
        w = self.weights[:, at]
        solved = np.linalg.solve(self.inverse[np.ix_(at, at)], np.hstack([w.T, self.inverse[at]]))
        lost = float(np.sum(w.T * solved[:, : len(w)]))
        self.weights -= w @ solved[:, len(w) :]
        self.inverse -= self.inverse[:, at] @ solved[:, len(w) :]
        self.weights[:, at] = 0
        # What is gone must not be lost again.
        self.inverse[at], self.inverse[:, at] = 0, 0
        self.inverse[at, at] = 1
        for index in gone:
            self.columns[index] = at[:0]
        return self.weight * lost
