"""Operators that move elements: what they do to the data is done to the atoms."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.pruning.channels import Atoms, ChannelGraph, Keep, NoRuleError
from onnxcompress.pruning.rules.atoms import (
    follow_constant,
    hand_on,
    kept_along,
    on_axis,
    renumbered,
    sizes_follow,
)
from onnxcompress.pruning.rules.nodes import (
    array_of,
    axis_of,
    constant,
    graph_of,
    integers,
    ints_of,
    new_constant,
    new_node,
    opset_of,
    optional,
    replaced,
    set_ints,
)
from onnxcompress.pruning.rules.registry import rule
from onnxcompress.weights import weights_of


@rule("Concat")
def concat(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: one after the other. Along another axis: the inputs' channels are tied."""
    rank = len(graph.shape(node.outputs[0]))
    axis = axis_of(node, "axis", 0, rank)
    inputs = [value for value in node.inputs if value is not None]
    given = [atoms for value in inputs if (atoms := graph.atoms(value)) is not None]
    others = sorted({each for atoms in given for each in range(rank) if atoms.shape[each] > 1} - {axis})
    if not given:
        hand_on(graph, node, None)
    elif others:
        _concat_across(graph, node, inputs, max(given, key=np.size), axis, others)
    else:
        pieces = []
        for value in inputs:
            atoms, size = graph.atoms(value), graph.shape(value)[axis]
            if atoms is None:
                atoms = on_axis(graph.start(size), axis, rank)
                if weights_of(value) is None:
                    graph.lock(atoms, graph.fixed(value))
                else:
                    graph.parameter(value, axis, atoms.ravel(), node)
            pieces.append(atoms)
        hand_on(graph, node, np.concatenate(pieces, axis))


def _concat_across(
    graph: ChannelGraph, node: ir.Node, inputs: list[ir.Value], first: Atoms, axis: int, others: list[int]
) -> None:
    for value in inputs:
        atoms = graph.atoms(value)
        if first.shape[axis] > 1 or (atoms is not None and atoms.shape != first.shape):
            raise NoRuleError("its channels lie along several axes")
        if atoms is not None:
            graph.tie(first, atoms)
        elif weights_of(value) is not None:
            follow_constant(graph, node, value, first, others)
        else:
            graph.lock(first, f"Concat ('{node.name}') with {graph.fixed(value)}")
    hand_on(graph, node, first)


