"""The channel graph: which slices of which tensors are one and the same channel and must be cut together.

Every filter of a convolution, every neuron of a Gemm starts a channel, an *atom* (an integer). A tensor's
atoms are an array that broadcasts against it: a convolution's output has atoms of shape (1, C, 1, 1), and
after a Reshape in two groups (1, 2, C/2, 1, 1). Operators hand atoms on: the rules say how, most of them by
doing to the atoms what the operator does to the data. Where two atoms must live or die together they are
*tied* (the branches of an Add); what may not be cut at all is *locked* with a reason (the network's output).
Tied atoms form a *channel set*; sets that occur in the same tensors form a *group*, within which the sets
are interchangeable and compete for removal.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Atoms = NDArray[np.int64]
Keep = Callable[[Atoms], NDArray[np.bool_]]
"""Tells which of some atoms stay."""
Ties = list[tuple[Atoms, Atoms]]


Preference = Callable[[int, int], int]
"""Of an option by its number and the number of sets that it leaves; less is better."""

PREFERENCES: tuple[Preference, ...] = (
    lambda index, count: 0,
    lambda index, count: -count,
    lambda index, count: index,
    lambda index, count: -index,
)
"""By which open choices are made, as long as one leaves layers that cannot lose any filter."""

ALONE = "all of its channels can only go together"


class NoRuleError(Exception):
    """This form of an operator is not covered; the message, if any, says what about it."""


@dataclass(frozen=True)
class ParameterAxis:
    """One axis of a weight tensor and the atoms along it.

    Attributes:
        parameter: the weights.
        axis: index of the axis.
        atoms: shape (lines, size of the axis): an index goes when all the atoms of its column go.
        node: that reads the weights.
    """

    parameter: ir.Value
    axis: int
    atoms: Atoms
    node: ir.Node


@dataclass(frozen=True)
class Layer:
    """A node whose filters start channels.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        atoms: by filter, shape (M,).
        filters: gives the weights as one row per filter, shape (M, n), float64.
        biases: gives one row per filter, shape (M, 0 or more), float64.
    """

    node: ir.Node
    atoms: Atoms
    filters: Callable[[], NDArray[np.float64]]
    biases: Callable[[], NDArray[np.float64]]

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)


@dataclass(frozen=True)
class Group:
    """Interchangeable channel sets.

    Attributes:
        sets: ids of the channel sets, ascending; each is cut whole or not at all.
        layers: names of the nodes whose filters start these channels.
        tensors: names of the weights and values in which they occur.
    """

    sets: Atoms
    layers: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass
class ChannelGraph:
    """Built node by node by the rules, then `settle`d, then asked for its layers, groups and locks.

    Attributes:
        shapes: concrete shapes by value name (see `shapes.concrete_shapes`).
        other_shapes: the same with other numbers for the dimensions that the network leaves open.
        layers: in the order of the network.
        parameters: weight tensors that follow channels.
        edits: what else changes when channels are cut.
        unknown: nodes without a rule that channels reached, with their operator.
        set_of: id of the channel set of every atom, once settled.
        locked: channel sets that may not be cut, with the first reason found, once settled.
        groups: of interchangeable sets, in the order of the network, once settled; locked sets are in none.
    """

    shapes: dict[str, tuple[int, ...]]
    other_shapes: Callable[[], dict[str, tuple[int, ...]]]
    layers: list[Layer] = field(default_factory=list)
    parameters: list[ParameterAxis] = field(default_factory=list)
    edits: list[Callable[[Keep], None]] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    set_of: Atoms = field(default_factory=lambda: np.zeros(0, np.int64))
    locked: dict[int, str] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    _atoms: dict[ir.Value, Atoms] = field(default_factory=dict)
    _by_parameter: dict[ir.Value, list[ParameterAxis]] = field(default_factory=dict)
    _fixed: dict[ir.Value, str] = field(default_factory=dict)
    _ties: Ties = field(default_factory=list)
    _choices: list[list[Ties]] = field(default_factory=list)
    _locks: list[tuple[Atoms, str]] = field(default_factory=list)
    _count: int = 0

    # --- what rules read and say -----------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Concrete shape of a value.

        Raises:
            NoRuleError: when it is not known.
        """
        try:
            return self.shapes[str(value.name if value is not None else None)]
        except KeyError:
            raise NoRuleError("a shape cannot be told") from None

    def is_static(self, value: ir.Value, axis: int) -> bool:
        """Whether a size does not depend on dimensions that the network leaves open, as far as is known.

        A network that cannot run at other sizes has no open dimensions, whatever it declares.
        """
        other = self.other_shapes().get(str(value.name))
        return other is None or other[axis] == self.shape(value)[axis]

    def atoms(self, value: ir.Value | None) -> Atoms | None:
        """The atoms of a value, of its rank; None when it has no channels that could be cut."""
        return self._atoms.get(value) if value is not None else None

    def along(self, value: ir.Value | None, axis: int) -> Atoms | None:
        """The atoms of a value along one axis, shape (n,); those that differ along others are tied.

        Raises:
            NoRuleError: when its channels lie along other axes only.
        """
        atoms = self.atoms(value)
        if atoms is None:
            return None
        if atoms.shape[axis] == 1 < atoms.size:
            raise NoRuleError("its channels lie along another axis")
        lines = np.moveaxis(atoms, axis, -1).reshape(-1, atoms.shape[axis])
        self.tie(lines[:1], lines[1:])
        return lines[0]

    def hand_on(self, value: ir.Value, atoms: Atoms | None, fixed: str = "") -> None:
        """Give a value its atoms, or none, with the reason why its channels are fixed. A single one stays."""
        self._atoms.pop(value, None)
        if atoms is not None and atoms.size == 1:
            fixed = f"the only channel of '{value.name}'"
            self.lock(atoms, fixed)
        if atoms is None or atoms.size == 1:
            self._fixed[value] = fixed
            return
        self._atoms[value] = atoms
        varying = [axis for axis, size in enumerate(atoms.shape) if size > 1]
        if len(varying) > 1:
            options = []
            for axis in varying:
                lines = np.moveaxis(atoms, axis, -1).reshape(-1, atoms.shape[axis])
                options.append([(lines[:1], lines[1:])])
            self.choose(options)

    def fixed(self, value: ir.Value | None) -> str:
        """Why a value has no channels that could be cut."""
        reason = "fixed channels"
        return self._fixed.get(value, reason) if value is not None else reason

    def start(self, count: int) -> Atoms:
        """New atoms, shape (count,)."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def tie(self, a: Atoms, b: Atoms) -> None:
        """These must be cut together, element by element after broadcasting."""
        a, b = (each.ravel() for each in np.broadcast_arrays(a, b))
        differ = a != b
        if differ.any():
            pairs = np.unique(a[differ] * self._count + b[differ])
            self._ties.append((pairs // self._count, pairs % self._count))

    def choose(self, options: list[Ties]) -> None:
        """One of these lists of ties must hold; `settle` takes the one that lets the least matter go."""
        self._choices.append(options)

    def lock(self, atoms: Atoms | None, reason: str) -> None:
        """These may not be cut."""
        if atoms is not None:
            self._locks.append((np.unique(atoms), reason))

    def parameter(self, value: ir.Value, axis: int, atoms: Atoms, node: ir.Node) -> None:
        """A weight tensor follows atoms of shape (n,) or (lines, n). Weights read by several nodes tie them.

        Raises:
            NoRuleError: when the axis does not have n indices.
        """
        if self.shape(value)[axis] != atoms.shape[-1]:
            raise NoRuleError("its weights do not fit")
        entry = ParameterAxis(value, axis, np.atleast_2d(atoms), node)
        for known in self._by_parameter.get(value, []):
            if known.axis == axis:
                if known.atoms.shape != entry.atoms.shape:
                    raise NoRuleError(f"weights shared with '{known.node.name}', which reads them otherwise")
                self.tie(known.atoms, entry.atoms)
        self.parameters.append(entry)
        self._by_parameter.setdefault(value, []).append(entry)

    def edit(self, change: Callable[[Keep], None]) -> None:
        """Have something besides weights changed when channels are cut (a group count, a shape)."""
        self.edits.append(change)

    # --- what follows from it --------------------------------------------------------------------

    def settle(self, importance: Callable[[Layer], NDArray[np.float64]], planned: bool = False) -> None:
        """Make every open choice, then find the channel sets, locks and groups.

        Args:
            importance: of a layer's filters, shape (M,).
            planned: it is 0 for those that go and 1 for those that stay: options that tie the two come last.
        """
        scores, counts = np.zeros(self._count), np.zeros(self._count)
        for layer in self.layers if self._choices else ():
            np.add.at(scores, layer.atoms, importance(layer))
            np.add.at(counts, layer.atoms, 1)
        found: list[tuple[int, Atoms]] = []
        for prefer in PREFERENCES if self._choices else PREFERENCES[:1]:
            chosen = self._chosen(scores, counts, planned, prefer)
            found.append((self._stuck(chosen), chosen))
            if not found[-1][0]:
                break
        self.set_of = labels = min(found, key=lambda each: each[0])[1]
        for atoms, reason in self._locks:
            for set_id in np.unique(labels[atoms]):
                self.locked.setdefault(int(set_id), reason)
        self.groups = self._find_groups()

    @property
    def count(self) -> int:
        """Channel sets in all, once settled."""
        return int(self.set_of.max(initial=-1)) + 1

    def reason(self, layer: Layer) -> str | None:
        """Why none of a layer's filters can go; None when some can."""
        alone = {int(group.sets[0]): ALONE for group in self.groups if len(group.sets) == 1}
        reasons = [(alone | self.locked).get(int(each)) for each in np.unique(self.set_of[layer.atoms])]
        return reasons[0] if all(reasons) else None

    def _chosen(
        self, scores: NDArray[np.float64], counts: NDArray[np.float64], planned: bool, prefer: Preference
    ) -> Atoms:
        """The sets once every choice is made, one after the other."""
        labels = _components(np.arange(self._count), self._ties)
        for options in self._choices:
            labels = self._best(labels, options, scores, counts, planned, prefer)
        return labels

    def _stuck(self, labels: Atoms) -> int:
        """Layers of several filters all of which belong to one set that is not locked."""
        locked = np.unique(labels[np.concatenate([labels[:0], *(atoms for atoms, _ in self._locks)])])
        sets = [np.unique(labels[layer.atoms]) for layer in self.layers if len(layer.atoms) > 1]
        return sum(len(each) == 1 and each[0] not in locked for each in sets)

    def _best(
        self,
        labels: Atoms,
        options: list[Ties],
        scores: NDArray[np.float64],
        counts: NDArray[np.float64],
        planned: bool,
        prefer: Preference,
    ) -> Atoms:
        """Of the preferred options, that in which the less important half of the sets matters least."""
        if any(all((labels[a] == labels[b]).all() for a, b in option) for option in options):
            return labels
        involved = np.unique(np.concatenate([each.ravel() for o in options for pair in o for each in pair]))
        locks = [atoms for atoms, _ in self._locks]
        candidates = []
        for index, option in enumerate(options):
            merged = _components(labels, option)
            total = np.bincount(merged, scores) / np.maximum(np.bincount(merged, counts), 1)
            locked = merged[np.concatenate([labels[:0], *locks])]
            sets = np.setdiff1d(merged[involved], locked)
            lowest = np.sort(total[sets])[: len(sets) // 2]
            torn = planned and bool(((total > 0) & (total < 1))[merged[involved]].any())
            mean = lowest.mean() if len(lowest) else 0.0
            rank = prefer(index, int(merged.max()))
            candidates.append((torn, rank, len(lowest) == 0, mean, -len(sets), merged))
        return min(candidates, key=lambda candidate: candidate[:-1])[-1]

    def _find_groups(self) -> list[Group]:
        names = [f"{p.parameter.name}[{p.axis}]" for p in self.parameters]
        names += [str(value.name) for value in self._atoms]
        arrays = [entry.atoms for entry in self.parameters] + list(self._atoms.values())
        present = [np.unique(self.set_of[atoms]) for atoms in arrays]
        # Sets that occur in the same tensors are recognised by the sums of the tensors' random numbers.
        marks = np.random.default_rng(0).integers(0, 2**63, len(arrays), dtype=np.uint64)
        signature = np.zeros(self._count + 1, np.uint64)
        for sets, mark in zip(present, marks, strict=True):
            signature[sets] += mark
        started = [np.unique(self.set_of[layer.atoms]) for layer in self.layers]
        locked = np.array(sorted(self.locked), np.int64)
        free = [np.setdiff1d(sets, locked) for sets in started]
        members: dict[int, list[Atoms]] = {}
        layers: dict[int, dict[str, None]] = {}
        for layer, sets in zip(self.layers, free, strict=True):
            for key in dict.fromkeys(signature[sets].tolist()):
                members.setdefault(key, []).append(sets[signature[sets] == key])
                layers.setdefault(key, {})[layer.name] = None
        where: dict[int, list[str]] = {key: [] for key in members}
        for name, sets in zip(names, present, strict=True):
            for key in np.unique(signature[sets]).tolist():
                if key in where:
                    where[key].append(name)
        return [
            Group(np.unique(np.concatenate(members[key])), tuple(layers[key]), tuple(where[key]))
            for key in members
        ]


def _components(labels: Atoms, ties: Ties) -> Atoms:
    """Merge the sets of tied atoms: shape of ``labels``, numbered from 0."""
    pairs = [np.broadcast_arrays(a, b) for a, b in ties]
    a = np.concatenate([labels[a].ravel() for a, _ in pairs] or [labels[:0]])
    b = np.concatenate([labels[b].ravel() for _, b in pairs] or [labels[:0]])
    count = int(labels.max(initial=-1)) + 1
    if count == 0:
        return labels
    matrix = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    return connected_components(matrix, directed=False)[1].astype(np.int64)[labels]
