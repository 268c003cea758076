"""What is made small: the error of class scores, or of layers' responses, against targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.gradients.backward import back, graph_of, modern, record
from onnxcompress.gradients.tape import Shape, Tape
from onnxcompress.outputs import scores_of
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes


@dataclass(frozen=True)
class Term:
    """A part of the loss: weight · T² · mean over the samples of −Σ target · log softmax(scores / T).

    With the softmax of a teacher's scores / T as the target this is, up to a constant, the loss of Hinton et
    al. (2015); with T = 1 and one-hot targets the usual loss of classification.

    Attributes:
        weight: factor.
        temperature: T.
    """

    weight: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Match:
    """A part of the loss: weight · Σ (response − target)² / Σ target², sums over a batch.

    Attributes:
        value: name of the response in the network.
        weight: factor.
    """

    value: str
    weight: float = 1.0


class Loss:
    """The loss of a batch and its gradients at the weights, by ONNX Runtime.

    Args:
        model: a network with one input.
        trained: names of the weights.
        terms: whose weighted sum is the loss.
        samples: in a batch.

    Attributes:
        samples: in a batch.
        classes: that the network tells apart; None where no term is of class scores.

    Raises:
        InputError: when class scores are wanted and there are none; naming the operator and the node that
            gradients cannot pass.
    """

    def __init__(
        self, model: ir.Model, trained: Sequence[str], terms: Sequence[Term | Match], samples: int
    ) -> None:
        model = modern(model)
        shapes = concrete_shapes(model, batch=samples)
        scores = str(scores_of(model).name) if any(isinstance(term, Term) for term in terms) else ""
        self.samples, self.classes = samples, shapes[scores][1] if scores else None
        self._trained = list(trained)
        self._input = str(model.graph.inputs[0].name)
        names = [term.value if isinstance(term, Match) else scores for term in terms]
        forward = record(model, shapes, names, trained=trained)
        tape = forward.tape
        targets, losses = [], []
        seeds: dict[ir.Value, list[ir.Value]] = {}
        for number, (term, name) in enumerate(zip(terms, names, strict=True)):
            y, shape = forward.values[name], shapes[name]
            target = ir.val(f"target.{number}", ir.DataType.FLOAT)
            targets.append(target)
            if isinstance(term, Match):
                loss, seed = _error(tape, term, y, target)
            else:
                loss, seed = _entropy(tape, term, y, shape, target)
            losses.append(loss)
            seeds.setdefault(y, []).append(seed)
        at = back(forward, {y: tape.total(parts) for y, parts in seeds.items()})
        outputs = {"loss": tape.total(losses)}
        outputs |= {f"gradient.{n}": at(forward.values[name]) for n, name in enumerate(self._trained)}
        self._session = session(graph_of(forward, [*forward.inputs, *targets], outputs))
        known = {value.name for value in self._session.get_inputs()}
        self._fed = [name for name in self._trained if name in known]

    def __call__(
        self, weights: Mapping[str, np.ndarray], x: np.ndarray, targets: Sequence[np.ndarray]
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss and the gradient of every weight.

        Args:
            weights: by name.
            x: samples, (samples, …).
            targets: for every term: probabilities, float32, (samples, classes); or a response.
        """
        feeds = {name: weights[name] for name in self._fed} | {self._input: x}
        feeds |= {f"target.{number}": target for number, target in enumerate(targets)}
        loss, *gradients = run(self._session, feeds)
        return float(loss), dict(zip(self._trained, gradients, strict=True))


def _entropy(
    tape: Tape, term: Term, y: ir.Value, shape: Shape, target: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """A term and its gradient at the class scores."""
    t, samples = term.temperature, shape[0]
    flat = tape.reshape(y, shape[:2])
    logarithms = tape.emit("LogSoftmax", flat if t == 1 else tape.mul(flat, 1 / t), axis=1)
    likelihood = tape.sum(tape.mul(logarithms, target), [0, 1])
    difference = tape.sub(tape.emit("Exp", logarithms), target)
    seed = tape.reshape(tape.mul(difference, term.weight * t / samples), shape)
    return tape.mul(likelihood, -term.weight * t * t / samples), seed


def _error(tape: Tape, term: Match, y: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A term and its gradient at the response."""
    difference = tape.sub(y, target)
    size = tape.add(tape.emit("ReduceSumSquare", target, keepdims=0), float(np.finfo(np.float32).tiny))
    error = tape.div(tape.emit("ReduceSumSquare", difference, keepdims=0), size)
    seed = tape.mul(difference, tape.div(tape.constant(2 * term.weight), size))
    return tape.mul(error, term.weight), seed
