"""How far a network's outputs have gone from those of the original."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def damage(original: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Array:
    """Damage of each sample, shape (n,): 0 for the same outputs.

    For class scores, (n, classes) besides dimensions of 1, the Kullback–Leibler divergence from the
    original's probabilities to the network's, in nats; for others the squared difference over the original's
    variance in the batch. Mean over the outputs.
    """
    return np.mean([_of_output(a, b) for a, b in zip(original, outputs, strict=True) if a.ndim], axis=0)


def _of_output(original: np.ndarray, output: np.ndarray) -> Array:
    p, q = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (original, output))
    if original.ndim >= 2 and original.shape[1] == p.shape[1] > 1:
        p, q = _log_probabilities(p), _log_probabilities(q)
        return np.sum(np.exp(p) * (p - q), axis=1)
    return np.mean((p - q) ** 2, axis=1) / max(p.var(), np.finfo(np.float64).tiny)


def _log_probabilities(scores: Array) -> Array:
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
