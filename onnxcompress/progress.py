"""What is told while work is done that takes long."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Steps = Callable[[int, int], None]
"""Called with steps done and steps in all."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, and steps in all."""


def steps_of(progress: Progress | None, what: str) -> Steps | None:
    """The steps of one thing that is being done; None where nobody listens."""
    if progress is None:
        return None
    tell = progress
    return lambda done, total: tell(what, done, total)


def within(progress: Progress | None, part: str) -> Progress | None:
    """The progress of one part of something larger, told as such."""
    if progress is None:
        return None
    tell = progress
    return lambda what, done, total: tell(f"{part}: {what}", done, total)


def counted(items: Iterable[T], total: int, steps: Steps | None) -> Iterator[T]:
    """The items, of which there are so many; that one is done with is told when the next is asked for."""
    for number, item in enumerate(items, 1):
        yield item
        if steps is not None:
            steps(number, total)