@rule("Split")
def split(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: each output has its part, and the sizes follow."""
    atoms = graph.atoms(node.inputs[0])
    axis = axis_of(node, "axis", 0, len(graph.shape(node.inputs[0])))
    if atoms is None or atoms.shape[axis] == 1:
        hand_on(graph, node, atoms)
        return
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        constant(node.inputs[1])
    sizes = [graph.shape(value)[axis] for value in node.outputs]
    parts = np.split(atoms, np.cumsum(sizes)[:-1], axis)
    for value, part in zip(node.outputs, parts, strict=True):
        graph.hand_on(value, part)

    def resize(keep: Keep) -> None:
        kept = [int(kept_along(keep, part, axis).sum()) for part in parts]
        if "split" in node.attributes:
            node.attributes["split"] = ir.AttrInt64s("split", kept)
        elif opset_of(node) < 13:
            if len(set(kept)) > 1:
                node.attributes["split"] = ir.AttrInt64s("split", kept)
        else:
            node.attributes.pop("num_outputs", None)
            node.resize_inputs(2)
            node.replace_input_with(1, new_constant(node, "split", np.array(kept, np.int64)))

    graph.edit(resize)


@rule("Slice")
def slice_(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: those in the range, which follows; where it has steps, a Gather comes before."""
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        hand_on(graph, node, None)
        return
    sizes = graph.shape(node.inputs[0])
    given = ints_of(node, "axes", (), 3) or range(len(_bound(graph, node, "starts", 1)))
    axes = [axis % len(sizes) for axis in given]
    cut = [(index, axis) for index, axis in enumerate(axes) if atoms.shape[axis] > 1]
    if not cut:
        hand_on(graph, node, atoms)
        return
    starts, ends = _bound(graph, node, "starts", 1), _bound(graph, node, "ends", 2)
    steps = ints_of(node, "steps", [1] * len(starts), 4)
    ranges = [range(sizes[axis])[slice(starts[i], ends[i], steps[i])] for i, axis in cut]
    result = atoms
    for (_, axis), taken in zip(cut, ranges, strict=True):
        result = result.take(list(taken), axis)
    hand_on(graph, node, result)

    def follow(keep: Keep) -> None:
        if keep(atoms).all():
            return
        for (index, axis), taken in zip(cut, ranges, strict=True):
            kept = kept_along(keep, atoms, axis)
            if taken.step == 1:
                starts[index], ends[index] = int(kept[: taken.start].sum()), int(kept[: taken.stop].sum())
            else:
                indices = renumbered(kept, np.array(taken))
                _gather_before(node, indices, axis)
                starts[index], ends[index], steps[index] = 0, len(indices), 1
        set_ints(node, "starts", 1, starts)
        set_ints(node, "ends", 2, ends)
        if len(node.inputs) > 4 and node.inputs[4] is not None:
            set_ints(node, "steps", 4, steps)

    graph.edit(follow)


def _bound(graph: ChannelGraph, node: ir.Node, name: str, index: int) -> list[int]:
    return ints_of(node, name, ()) or integers(graph, optional(node, index))


def _gather_before(node: ir.Node, indices: np.ndarray, axis: int) -> None:
    inputs = [node.inputs[0], new_constant(node, "indices", indices)]
    gather = new_node(node, "gather", "Gather", inputs, axis=axis)
    graph_of(node).insert_before(node, gather)
    node.replace_input_with(0, gather.outputs[0])


@rule("Gather")
def gather(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the channels: those at constant indices, which follow. Along another axis: any."""
    if (indices_atoms := graph.atoms(node.inputs[1])) is not None:
        graph.lock(indices_atoms, f"indices of Gather ('{node.name}')")
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        hand_on(graph, node, None)
        return
    axis = axis_of(node, "axis", 0, atoms.ndim)
    indices_rank = len(graph.shape(node.inputs[1]))
    if atoms.shape[axis] == 1:
        new = tuple(range(axis, axis + indices_rank))
        hand_on(graph, node, np.expand_dims(atoms.squeeze(axis), new))
        return
    size = graph.shape(node.inputs[0])[axis]
    indices = array_of(node.inputs[1]) % size
    if indices.ndim > 1:
        raise NoRuleError("its indices are a matrix")
    hand_on(graph, node, atoms.take(indices, axis))

    def follow(keep: Keep) -> None:
        if not (kept := kept_along(keep, atoms, axis)).all():
            left = renumbered(kept, indices.ravel())
            node.replace_input_with(
                1, new_constant(node, "indices", left if indices.ndim else left.reshape(()))
            )

    graph.edit(follow)


@rule("Transpose")
def transpose(graph: ChannelGraph, node: ir.Node) -> None:
    """The axes change places."""
    atoms = graph.atoms(node.inputs[0])
    rank = len(graph.shape(node.inputs[0]))
    permutation = ints_of(node, "perm", range(rank)[::-1])
    hand_on(graph, node, None if atoms is None else atoms.transpose(permutation))


@rule("Flatten", "Squeeze", "Unsqueeze")
def flatten(graph: ChannelGraph, node: ir.Node) -> None:
    """The same elements in the same order under another shape."""
    hand_on(graph, node, _reinterpret(graph, node))


@rule("Reshape")
def reshape(graph: ChannelGraph, node: ir.Node) -> None:
    """As Flatten; the new shape follows the channels."""
    atoms = _reinterpret(graph, node)
    hand_on(graph, node, atoms)
    sizes_follow(graph, node, 1, range(len(graph.shape(node.outputs[0]))))


@rule("Expand")
def expand(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the other axes; the new shape follows the channels."""
    atoms = graph.atoms(node.inputs[0])
    rank = len(graph.shape(node.outputs[0]))
    if atoms is not None:
        atoms = atoms.reshape((1,) * (rank - atoms.ndim) + atoms.shape)
    hand_on(graph, node, atoms)
    sizes_follow(graph, node, 1, range(rank - graph.shape(node.inputs[1])[0], rank))


@rule("Tile")
def tile(graph: ChannelGraph, node: ir.Node) -> None:
    """Repeats along any axis."""
    atoms = graph.atoms(node.inputs[0])
    if atoms is not None:
        before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
        repeats = [b // a if n > 1 else 1 for a, b, n in zip(before, after, atoms.shape, strict=True)]
        atoms = np.tile(atoms, repeats)
    hand_on(graph, node, atoms)


@rule("DepthToSpace")
def depth_to_space(graph: ChannelGraph, node: ir.Node) -> None:
    """The channels that become one channel's block of pixels are tied."""
    first = graph.along(node.inputs[0], 1)
    if first is not None:
        block = node.attributes.get_int("blocksize", 1) ** 2
        crd = node.attributes.get_string("mode") == "CRD"
        by_pixel = first.reshape(-1, block).T if crd else first.reshape(block, -1)
        graph.tie(by_pixel[:1], by_pixel)
        first = on_axis(by_pixel[0], 1, 4)
    hand_on(graph, node, first)


@rule("SpaceToDepth")
def space_to_depth(graph: ChannelGraph, node: ir.Node) -> None:
    """A channel's block of pixels becomes that many channels."""
    first = graph.along(node.inputs[0], 1)
    if first is not None:
        first = on_axis(np.tile(first, node.attributes.get_int("blocksize", 1) ** 2), 1, 4)
    hand_on(graph, node, first)


@rule("Pad")
def pad(graph: ChannelGraph, node: ir.Node) -> None:
    """Around the other axes; channels of padding, at either end, go with what they are tied to."""
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        hand_on(graph, node, None)
        return
    if "pads" not in node.attributes and weights_of(node.inputs[1]) is None:
        sizes = zip(atoms.shape, graph.shape(node.inputs[0]), graph.shape(node.outputs[0]), strict=True)
        if any(count > 1 and before != after for count, before, after in sizes):
            raise NoRuleError("pads the channels by computed numbers")
        hand_on(graph, node, atoms)
        return
    axes = [axis % atoms.ndim for axis in ints_of(node, "axes", range(atoms.ndim), 3)]
    pads = ints_of(node, "pads", (), 1)
    mode = node.attributes.get_string("mode", "constant")
    ends = []
    for index, axis in enumerate(axes):
        before, after = pads[index], pads[index + len(axes)]
        if atoms.shape[axis] == 1 or before == after == 0:
            continue
        if mode != "constant" or min(before, after) < 0 or atoms.size > atoms.shape[axis]:
            raise NoRuleError(f"pads the channels by '{mode}'")
        parts = [graph.start(before), atoms.ravel(), graph.start(after)]
        atoms = on_axis(np.concatenate(parts), axis, atoms.ndim)
        ends.append((index, parts))
    hand_on(graph, node, atoms)

    def follow(keep: Keep) -> None:
        changed = list(pads)
        for index, (before, _, after) in ends:
            changed[index], changed[index + len(axes)] = int(keep(before).sum()), int(keep(after).sum())
        set_ints(node, "pads", 1, changed)

    if ends:
        graph.edit(follow)


@rule("Resize", "Upsample")
def resample(graph: ChannelGraph, node: ir.Node) -> None:
    """Along the other axes; sizes that count the channels follow."""
    atoms = graph.atoms(node.inputs[0])
    hand_on(graph, node, atoms)
    if atoms is None:
        return
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    varying = [axis for axis, size in enumerate(atoms.shape) if size > 1]
    cropped = node.attributes.get_string("coordinate_transformation_mode") == "tf_crop_and_resize"
    if cropped or any(before[axis] != after[axis] for axis in varying):
        raise NoRuleError("changes the channels")
    if optional(node, 3) is not None:
        sizes_follow(graph, node, 3, [axis % atoms.ndim for axis in ints_of(node, "axes", range(atoms.ndim))])


@rule("Shape")
def shape(graph: ChannelGraph, node: ir.Node) -> None:
    """Says the sizes before the cut: what is computed from them (a scale, another shape) stays as it was."""
    atoms = graph.atoms(node.inputs[0])
    hand_on(graph, node, None, "a shape")
    if atoms is None:
        return
    if node.outputs[0].is_graph_output():
        raise NoRuleError("is the network's output")
    sizes = graph.shape(node.inputs[0])
    part = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes)))
    counted, varying = np.array(sizes, np.int64)[part], (np.array(atoms.shape) > 1)[part]

    def freeze(keep: Keep) -> None:
        uses = [
            (reader, index)
            for reader, index in node.outputs[0].uses()
            if varying[_entries(reader, index, len(counted))].any()
        ]
        if uses and not keep(atoms).all():
            before = replaced(node, varying, counted, node.outputs[0])
            graph_of(node).insert_after(node, before)
            for reader, index in uses:
                reader.replace_input_with(index, before[-1].outputs[0])

    graph.edit(freeze)


