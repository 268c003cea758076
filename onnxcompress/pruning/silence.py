"""Filters that are zero, and whether anybody would notice that their channels are gone."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.errors import InputError
from onnxcompress.names import Names
from onnxcompress.pruning.channels import ChannelGraph
from onnxcompress.runtime import random_feeds, run, session
from onnxcompress.shapes import stand_ins

SUMMING = (
    *("Einsum", "GRU", "LRN", "LSTM", "MatMul", "RNN"),
    *("ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
)
"""Operators besides the layers in which channels are summed."""

AXES_AS_INPUT = 18
"""Opset from which ReduceMax takes its axes as an input."""


def zero_filters(graph: ChannelGraph) -> dict[str, NDArray[np.bool_]]:
    """Which filters of each layer are zero (their biases may not be), shape (M,) each."""
    return {layer.name: np.asarray(~layer.filters().any(axis=1)) for layer in graph.layers}


def all_zero(graph: ChannelGraph, zero: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Which channel sets have zero filters only, shape (sets,)."""
    count = graph.count
    result, started = np.ones(count, bool), np.zeros(count, bool)
    for layer in graph.layers:
        np.logical_and.at(result, graph.set_of[layer.atoms], zero[layer.name])
        started[graph.set_of[layer.atoms]] = True
    return result & started


def silent_sets(
    model: ir.Model, graph: ChannelGraph, zero: dict[str, NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Which channel sets have zero filters only, and are zero wherever they are read: shape (sets,).

    A bias, its own or one further on, can make a constant of a zero channel. Such a constant
    does not depend on the input, so that one run of the network on any input shows it.
    """
    silent = all_zero(graph, zero)
    if not silent.any():
        return silent
    layers = {layer.name for layer in graph.layers}
    read = {
        value: None
        for node in model.graph
        if node.name in layers or node.op_type in SUMMING
        for value in node.inputs
        if value is not None
        and (atoms := graph.atoms(value)) is not None
        and silent[graph.set_of[atoms]].any()
    }
    for value, largest in zip(read, _largest(model, graph, list(read)), strict=True):
        atoms = graph.atoms(value)
        assert atoms is not None
        silent[graph.set_of[atoms][np.broadcast_to(largest, atoms.shape) != 0]] = False
    return silent


def _largest(model: ir.Model, graph: ChannelGraph, values: list[ir.Value]) -> list[NDArray]:
    """The largest magnitude of some values along the axes on which their atoms do not differ."""
    probe = model.clone()
    by_name = {value.name: value for node in probe.graph for value in node.outputs}
    probe.graph.outputs.clear()
    names = Names(probe.graph)
    for original in values:
        atoms = graph.atoms(original)
        assert atoms is not None
        axes = [axis for axis, size in enumerate(atoms.shape) if size == 1]
        magnitude = ir.node("Abs", [by_name[original.name]])
        if probe.opset_imports.get("", 0) >= AXES_AS_INPUT:
            given = names.initializer("axes", np.array(axes, np.int64))
            reduced = ir.node("ReduceMax", [magnitude.outputs[0], given])
        else:
            reduced = ir.node("ReduceMax", [magnitude.outputs[0]], {"axes": axes})
        probe.graph.extend([magnitude, reduced])
        reduced.outputs[0].name = names.fresh("largest")
        probe.graph.outputs.append(reduced.outputs[0])
    try:
        runnable = session(probe)
        return run(runnable, random_feeds(runnable, stand_ins(model)))
    except InputError:  # it cannot be run on random input: nothing is taken for silent
        return [np.ones(1)] * len(values)
