"""1×1 convolutions that read the same tensor, written as one and taken apart again; both are exact.

The branches of an Inception block begin with them. As one layer they are factored with one input factor for
all of them: the subspaces of the input that they look at overlap.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.errors import InputError
from onnxcompress.layers import relu_after
from onnxcompress.model import refresh
from onnxcompress.names import Names
from onnxcompress.plan import SEPARATOR, matches, members
from onnxcompress.splits import sizes_of, split
from onnxcompress.weights import weights_of


def siblings(model: ir.Model, skip: Sequence[str] = ()) -> list[str]:
    """Names of the layers that `joined` can make of a simplified network's, in its order.

    Args:
        model: the network.
        skip: glob patterns of layers that stay by themselves.
    """
    families = [[name for name in family if not matches(name, skip)] for family in _families(model)]
    return [SEPARATOR.join(family) for family in families if len(family) > 1]


def among(layers: Iterable[str], model: ir.Model) -> list[str]:
    """Which of these layers' names are of siblings, to be joined first.

    Raises:
        InputError: when the layers of such a name exist but are no siblings.
    """
    known = {str(node.name) for node in model.graph}
    families = [set(family) for family in _families(model)]
    found: list[str] = []
    for layer in layers:
        names = members(layer)
        if layer in known or not set(names) <= known:
            continue
        if len(set(names)) < len(names) or not any(set(names) <= family for family in families):
            raise InputError(
                f"decompose: {layer}: these are not different 1×1 convolutions of the same input, "
                "with the same stride and pads"
            )
        if taken := set(names) & {name for other in found for name in members(other)}:
            raise InputError(f"decompose: {min(taken)} is factored with others twice")
        found.append(layer)
    return found


def stacked(
    filters: Mapping[str, Sequence[int]], model: ir.Model, names: Sequence[str]
) -> dict[str, list[int]]:
    """Filters by layer of a network, as the layers of `joined` number them."""
    result = {layer: list(indices) for layer, indices in filters.items()}
    for name, starts in _starts(model, names).items():
        indices = [
            start + index
            for layer, start in zip(members(name), starts, strict=False)
            for index in result.pop(layer, [])
        ]
        if indices:
            result[name] = indices
    return result


def unstacked(
    filters: Mapping[str, Sequence[int]], model: ir.Model, names: Sequence[str]
) -> dict[str, list[int]]:
    """The reverse of `stacked`, in the order of the network."""
    result = {layer: list(indices) for layer, indices in filters.items()}
    for name, starts in _starts(model, names).items():
        indices = np.array(result.pop(name, []), np.int64)
        for layer, first, end in zip(members(name), starts, starts[1:], strict=False):
            if own := (indices[(indices >= first) & (indices < end)] - first).tolist():
                result[layer] = own
    return {str(node.name): result[str(node.name)] for node in model.graph if str(node.name) in result}


def joined(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The network with siblings as one Conv of all their filters, whose output is split.

    It computes the same. Where each of them is followed by a Relu alone, one Relu comes before the Split.

    Args:
        model: a simplified network; not touched.
        names: some of those that `siblings` gives; without any the network itself is returned.
    """
    if not names:
        return model
    result = model.clone()
    nodes = {node.name: node for node in result.graph}
    fresh = Names(result.graph)
    for name in names:
        _join(name, [nodes[each] for each in members(name)], fresh)
    return refresh(result)


