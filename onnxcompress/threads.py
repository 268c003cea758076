"""How the cores are shared: layers side by side, each with one thread of BLAS."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Result = TypeVar("Result")

MOST = 8
"""Layers at a time: each may hold several matrices of the size of its inputs' covariance."""

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Sums in the same order on any number of cores, for the same bytes; these matrices are too small for two."""


def cores() -> int:
    """Of this process; only Linux tells which it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(function: Callable[..., Result], *arguments: Iterable) -> Iterator[Result]:
    """`map` in several threads: the results come in the order of the arguments."""
    with ThreadPoolExecutor(min(MOST, cores())) as pool:
        yield from pool.map(function, *arguments)
