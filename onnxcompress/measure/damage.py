"""How far a network's outputs have gone from those of the original."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from onnxcompress.errors import InputError
from onnxcompress.outputs import are_scores, judged

Array = NDArray[np.float64]

CONSTANT = 1e-12
"""Variance, relative to the mean square, below which outputs count as the same for all samples."""


LEAST = 1e-12
"""Probability that every class has at least, so that it has a logarithm."""

VARYING = (
    "an output has as many entries as the network finds objects and cannot be compared: cut the network "
    "before its NonMaxSuppression (or NonZero), and put that behind the result"
)


class Damage:
    """What is lost of a network's outputs, gathered batch by batch.

    For class scores, (n, classes) besides dimensions of 1, the Kullback–Leibler divergence from the
    original's probabilities to the network's, in nats; for others, and where all outputs are said to be
    values, the squared difference over the variance of all that the original gave (its mean square, where
    that is constant).
    """

    def __init__(self, values: bool = False) -> None:
        self._values = values
        self._errors: list[list[Array]] = []
        self._sums: list[Array] = []

    def add(self, original: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """The outputs of both networks for a batch, of which those count that `judged` names.

        Raises:
            InputError: when they do not have the same shapes, or are empty.
        """
        both = zip(judged(original), judged(outputs), strict=True)
        pairs = [(np.atleast_1d(a), np.atleast_1d(b)) for a, b in both]
        if not self._sums:
            self._sums = [np.zeros(3) for _ in pairs]
        if any(a.shape != b.shape or not a.size for a, b in pairs):
            raise InputError(VARYING)
        errors = []
        for (a, b), sums in zip(pairs, self._sums, strict=True):
            p, q = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (a, b))
            if not self._values and are_scores(a.shape):
                p, q = log_probabilities(p), log_probabilities(q)
                errors.append(np.maximum(np.sum(np.exp(p) * (p - q), axis=1), 0))  # rounding
            else:
                sums += p.size, p.sum(), np.sum(p**2)
                errors.append(np.mean((p - q) ** 2, axis=1))
        self._errors.append(errors)

    def of_samples(self) -> Array:
        """Of each sample, (n,): 0 for the same outputs. The mean over the outputs.

        Outputs that do not have as many rows as the first count alike for all samples of a batch.
        """
        scales = [_spread(*sums) for sums in self._sums]
        found = []
        for errors in self._errors:
            count = len(errors[0])
            each = [e / scale for e, scale in zip(errors, scales, strict=True)]
            found.append(np.mean([e if len(e) == count else np.full(count, e.mean()) for e in each], axis=0))
        return np.concatenate(found)


def _spread(count: float, total: float, squares: float) -> float:
    """The variance of so many numbers with this sum and this sum of squares; 1 of none."""
    if not squares:
        return 1.0
    variance = squares / count - (total / count) ** 2
    return variance if variance > CONSTANT * squares / count else squares / count


def log_probabilities(scores: Array) -> Array:
    """Of class scores, (n, classes), which may be probabilities already: logarithms, natural."""
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        likely = np.maximum(scores, LEAST)
        return np.log(likely / likely.sum(axis=1, keepdims=True))
    return log_softmax(scores, axis=1)
