"""How the cores are shared: layers side by side, and parts of a large product, each with one BLAS thread."""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Result = TypeVar("Result")

MOST = 8
"""Layers at a time: each may hold several matrices of the size of its inputs' covariance."""

LARGE = 2**30
"""Multiplications from which on a product is computed in parts, …"""

PARTS = 8
"""… of which there are so many on any number of cores, for the same bytes."""

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Sums in the same order on any number of cores, for the same bytes; most matrices are too small for two."""

_own = threading.local()


def cores() -> int:
    """Of this process; only Linux tells which it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(function: Callable[..., Result], first: Collection, *others: Iterable) -> Iterator[Result]:
    """`map` in several threads: the results come in the order of the arguments.

    What the function itself does side by side gets the cores that are left for it.
    """
    mine = getattr(_own, "cores", None) or cores()
    workers = max(1, min(MOST, mine, len(first)))
    if workers == 1:
        yield from map(function, first, *others)
        return

    def begin() -> None:
        _own.cores = mine // workers

    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        yield from pool.map(function, first, *others)


def product(a: NDArray, b: NDArray) -> NDArray:
    """a @ b, (M, K) and (K, N): a large one in parts, side by side."""
    rows, columns = len(a), b.shape[1]
    if rows * a.shape[1] * columns < LARGE:
        return a @ b
    result = np.empty((rows, columns), np.result_type(a, b))

    def compute(part: slice) -> None:
        if rows >= columns:
            np.matmul(a[part], b, out=result[part])
        else:
            np.matmul(a, b[:, part], out=result[:, part])

    list(side_by_side(compute, _parts(max(rows, columns), PARTS)))
    return result


def gram(x: NDArray) -> NDArray:
    """xᵀ @ x of x (n, d): a large one in parts, side by side, each of them once."""
    width = x.shape[1]
    if len(x) * width * width < LARGE:
        return x.T @ x
    result = np.empty((width, width), x.dtype)

    def compute(pair: tuple[slice, slice]) -> None:
        first, second = pair
        np.matmul(x[:, first].T, x[:, second], out=result[first, second])
        if first != second:
            result[second, first] = result[first, second].T

    parts = _parts(width, PARTS // 2)
    list(side_by_side(compute, [(a, b) for place, a in enumerate(parts) for b in parts[place:]]))
    return result


def _parts(length: int, count: int) -> list[slice]:
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]
