"""How well a network does on data, and how close it stays to the network it came from."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxcompress.data import Data, batches, open_data, subset
from onnxcompress.errors import InputError
from onnxcompress.measure.damage import VARYING, Damage, log_probabilities
from onnxcompress.model import load
from onnxcompress.outputs import are_scores, grades, judged
from onnxcompress.preprocessing import Preprocessing, from_metadata
from onnxcompress.progress import Progress
from onnxcompress.runtime import DTYPES, runs, session
from onnxcompress.shapes import fixed_sizes, times

TOP = 5

REAL = frozenset(type_ for type_, dtype in DTYPES.items() if dtype.kind == "f")
"""ONNX Runtime's names of the types of real numbers."""


@dataclass(frozen=True)
class Accuracy:
    """Fractions are of all n samples. A sample with a non-finite output counts as wrong and as disagreeing.

    Attributes:
        n: samples evaluated.
        nonfinite: samples for which the network's outputs hold NaN or infinite values.
        top1: fraction whose best class is the label; None without labels, as the next two.
        top1_error: standard error of `top1`.
        top5: fraction whose five best classes hold the label; None also for fewer than 5 classes.
        cross_entropy: mean of −log of the probability that the label is given, in nats, over the samples with
            finite outputs, NaN when there are none; None without labels.
        reference_top1: `top1` of the reference; None without labels or reference.
        reference_top5: `top5` of the reference.
        agreement: fraction whose best class is the reference's; None without reference or class scores.
        cosine: mean over samples of the cosine between the two outputs; None without reference. Like the
            next, over the samples with finite outputs only, and NaN when there are none.
        relative_l2: ‖y − y_ref‖ / ‖y_ref‖ over the whole set; None without reference.
        damage: mean of `damage.Damage` of all outputs, where both networks have the same, else of those that
            are compared; as the two before.
    """

    n: int
    nonfinite: int
    top1: float | None = None
    top1_error: float | None = None
    top5: float | None = None
    cross_entropy: float | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    relative_l2: float | None = None
    damage: float | None = None


def evaluate(
    model: ir.Model | str | Path,
    data: Data | str | Path,
    *,
    reference: ir.Model | str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    batch: int = 16,
    limit: int | None = None,
    values: bool = False,
    progress: Progress | None = None,
) -> Accuracy:
    """Run a network, and the one it is compared with, over the data.

    Class scores are the first output that is (N, classes), trailing dimensions of 1 left aside. A network
    without such an output can be compared on unlabelled data: by all its outputs, flattened.
    Equal scores rank by class number. A network of fixed batch size is fed that size, the last batch padded.

    Args:
        model: the network, with one input.
        data: samples, or the path of what `open_data` takes.
        reference: the network to compare with, on the same input; most often the uncompressed one.
        preprocessing: the steps from image to array; None takes those that the network carries.
        batch: samples per run.
        limit: evaluate only that many samples, spread evenly over the data.
        values: whether outputs that could be class scores are numbers; such a network has no accuracy, and
            labels are left aside.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: when data, labels, networks and preprocessing do not fit each other, or the reference's
            output is not finite.
    """
    data = subset(data if isinstance(data, Data) else open_data(data), limit)
    if values:
        if reference is None:
            raise InputError("values: numbers are compared with those of another network: give --reference")
        data = replace(data, labels=None)
    if data.labels is None and reference is None:
        raise InputError(
            f"{data.name}: has no labels, and there is no reference to compare with: add labels.csv or a "
            "folder per class, or give --reference"
        )
    tested = _runnable(model)
    other = None if reference is None else _runnable(reference)
    value = _only_input(tested)
    if other is not None and not _take_the_same(value, _only_input(other)):
        ours, theirs = (times(each.shape[1:]) for each in (value, _only_input(other)))
        raise InputError(f"the network takes samples of {ours}, the reference of {theirs}")
    if preprocessing is None:
        preprocessing = from_metadata(tested.get_modelmeta().custom_metadata_map)
    found, damage, done = [], Damage(values), 0
    for x, labels in batches(
        data,
        shape=fixed_sizes(value.shape[1:]),
        dtype=DTYPES[value.type],
        preprocessing=preprocessing,
        batch=batch,
    ):
        outputs = _outputs(tested, x)
        y, classes = _answers(outputs, values)
        _check_labels(data, classes)
        target = None
        if other is not None:
            others = _outputs(other, x)
            target, _ = _answers(others, values)
            _check_reference(data, y, target)
            if [z.shape for z in outputs] != [z.shape for z in others]:  # heads for training, perhaps
                outputs, others = ([z if classes else z[:, None]] for z in (y, target))
        finite = np.all([np.isfinite(z).reshape(len(x), -1).all(axis=1) for z in outputs], axis=0)
        found.append(_measured(y, target, labels, finite, classes is not None))
        if other is not None and finite.any():
            damage.add(*([z[finite] for z in each] for each in (others, outputs)))
        done += len(x)
        if progress is not None:
            progress("evaluating", done, len(data))
    return _in_all(found, damage, data.labels)


