"""Canonical polyadic (CP) decomposition of a convolution's weights that keeps its response on data.

The weights W (M, C, kernel) become a sum of R products of three vectors (Lebedev et al. 2015; with the
kernel's elements as one side: Phan et al. 2020, section 3.2),

    W[m, c, k] = Σ_r  out[m, r] · core[r, k] · into[r, c],

which is a chain 1×1 → depthwise → 1×1. There is no closed form for the best one, as there is for a matrix.
The error tr((W − Ŵ) G (W − Ŵ)ᵀ) of the response, G the covariance of what the layer reads, is quadratic in
`out`, whose best value for given `into` and `core` is put in its place (variable projection, Golub and
Pereyra 1973); what is left is minimised over these two by L-BFGS, from a random start.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

from onnxcompress.threads import product

Array = NDArray[np.float64]
Single = NDArray[np.float32]

RIDGE = 1e-5
"""Of the regression for `out`, relative to the mean variance of what it reads: components stay finite."""


@dataclass(frozen=True)
class Whitened:
    """What a layer reads, its channels less their own covariance: L-BFGS needs far fewer steps for it.

    Attributes:
        root: of the channels' own covariance, (C, C): what they were is root · what they are.
        covariance: of the patches, (C · kernel,) * 2.
    """

    root: Array
    covariance: Single


def whitened(covariance: Array, root: Array) -> Whitened:
    """What a layer reads, for the search.

    Args:
        covariance: of the patches, (C · kernel,) * 2, positive definite.
        root: of the channels' own covariance, lower triangular, (C, C).
    """
    kernel = len(covariance) // len(root)
    g = _solved(root, _solved(root, covariance, kernel).T, kernel)
    return Whitened(root, g.astype(np.float32))


def cp(
    weights: Array, read: Whitened, rank: int, start: tuple[Array, Array] | None, iterations: int
) -> tuple[Array, Array, Array]:
    """The decomposition of a layer's weights at a rank.

    Args:
        weights: (M, C · kernel).
        read: what they are applied to.
        rank: R.
        start: `core` and `into` to start from instead; their sizes do not matter.
        iterations: of L-BFGS, at most.

    Returns:
        (out (M, R), core (R, kernel), into (R, C)): columns of `out` and rows of `into` have length 1, for
        training: a step that suits one of them suits the other.
    """
    root, g = read.root, read.covariance
    channels = len(root)
    kernel = len(g) // channels
    turned = np.einsum("mck,cd->mdk", weights.reshape(-1, channels, kernel), root).reshape(len(weights), -1)
    size = float(np.linalg.norm(turned)) or 1.0
    w = (turned / size).astype(np.float32)
    wg = product(w, g)
    total = float(np.sum(wg * w)) or 1.0

    def out_for(inner: Single) -> tuple[Array, Array, Single]:
        """The best `out`, transposed, its products with the response, and those of what it reads."""
        products = product(inner, g)
        gram, response = (products @ inner.T).astype(np.float64), (inner @ wg.T).astype(np.float64)
        ridge = RIDGE * np.trace(gram) / rank + np.finfo(np.float32).tiny
        while True:
            try:
                out = scipy.linalg.solve(gram + ridge * np.eye(rank), response, assume_a="pos")
            except np.linalg.LinAlgError:  # sums of float32 need not be positive definite
                ridge *= 10
            else:
                return out, response, products

    def error(flat: Array) -> tuple[float, Array]:
        core, into = _split(flat.astype(np.float32), rank, kernel)
        inner = products_of(core, into)
        out, response, products = out_for(inner)
        lost = 1 - float(np.sum(out * response)) / total
        single = out.astype(np.float32)
        slope = (2 / total) * (product(single @ single.T, products) - product(single, wg))
        slope = slope.reshape(rank, channels, kernel)
        slopes = [np.einsum("rck,rc->rk", slope, into), np.einsum("rck,rk->rc", slope, core)]
        return lost, np.concatenate([each.ravel() for each in slopes]).astype(np.float64)

    if start is None:
        random = np.random.default_rng(0)
        core = random.standard_normal((rank, kernel)) / kernel**0.5
        into = random.standard_normal((rank, channels)) / channels**0.5
    else:
        # Of length 1, as those of a random start are about: of others L-BFGS makes little.
        core, into = (_unit_rows(each)[0] for each in (start[0], start[1] @ root))
    found = scipy.optimize.minimize(
        error,
        np.concatenate([core.ravel(), into.ravel()]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxcor": 20},
    )
    core, into = _split(found.x, rank, kernel)
    out = out_for(products_of(core, into).astype(np.float32))[0]
    into = scipy.linalg.solve_triangular(root, into.T, lower=True, trans="T").T
    out, out_sizes = _unit_rows(out)
    into, into_sizes = _unit_rows(into)
    return out.T, core * (size * out_sizes * into_sizes), into


def products_of(core: NDArray, into: NDArray) -> NDArray:
    """What `out` combines: the weights of a filter for each component, (R, C · kernel)."""
    return (into[:, :, None] * core[:, None, :]).reshape(len(core), -1)


def _unit_rows(rows: Array) -> tuple[Array, Array]:
    """Rows of length 1, and the lengths that they had, (n, 1)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float64).tiny), lengths


def _split(flat: NDArray, rank: int, kernel: int) -> tuple[NDArray, NDArray]:
    return flat[: rank * kernel].reshape(rank, kernel), flat[rank * kernel :].reshape(rank, -1)


def _solved(root: Array, matrix: Array, kernel: int) -> Array:
    """The inverse of the root applied to the channels of a matrix's rows, (C · kernel, n)."""
    flat = matrix.reshape(len(root), -1)
    return scipy.linalg.solve_triangular(root, flat, lower=True).reshape(len(root) * kernel, -1)
