"""What is seen of a command: tables or JSON, progress, one line for an error, an exit code."""

import functools
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec

import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table

from onnxcompress.errors import InputError
from onnxcompress.progress import Progress, in_lines

DONE, SHORT, BAD_INPUT = 0, 1, 2

LONGEST_MESSAGE = 1000
"""Characters."""

P = ParamSpec("P")

stdout = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What a command prints."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/json.md) instead of tables.")
    ] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print neither progress nor tables.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False

    @property
    def tables(self) -> bool:
        """Whether tables and remarks are."""
        return not self.as_json and not self.quiet


def guarded(name: str, function: Callable[P, int | None]) -> Callable[P, None]:
    """A command whose answer becomes the exit code, and its errors one line."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs) or DONE
        except (Exception, KeyboardInterrupt) as error:
            if kwargs["debug"]:
                traceback.print_exc()
            stderr.print(f"onnxcompress {name}: {_line(_explain(error))}")
            code = BAD_INPUT
        raise typer.Exit(code)

    return run


def _explain(error: BaseException) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted, no network was written; run the same command again"
    if isinstance(error, BrokenPipeError):
        return "nobody reads what it prints"
    if isinstance(error, MemoryError):
        return "out of memory, nothing was written"
    if isinstance(error, OSError):
        return f"{error.filename or 'file system'}: {error.strerror or error}"
    return f"internal error, {type(error).__name__}: {error}; the same command with --debug shows where"


def _line(text: str) -> str:
    """A message as one line that fits on a screen, whatever the names in it."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} …"


def show(content: dict[str, Any], lines: Sequence[Table | str], printed: Printed) -> None:
    """Print one JSON object, or tables and lines, or nothing."""
    if printed.as_json:
        print(json.dumps(_finite(content), ensure_ascii=False, allow_nan=False))
    elif printed.tables:
        for line in lines:
            stdout.print(line, markup=False, soft_wrap=isinstance(line, str))


def _finite(content: Any) -> Any:
    """JSON has no word for NaN and infinity: null."""
    if isinstance(content, dict):
        return {key: _finite(each) for key, each in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(each) for each in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def progress_bar(printed: Printed) -> Iterator[Progress]:
    """A bar on a terminal, elsewhere a line a minute."""
    if not stderr.is_terminal and not printed.quiet:
        yield in_lines(stderr.print)
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=stderr, transient=True, disable=printed.quiet) as bar:
        task = bar.add_task("", total=None)

        def advance(what: str, done: int, total: int) -> None:
            if bar.tasks[0].description != what:
                bar.reset(task, description=what)
            bar.update(task, completed=done, total=total)

        yield advance
