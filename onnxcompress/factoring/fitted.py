"""Factors that keep a layer's response on data, not its weights.

The error of weights Ŵ in place of W is E‖(W − Ŵ)(x − E x)‖² = tr((W − Ŵ) G (W − Ŵ)ᵀ), with G the covariance
of the patches x that the layer reads; the bias takes up the mean. Of the data only G needs to be known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcompress.errors import InputError
from onnxcompress.plan import Ranks
from onnxcompress.unfolding import Unfolding

Array = NDArray[np.float64]

FLOOR = 1e-6
"""Variance, relative to the mean of all, that every input is taken to have besides its own, at least."""


@dataclass(frozen=True)
class Factors:
    """A chain that stands for weights W of shape (M, C · kernel): W ≈ out · core · (into ⊗ 1).

    Attributes:
        seen: how the inputs are shared between input factor and core.
        out: (M, out rank); None at full rank.
        core: (out rank, in rank · rest).
        into: (in rank, columns); None at full rank.
    """

    seen: Unfolding

    out: Array | None
    core: Array
    into: Array | None

    @property
    def weights(self) -> Array:
        """Their product, (M, C · kernel)."""
        core = self.core
        if self.into is not None:
            rank = len(self.into)
            core = np.tensordot(core.reshape(len(core), rank, -1), self.into, axes=(1, 0)).transpose(0, 2, 1)
            core = core.reshape(len(core), -1)
        product = core if self.out is None else self.out @ core
        weights = np.empty_like(product)
        weights[:, self.seen.order] = product
        return weights


def regular(covariance: NDArray) -> Array:
    """A covariance (d, d) that can be inverted, float64: with as much variance of its own as that takes.

    Raises:
        InputError: when it is not finite.
    """
    g = np.asarray(covariance, np.float64)
    if not np.isfinite(g).all():
        raise InputError("the network computes NaN or infinite values on the calibration data")
    scale = np.trace(g) / len(g)
    floor = FLOOR * scale if scale > 0 else 1.0
    while True:
        raised = g + floor * np.eye(len(g))
        try:
            np.linalg.cholesky(raised)
        except np.linalg.LinAlgError:
            floor *= 10
        else:
            return raised


def channel_slices(weights: Array, g: Array, channels: int) -> tuple[Array, Array]:
    """Weights times a root of the channels' own covariance, (M · kernel, C), and that root, (C, C).

    The covariance is taken at one element of the kernel as at any other.
    """
    kernel = g.shape[0] // channels
    own = np.einsum("akbk->ab", g.reshape(channels, kernel, channels, kernel)) / kernel
    root = np.linalg.cholesky(own)
    slices = weights.reshape(len(weights), channels, kernel).transpose(0, 2, 1).reshape(-1, channels)
    return slices @ root, root


def input_basis(weights: Array, g: Array, channels: int) -> Array:
    """Combinations of the input channels in the order in which the response needs them, (C, C), one a row.

    The principal components of the responses to single channels, which are taken out of the correlation
    between channels first.
    """
    slices, root = channel_slices(weights, g, channels)
    vectors = np.linalg.eigh(slices.T @ slices)[1][:, ::-1]
    return scipy.linalg.solve_triangular(root, vectors, lower=True, trans="T").T


def core_for(weights: Array, g: Array, into: Array) -> tuple[Array, Array]:
    """The best weights (M, in rank · kernel) behind input factors, and the covariance of what they read."""
    rank, channels = into.shape
    kernel = g.shape[0] // channels
    half = (into @ g.reshape(channels, -1)).reshape(rank * kernel, -1)
    inner = np.tensordot(half.reshape(-1, channels, kernel), into, axes=(1, 1))
    inner = inner.transpose(0, 2, 1).reshape(rank * kernel, -1)
    inner = regular((inner + inner.T) / 2)
    return scipy.linalg.solve(inner, half @ weights.T, assume_a="pos").T, inner


def output_basis(weights: Array, g: Array) -> tuple[Array, Array]:
    """Principal components of the response: variances, descending, (M,), and directions, columns (M, M)."""
    variances, directions = np.linalg.eigh(weights @ g @ weights.T)
    return np.maximum(variances[::-1], 0), directions[:, ::-1]


def fit_factors(weights: Array, covariance: NDArray, inputs: tuple[int, ...], ranks: Ranks) -> Factors:
    """Factors of one group's weights at given ranks that leave the least error of the response.

    Args:
        weights: (M, C · kernel).
        covariance: of the patches, (C · kernel,) * 2.
        inputs: (C, *kernel).
        ranks: for a kernel of one element, the same rank twice.
    """
    seen, filters = Unfolding(inputs, ranks.axis), len(weights)
    weights, g = _unfolded(weights, covariance, seen)
    point = seen.rest == 1
    into, core, inner = None, weights, g
    if ranks.axis is not None:
        into = np.eye(seen.columns)
    if ranks.into < seen.columns and not point:
        into = input_basis(weights, g, seen.columns)[: ranks.into]
        core, inner = core_for(weights, g, into)
    if not point and ranks.out >= filters:
        return _orthonormal(seen, None, core, into)
    out = output_basis(core, inner)[1][:, : ranks.out]
    return _orthonormal(seen, out, out.T @ core, into)


def _unfolded(weights: Array, covariance: NDArray, seen: Unfolding) -> tuple[Array, Array]:
    """Weights and the regular covariance with their inputs in the order of (columns, rest)."""
    order = seen.order
    return weights[:, order], regular(covariance)[np.ix_(order, order)]


def _orthonormal(seen: Unfolding, out: Array | None, core: Array, into: Array | None) -> Factors:
    """The same product with orthonormal outer factors: the core has the size of the weights, as for training.

    Fitted input factors take out the variance of what they read; they are small then and the core is large,
    and a step of training that suits one of them is far too long for the other.
    """
    if into is not None:
        q, r = np.linalg.qr(into.T)
        into = q.T
        core = np.einsum("mik,ji->mjk", core.reshape(len(core), len(r), -1), r).reshape(len(core), -1)
    if out is not None:
        out, r = np.linalg.qr(out)
        core = r @ core
    return Factors(seen, out, core, into)


def response_error(weights: Array, other: Array, covariance: NDArray) -> float:
    """E‖(W − W')(x − E x)‖²."""
    difference = weights - other
    return float(np.sum((difference @ covariance) * difference))


@dataclass(frozen=True)
class ErrorCurve:
    """What is lost of the variance of a layer's response at pairs of ranks.

    Attributes:
        into: input ranks, descending, (n,).
        errors: at each of these and output rank 0 … M, (n, M + 1). Not increasing along the second axis.
    """

    into: NDArray[np.int64]
    errors: Array


def error_curve(weights: Array, covariance: NDArray, seen: Unfolding, into: Sequence[int]) -> ErrorCurve:
    """Errors of the best factors at these input ranks, descending, and all output ranks.

    Input factors are nested: with the covariance of what the core reads at the highest rank, L Lᵀ, and the
    products C of that with the response, the variance that the core explains at a lower rank is that of the
    leading columns of C L⁻ᵀ. One triangular solution serves all.
    """
    weights, g = _unfolded(weights, covariance, seen)
    total = float(np.sum((weights @ g) * weights))
    whole = seen.axis is None and seen.columns in into
    explained = {seen.columns: weights @ g @ weights.T} if whole else {}
    below = [rank for rank in into if rank not in explained]
    if below:
        core, inner = core_for(weights, g, input_basis(weights, g, seen.columns)[: max(below)])
        parts = core @ np.linalg.cholesky(inner)
        sums, done = np.zeros((len(weights),) * 2), 0
        for rank in sorted(below):
            new = parts[:, done * seen.rest : rank * seen.rest]
            sums, done = sums + new @ new.T, rank
            explained[rank] = sums
    kept = [np.maximum(np.linalg.eigvalsh(explained[rank])[::-1], 0) for rank in into]
    errors = [np.maximum(total - np.cumsum([0.0, *each]), 0) for each in kept]
    return ErrorCurve(np.array(into), np.array(errors))
