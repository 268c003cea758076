"""What rules do with atoms."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.pruning.channels import Atoms, ChannelGraph, Keep, NoRuleError
from onnxcompress.pruning.rules.nodes import computed, graph_of, new_constant, replaced
from onnxcompress.weights import weights_of


def hand_on(graph: ChannelGraph, node: ir.Node, atoms: Atoms | None, reason: str = "") -> None:
    """All outputs have these atoms; without any, they are fixed as the input is or for a reason given."""
    source = node.inputs[0] if node.inputs else None
    for value in node.outputs:
        graph.hand_on(value, atoms, reason or graph.fixed(source))


def sizes_follow(graph: ChannelGraph, node: ir.Node, index: int, axes: Sequence[int]) -> None:
    """An input that holds the sizes of these axes of the output follows its channels.

    Sizes of 0 and −1 follow by themselves, and so does the Shape of a value that is cut alike. Others that
    are computed are replaced once they are; along an axis whose size the network leaves open, nothing is cut.
    """
    atoms, sizes = graph.atoms(node.outputs[0]), node.inputs[index]
    if atoms is None or sizes is None:
        return
    given = weights_of(sizes)
    cut = [axis for axis in axes if atoms.shape[axis] > 1]
    if given is None:
        for axis in [axis for axis in cut if not graph.is_static(node.outputs[0], axis)]:
            graph.tie(atoms.take([0], axis), atoms)
            cut.remove(axis)
        if not cut:
            raise NoRuleError("its shape is computed from sizes that the network leaves open")
    varying = np.isin(list(axes), cut)

    def follow(keep: Keep) -> None:
        if keep(atoms).all():
            return
        counts = np.array([kept_along(keep, atoms, axis).sum() for axis in axes], np.int64)
        if given is not None:
            changed = np.where(varying & (given > 0), counts, given)
            node.replace_input_with(index, new_constant(node, "sizes", changed))
        elif _is_shape_alike(graph, sizes, atoms, keep):
            node.replace_input_with(index, sizes)
        elif not _are_left_open(graph, sizes, varying):
            after = replaced(node, varying, counts, sizes)
            graph_of(node).insert_before(node, after)
            node.replace_input_with(index, after[-1].outputs[0])

    graph.edit(follow)


def _is_shape_alike(graph: ChannelGraph, sizes: ir.Value, atoms: Atoms, keep: Keep) -> bool:
    """Whether sizes are the whole Shape of a value of which as many channels stay as of these atoms."""
    node = sizes.producer()
    if node is None or node.op_type != "Shape" or {"start", "end"} & set(node.attributes):
        return False
    others = graph.atoms(node.inputs[0])
    return (
        others is not None
        and others.shape == atoms.shape
        and all(
            kept_along(keep, others, axis).sum() == kept_along(keep, atoms, axis).sum()
            for axis in range(atoms.ndim)
        )
    )


def _are_left_open(graph: ChannelGraph, sizes: ir.Value, varying: np.ndarray) -> bool:
    """Whether computed sizes are 0 or −1 where the channels vary."""
    try:
        return bool((computed(sizes, graph.shapes)[varying] <= 0).all())
    except NoRuleError:
        return False


def kept_along(keep: Keep, atoms: Atoms, axis: int) -> np.ndarray:
    """Which indices along an axis stay, shape (n,)."""
    return np.asarray(np.moveaxis(keep(atoms), axis, -1).reshape(-1, atoms.shape[axis]).any(axis=0))


def renumbered(kept: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Indices into what is kept, without those that are not."""
    return (np.cumsum(kept) - 1)[indices[kept[indices]]]


def on_axis(atoms: Atoms, axis: int, rank: int) -> Atoms:
    """Atoms of shape (n,) along one axis of a tensor."""
    return atoms.reshape([-1 if each == axis else 1 for each in range(rank)])


def follow_constant(
    graph: ChannelGraph, node: ir.Node, value: ir.Value, atoms: Atoms, axes: Iterable[int]
) -> None:
    """A constant operand, broadcast against atoms, follows along these axes (counted in the atoms' rank)."""
    for axis in axes:
        lines = np.moveaxis(atoms, axis, -1).reshape(-1, atoms.shape[axis])
        graph.parameter(value, axis - atoms.ndim + len(graph.shape(value)), lines, node)
