"""Tables, and numbers in them."""

from collections.abc import Sequence

from rich import box
from rich.table import Table


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; the first column is text, the others are numbers."""
    result = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=any(columns),
    )
    for index, column in enumerate(columns):
        result.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def millions(count: float) -> str:
    """A count in millions."""
    return f"{count / 1e6:,.3f} M" if count < 1e8 else f"{count / 1e6:,.1f} M"


def change(before: float, after: float) -> str:
    """How far a cost has come down: “−53.4 %”, or nothing where it has not moved."""
    return "" if before == after or not before else f"{100 * (after / before - 1):+.1f} %".replace("-", "−")


def shape(dimensions: Sequence[int]) -> str:
    """A shape, as in 64×3×7×7."""
    return "×".join(map(str, dimensions))
