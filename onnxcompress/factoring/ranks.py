"""Rank rules: at which ranks a layer's weights are factored. To add one, register a function here."""

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray
from tensorly.base import unfold

from onnxcompress.errors import InputError
from onnxcompress.factoring.tucker import squared_singular_values
from onnxcompress.factoring.vbmf import evbmf_rank

Array = NDArray[np.float64]
MatrixRank = Callable[[Array], int]
"""Rank of a matrix of weights, from 1 to its shorter side."""

RULES: dict[str, Callable[[float], MatrixRank]] = {}


def rule(name: str) -> Callable[[Callable[[float], MatrixRank]], Callable[[float], MatrixRank]]:
    """Register a function that makes a rank rule from the number after the colon (NaN without one)."""

    def register(function: Callable[[float], MatrixRank]) -> Callable[[float], MatrixRank]:
        RULES[name] = function
        return function

    return register


@rule("vbmf")
def vbmf(factor: float) -> MatrixRank:
    """Empirical variational Bayes (Nakajima et al. 2013), as Kim et al. (2015); or a multiple."""
    factor = 1.0 if np.isnan(factor) else factor
    if not 0 < factor < np.inf:
        raise InputError("rank: vbmf takes a factor above 0, as in vbmf:0.8, or nothing")

    def rank(matrix: Array) -> int:
        found = evbmf_rank(squared_singular_values(matrix), max(matrix.shape))
        return min(max(1, round(factor * found)), *matrix.shape)

    return rank


@rule("energy")
def energy(share: float) -> MatrixRank:
    """The fewest components that hold this share of the squared Frobenius norm."""
    if not 0 < share <= 1:
        raise InputError("rank: energy takes a share above 0 and up to 1, as in energy:0.9")

    def rank(matrix: Array) -> int:
        held = np.cumsum(squared_singular_values(matrix))
        return min(int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1, len(held))

    return rank


@rule("fraction")
def fraction(share: float) -> MatrixRank:
    """This share of the matrix's rows or columns, whichever are fewer, rounded up."""
    if not 0 < share <= 1:
        raise InputError("rank: fraction takes a share above 0 and up to 1, as in fraction:0.5")
    return lambda matrix: max(1, ceil(share * min(matrix.shape) - 1e-9))


def parse_rank(text: str) -> MatrixRank:
    """The rank rule that a text names: ``vbmf``, ``vbmf:0.8``, ``energy:0.9``, ``fraction:0.5``.

    Raises:
        InputError: when there is no such rule or its number is missing or out of range.
    """
    name, colon, number = text.partition(":")
    if name not in RULES:
        raise InputError(
            f"rank: '{text}' is not a rule; give one of vbmf, vbmf:0.8, energy:0.9, fraction:0.5"
        )
    try:
        return RULES[name](float(number) if colon else np.nan)
    except ValueError:
        raise InputError(f"rank: '{number}' in '{text}' is not a number") from None


def tucker_ranks(weight: Array, groups: int, rank: MatrixRank) -> tuple[int, int]:
    """Ranks of both sides of a convolution: those of the unfoldings of its weights.

    Args:
        weight: shape (M, C / groups, *kernel).
        groups: every group gets the ranks that the neediest has.
        rank: rule for one matrix.

    Returns:
        (output rank per group, input rank per group)
    """
    parts = np.split(weight, groups)
    return max(rank(unfold(part, 0)) for part in parts), max(rank(unfold(part, 1)) for part in parts)
