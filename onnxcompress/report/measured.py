"""What was measured: accuracy and latency, in training too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from onnxcompress.report.tables import table

if TYPE_CHECKING:
    from onnxcompress.measure.accuracy import Accuracy
    from onnxcompress.measure.latency import Latency
    from onnxcompress.training.finetuning import Finetuned
    from onnxcompress.training.runs import Epoch


def accuracy_table(found: Accuracy) -> Table:
    """The figures that there are, one a row."""
    rows = [["samples", f"{found.n:,}"]]
    if found.nonfinite:
        rows.append(["with NaN or infinite output", f"{found.nonfinite:,}"])
    if found.top1 is not None:
        error = f" ± {100 * found.top1_error:.1f}" if found.top1_error is not None else ""
        rows.append(["top-1", f"{100 * found.top1:.1f}{error} %"])
    if found.top5 is not None:
        rows.append(["top-5", f"{100 * found.top5:.1f} %"])
    if found.cross_entropy is not None:
        rows.append(["cross-entropy, mean", f"{found.cross_entropy:.4f}"])
    if found.reference_top1 is not None:
        rows.append(["top-1 of the reference", f"{100 * found.reference_top1:.1f} %"])
    if found.reference_top5 is not None:
        rows.append(["top-5 of the reference", f"{100 * found.reference_top5:.1f} %"])
    if found.agreement is not None:
        rows.append(["agreement with the reference (top-1)", f"{100 * found.agreement:.1f} %"])
    if found.cosine is not None:
        rows.append(["cosine of the outputs, mean", f"{found.cosine:.4f}"])
    if found.relative_l2 is not None:
        rows.append(["relative L2 error of the output", f"{found.relative_l2:.4f}"])
    if found.damage is not None:
        rows.append(["damage to the output, mean", f"{found.damage:.4f}"])
    return table("", ["", ""], rows)


def latency_table(found: Sequence[Latency], title: str = "") -> Table:
    """One row per network."""
    rows = [
        [
            each.name,
            f"{each.median:.2f}",
            f"{each.p10:.2f} – {each.p90:.2f}",
            f"{each.ratio:.3f}",
            f"{each.ratio_p10:.3f} – {each.ratio_p90:.3f}",
        ]
        for each in found
    ]
    return table(title, ["network", "median ms", "p10 – p90", "ratio to the first", "p10 – p90"], rows)


def epoch_line(epoch: Epoch) -> str:
    """What came of an epoch of training."""
    parts = [f"epoch {epoch.number}" if epoch.number else "before"]
    if epoch.loss is not None:
        parts.append(f"loss {epoch.loss:.4f}")
    if epoch.rate is not None:
        parts.append(f"rate {epoch.rate:.2g}")
    if (found := epoch.validation) is not None:
        if found.top1 is not None:
            parts.append(f"validation top-1 {100 * found.top1:.1f} %")
        if found.agreement is not None:
            parts.append(f"agreement with the teacher {100 * found.agreement:.1f} %")
        if found.damage is not None:
            parts.append(f"damage {found.damage:.3g}")
    if epoch.seconds_left:
        parts.append(f"{epoch.seconds_left / 60:.0f} min left")
    return "  ".join(parts)


def finetuned_json(result: Finetuned) -> dict[str, Any]:
    """Keys: best, rate, epochs."""
    return {"best": result.best, "rate": result.rate, "epochs": records(result.curve)}


def records(found: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Dataclasses as plain data."""
    return [asdict(each) for each in found]
