"""Removing the filters that a plan names, with everything tied to them."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.errors import InputError
from onnxcompress.layers import CONVOLUTIONS
from onnxcompress.model import refresh
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.channels import Atoms, ChannelGraph, Layer
from onnxcompress.shapes import concrete_shapes
from onnxcompress.weights import weights_of


def remove_filters(model: ir.Model, filters: dict[str, list[int]]) -> ir.Model:
    """Return the network without these filters.

    The result equals the original in which whatever reads a removed channel has zero weights for it. An LRN
    that loses channels becomes a dense band of weights, which `rewrite_lrn` cuts into groups.

    Args:
        model: a simplified network; not touched.
        filters: indices of the filters to remove, by layer. Tied layers must all be listed.

    Raises:
        InputError: when a layer or filter does not exist, may not be cut, is tied to one that is not
            listed, or none of its like would remain.
    """
    result = model.clone()

    def stays(layer: Layer) -> np.ndarray:
        return 1.0 - np.isin(np.arange(len(layer.atoms)), filters.get(layer.name, []))

    graph = analyse(result, concrete_shapes(model), stays, twin=model, planned=True)
    removed = _sets(graph, filters)

    def keep(atoms: Atoms) -> np.ndarray:
        return ~np.isin(graph.set_of[atoms], removed)

    cut = set()
    for entry in graph.parameters:
        kept = keep(entry.atoms).any(axis=0)
        if (entry.parameter, entry.axis) not in cut and not kept.all():
            cut.add((entry.parameter, entry.axis))
            array = np.compress(kept, np.asarray(weights_of(entry.parameter)), axis=entry.axis)
            entry.parameter.const_value = ir.tensor(array, name=entry.parameter.name)
            entry.parameter.shape = ir.Shape(array.shape)
    for change in graph.edits:
        change(keep)
    return refresh(result)


def filters_gone(model: ir.Model, filters: dict[str, list[int]]) -> dict[ir.Node, NDArray[np.bool_]]:
    """Which filters go of every Conv, ConvTranspose, Gemm and MatMul, (M,), also of those that follow others.

    A depthwise convolution starts no channels; its filters go with the channels that it reads.
    """
    graph = _planned(model, concrete_shapes(model), filters)
    removed = _sets(graph, filters)
    found = {layer.node: np.isin(graph.set_of[layer.atoms], removed) for layer in graph.layers}
    for entry in graph.parameters:
        node = entry.node
        if node.op_type in CONVOLUTIONS and node not in found and entry.axis == 0:
            channels = np.isin(graph.set_of[entry.atoms], removed).ravel()
            multiplier = graph.shape(node.outputs[0])[1] // len(channels)
            found[node] = np.repeat(channels, multiplier)
    return found


def _planned(
    model: ir.Model, shapes: dict[str, tuple[int, ...]], filters: dict[str, list[int]]
) -> ChannelGraph:
    """The channel graph in which these filters are those that matter least."""

    def stays(layer: Layer) -> np.ndarray:
        return 1.0 - np.isin(np.arange(len(layer.atoms)), filters.get(layer.name, []))

    return analyse(model, shapes, stays, planned=True)


def filters_of(graph: ChannelGraph, sets: Atoms) -> dict[str, list[int]]:
    """The filters of every layer that belong to these channel sets: the form in which a plan holds them."""
    found = {
        layer.name: np.flatnonzero(np.isin(graph.set_of[layer.atoms], sets)).tolist()
        for layer in graph.layers
    }
    return {name: filters for name, filters in found.items() if filters}


def _sets(graph: ChannelGraph, filters: dict[str, list[int]]) -> Atoms:
    layers = {layer.name: layer for layer in graph.layers}
    chosen: set[int] = set()
    for name, indices in filters.items():
        if name not in layers:
            raise InputError(f"prune: there is no layer '{name}' with filters; see `onnxcompress inspect`")
        layer = layers[name]
        for index in indices:
            if index >= len(layer.atoms):
                raise InputError(f"prune: {name}: filter {index} is out of range: it has {len(layer.atoms)}")
            set_id = int(graph.set_of[layer.atoms[index]])
            if set_id in graph.locked:
                raise InputError(f"prune: {name}: filter {index} must stay: {graph.locked[set_id]}")
            chosen.add(set_id)
    removed = np.array(sorted(chosen), np.int64)
    for name, indices in filters_of(graph, removed).items():
        if forgotten := sorted(set(indices) - set(filters.get(name, []))):
            raise InputError(
                f"prune: {name}: filter {forgotten[0]} is tied to a filter that the plan removes: list it too"
            )
    for group in graph.groups:
        if np.isin(group.sets, removed).all():
            raise InputError(f"prune: {group.layers[0]}: at least one filter must stay")
    return removed
