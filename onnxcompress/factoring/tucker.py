"""Tucker-2 of a convolution's weights and the singular value decomposition of a matrix, by Gram matrices.

A convolution's weights W of shape (M, C, *kernel) become (Kim et al. 2015, equation 4)

    W[m, c, ...] = Σ_pq  out_factor[m, p] · core[p, q, ...] · in_factor[c, q].

The subspaces come from the eigenvectors of the unfoldings' Gram matrices, of size M×M and C×C, which
cost a fraction of singular value decompositions of the unfoldings themselves.
"""

import numpy as np
from numpy.typing import NDArray
from tensorly.base import unfold

Array = NDArray[np.float64]

MAX_ITERATIONS = 20
TOLERANCE = 1e-4
"""Gain in explained energy, relative to the weights', below which the iteration stops."""


def gram(matrix: Array) -> Array:
    """``matrix @ matrix.T`` over the shorter side: shape (min, min) of the matrix's two sides."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def squared_singular_values(matrix: Array) -> Array:
    """Squared singular values of a matrix, shape (min of its sides,), in descending order."""
    return np.maximum(np.linalg.eigvalsh(gram(matrix))[::-1], 0)


def tucker2(weight: Array, out_rank: int, in_rank: int) -> tuple[Array, Array, Array]:
    """Tucker-2 decomposition by higher-order orthogonal iteration (De Lathauwer et al. 2000).

    Args:
        weight: shape (M, C, *kernel).
        out_rank: from 1 to M. At M the output factor is the identity.
        in_rank: from 1 to C. At C the input factor is the identity.

    Returns:
        (out_factor (M, out_rank), core (out_rank, in_rank, *kernel), in_factor (C, in_rank)); the
        factors have orthonormal columns.
    """
    filters, channels = weight.shape[:2]
    out = _leading_subspace(unfold(weight, 0), out_rank) if out_rank < filters else np.eye(filters)
    into = _leading_subspace(unfold(weight, 1), in_rank) if in_rank < channels else np.eye(channels)
    # One matrix (M, C) per position of the kernel: products with factors are then products of matrices.
    slices = np.moveaxis(weight.reshape(filters, channels, -1), 2, 0).copy()
    core = out.T @ slices @ into
    if out_rank < filters and in_rank < channels:
        energy, total = np.sum(core**2), np.sum(weight**2)
        for _ in range(MAX_ITERATIONS):
            out = _leading_subspace(np.hstack(slices @ into), out_rank)
            projected = out.T @ slices
            into = _leading_subspace(np.hstack(projected.swapaxes(1, 2)), in_rank)
            core = projected @ into
            before, energy = energy, np.sum(core**2)
            if energy - before <= TOLERANCE * total:
                break
    return out, np.moveaxis(core, 0, 2).reshape(out_rank, in_rank, *weight.shape[2:]), into


def truncated_svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Best approximation of the given rank as a product ``left @ right`` (Eckart–Young).

    Args:
        matrix: shape (M, C).
        rank: from 1 to min(M, C).

    Returns:
        (left (M, rank), right (rank, C)); the longer side's factor carries the singular values.
    """
    if matrix.shape[0] <= matrix.shape[1]:
        left = _leading_subspace(matrix, rank)
        return left, left.T @ matrix
    right = _leading_subspace(matrix.T, rank).T
    return matrix @ right.T, right


def _leading_subspace(matrix: Array, rank: int) -> Array:
    """Leading left singular vectors, shape (rows, rank); each column's largest entry is positive."""
    # NumPy's eigh: SciPy's, asked for some of the vectors only, took 40 times as long on a busy machine.
    _, vectors = np.linalg.eigh(matrix @ matrix.T)
    vectors = vectors[:, : -rank - 1 : -1]
    peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(rank)]
    return vectors * np.where(peaks < 0, -1.0, 1.0)
