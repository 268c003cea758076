"""Local response normalization across channels, written as a 1×1 convolution with a band of weights.

Pruning writes the band densely: each of its channels can go. In the end it is cut into groups.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.model import refresh
from onnxcompress.names import Names
from onnxcompress.splits import sizes_of, split
from onnxcompress.weights import weights_of

BLOCK = 8
"""Channels per group of the convolution. A dense band would be nearly all zeros: at 192 channels the groups
need a sixteenth of its MACs. An LRN of 56×56 on one thread of ONNX Runtime: itself 22 ms, with a dense band
5.6, with groups 3.2."""


def band(channels: int, size: int, alpha: float) -> NDArray[np.float64]:
    """Weights of the sum over neighbours in ONNX's LRN: shape (channels, channels), α/size in the band."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return np.where((offset >= -((size - 1) // 2)) & (offset <= size // 2), alpha / size, 0.0)


def blocks(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut a band into groups that overlap on the input side.

    Args:
        matrix: (C, C), zero but near the diagonal: within `reach` channels in all.

    Returns:
        (weights (groups · BLOCK, width) of a grouped convolution, width = BLOCK + reach, or C where that is
        less; rows beyond C are zero. The first of the width channels that each group reads, (groups,))
    """
    count = len(matrix)
    offsets = np.subtract(*np.nonzero(matrix)[::-1])
    before, after = max(0, -offsets.min(initial=0)), max(0, offsets.max(initial=0))
    width = min(BLOCK + before + after, count)
    rows = np.arange(-(-count // BLOCK) * BLOCK)
    starts = np.clip(rows[::BLOCK] - before, 0, count - width)
    read = (starts[:, None] + np.arange(width)).repeat(BLOCK, axis=0)
    return np.where(rows[:, None] < count, matrix[np.minimum(rows, count - 1)[:, None], read], 0.0), starts


def lrn_nodes(model: ir.Model) -> list[str]:
    """Names of the LRN nodes, in order."""
    return [str(node.name) for node in model.graph if node.op_type == "LRN" and not node.domain]


def sums_squares(node: ir.Node) -> bool:
    """Whether a node is the Conv of an LRN written as convolutions: its weights are no layer's."""
    if node.op_type != "Conv":
        return False
    source = _producer(_pieces(node) or node)
    return source is not None and source.op_type == "Mul" and source.inputs[0] is source.inputs[1]


def is_band(node: ir.Node) -> bool:
    """Whether it is one whose weights are dense: a 1×1 convolution with one number in all of its band."""
    if not sums_squares(node) or len(node.inputs) != 3:
        return False
    if node.attributes.get_int("group", 1) != 1:
        return False
    weights, bias = weights_of(node.inputs[1]), weights_of(node.inputs[2])
    if weights is None or bias is None or weights.shape[:2] != (len(bias),) * 2:
        return False
    alike = all(len(np.unique(numbers)) <= 1 for numbers in (weights[weights != 0], bias))
    return alike and weights.size == len(bias) ** 2


def rewrite_lrn(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return the network with these LRN nodes written as bands, and all bands cut into groups.

    It computes the same. Names that are no LRN (any more, since pruning has written them so) are passed over.
    """
    result = model.clone()
    for node in list(result.graph):
        shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "LRN" and node.name in names and shape is not None and isinstance(shape[1], int):
            write_as_band(node, np.ones(shape[1], bool))
    for node in list(result.graph):
        if is_band(node):
            _cut_into_groups(node)
    return refresh(result)


def whole_bands(model: ir.Model) -> ir.Model:
    """The network with bands that were cut into groups in one piece again, as they can be pruned.

    It computes the same. One without such bands is returned as it is.
    """
    if not any(map(sums_squares, model.graph)):
        return model
    result = model.clone()
    for node in list(result.graph):
        if sums_squares(node):
            _make_whole(node)
    return refresh(result)


def write_as_band(node: ir.Node, kept: NDArray[np.bool_]) -> None:
    """Replace an LRN node, of whose channels only some remain, by x / (band(x²) + bias)^β.

    The removed channels count as zero; neighbours keep their original distance.

    Args:
        node: an LRN of its graph; its input already has only the kept channels.
        kept: by original channel, shape (C,).
    """
    graph, x, y = node.graph, node.inputs[0], node.outputs[0]
    assert graph is not None
    assert x is not None
    size = node.attributes["size"].as_int()
    alpha, beta, bias = (
        node.attributes.get_float(name, default)
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    nodes: list[ir.Node] = []
    names = Names(graph)

    def constant(suffix: str, array: NDArray) -> ir.Value:
        return names.initializer(f"{node.name}.{suffix}", array)

    def add(op_type: str, suffix: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(op_type, inputs, attributes, name=f"{node.name}/{suffix}"))
        nodes[-1].outputs[0].name = names.fresh(f"{y.name}/{suffix}")
        return nodes[-1].outputs[0]

    matrix = band(len(kept), size, alpha)[kept][:, kept]
    point = (1,) * (len(x.shape) - 2 if x.shape is not None else 2)
    base = add(
        "Conv",
        "band",
        add("Mul", "square", x, x),
        constant("band", matrix.reshape(*matrix.shape, *point).astype(dtype)),
        constant("bias", np.full(len(matrix), bias, dtype)),
    )
    if beta == 0.75:
        root = add("Sqrt", "root", base)
        power = add("Mul", "power", root, add("Sqrt", "fourth_root", root))
    else:
        power = add("Pow", "power", base, constant("beta", np.array(beta, dtype)))
    nodes.append(ir.node("Div", [x, power], name=node.name))
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [y], [nodes[-1].outputs[0]])


def _cut_into_groups(node: ir.Node) -> None:
    """Write a 1×1 convolution with a band of weights as one of groups, where these are fewer weights.

    What the groups read overlaps: it is cut into pieces, some of which are joined twice. That is what edge
    runtimes know; of a Gather ncnn's converter makes something else.
    """
    graph, x, y = node.graph, node.inputs[0], node.outputs[0]
    assert graph is not None
    assert x is not None
    dense, bias = np.asarray(weights_of(node.inputs[1])), np.asarray(weights_of(node.inputs[2]))
    weights, starts = blocks(dense.reshape(len(dense), -1))
    if weights.size >= dense.size or y.is_graph_output():
        return
    names = Names(graph)

    def parts(value: ir.Value, sizes: Sequence[int], suffix: str) -> ir.Node:
        new = split(value, sizes, names.fresh(f"{node.name}/{suffix}"), names)
        for index, output in enumerate(new.outputs):
            output.name = names.fresh(f"{y.name}/{suffix}.{index}")
        return new

    uses, stops = list(y.uses()), starts + weights.shape[1]
    cuts = np.union1d(starts, stops)
    pieces = parts(x, np.diff(cuts).tolist(), "pieces")
    read = [
        pieces.outputs[index]
        for start, stop in zip(starts, stops, strict=True)
        for index in np.flatnonzero((cuts[:-1] >= start) & (cuts[:-1] < stop)).tolist()
    ]
    windows = ir.node("Concat", read, {"axis": 1}, name=names.fresh(f"{node.name}/windows"))
    windows.outputs[0].name = names.fresh(f"{y.name}/windows")
    graph.insert_before(node, [pieces, windows])
    grouped = weights.reshape(*weights.shape, *dense.shape[2:]).astype(dense.dtype)
    padded = np.pad(bias, (0, len(weights) - len(bias)), mode="edge")
    _become(node, windows.outputs[0], grouped, padded, len(starts), names)
    if len(weights) > len(dense):
        after = parts(y, [len(dense), len(weights) - len(dense)], "channels")
        graph.insert_after(node, after)
        for reader, index in uses:
            reader.replace_input_with(index, after.outputs[0])


def _make_whole(node: ir.Node) -> None:
    """The reverse of `_cut_into_groups`; nothing where the node is not what that makes."""
    graph, y, pieces, windows = node.graph, node.outputs[0], _pieces(node), _producer(node)
    if graph is None or pieces is None or windows is None or len(node.inputs) != 3:
        return
    grouped, bias = weights_of(node.inputs[1]), weights_of(node.inputs[2])
    if grouped is None or bias is None or len(grouped) != node.attributes.get_int("group", 1) * BLOCK:
        return
    ends, after = np.cumsum(sizes_of(pieces)), list(y.consumers())
    rows, count = len(grouped), int(ends[-1])
    if rows > count and [sizes_of(each)[:1] for each in after] != [[count]]:
        return
    channels = dict(zip(pieces.outputs, np.split(np.arange(count), ends[:-1]), strict=True))
    read = np.concatenate([channels[value] for value in windows.inputs if value is not None])
    columns = read.reshape(-1, grouped.shape[1]).repeat(BLOCK, axis=0)
    dense = np.zeros((rows, count, *grouped.shape[2:]), grouped.dtype)
    np.add.at(dense, (np.arange(rows)[:, None], columns), grouped)
    _become(node, pieces.inputs[0], dense[:count], bias[:count], 1, Names(graph))
    for reader, index in list(after[0].outputs[0].uses()) if rows > count else []:
        reader.replace_input_with(index, y)


def _become(
    node: ir.Node, x: ir.Value | None, weights: NDArray, bias: NDArray, groups: int, names: Names
) -> None:
    node.replace_input_with(0, x)
    node.replace_input_with(1, names.initializer(f"{node.name}.weights", weights))
    node.replace_input_with(2, names.initializer(f"{node.name}.bias", bias))
    node.attributes["group"] = ir.AttrInt64("group", groups)


def _pieces(node: ir.Node) -> ir.Node | None:
    """The Split of whose parts a Conv reads windows; None where it reads something else."""
    windows = _producer(node)
    if windows is None or windows.op_type != "Concat":
        return None
    sources = {value.producer() for value in windows.inputs if value is not None}
    source = sources.pop() if len(sources) == 1 else None
    along = {each.attributes.get_int("axis", 0) for each in (windows, source) if each is not None}
    return source if source is not None and along == {1} and sizes_of(source) else None


def _producer(node: ir.Node) -> ir.Node | None:
    return node.inputs[0].producer() if node.inputs[0] is not None else None
