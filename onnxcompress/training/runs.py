"""A training run: epochs, validation, the best weights, checkpoints."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from onnxcompress.errors import InputError
from onnxcompress.measure.accuracy import Accuracy
from onnxcompress.progress import Steps
from onnxcompress.training import checkpoint
from onnxcompress.training.optimizers import Arrays
from onnxcompress.training.trainer import State, Step

CHECKPOINT_SECONDS = 30.0
"""Between checkpoints, besides those after each epoch."""


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch.

    Attributes:
        number: counted from 1; 0 is the network as it was given.
        loss: mean over its steps; None of epoch 0.
        rate: at its last step; None of epoch 0.
        validation: None without validation data.
        seconds_left: estimate for the epochs that follow.
    """

    number: int
    loss: float | None = None
    rate: float | None = None
    validation: Accuracy | None = None
    seconds_left: float | None = None


@dataclass
class Run:
    """What a run has come to.

    Attributes:
        state: of the training.
        curve: the epochs that are done.
        losses: of the steps since.
        best: number of the epoch with the best validation, the last of equal ones; the last one without.
        best_weights: of that epoch.
        rate: the highest, given or found; None as long as it is not.
    """

    state: State
    curve: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: int = 0
    best_weights: Arrays = field(default_factory=dict)
    rate: float | None = None


Validate = Callable[[Arrays], Accuracy | None]


def go(
    run: Run,
    steps: Iterable[Step],
    *,
    total: int,
    per_epoch: int,
    validate: Validate,
    keep: Callable[[Run], None],
    progress: Steps | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> None:
    """Take the steps, which change the run's state, to the end.

    Args:
        run: where to go on; changed in place.
        steps: as `trainer.train` takes them.
        total: number of steps in all.
        per_epoch: after so many an epoch ends; the last one may be shorter.
        validate: measures weights.
        keep: writes a checkpoint.
        progress: called with (steps done, steps in all).
        on_epoch: called after each epoch.
    """

    def close(epoch: Epoch) -> None:
        if not run.curve or epoch.validation is None or _merit(epoch) >= _merit(run.curve[run.best]):
            run.best = epoch.number
            run.best_weights = {name: weight.copy() for name, weight in run.state.weights.items()}
        run.curve.append(epoch)
        run.losses = []
        if on_epoch is not None:
            on_epoch(epoch)

    if not run.curve:
        close(Epoch(0, validation=validate(run.state.weights)))
    begun = kept = time.monotonic()
    first = run.state.step
    for step in steps:
        run.losses.append(step.loss)
        if progress is not None:
            progress(step.number, total)
        if step.number % per_epoch == 0 or step.number == total:
            found = validate(run.state.weights)
            left = (time.monotonic() - begun) / (step.number - first) * (total - step.number)
            close(Epoch(len(run.curve), float(np.mean(run.losses)), step.rate, found, left))
            keep(run)
            kept = time.monotonic()
        elif time.monotonic() - kept > CHECKPOINT_SECONDS:
            keep(run)
            kept = time.monotonic()


def _merit(epoch: Epoch) -> tuple[float, float]:
    """What validation is compared by: top-1 and cross-entropy, or the damage to the teacher's answers."""
    found = epoch.validation
    assert found is not None
    if found.top1 is not None:
        return found.top1, _less(found.cross_entropy)
    return _less(found.damage), found.agreement or 0.0


def _less(loss: float | None) -> float:
    """A loss as something of which more is better; NaN is the worst."""
    return -np.inf if loss is None or np.isnan(loss) else -loss


def keeper(path: Path | None, fingerprint: str) -> Callable[[Run], None]:
    """A function that writes a run to a checkpoint; without a path it does nothing."""

    def keep(run: Run) -> None:
        if path is None:
            return
        arrays = {f"weight/{name}": w for name, w in run.state.weights.items()}
        arrays |= {f"best/{name}": w for name, w in run.best_weights.items()}
        for name, slots in run.state.optimizer.items():
            arrays |= {f"{slot}/{name}": array for slot, array in slots.items()}
        facts = {
            "fingerprint": fingerprint,
            "step": run.state.step,
            "units": run.state.units,
            "slots": sorted({slot for slots in run.state.optimizer.values() for slot in slots}),
            "curve": [asdict(epoch) for epoch in run.curve],
            "losses": run.losses,
            "best": run.best,
            "rate": run.rate,
        }
        checkpoint.write(path, facts, arrays)

    return keep


def restored(path: Path, fingerprint: str) -> Run:
    """The run that a checkpoint holds.

    Raises:
        InputError: when it is none, or another run's.
    """
    facts, arrays = checkpoint.read(path)
    if facts.get("fingerprint") != fingerprint:
        raise InputError(
            f"{path}: of a run with other networks, data or options; give the same, or remove it"
        )

    def part(prefix: str) -> Arrays:
        return {name[len(prefix) + 1 :]: a for name, a in arrays.items() if name.startswith(f"{prefix}/")}

    slots = {slot: part(slot) for slot in facts["slots"]}
    weights = part("weight")
    optimizer = {name: {slot: found[name] for slot, found in slots.items()} for name in weights}
    curve = [
        Epoch(**{**epoch, "validation": epoch["validation"] and Accuracy(**epoch["validation"])})
        for epoch in facts["curve"]
    ]
    state = State(facts["step"], weights, optimizer, facts["units"])
    return Run(state, curve, facts["losses"], facts["best"], part("best"), facts["rate"])
