"""What came of it: a CSV of all networks, the headline, and plots."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.curves import (
    LOSSES,
    Comparison,
    Measured,
    averaged,
    compared,
    falling,
    headline_points,
)
from onnxcompress.drafts import write_text
from onnxcompress.plots import finish, new_figure

ALONE = ("pruning", "Tucker")
"""The arms of one technique."""
COSTS = {"params": "parameters", "macs": "MACs", "bytes": "file size", "latency": "latency, 1 thread"}
OWN_COST = {"ours, parameters": "params", "ours, MACs": "macs"}
"""The cost that an arm's budget is of: in others it does not compete."""

Point = dict[str, Any]
"""What is kept of one network; see `__main__.measured`."""


def curves_of(points: Sequence[Point], cost: str) -> dict[str, list[Measured]]:
    """Points by arm, as compressions in one cost, of the arms that compete in it."""
    arms = dict.fromkeys(point["arm"] for point in points if point["arm"])
    return {
        arm: averaged((p["setting"], 1 / p[f"{cost}_share"], p["test"]) for p in points if p["arm"] == arm)
        for arm in arms
        if OWN_COST.get(arm, cost) == cost or cost not in OWN_COST.values()
    }


def original_of(points: Sequence[Point]) -> Point:
    """The uncompressed network."""
    return next(point for point in points if not point["arm"])


def lacking(points: Sequence[Point], seeds: int, loss: float = 0.01) -> list[tuple[str, str, int]]:
    """(arm, setting, seed) of networks that the headline rests on, in parameters or MACs, not made yet."""
    original = original_of(points)["test"]
    both = [headline_points(curves_of(points, cost), original, loss) for cost in ("params", "macs")]
    rests_on = dict.fromkeys(each for found in both for each in found)
    made = {(point["arm"], point["setting"], point["seed"]) for point in points}
    wanted = [(arm, setting, seed) for seed in range(1, seeds) for arm, setting in rests_on]
    return [each for each in wanted if each not in made]


def write(points: Sequence[Point], folder: Path) -> str:
    """Write everything into a folder; the headline is returned as text."""
    facts = [key for key in original_of(points) if key not in ("removed", "ranks", "filters")]
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["seconds", "rate", *facts], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(points)
    text = headline(points)
    write_text(folder / "headline.md", text)
    for cost in COSTS:
        plot(points, cost, folder / f"accuracy-{cost}.png")
    for arm in dict.fromkeys(point["arm"] for point in points if point["ranks"] or point["removed"]):
        plot_layers([p for p in points if p["arm"] == arm][-1], original_of(points), folder)
    return text


def headline(points: Sequence[Point]) -> str:
    """All points and the comparisons, in Markdown."""
    original = original_of(points)
    lines = [
        f"# {original['task']}: {original['classes']} classes, {original['images']} test images",
        "",
        f"Fine-tuned, not compressed: {_percent(original['test'])} ± {_percent(original['test_error'])} "
        f"(standard error), {original['params'] / 1e6:.3f} M parameters, {original['macs'] / 1e6:,.1f} M "
        f"MACs. Every other network got {original['steps']} steps of training.",
        "",
        "| arm | setting | seeds | test accuracy | parameters | MACs | file | latency |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in dict.fromkeys(point["arm"] for point in points if point["arm"]):
        by_setting: dict[str, list[Point]] = {}
        for point in sorted(points, key=lambda each: -each["macs_share"]):
            if point["arm"] == arm:
                by_setting.setdefault(point["setting"], []).append(point)
        lines += map(_row, by_setting.values())
    for cost in ("params", "macs"):
        arms = curves_of(points, cost)
        lines += ["", f"## Compression in {COSTS[cost]} at the same test accuracy", ""]
        lines += _comparisons([compared(arms, original["test"], ALONE, loss) for loss in LOSSES])
    return "\n".join(lines) + "\n"


def _row(runs: list[Point]) -> str:
    accuracy = [run["test"] for run in runs]
    spread = f" ± {_percent(float(np.std(accuracy, ddof=1)))}" if len(runs) > 1 else ""
    shares = [f"{1 / np.mean([run[f'{cost}_share'] for run in runs]):.2f}×" for cost in COSTS]
    cells = [runs[0]["arm"], runs[0]["setting"], str(len(runs)), _percent(float(np.mean(accuracy))) + spread]
    return f"| {' | '.join(cells + shares)} |"


def _comparisons(found: Sequence[Comparison]) -> list[str]:
    """Rows by level of accuracy."""
    arms = list(found[0].reaches)
    rest = [arm for arm in arms if arm not in ALONE]
    columns = ["allowed loss", *arms]
    columns += [f"{arm} / better alone − 1" for arm in rest] + [
        f"{arm}: fewer than better alone" for arm in rest
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for each in found:
        cells = [f"{100 * each.loss:g} point{'' if each.loss == 0.01 else 's'}"]
        least = {arm: "≥ " if reach.beyond else "" for arm, reach in each.reaches.items()}
        cells += [f"{least[arm]}{each.reaches[arm].compression:.2f}×" for arm in arms]
        for shares, sign in ((each.gain, "+"), (each.fewer, "")):
            cells += [
                f"{least[arm]}{100 * shares[arm]:{sign}.0f} %" if arm in shares else "–" for arm in rest
            ]
        lines.append(f"| {' | '.join(cells)} |".replace("-", "−"))
    return lines


def plot(points: Sequence[Point], cost: str, path: Path) -> None:
    """Accuracy against compression in one cost: what was measured, and each arm's falling curve."""
    figure, axes = new_figure(8, 5)
    original = original_of(points)
    for index, (arm, found) in enumerate(curves_of(points, cost).items()):
        colour, mark = f"C{index}", "os^vD"[index % 5]
        logs, curve = falling(found, original["test"])
        axes.plot(np.exp(logs), 100 * curve, color=colour, lw=1.4)
        axes.errorbar(
            [point.compression for point in found],
            [100 * point.accuracy for point in found],
            [100 * (point.spread or 0) for point in found],
            fmt=mark,
            color=colour,
            label=arm,
        )
    axes.axhline(100 * (original["test"] - 0.01), color="#888888", lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_xlabel(f"compression in {COSTS[cost]}; dotted: one point less than the original")
    axes.set_ylabel(f"test accuracy, % of {original['images']} images")
    axes.set_title(original["task"], loc="left")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    finish(figure, path)


def plot_layers(point: Point, original: Point, folder: Path) -> None:
    """Filters kept and ranks of every layer of one network, as shares of its filters."""
    layers = original["filters"]
    figure, axes = new_figure(8, 0.2 * len(layers) + 1.4)
    rows = np.arange(len(layers))
    kept = np.array([1 - point["removed"].get(name, 0) / count for name, count in layers.items()])
    axes.barh(rows, 100 * kept, color="#c3cbd6", label="filters kept")
    ranked = [number for number, name in enumerate(layers) if name in point["ranks"]]
    ranks = [100 * point["ranks"][name]["out"] / layers[name] for name in layers if name in point["ranks"]]
    axes.barh(np.array(ranked), ranks, height=0.4, color="#1f6f8b", label="output rank")
    axes.set_yticks(rows, list(layers), fontsize=6)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel("% of the layer's filters")
    axes.set_title(f"{point['task']}, {point['arm']}, {point['setting']}", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    finish(figure, folder / f"layers-{point['arm'].replace(', ', '-')}.png")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
