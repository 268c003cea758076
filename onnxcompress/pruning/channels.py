"""The channel graph: which slices of which tensors are one and the same channel and must be cut together.

Every filter of a convolution, every neuron of a Gemm starts a channel, an *atom* (an integer). Operators
hand atoms on: the rules in `rules.py` say how. Where two atoms must live or die together they are *tied*
(the branches of an Add); what may not be cut at all is *locked* with a reason (the network's output).
Tied atoms form a *channel set*; sets that occur in the same tensors form a *group*, within which the sets
are interchangeable and compete for removal.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Atoms = NDArray[np.int64]
Keep = Callable[[Atoms], NDArray[np.bool_]]
"""Tells which of some atoms stay."""


@dataclass(frozen=True)
class Channels:
    """The channels of a tensor: one atom per index along one axis; the other axes have none."""

    axis: int
    atoms: Atoms


@dataclass(frozen=True)
class ParameterAxis:
    """One axis of a weight tensor and the atoms along it, with the node that reads the tensor."""

    parameter: ir.Value
    axis: int
    atoms: Atoms
    node: ir.Node


@dataclass(frozen=True)
class Layer:
    """A node whose filters start channels.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        atoms: by output channel, shape (M,).
        weight: the axis of the weights along which the filters lie.
        bias: likewise for the bias, if there is one.
    """

    node: ir.Node
    atoms: Atoms
    weight: ParameterAxis
    bias: ParameterAxis | None

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
    """Built node by node by the rules; afterwards asked for its layers, groups and locks."""

    shapes: dict[str, tuple[int, ...]]
    layers: list[Layer] = field(default_factory=list)
    parameters: list[ParameterAxis] = field(default_factory=list)
    edits: list[Callable[[Keep], None]] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    """Nodes without a rule that channels reached, with their operator."""

    _channels: dict[ir.Value, Channels] = field(default_factory=dict)
    _by_parameter: dict[ir.Value, list[ParameterAxis]] = field(default_factory=dict)
    _fixed: dict[ir.Value, str] = field(default_factory=dict)
    _ties: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    _locks: list[tuple[Atoms, str]] = field(default_factory=list)
    _atoms: int = 0

    # --- what rules read and say -----------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Concrete shape of a value (see `shapes.concrete_shapes`); KeyError when it is not known."""
        return self.shapes[str(value.name if value is not None else None)]

    def channels(self, value: ir.Value | None) -> Channels | None:
        """The channels of a value; None when it has none that could be cut."""
        return self._channels.get(value) if value is not None else None

    def hand_on(self, value: ir.Value, channels: Channels | None, fixed: str = "") -> None:
        """Give a value its channels, or none, with the reason why its channels are fixed."""
        self._channels.pop(value, None)
        if channels is None:
            self._fixed[value] = fixed
        else:
            self._channels[value] = channels

    def fixed(self, value: ir.Value | None) -> str:
        """Why a value has no channels that could be cut."""
        reason = "its channels are fixed"
        return self._fixed.get(value, reason) if value is not None else reason

    def start(self, count: int) -> Atoms:
        """New atoms, one per filter."""
        self._atoms += count
        return np.arange(self._atoms - count, self._atoms)

    def tie(self, a: Atoms, b: Atoms) -> None:
        """These must be cut together, element by element."""
        self._ties.append((a, b))

    def lock(self, channels: Channels | None, reason: str) -> None:
        """These may not be cut."""
        if channels is not None:
            self._locks.append((channels.atoms, reason))

    def parameter(self, value: ir.Value, axis: int, atoms: Atoms, node: ir.Node) -> ParameterAxis:
        """A weight tensor follows these atoms along an axis. Weights shared by several nodes tie them."""
        for known in self._by_parameter.get(value, []):
            if known.axis == axis:
                self.tie(known.atoms, atoms)
        entry = ParameterAxis(value, axis, atoms, node)
        self.parameters.append(entry)
        self._by_parameter.setdefault(value, []).append(entry)
        return entry

    def edit(self, change: Callable[[Keep], None]) -> None:
        """Have something besides weights changed when channels are cut (a group count, a shape)."""
        self.edits.append(change)

    # --- what follows from it --------------------------------------------------------------------

    @cached_property
    def set_of(self) -> Atoms:
        """Id of the channel set of every atom."""
        ties = [(a, b) for a, b in self._ties if len(a)]
        a = np.concatenate([a for a, _ in ties]) if ties else np.zeros(0, np.int64)
        b = np.concatenate([b for _, b in ties]) if ties else np.zeros(0, np.int64)
        matrix = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(self._atoms, self._atoms))
        return connected_components(matrix, directed=False)[1].astype(np.int64) if self._atoms else a

    @cached_property
    def locked(self) -> dict[int, str]:
        """Channel sets that may not be cut, with the first reason found."""
        reasons: dict[int, str] = {}
        for atoms, reason in self._locks:
            for set_id in np.unique(self.set_of[atoms]):
                reasons.setdefault(int(set_id), reason)
        return reasons

    @cached_property
    def groups(self) -> list[Group]:
        """Groups of interchangeable sets, in the order of the network; locked sets are in none."""
        tensors = [(f"{p.parameter.name}[{p.axis}]", p.atoms) for p in self.parameters]
        tensors += [(str(value.name), channels.atoms) for value, channels in self._channels.items()]
        occurs: dict[int, list[int]] = {}
        for index, (_, atoms) in enumerate(tensors):
            for set_id in np.unique(self.set_of[atoms]):
                occurs.setdefault(int(set_id), []).append(index)
        alike: dict[tuple[int, ...], list[int]] = {}
        for layer in self.layers:
            for set_id in dict.fromkeys(self.set_of[layer.atoms].tolist()):
                if set_id not in self.locked:
                    members = alike.setdefault(tuple(occurs[set_id]), [])
                    members.append(set_id)
        started = {id(layer.weight): layer.name for layer in self.layers}
        groups = []
        for where, sets in alike.items():
            layers = [
                started.get(id(self.parameters[index])) for index in where if index < len(self.parameters)
            ]
            groups.append(
                Group(
                    np.unique(sets),
                    tuple(name for name in layers if name),
                    tuple(tensors[index][0] for index in where),
                )
            )
        return groups

    def reason(self, layer: Layer) -> str | None:
        """Why none of a layer's filters can go; None when some can."""
        reasons = [self.locked.get(int(set_id)) for set_id in np.unique(self.set_of[layer.atoms])]
        return reasons[0] if all(reasons) else None
