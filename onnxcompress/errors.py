"""What a user did or gave that cannot work."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """Bad input or usage. The message is one line that names the file or node and the way out.

    The command line prints it and exits with code 2.
    """


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of the error that began it all, on one line, cut to so many letters."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:most] or type(error).__name__


@contextmanager
def naming(files: tuple[Path, ...]) -> Iterator[None]:
    """Errors about a network begin with the first of its files, where it came from any."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{files[0]}: {error}" if files else str(error)) from None
