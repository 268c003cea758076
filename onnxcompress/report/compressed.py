"""What became of a network, and what is to be thought of before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.table import Table

from onnxcompress.plan import Ranks, members
from onnxcompress.report.measured import finetuned_json
from onnxcompress.report.tables import change, millions, table

if TYPE_CHECKING:
    from onnxcompress.results import Compressed, Fitted, Point


Reason = TypeVar("Reason")

FEW = 100
"""Samples below which figures are to be taken with caution."""


def compressed_lines(result: Compressed, layers: bool = False) -> list[Table | str]:
    """All that is said of a result; with a row per layer if they are wanted."""
    lines: list[Table | str] = [stages_table(result), *([layers_table(result)] if layers else [])]
    lines += kept_lines(result)
    lines += fitted_lines(result)
    lines += [f"trained after '{stage}': {what}" for stage, what in result.plan.trained.items()]
    if len(result.stages) == 1:
        lines.append("nothing to do: the output is the input network")
    if result.plan.rewrite and result.stages[-1].cost.macs > result.stages[0].cost.macs:
        lines.append("more MACs than before: LRN computes more as convolutions, and takes less time")
    return [*lines, *warnings(result)]


def compressed_json(result: Compressed) -> dict[str, Any]:
    """Keys: stages, layers, kept, unknown_operators, shortfall, fitted, warnings."""
    return {
        "stages": [
            {
                "name": stage.name,
                "params": stage.cost.params,
                "macs": stage.cost.macs,
                "training": None if stage.training is None else finetuned_json(stage.training),
            }
            for stage in result.stages
        ],
        "layers": layers_json(result),
        "kept": result.plan.kept,
        "unknown_operators": result.unknown,
        "shortfall": result.shortfall,
        "fitted": None if result.fitted is None else fitted_json(result.fitted),
        "warnings": warnings(result),
    }


def warnings(result: Compressed) -> list[str]:
    """What is to be thought of before a result is used."""
    found = []
    if result.fitted is None and (result.plan.prune or result.plan.decompose):
        found.append(
            "no weights were fitted, and its accuracy was not looked at: most networks are useless like "
            "this. Give --data, or train it with 'finetune'; 'evaluate' measures it"
        )
    if result.fitted is not None:
        found += _warnings_of_fit(result.fitted)
    if result.shortfall:
        found.append(f"short of what was asked: {result.shortfall}")
    return found


def stages_table(result: Compressed) -> Table:
    """One row per stage: parameters and MACs, and what they have come down by."""
    first = result.stages[0].cost
    rows = [
        [
            stage.name,
            millions(stage.cost.params),
            change(first.params, stage.cost.params),
            millions(stage.cost.macs),
            change(first.macs, stage.cost.macs),
            f"{first.macs / stage.cost.macs:.2f}×" if stage.cost.macs else "",
        ]
        for stage in result.stages
    ]
    return table("", ["stage", "params", "", "MACs", "", "fewer MACs"], rows)


def layers_table(result: Compressed) -> Table:
    """One row per layer of the original: filters and MACs before and after, ranks."""
    rows = []
    ranks = decomposed(result)
    for layer in layers_json(result):
        rows.append(
            [
                layer["name"],
                str(layer["filters"]),
                str(layer["filters"] - layer["filters_removed"]),
                str(ranks.get(layer["name"], "")),
                f"{layer['macs'] / 1e6:,.2f} M",
                f"{layer['macs_after'] / 1e6:,.2f} M",
                change(layer["macs"], layer["macs_after"]),
            ]
        )
    return table("", ["layer", "filters", "left", "ranks", "MACs", "after", ""], rows)


def decomposed(result: Compressed) -> dict[str, Ranks]:
    """Ranks by layer, of siblings by each of them."""
    return {each: ranks for name, ranks in result.plan.decompose.items() for each in members(name)}


def layers_json(result: Compressed) -> list[dict[str, Any]]:
    """One entry per layer of the original that has MACs. What siblings share is divided evenly among them."""
    after: dict[str, float] = {}
    ranks = decomposed(result)
    for layer in result.stages[-1].cost.layers:
        name, slash, part = layer.name.rpartition("/")
        factor = slash and part in ("in", "core", "out") and set(members(name)) <= set(ranks)
        owners = members(name) if factor else [layer.name]
        for owner in owners:
            after[owner] = after.get(owner, 0) + layer.macs / len(owners)
    return [
        {
            "name": layer.name,
            "filters": layer.filters,
            "filters_removed": len(result.plan.prune.get(layer.name, [])),
            "ranks": ranks[layer.name].entries() if layer.name in ranks else None,
            "macs": layer.macs,
            "macs_after": round(after.get(layer.name, 0)),
            "kept": result.plan.kept.get(layer.name),
        }
        for layer in result.stages[0].cost.layers
        if layer.macs
    ]


def kept_lines(result: Compressed) -> list[str]:
    """Layers that keep all filters or were not factored, by reason; operators without a pruning rule."""
    before, after = (
        {layer.name: layer.weight_shape for layer in result.stages[index].cost.layers} for index in (0, -1)
    )
    whole = {
        layer: ("left as it is" if before.get(layer) == after.get(layer) else "keeps its filters", reason)
        for layer, reason in result.plan.kept.items()
    }
    lines = [f"{what}: {', '.join(layers)}: {reason}" for (what, reason), layers in _by_reason(whole).items()]
    operators = sorted(set(result.unknown.values()))
    if operators:
        nodes = ", ".join(list(result.unknown)[:5])
        lines.append(
            f"no pruning rule fits {', '.join(operators)} (nodes {nodes}): what reaches them is kept whole"
        )
    return lines


def fitted_lines(result: Compressed) -> list[str]:
    """What the calibration samples were used for, and how close the result is on those used for nothing."""
    if result.fitted is None:
        return []
    fitted, changed = result.fitted, result.plan.prune or result.plan.decompose
    close = fitted.closeness
    used = f"no weights were fitted, measured on {fitted.report} samples"
    if changed:
        used = (
            f"weights fitted to {fitted.fit} samples, choices made on {fitted.choose} others, measured on "
            f"{fitted.report} that neither saw"
        )
    lines = [f"{used}: {_closeness(fitted)}"]
    lines += [
        f"not fitted: {', '.join(layers)}: {why}" for why, layers in _by_reason(fitted.unfitted).items()
    ]
    if close.agreement is not None and fitted.report < FEW:
        # With two successes and two failures more (Agresti and Coull 1998): of 100 % too, the error is not 0.
        share = (close.agreement * fitted.report + 2) / (fitted.report + 4)
        error = (share * (1 - share) / (fitted.report + 4)) ** 0.5
        lines.append(f"the standard error of that agreement is {100 * error:.1f} points")
    return lines


def fitted_json(fitted: Fitted) -> dict[str, Any]:
    """The same for programs."""
    return {
        "samples": {"fit": fitted.fit, "choose": fitted.choose, "report": fitted.report},
        "agreement": fitted.closeness.agreement,
        "damage": fitted.closeness.damage,
        "unfitted": dict(fitted.unfitted),
        "expected_damage": fitted.expected_damage,
    }


def tradeoff_table(points: Sequence[Point]) -> Table:
    """One row per network."""
    rows = [
        [
            f"{point.share:.2f}",
            millions(point.params),
            millions(point.macs),
            _percent(point.fitted.closeness.agreement),
            f"{point.fitted.closeness.damage:.4f}",
            f"{point.fitted.expected_damage:.4f}",
        ]
        for point in points
    ]
    return table("", ["share", "params", "MACs", "same best class", "damage", "before fitting"], rows)


def tradeoff_json(points: Sequence[Point]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "points": [
            {
                "share": point.share,
                "params": point.params,
                "macs": point.macs,
                "shortfall": point.shortfall,
                **fitted_json(point.fitted),
            }
            for point in points
        ]
    }


def _warnings_of_fit(fitted: Fitted) -> list[str]:
    found = []
    total = fitted.fit + fitted.choose + fitted.report
    if total < FEW:
        found.append(
            f"{total} samples are few: what fits them may not hold for others; better are 100 to 1000"
        )
    if fitted.closeness.classes == 1:
        found.append(
            "all have the same best class: give --values if the outputs are numbers, not class scores; else "
            "see whether --channel-order, --mean, --scale and --resize are those that the network needs"
        )
    return found


def _closeness(fitted: Fitted) -> str:
    close = fitted.closeness
    same = "" if close.agreement is None else f"{100 * close.agreement:.1f} % the same best class, "
    expected = (
        ""
        if fitted.expected_damage is None
        else f" (before fitting, by estimate {fitted.expected_damage:.3g})"
    )
    return f"{same}damage {close.damage:.3g}{expected}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _by_reason(reasons: Mapping[str, Reason]) -> dict[Reason, list[str]]:
    """Layers that have the same reason."""
    found: dict[Reason, list[str]] = {}
    for layer, reason in reasons.items():
        found.setdefault(reason, []).append(layer)
    return found
