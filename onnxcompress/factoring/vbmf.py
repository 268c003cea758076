"""Rank of a noisy matrix: global analytic empirical variational Bayesian matrix factorization.

Nakajima, Sugiyama, Babacan, Tomioka, "Global Analytic Solution of Fully-observed Variational
Bayesian Matrix Factorization", JMLR 14 (2013). Kim et al. (2015) take Tucker ranks from it.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

SEARCH_TOLERANCE = 1e-5
"""Absolute tolerance of the search for the noise variance: that of the reference implementation, on which
published ranks depend (a finer search changes some of GoogLeNet's by up to 2 %)."""

SEARCH_RELATIVE = 0.05
"""Largest tolerance relative to the mean squared weight, for weights in small units."""


def evbmf_rank(squared_singular_values: NDArray[np.float64], columns: int) -> int:
    """Number of components that stand out of the noise, whose variance is estimated.

    Args:
        squared_singular_values: shape (L,), of an L×M matrix with L ≤ M, that is, the
            eigenvalues of its L×L Gram matrix; any order.
        columns: M, the longer side.

    Returns:
        The estimated rank, at least 1.

    Raises:
        ValueError: if M < L.

    The noise variance minimises the free energy of Theorem 2 (equation 24); a component is kept when
    its singular value passes the threshold of equation 20, sqrt(M σ² (1 + τ)(1 + α/τ)) with
    α = L/M and τ ≈ 2.5129 sqrt(α).
    """
    L, M = len(squared_singular_values), columns
    if M < L:
        raise ValueError(f"the matrix has {L} rows and {M} columns: transpose it")
    energy = np.sort(np.maximum(squared_singular_values, 0))[::-1] / M
    if energy[0] <= 0:
        return 1
    # A dead filter gives an exact zero; the free energy takes its logarithm.
    energy = np.maximum(energy, energy[0] * np.finfo(np.float64).eps)
    alpha = L / M
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    tail = energy[min(max(int(np.ceil(L / (1 + alpha))) - 1, 0), L - 1) :]
    upper = energy.sum() / L
    lower = max(tail[0] / x_bar, tail.mean())
    found = minimize_scalar(
        lambda variance: _free_energy(energy / variance, alpha, x_bar),
        bounds=(min(lower, upper), upper),
        method="bounded",
        options={"xatol": min(SEARCH_TOLERANCE, SEARCH_RELATIVE * upper)},
    )
    variance = found.x
    return max(int(np.count_nonzero(energy > variance * x_bar)), 1)


def _free_energy(x: NDArray[np.float64], alpha: float, x_bar: float) -> float:
    noise, signal = x[x <= x_bar], x[x > x_bar]
    shifted = signal - (1 + alpha)
    tau = (shifted + np.sqrt(shifted**2 - 4 * alpha)) / 2
    return float(
        np.sum(noise - np.log(noise))
        + np.sum(signal - tau + np.log((tau + 1) / signal) + alpha * np.log(tau / alpha + 1))
    )
