"""What is told while work is done that takes long."""

import time
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


def in_lines(say: Callable[[str], None], seconds: float = 60.0) -> Progress:
    """Progress for where no bar can be drawn: a line of text, at most one in so many seconds."""
    said = begun = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= seconds:
            said = now
            say(f"{what}, {done} of {total}, after {(now - begun) / 60:.0f} min")

    return progress
