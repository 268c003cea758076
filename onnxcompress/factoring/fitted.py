"""Tucker and CP factors that keep a layer's response on data, not its weights.

The error of weights Ŵ in place of W is E‖(W − Ŵ)(x − E x)‖² = tr((W − Ŵ) G (W − Ŵ)ᵀ), with G the covariance
of the patches x that the layer reads; the bias takes up the mean. Of the data only G needs to be known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcompress.calibration.statistics import Moments, shrinkage
from onnxcompress.errors import InputError
from onnxcompress.factoring.cp import Whitened, cp, products_of, whitened
from onnxcompress.plan import Ranks

Array = NDArray[np.float64]

FLOOR = 1e-6
"""Variance, relative to the mean of all, that every input is taken to have besides its own, at least."""

LOOKS, TRIALS, MOST = 40, 100, 300
"""Iterations of the search for a CP that is looked at, that is tried in the network, and of one that stays.

In GoogLeNet, each error is some 10 % above the next one, and the damage falls by as much or more.
"""

WORK = 1e12
"""Multiplications after which that one ends as well, for wide layers: then it is no better than a trial."""


@dataclass(frozen=True)
class Factors:
    """A chain that stands for weights W of shape (M, C · kernel): W ≈ out · core · (into ⊗ 1).

    Attributes:
        out: (M, out rank); None at full rank.
        core: (out rank, in rank · kernel); (rank, kernel) where it is depthwise.
        into: (in rank, C); None at full rank.
        depthwise: whether the core convolves every channel by itself.
    """

    out: Array | None
    core: Array
    into: Array | None
    depthwise: bool = False

    @property
    def weights(self) -> Array:
        """Their product, (M, C · kernel)."""
        core = self.core
        if self.into is not None and self.depthwise:
            core = products_of(core, self.into)
        elif self.into is not None:
            rank = len(self.into)
            core = np.tensordot(core.reshape(len(core), rank, -1), self.into, axes=(1, 0)).transpose(0, 2, 1)
            core = core.reshape(len(core), -1)
        return core if self.out is None else self.out @ core


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


@dataclass(frozen=True)
class Inputs:
    """What the weights of a group are applied to.

    Attributes:
        covariance: of the patches, (C · kernel,) * 2; it can be inverted.
        channels: C.
    """

    covariance: Array
    channels: int

    @property
    def kernel(self) -> int:
        """Elements of the kernel."""
        return len(self.covariance) // self.channels

    @cached_property
    def root(self) -> Array:
        """Of the channels' own covariance, lower triangular, (C, C); of any element of the kernel."""
        g = self.covariance.reshape(self.channels, self.kernel, self.channels, self.kernel)
        return np.linalg.cholesky(np.einsum("akbk->ab", g) / self.kernel)

    @cached_property
    def whitened(self) -> Whitened:
        """For the search for a CP."""
        return whitened(self.covariance, self.root)


def inputs(covariance: NDArray, channels: int) -> Inputs:
    """What a group reads, of whose patches this is the covariance.

    Raises:
        InputError: when it is not finite.
    """
    return Inputs(regular(covariance), channels)


def channel_slices(weights: Array, read: Inputs) -> Array:
    """Weights times a root of the channels' own covariance, (M · kernel, C)."""
    slices = weights.reshape(len(weights), read.channels, read.kernel).transpose(0, 2, 1)
    return slices.reshape(-1, read.channels) @ read.root


def input_basis(weights: Array, read: Inputs) -> Array:
    """Combinations of the input channels in the order in which the response needs them, (C, C), one a row.

    The principal components of the responses to single channels, which are taken out of the correlation
    between channels first.
    """
    slices = channel_slices(weights, read)
    vectors = np.linalg.eigh(slices.T @ slices)[1][:, ::-1]
    return scipy.linalg.solve_triangular(read.root, vectors, lower=True, trans="T").T


def core_for(weights: Array, read: Inputs, into: Array) -> tuple[Array, Array]:
    """The best weights (M, in rank · kernel) behind input factors, and the covariance of what they read."""
    rank, width = len(into), len(into) * read.kernel
    half = (into @ read.covariance.reshape(read.channels, -1)).reshape(width, -1)
    inner = np.tensordot(half.reshape(-1, read.channels, read.kernel), into, axes=(1, 1))
    inner = inner.transpose(0, 2, 1).reshape(rank * read.kernel, -1)
    inner = regular((inner + inner.T) / 2)
    return scipy.linalg.solve(inner, half @ weights.T, assume_a="pos").T, inner