@dataclass(frozen=True)
class _Measured:
    """What is counted of a batch.

    Attributes:
        finite: whether the network's output is, (N,).
        top: the best classes, best first, (N, 5 or fewer); −1 where the output is not finite.
        surprises: −log of the probability of the label, of samples with finite outputs.
        reference_top: as `top`.
        distances: of samples with finite outputs, see `_distances`.
    """

    finite: np.ndarray
    top: np.ndarray | None = None
    surprises: np.ndarray | None = None
    reference_top: np.ndarray | None = None
    distances: np.ndarray | None = None


def _measured(
    y: np.ndarray,
    target: np.ndarray | None,
    labels: np.ndarray | None,
    finite: np.ndarray,
    are_scores: bool,
) -> _Measured:
    surprises = None
    if labels is not None and finite.any():
        likely = log_probabilities(y[finite])
        surprises = -likely[np.arange(len(likely)), labels[finite]]
    return _Measured(
        finite=finite,
        top=np.where(finite[:, None], _top(y), -1) if are_scores else None,
        surprises=surprises,
        reference_top=_top(target) if are_scores and target is not None else None,
        distances=None if target is None else _distances(y[finite], target[finite]),
    )


def _in_all(found: list[_Measured], damage: Damage, labels: np.ndarray | None) -> Accuracy:
    finite = np.concatenate([each.finite for each in found])
    tops, reference_tops = _joined(found, "top"), _joined(found, "reference_top")
    top1, top5 = _accuracies(tops, labels)
    reference_top1, reference_top5 = _accuracies(reference_tops, labels)
    cross_entropy = cosine = relative_l2 = lost = None
    if top1 is not None:
        surprises = _joined(found, "surprises")
        cross_entropy = np.nan if surprises is None else float(surprises.mean())
    if (distances := _joined(found, "distances", axis=1)) is not None:
        cosines, differences, norms = distances
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = float(np.divide(cosines.sum(), len(cosines)))
            relative_l2 = float(np.sqrt(np.divide(differences.sum(), norms.sum())))
        lost = float(damage.of_samples().mean()) if len(cosines) else np.nan
    return Accuracy(
        n=len(finite),
        nonfinite=int((~finite).sum()),
        top1=top1,
        top1_error=None if top1 is None else float(np.sqrt(top1 * (1 - top1) / len(finite))),
        top5=top5,
        cross_entropy=cross_entropy,
        reference_top1=reference_top1,
        reference_top5=reference_top5,
        agreement=_agreement(tops, reference_tops),
        cosine=cosine,
        relative_l2=relative_l2,
        damage=lost,
    )


def _joined(found: list[_Measured], attribute: str, axis: int = 0) -> np.ndarray | None:
    """An attribute of all batches that have it; None if none has."""
    parts = [part for each in found if (part := getattr(each, attribute)) is not None]
    return np.concatenate(parts, axis=axis) if parts else None


