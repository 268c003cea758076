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
    error = f" ± {100 * found.top1_error:.1f}" if found.top1_error is not None else ""
    figures = {
        "samples": f"{found.n:,}",
        "with NaN or infinite output": f"{found.nonfinite:,}" if found.nonfinite else None,
        "top-1": _percent(found.top1, error),
        "top-5": _percent(found.top5),
        "cross-entropy, mean": _number(found.cross_entropy),
        "top-1 of the reference": _percent(found.reference_top1),
        "top-5 of the reference": _percent(found.reference_top5),
        "agreement with the reference (top-1)": _percent(found.agreement),
        "cosine of the outputs, mean": _number(found.cosine),
        "relative L2 error of the output": _number(found.relative_l2),
        "damage to the output, mean": _number(found.damage),
    }
    return table("", ["", ""], [[name, text] for name, text in figures.items() if text is not None])


def _percent(share: float | None, error: str = "") -> str | None:
    return None if share is None else f"{100 * share:.1f}{error} %"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


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
