"""How the cores are shared: layers side by side, parts of a large product, the next batch beside this one."""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Result = TypeVar("Result")
Item = TypeVar("Item")

MOST = 8
"""Layers at a time: each may hold several matrices of the size of its inputs' covariance."""

LARGE = 2**29
"""Multiplications from which on a product is computed in parts, …"""

PARTS = 8
"""… of which there are so many on any number of cores, for the same bytes."""

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Sums in the same order on any number of cores, for the same bytes; most matrices are too small for two."""

_lock = threading.RLock()
_taken = 0
"""Cores that threads besides the first work on."""


def cores() -> int:
    """Of this process; only Linux tells which it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(function: Callable[..., Result], first: Collection, *others: Iterable) -> Iterator[Result]:
    """`map` in as many threads as there are free cores; the results come in the order of the arguments.

    A core is free again as soon as nothing is left to begin, for what the function itself does side by side.
    """
    left, more = len(first), _take(min(MOST, len(first)) - 1)
    if not more:
        yield from map(function, first, *others)
        return

    def work(*arguments: Any) -> Result:
        nonlocal left, more
        try:
            return function(*arguments)
        finally:
            with _lock:
                left -= 1
                if 0 < left <= more:
                    more -= 1
                    _give_back(1)

    try:
        with ThreadPoolExecutor(1 + more) as pool:
            yield from pool.map(work, first, *others)
    finally:
        _give_back(more)


def _take(wanted: int) -> int:
    """Take as many cores as are wanted, or as are free besides the caller's own."""
    global _taken
    with _lock:
        found = max(0, min(wanted, _free()))
        _taken += found
    return found


def _free() -> int:
    """Cores that nobody works on, where all threads that may do."""
    return cores() - 1 - _taken


def _give_back(count: int) -> None:
    global _taken
    with _lock:
        _taken -= count


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items; while one is worked with, the next is computed in another thread: both are in memory."""
    left = iter(items)

    def one() -> list[Item]:
        return list(islice(left, 1))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(one)
        while found := coming.result():
            coming = pool.submit(one)
            yield found[0]


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
