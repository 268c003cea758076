"""What a network consists of."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from onnxcompress.report.tables import shape, table

if TYPE_CHECKING:
    from onnxcompress.inspection import InspectedLayer, Inspection


def inspection_table(found: Inspection) -> Table:
    """One row per layer and the totals."""
    timed = any(layer.milliseconds is not None for layer in found.layers)
    columns = ["layer", "operator", "weights", "output", "params", "MACs", "share", "VBMF", "filters"]
    rows = []
    for layer in found.layers:
        cost = layer.cost
        row = [
            cost.name,
            cost.operator,
            shape(cost.weight_shape),
            shape(cost.output_shape[1:]),
            f"{cost.params:,}",
            f"{cost.macs / 1e6:,.2f} M",
            f"{100 * cost.macs / max(found.cost.macs, 1):.1f} %",
            "" if layer.ranks is None else _ranks(layer),
            _filters(layer),
        ]
        rows.append(row + ([f"{layer.milliseconds:.2f}"] if layer.milliseconds is not None else []))
    total = [
        "total",
        "",
        "",
        "",
        f"{found.cost.params:,}",
        f"{found.cost.macs / 1e6:,.2f} M",
        "100 %",
        "",
        "",
    ]
    if timed:
        columns.append("ms")
        for operator, milliseconds in found.other_milliseconds.items():
            rows.append([f"other: {operator}", *[""] * 8, f"{milliseconds:.2f}"])
        total.append(f"{_total_time(found):.2f}")
    return table("", columns, [*rows, total])


def groups_table(found: Inspection) -> Table:
    """One row per group of channels that are cut together."""
    rows = [
        [", ".join(group.layers), str(len(group.sets)), ", ".join(group.tensors)] for group in found.groups
    ]
    return table("Channels that are cut together", ["filters of", "sets", "occur in"], rows)


def inspection_json(found: Inspection) -> dict[str, Any]:
    """Keys: layers, params, macs, groups, unknown_operators, other_milliseconds."""
    return {
        "layers": [
            asdict(layer.cost)
            | {
                "vbmf_ranks": None if layer.ranks is None else layer.ranks.entries(),
                "tied": layer.tied,
                "kept": layer.kept,
                "milliseconds": layer.milliseconds,
            }
            for layer in found.layers
        ],
        "params": found.cost.params,
        "macs": found.cost.macs,
        "groups": [
            {"layers": group.layers, "sets": len(group.sets), "tensors": group.tensors}
            for group in found.groups
        ],
        "unknown_operators": found.unknown,
        "other_milliseconds": found.other_milliseconds,
    }


def _ranks(layer: InspectedLayer) -> str:
    assert layer.ranks is not None
    pointwise = len(layer.cost.weight_shape) < 3 or set(layer.cost.weight_shape[2:]) == {1}
    return str(layer.ranks.out) if pointwise else str(layer.ranks)


def _filters(layer: InspectedLayer) -> str:
    if layer.kept is None:
        return ""
    if layer.kept:
        return f"kept: {layer.kept}"
    if not layer.tied:
        return "free"
    return f"tied to {layer.tied[0]}" + (f" and {len(layer.tied) - 1} more" if len(layer.tied) > 1 else "")


def _total_time(found: Inspection) -> float:
    return sum(layer.milliseconds or 0.0 for layer in found.layers) + sum(found.other_milliseconds.values())