def responses(weights: Array, covariance: Array) -> Array:
    """The covariance of a response, (M, M), from that of what its weights are applied to."""
    return weights @ covariance @ weights.T


def responses_to(weights: Array, x: NDArray, shrinkage: float = 0.0) -> Array:
    """The same from what they are applied to, less its mean: (n, d), where n may be far below d.

    Args:
        weights: (M, d).
        x: the n inputs.
        shrinkage: share by which their covariance is drawn to its diagonal.
    """
    y = (x @ weights.T.astype(x.dtype)).astype(np.float64)
    variances = np.mean(np.square(x, dtype=np.float64), axis=0)
    own = np.sqrt(shrinkage * variances + FLOOR * variances.mean())
    return (1 - shrinkage) * (y.T @ y) / len(x) + (weights * own) @ (weights * own).T


def layer_responses(weights: Array, moments: Moments) -> Array:
    """The same, (groups, M, M), of a layer's weights, (groups, M, d)."""
    if moments.rows.size:
        share = shrinkage(*moments.rows.shape[:0:-1])
        pairs = zip(weights, moments.rows, strict=True)
        return np.stack([responses_to(weight, rows, share) for weight, rows in pairs])
    pairs = zip(weights, moments.covariance, strict=True)
    return np.stack([responses(weight, regular(covariance)) for weight, covariance in pairs])


@dataclass(frozen=True)
class Components:
    """Principal components of a response, the strongest first.

    Attributes:
        variances: (M,).
        basis: columns, (M, M).
    """

    variances: Array
    basis: Array


def components(response: Array) -> Components:
    """Those of a response of that covariance, (M, M)."""
    variances, basis = np.linalg.eigh(response)
    return Components(variances[::-1], basis[:, ::-1])


def product_factors(weights: Array, response: Components, rank: int) -> Factors:
    """Two factors of a product that leave the least error of its response (Zhang et al. 2016, section 3.1).

    Args:
        weights: (M, C).
        response: what it consists of.
        rank: of the factors.
    """
    out = response.basis[:, :rank]
    return _orthonormal(out, out.T @ weights, None)


def fit_factors(
    weights: Array, read: Inputs, ranks: Ranks, start: Factors | None = None, *, trial: bool = False
) -> Factors:
    """Factors of one group's weights at given ranks that leave the least error of the response.

    Args:
        weights: (M, C · kernel).
        read: what they are applied to.
        ranks: for a kernel of one element, the same rank twice.
        start: factors at these ranks that are near already; those of a CP are sought from there.
        trial: whether they are only tried: those of a CP are sought for a shorter time.
    """
    if read.kernel == 1:
        return product_factors(weights, components(responses(weights, read.covariance)), ranks.out)
    filters = len(weights)
    if ranks.depthwise:
        near = (start.core, start.into) if start is not None and start.into is not None else None
        iterations = TRIALS if trial else _iterations(filters, weights.shape[1], ranks.out)
        return Factors(*cp(weights, read.whitened, ranks.out, near, iterations), depthwise=True)
    into, core, inner = None, weights, read.covariance
    if ranks.into < read.channels:
        into = input_basis(weights, read)[: ranks.into]
        core, inner = core_for(weights, read, into)
    if ranks.out >= filters:
        return _orthonormal(None, core, into)
    out = components(core @ inner @ core.T).basis[:, : ranks.out]
    return _orthonormal(out, out.T @ core, into)


def _iterations(filters: int, width: int, rank: int) -> int:
    """Of the search for a CP that stays."""
    each = rank * width * (width + 2 * rank + 2 * filters)
    return int(np.clip(WORK / each, TRIALS, MOST))


def _orthonormal(out: Array | None, core: Array, into: Array | None) -> Factors:
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
    return Factors(out, core, into)


def response_error(weights: Array, other: Array, covariance: NDArray) -> float:
    """E‖(W − W')(x − E x)‖²."""
    difference = weights - other
    return float(np.sum((difference @ covariance) * difference))


def product_errors(response: Components) -> Array:
    """What is lost of the variance of a product's response at rank 0 … M, (M + 1,)."""
    return np.maximum(response.variances.sum() - np.cumsum([0.0, *response.variances]), 0)


def cp_chains(weights: Array, read: Inputs, ranks: Sequence[int]) -> list[Factors]:
    """About the best ones at CP ranks: as found by a short search."""
    return [Factors(*cp(weights, read.whitened, rank, None, LOOKS), depthwise=True) for rank in ranks]
