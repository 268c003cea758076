"""What is told while work is done that takes long."""

from collections.abc import Callable

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
