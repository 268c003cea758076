"""What a network learns from another: its class probabilities, or what its layers give.

The responses of layers (hints: Romero et al. 2015, FitNets, section 2.2) tell far more about each sample
than class probabilities do. After these of a few hundred samples, a network that was fitted to the same ones
got better on them and no better on others; after the responses it did.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.data import fits
from onnxcompress.errors import InputError
from onnxcompress.gradients.backward import leading_to
from onnxcompress.layers import CONVOLUTIONS, PRODUCTS, channel_axis, relu_after
from onnxcompress.lrn import lrn_nodes, rewrite_lrn, sums_squares
from onnxcompress.outputs import giving, scores_of, softmax
from onnxcompress.plan import Plan
from onnxcompress.pruning.surgery import filters_gone
from onnxcompress.runtime import own, runs, session
from onnxcompress.shapes import concrete_shapes, fixed_sizes, times
from onnxcompress.training.losses import Match, Term

SAMPLES = 2
"""For which shapes are compared."""

Targets = Callable[[np.ndarray], list[np.ndarray]]


SETTLED = 0.1
"""Share of the mean error of all responses; layers in front with less are left as they are.

They work on the largest maps, so that training them takes the most time. Of GoogLeNet at a third of its MACs
the first two have less; on images that were held back, 2000 steps without the first three did as well as with
them (divergence 0.126 and 0.125).
"""


@dataclass(frozen=True)
class Teaching:
    """What a network is trained after.

    Attributes:
        terms: parts of a loss.
        targets: from samples to the targets of the terms.
        settled: names of weights that have nothing to learn.
    """

    terms: Sequence[Term | Match]
    targets: Targets
    settled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Response:
    """What a layer gives in both networks, behind its Relu if it has one.

    Attributes:
        value: its name, in both.
        axis: of the channels.
        kept: indices of the teacher's channels that the network still has.
    """

    value: str
    axis: int
    kept: NDArray[np.int64]


def teaching_of(
    teacher: ir.Model,
    network: ir.Model,
    plan: Plan | None,
    labels: bool,
    temperature: float,
    weight: float,
    first: np.ndarray,
) -> Teaching:
    """What there is to learn from a teacher.

    Args:
        teacher: simplified.
        network: that is to learn it.
        plan: by which it was made from the teacher; None where class probabilities are to be matched.
        labels: whether labels are matched too.
        temperature: of the class probabilities.
        weight: in the loss.
        first: samples of the first batch.

    Raises:
        InputError: when the two networks do not fit each other, or the plan does not fit them.
    """
    if plan is None:
        return by_probabilities(teacher, network, temperature, weight)
    responses = shared_responses(teacher, network, plan.prune)
    return (
        by_responses(teacher, responses, weight)
        if labels
        else where_it_errs(teacher, network, responses, first)
    )


def by_probabilities(teacher: ir.Model, network: ir.Model, temperature: float, weight: float) -> Teaching:
    """The class probabilities of a teacher at a temperature.

    Raises:
        InputError: when one of the networks is no classifier, or their classes are not as many.
    """
    scores = str(scores_of(teacher).name)
    given, wanted = _classes(teacher), _classes(network)
    if given != wanted:
        raise InputError(f"the teacher has {given} classes, the network {wanted}")
    outputs = _outputs(teacher, [scores])

    def targets(x: np.ndarray) -> list[np.ndarray]:
        return [softmax(outputs(x)[0].reshape(len(x), -1), temperature)]

    return Teaching([Term(weight, temperature)], targets)


def by_responses(teacher: ir.Model, responses: Sequence[Response], weight: float) -> Teaching:
    """Responses of the teacher's layers, each with the same weight.

    Args:
        teacher: simplified.
        responses: that the network gives too; at least one.
        weight: of all of them together.
    """
    outputs = _outputs(teacher, [response.value for response in responses])

    def targets(x: np.ndarray) -> list[np.ndarray]:
        return [y.take(r.kept, axis=r.axis) for y, r in zip(outputs(x), responses, strict=True)]

    return Teaching([Match(response.value, weight / len(responses)) for response in responses], targets)


def where_it_errs(
    teacher: ir.Model, network: ir.Model, responses: Sequence[Response], x: np.ndarray
) -> Teaching:
    """The same without the layers in front that give what the teacher's do, or nearly; see `SETTLED`.

    Args:
        teacher: simplified.
        network: the same with fewer filters, its layers perhaps factored.
        responses: that both networks give, in the order of the network; at least one.
        x: samples that tell.
    """
    whole = by_responses(teacher, responses, 1.0)
    ours = _outputs(network, [response.value for response in responses])(x)
    errors = [_relative_error(y, target) for y, target in zip(ours, whole.targets(x), strict=True)]
    first = next((n for n, error in enumerate(errors) if error >= SETTLED * np.mean(errors)), 0)
    if not first:
        return whole
    front = leading_to(network, [response.value for response in responses[:first]])
    settled = frozenset(
        str(value.name)
        for node in front
        for value in node.inputs
        if value is not None and value.is_initializer()
    )
    return replace(by_responses(teacher, responses[first:], 1.0), settled=settled)


def _relative_error(y: np.ndarray, target: np.ndarray) -> float:
    size = np.sum(np.square(target, dtype=np.float64)) + np.finfo(np.float32).tiny
    return float(np.sum(np.square(y - target, dtype=np.float64)) / size)


def shared_responses(
    teacher: ir.Model, network: ir.Model, filters: Mapping[str, Sequence[int]]
) -> list[Response]:
    """The responses that both networks compute, in the order of the network.

    Args:
        teacher: simplified.
        network: the same without `filters`, its layers perhaps factored.
        filters: those that were removed, by layer, as a plan has them.

    Raises:
        InputError: when the filters are not the teacher's, others than those are gone, or no layer is in both
            networks.
    """
    gone = filters_gone(teacher, {name: list(indices) for name, indices in filters.items()})
    theirs, ours = concrete_shapes(teacher, batch=SAMPLES), concrete_shapes(network, batch=SAMPLES)
    found = []
    for node in teacher.graph:
        if node.op_type not in CONVOLUTIONS + PRODUCTS or sums_squares(node):
            continue
        name = str((relu_after(node) or node).outputs[0].name)
        shape = theirs.get(name, ())
        if len(shape) < 2:
            continue
        axis = channel_axis(node, len(shape))
        kept = np.flatnonzero(~gone.get(node, np.zeros(shape[axis], bool)))
        count = ours.get(name, ())[axis : axis + 1]
        if len(kept) < shape[axis] and count and count[0] != len(kept):
            raise InputError(
                f"'{node.name}' has {count[0]} filters, by the plan {len(kept)}: this does not lead to it"
            )
        if ours.get(name) == (*shape[:axis], len(kept), *shape[axis + 1 :]):
            found.append(Response(name, axis, kept))
    if not found:
        raise InputError("no layer of the teacher is in the network: this plan does not lead to it")
    return found


def _classes(model: ir.Model) -> int:
    return concrete_shapes(model)[str(scores_of(model).name)][1]


def _outputs(model: ir.Model, names: Sequence[str]) -> Targets:
    """A function from samples to values of a network."""
    runnable = session(rewrite_lrn(giving(model, names), lrn_nodes(model)))

    def outputs(x: np.ndarray) -> list[np.ndarray]:
        found = [[own(y, count, rows) for y in values] for count, rows, values in runs(runnable, x)]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    return outputs


def check_takes(teacher: ir.Model, sample: tuple[int, ...]) -> None:
    """See that a teacher takes the samples that the network is trained on."""
    shape = teacher.graph.inputs[0].shape
    if shape is None:
        return
    wanted = fixed_sizes(shape[1:])
    if not fits(sample, wanted):
        raise InputError(f"the teacher takes samples of {times(wanted)}, the network of {times(sample)}")