def _entries(reader: ir.Node, index: int, count: int) -> np.ndarray:
    """Which of a shape's entries a node reads: all, unless it takes some out."""
    every = np.arange(count)
    try:
        if reader.op_type == "Gather" and index == 0:
            return np.ravel(every[array_of(reader.inputs[1])])
        if reader.op_type == "Slice" and index == 0:
            (start,), (end,) = ints_of(reader, "starts", (), 1), ints_of(reader, "ends", (), 2)
            (step,) = ints_of(reader, "steps", [1], 4)
            return every[start:end:step]
    except NoRuleError:
        pass
    return every


def _reinterpret(graph: ChannelGraph, node: ir.Node) -> Atoms | None:
    """Atoms of a tensor whose elements keep their row-major order under another shape.

    Axes of both shapes are matched in the shortest blocks of equal size. Channels that lie along several
    blocks are tied within a block that other axes join (the r × r pixels of a channel in a pixel shuffle).
    """
    atoms = graph.atoms(node.inputs[0])
    if atoms is None:
        return None
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    found = _blocks(before, after)
    for (i, j), _ in found:
        within = math.prod(atoms.shape[i:j])
        if 1 < within < math.prod(before[i:j]) and within < atoms.size:
            first = atoms[(slice(None),) * i + (slice(1),) * (j - i)]
            graph.tie(first, atoms)
            atoms = first
    result = atoms
    for (i, j), (k, m) in reversed(found):
        middle = atoms.shape[i:j]
        if math.prod(middle) == 1:
            shape_ = (*result.shape[:i], *(1,) * (m - k), *result.shape[j:])
        else:
            result = np.broadcast_to(result, (*result.shape[:i], *before[i:j], *result.shape[j:]))
            shape_ = (*result.shape[:i], *after[k:m], *result.shape[j:])
        result = result.reshape(shape_)
    for axis, size in enumerate(result.shape):
        first = result.take([0], axis)
        if size > 1 and (result == first).all():
            result = first
    return result


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The shortest runs of axes of both shapes that hold the same elements: ((i, j), (k, m)) in order."""
    found = []
    i = k = 0
    while i < len(before) or k < len(after):
        j, m = min(i + 1, len(before)), min(k + 1, len(after))
        size_before, size_after = math.prod(before[i:j]), math.prod(after[k:m])
        while size_before != size_after:
            if size_before < size_after and j < len(before):
                size_before, j = size_before * before[j], j + 1
            elif m < len(after):
                size_after, m = size_after * after[m], m + 1
            else:
                raise NoRuleError("its shapes do not match")
        found.append(((i, j), (k, m)))
        i, k = j, m
    return found
