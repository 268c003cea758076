"""Importance by Taylor expansion: how much the loss would change, to first order, without a channel.

Molchanov et al., *Pruning Convolutional Neural Networks for Resource Efficient Inference* (ICLR 2017).
"""

from collections.abc import Iterable
from itertools import chain

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxcompress import preprocessing as prep
from onnxcompress.data import Data, batches
from onnxcompress.errors import InputError
from onnxcompress.gradients.backward import back, graph_of, modern, record
from onnxcompress.layers import channel_axis
from onnxcompress.lrn import sums_squares
from onnxcompress.measure.cost import cost
from onnxcompress.names import Names
from onnxcompress.outputs import scores_of
from onnxcompress.progress import Steps, counted
from onnxcompress.pruning.channels import ChannelGraph
from onnxcompress.pruning.iterative import Score
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes, fixed_sizes, taking

TAYLOR = "taylor"
"""Name of the criterion."""

SAMPLES = 8
"""Scored at a time, unless the network fixes another number."""

CERTAIN = 1e30
"""Preference that no class score outweighs."""


def score_by_taylor(
    data: Data,
    *,
    limit: int | None = None,
    seed: int = 0,
    flops_weight: float = 0.0,
    preprocessing: prep.Preprocessing | None = None,
) -> Score:
    """A function from a network and its channels to `taylor_scores` on data.

    Args:
        data: with labels or without.
        limit: so many samples, evenly spread.
        seed: of the labels that are drawn where there are none.
        flops_weight: see `taylor_scores`.
        preprocessing: the steps from image to array; None takes those that the network carries.
    """

    def score(network: ir.Model, graph: ChannelGraph, progress: Steps | None) -> NDArray:
        (value,) = network.graph.inputs
        shape = fixed_sizes(value.shape or ())
        samples = shape[0] or SAMPLES
        stream = batches(
            data,
            shape=shape[1:],
            preprocessing=preprocessing or prep.read(network),
            batch=samples,
            limit=limit,
        )
        count = -(-min(len(data), limit or len(data)) // samples)
        stream = counted(stream, count, progress)
        return taylor_scores(network, graph, stream, samples=samples, seed=seed, flops_weight=flops_weight)

    return score


def taylor_scores(
    model: ir.Model,
    graph: ChannelGraph,
    batches: Iterable[tuple[NDArray, NDArray | None]],
    *,
    samples: int,
    seed: int = 0,
    flops_weight: float = 0.0,
) -> NDArray[np.float64]:
    """Importance of every channel set.

    A layer's output z, with gradient ∂L/∂z of a sample's cross entropy, would change the loss by −Σ z ∂L/∂z
    over its positions if it were zero. A set's score is the mean over the samples of the magnitude of that
    sum over all layers that start the set: what a gate on its channels would have as gradient. The scores of
    each group are divided by the Euclidean norm of those of its layers, so that layers compare.

    Without labels every sample gets one that is drawn from the network's own predictions: their cross entropy
    with themselves has no gradient.

    Args:
        model: a simplified classifier with one input.
        graph: its channels.
        batches: samples as the network takes them, (≤ samples, …), and labels, (≤ samples,), or None.
        samples: in a batch.
        seed: of the drawn labels.
        flops_weight: λ of the paper's regularisation: a set loses λ · 2 · (million MACs of its filters).

    Returns:
        (sets,)

    Raises:
        InputError: when there are no samples, labels are beyond the classes, or gradients cannot pass.
    """
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise InputError("there are no samples to score filters by")
    model = modern(taking(model, first[0].shape[1:]))
    gated = _gated(model, graph, samples)
    (image, chosen) = (value.name for value in gated.get_inputs())
    classes = int(gated.get_inputs()[1].shape[1])
    by_name = {layer.name: layer for layer in graph.layers}
    layers = [by_name[output.name] for output in gated.get_outputs()]
    random = np.random.default_rng(seed)
    count = graph.count
    total, seen = np.zeros(count), 0
    for x, labels in chain([first], stream):
        if labels is not None and labels.max() >= classes:
            raise InputError(f"label {labels.max()}, but the network has {classes} classes")
        preference = random.gumbel(size=(samples, classes)).astype(np.float32)
        if labels is not None:
            preference[np.arange(len(x)), labels] = CERTAIN
        padded = np.concatenate([x, np.repeat(x[-1:], samples - len(x), axis=0)])
        found = run(gated, {image: padded, chosen: preference})
        change = np.zeros((len(x), count))
        for layer, sums in zip(layers, found, strict=True):
            np.add.at(change.T, graph.set_of[layer.atoms], sums[: len(x)].T)
        total += np.abs(change).sum(axis=0)
        seen += len(x)
    return _compared(graph, total / seen) - flops_weight * _flops(model, graph)


def _gated(model: ir.Model, graph: ChannelGraph, samples: int) -> ort.InferenceSession:
    """A session from samples and preferences to the gradient at a gate: by layer, sample and filter.

    Preferences are added to the class scores; the class with the highest sum is the label. Gumbel noise draws
    one with the probabilities of the softmax.
    """
    shapes = concrete_shapes(model, batch=samples)
    name = str(scores_of(model).name)
    outputs = {layer.name: str(layer.node.outputs[0].name) for layer in graph.layers}
    forward = record(model, shapes, [name], watched=set(outputs.values()))
    tape, scores = forward.tape, forward.values[name]
    classes = shapes[name][1]
    preference = ir.val(Names(model.graph).fresh("preference"), ir.DataType.FLOAT, (samples, classes))
    flat = tape.reshape(scores, (samples, classes))
    preferred = tape.add(flat, preference)
    highest = tape.emit("ReduceMax", preferred, tape.ints([1]), keepdims=1)
    target = tape.emit("Cast", tape.emit("Equal", preferred, highest), to=ir.DataType.FLOAT)
    error = tape.sub(target, tape.emit("Softmax", flat, axis=1))
    at = back(forward, {scores: tape.reshape(error, shapes[name])})
    sums = {}
    for layer in graph.layers:
        value = forward.values.get(outputs[layer.name])
        if value is not None and not sums_squares(layer.node):
            rank = len(tape.shape(value))
            channel = channel_axis(layer.node, rank)
            product = tape.mul(value, at(value))
            sums[layer.name] = tape.sum(product, [axis for axis in range(1, rank) if axis != channel])
    return session(graph_of(forward, [*forward.inputs, preference], sums))


def _compared(graph: ChannelGraph, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores divided by the norm of those of the same layers."""
    sets_of = {layer.name: graph.set_of[layer.atoms] for layer in graph.layers}
    result = np.zeros_like(scores)
    for group in graph.groups:
        rivals = np.unique(np.concatenate([sets_of[name] for name in group.layers]))
        norm = np.linalg.norm(scores[rivals])
        result[group.sets] = scores[group.sets] / max(norm, np.finfo(np.float64).tiny)
    return result


def _flops(model: ir.Model, graph: ChannelGraph) -> NDArray[np.float64]:
    """Millions of FLOPs (two a MAC) that the filters of every channel set take."""
    macs = {layer.name: layer.macs for layer in cost(model).layers}
    result = np.zeros(graph.count)
    for layer in graph.layers:
        np.add.at(result, graph.set_of[layer.atoms], 2e-6 * macs.get(layer.name, 0) / len(layer.atoms))
    return result