def _runnable(model: ir.Model | str | Path) -> ort.InferenceSession:
    found = session(model)
    if any(output.type in REAL for output in found.get_outputs()):
        return found
    return session(grades(load(model)))


def _only_input(runnable: ort.InferenceSession) -> ort.NodeArg:
    inputs = runnable.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise InputError(f"the network has {len(inputs)} inputs ({names}); only one can be fed with data")
    if inputs[0].type not in DTYPES:
        raise InputError(f"the network's input is a {inputs[0].type}: only tensors of numbers can be fed")
    return inputs[0]


def _take_the_same(one: ort.NodeArg, other: ort.NodeArg) -> bool:
    """Whether samples for one input fit the other; dimensions that are no numbers are free."""
    pairs = zip(one.shape[1:], other.shape[1:], strict=False)
    fixed = (pair for pair in pairs if all(isinstance(dim, int) for dim in pair))
    return len(one.shape) == len(other.shape) and all(a == b for a, b in fixed)


def _outputs(runnable: ort.InferenceSession, x: np.ndarray) -> list[np.ndarray]:
    """Those with one entry per sample, (N, …), float64."""
    found = [
        [y[:count] for y in judged(values) if y.ndim and len(y) == rows]
        for count, rows, values in runs(runnable, x)
    ]
    if len({tuple(y.shape[1:] for y in each) for each in found}) > 1:
        raise InputError(VARYING)
    outputs = [np.concatenate(ys).astype(np.float64) for ys in zip(*found, strict=True)]
    if not outputs:
        raise InputError("no output of the network has one entry per sample: nothing can be evaluated")
    return outputs


def _answers(outputs: list[np.ndarray], values: bool) -> tuple[np.ndarray, int | None]:
    """Class scores, (N, classes), and their number; else all outputs flattened to (N, …), and None."""
    for y in outputs if not values else []:
        if are_scores(y.shape):
            return y.reshape(len(y), -1), y.shape[1]
    return np.concatenate([y.reshape(len(y), -1) for y in outputs], axis=1), None


def _check_labels(data: Data, classes: int | None) -> None:
    """Labels need class scores, None for a network without, and classes that these have."""
    if data.labels is None:
        return
    if classes is None:
        raise InputError("no output of the network is (N, classes): it cannot be evaluated on labelled data")
    if (data.labels >= classes).any():
        raise InputError(f"{data.name}: label {data.labels.max()}, but the network has {classes} classes")


def _check_reference(data: Data, y: np.ndarray, target: np.ndarray) -> None:
    if target.shape != y.shape:
        raise InputError(
            f"the network gives {y.shape[1]} numbers per sample, the reference {target.shape[1]}"
        )
    if not np.isfinite(target).all():
        raise InputError(f"{data.name}: the reference's output holds NaN or infinite values")


def _top(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def _distances(y: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Per sample: cosine, squared norm of the difference, squared norm of the target. (3, N)."""
    products = np.linalg.norm(y, axis=1) * np.linalg.norm(target, axis=1)
    # Two outputs of nothing but zeros point the same way; one of them and any other are at right angles.
    alike = (y == target).all(axis=1).astype(np.float64)
    cosines = np.divide((y * target).sum(axis=1), products, out=alike, where=products > 0)
    return np.stack([cosines, ((y - target) ** 2).sum(axis=1), (target**2).sum(axis=1)])


def _accuracies(tops: np.ndarray | None, labels: np.ndarray | None) -> tuple[float | None, float | None]:
    if tops is None or labels is None:
        return None, None
    hits = tops == labels[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean()) if hits.shape[1] == TOP else None


def _agreement(tops: np.ndarray | None, reference_tops: np.ndarray | None) -> float | None:
    if tops is None or reference_tops is None:
        return None
    return float((tops[:, 0] == reference_tops[:, 0]).mean())