def parted(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The network with what `joined` made of siblings taken apart again.

    Of a factored layer the last part is: the siblings then read the input factor that they share.
    """
    if not names:
        return model
    result = model.clone()
    splits = {node.name: node for node in result.graph}
    fresh = Names(result.graph)
    for name in names:
        _part(members(name), splits[_split(name)], fresh)
    return refresh(result)


def _families(model: ir.Model) -> list[list[str]]:
    """Names of the nodes that are siblings of each other."""
    found: dict[object, list[str]] = {}
    for node in model.graph:
        if SEPARATOR not in str(node.name) and (key := _likeness(node)) is not None:
            found.setdefault(key, []).append(str(node.name))
    return [names for names in found.values() if len(names) > 1]


def _starts(model: ir.Model, names: Sequence[str]) -> dict[str, list[int]]:
    """By joined layer, where the filters of its members begin in it, and their number in all."""
    nodes = {str(node.name): node for node in model.graph}
    widths = {name: [_width(nodes[layer]) for layer in members(name)] for name in names}
    return {name: np.cumsum([0, *each]).tolist() for name, each in widths.items()}


def _width(node: ir.Node) -> int:
    """A convolution's filters."""
    return len(_weights(node)[0])


def _weights(node: ir.Node) -> list[NDArray]:
    """Of a convolution whose weights are known: weight and, where there is one, bias."""
    return [np.asarray(weights_of(value)) for value in node.inputs[1:]]


def _split(name: str) -> str:
    """The node that divides the output of a joined layer."""
    return f"{name}/split"


def _likeness(node: ir.Node) -> object:
    """What siblings have in common; None of a node that can be none."""
    if node.op_type != "Conv" or node.domain or any(weights_of(value) is None for value in node.inputs[1:]):
        return None
    weights, attributes = _weights(node), node.attributes
    shared = any(len(value.uses()) > 1 for value in node.inputs[1:] if value is not None)
    if shared or math.prod(weights[0].shape[2:]) > 1 or attributes.get_int("group", 1) > 1:
        return None
    return node.inputs[0], len(weights), weights[0].dtype, str(sorted(attributes.items()))


def _join(name: str, nodes: list[ir.Node], fresh: Names) -> None:
    graph, first = nodes[0].graph, nodes[0]
    assert graph is not None
    stacks = zip(*map(_weights, nodes), strict=True)
    chain = [_conv(first, name, [np.concatenate(each) for each in stacks], fresh)]
    ends = [relu for node in nodes if (relu := relu_after(node)) is not None]
    if len(ends) == len(nodes):
        chain.append(_like(ends[0], chain[-1].outputs, f"{name}/relu", fresh))
    else:
        ends = nodes
    widths = [_width(node) for node in nodes]
    parts = split(chain[-1].outputs[0], widths, _split(name), fresh)
    old = [end.outputs[0] for end in ends]
    gone = list(dict.fromkeys([*nodes, *ends]))
    ir.convenience.replace_nodes_and_values(graph, first, gone, [*chain, parts], old, parts.outputs)


def _part(names: list[str], joint: ir.Node, fresh: Names) -> None:
    graph = joint.graph
    assert graph is not None
    back = [_producer(joint)]
    if back[0].op_type == "Relu":
        back.append(_producer(back[0]))
    *relus, conv = back
    ends_at = np.cumsum(sizes_of(joint))
    parts = zip(*(np.split(array, ends_at[:-1]) for array in _weights(conv)), strict=True)
    chain, ends = [], []
    for name, arrays in zip(names, parts, strict=True):
        chain.append(_conv(conv, name, arrays, fresh))
        chain += [_like(relu, chain[-1].outputs, f"{name}/relu", fresh) for relu in relus]
        ends.append(chain[-1].outputs[0])
    gone = [conv, *relus, joint]
    ir.convenience.replace_nodes_and_values(graph, conv, gone, chain, joint.outputs, ends)


def _producer(node: ir.Node) -> ir.Node:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    assert producer is not None
    return producer


def _conv(like: ir.Node, name: str, arrays: Sequence[NDArray], fresh: Names) -> ir.Node:
    """A Conv with the input and the attributes of another, and these weights."""
    labels = ("weight", "bias")
    weights = [
        fresh.initializer(f"{name}/{label}", array) for label, array in zip(labels, arrays, strict=False)
    ]
    return _like(like, [like.inputs[0], *weights], name, fresh)


def _like(node: ir.Node, inputs: Sequence[ir.Value | None], name: str, fresh: Names) -> ir.Node:
    """A node with the operator and the attributes of another."""
    new = ir.Node("", node.op_type, inputs, list(node.attributes.values()), name=name)
    new.outputs[0].name = fresh.fresh(f"{name}:0")
    return new
