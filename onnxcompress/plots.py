"""Plots, with the optional extra ``plot`` (Matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcompress.drafts import replacing
from onnxcompress.errors import InputError
from onnxcompress.report.compressed import layers_json

if TYPE_CHECKING:
    from onnxcompress.results import Compressed, Point

BEFORE, AFTER = "#c3cbd6", "#1f6f8b"


def plot_layers(result: Compressed, path: str | Path) -> None:
    """Draw the MACs of every layer before and after compression.

    Raises:
        InputError: when Matplotlib is not installed.
    """
    layers = layers_json(result)
    figure, axes = new_figure(9, 0.24 * len(layers) + 1.4)
    rows = range(len(layers))
    axes.barh(rows, [layer["macs"] / 1e6 for layer in layers], color=BEFORE, label="before")
    axes.barh(rows, [layer["macs_after"] / 1e6 for layer in layers], color=AFTER, height=0.45, label="after")
    axes.set_yticks(rows, [_label(layer) for layer in layers], fontsize=7)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel("million MACs; in brackets: filters left, ranks")
    axes.legend(frameon=False)
    finish(figure, path)


def tradeoff(points: Sequence[Point], kind: str, path: str | Path) -> None:
    """Draw what is kept, measured on samples that nothing was fitted to, against the share of the cost.

    Raises:
        InputError: when Matplotlib is not installed.
    """
    figure, axes = new_figure(6, 4)
    shares = [point.share for point in points]
    kept = [100 * point.fitted.closeness.kept for point in points]
    axes.plot([1, *shares], [100, *kept], marker="o", color=AFTER)
    axes.set_xlim(1.02, 0)
    axes.set_ylim(min(kept) - 3, 101)
    axes.grid(color=BEFORE, linewidth=0.5)
    what = {"macs": "MACs", "params": "parameters", "size": "file's size"}[kind]
    axes.set_xlabel(f"share of the {what} that stays")
    classes = points[0].fitted.closeness.agreement is not None
    axes.set_ylabel("same best class, %" if classes else "variance of the outputs kept, %")
    finish(figure, path)


def check_installed() -> None:
    """See that plots can be drawn.

    Raises:
        InputError: when Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InputError("plots need Matplotlib: pip install 'onnxcompress[plot]'")


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure with one pair of axes, without a display.

    Raises:
        InputError: when Matplotlib is not installed.
    """
    check_installed()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def finish(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, whatever the name of the file."""
    with replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=130, metadata={"Software": None})


def _label(layer: dict[str, Any]) -> str:
    left = f"{layer['filters'] - layer['filters_removed']}/{layer['filters']}"
    ranks = f"; {layer['ranks']['out']}, {layer['ranks']['in']}" if layer["ranks"] else ""
    return f"{layer['name']}  [{left}{ranks}]"
