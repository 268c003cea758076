"""Finding a learning rate by trying several on the first batches."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np

from onnxcompress.errors import InputError
from onnxcompress.progress import Steps
from onnxcompress.training.losses import Loss
from onnxcompress.training.parameters import Multipliers
from onnxcompress.training.schedules import Schedule
from onnxcompress.training.trainer import Batch, Recipe, State, averaged, train

CANDIDATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
"""Rates relative to the weights' size, from too low to too high."""

STEPS = 12
"""Of each trial. The rate falls in them as it will in training, which takes the noise of high rates away."""

TESTED = 6
"""Batches after those of the trial, whose mean loss counts.

That of the trial's own steps says little where all is lost: a network that knew nothing any more, which 0.01
makes right on 99.6 % of its validation in six epochs, was given 0.0003 by it, and stayed at 17 %.
"""

KEPT = 2**28
"""Bytes of batches and their targets that are kept from one trial to the next."""

DISTURBANCE = 0.025
"""By which the loss after responses may be higher than with the best rate.

A network whose weights were fitted starts near its best. The first steps disturb it, and it comes back as
the rate falls. Trials of Muon, GoogLeNet at a third of its MACs, end with losses of 0.1060 (rate 1e-4),
0.1069 (3e-4) and 0.1101 (1e-3). After 200 steps, on images that were held back, 3e-4 had done better than
1e-3 (divergence 0.152 and 0.161, from 0.161); longer training bears higher rates (at 5e-4 600 steps gave
0.135, 1600 gave 0.123).
"""


def find_rate(
    loss: Loss,
    state: State,
    multipliers: Mapping[str, Multipliers],
    batch_of: Callable[[int], Batch],
    recipe: Recipe,
    tolerance: float = 0.0,
    progress: Steps | None = None,
) -> float:
    """The highest rate, of `CANDIDATES`, after a few steps of which the loss is the least, or nearly so.

    Each is tried from the same state on the same batches: the middle one first, then those above and below
    until one does worse. Only training data is looked at.

    Args:
        loss: see `trainer.train`.
        state: where training starts; not touched.
        multipliers: by weight.
        batch_of: from the number of a step to its batch.
        recipe: whose rate is to be found.
        tolerance: share by which the loss may be higher than with the best rate.
        progress: called with (steps done, steps that it takes at most).
    """
    batch_of, count = _remembering(batch_of), STEPS + TESTED
    highest = len(CANDIDATES) - 1
    found: dict[int, float] = {}

    def tried(place: int) -> float:
        """The loss after a trial; infinite where one of its losses was not finite."""
        if place not in found:
            trial = replace(recipe, rate=CANDIDATES[place], schedule=Schedule("cosine"))
            losses = []
            for value in _losses(loss, deepcopy(state), multipliers, batch_of, trial):
                losses.append(value)
                if progress is not None:
                    progress(len(found) * count + len(losses), len(CANDIDATES) * count)
            mean = float(np.mean(losses[STEPS:])) if len(losses) == count else np.inf
            found[place] = mean if np.isfinite(mean) else np.inf
        return found[place]

    best = len(CANDIDATES) // 2
    while best < highest and tried(best + 1) < tried(best):
        best += 1
    while best > 0 and tried(best - 1) <= tried(best):
        best -= 1
    allowed = (1 + tolerance) * tried(best)
    while np.isfinite(allowed) and best < highest and tried(best + 1) <= allowed:
        best += 1
    return CANDIDATES[best]


def _remembering(batch_of: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """The same function, which keeps the first batches; the others it makes anew for each trial."""
    kept: dict[int, Batch] = {}
    room = KEPT

    def batch(step: int) -> Batch:
        nonlocal room
        if step in kept:
            return kept[step]
        samples, targets = batch_of(step)
        size = samples.nbytes + sum(target.nbytes for target in targets)
        if size <= room:
            room -= size
            kept[step] = samples, targets
        return samples, targets

    return batch


def _losses(
    loss: Loss,
    state: State,
    multipliers: Mapping[str, Multipliers],
    batch_of: Callable[[int], Batch],
    recipe: Recipe,
) -> Iterator[float]:
    """Those of the steps of a trial, then of the batches after it; they end where one is not finite."""
    try:
        for step in train(loss, state, multipliers, batch_of, STEPS, recipe):
            yield step.loss
    except InputError:
        return
    for number in range(STEPS, STEPS + TESTED):
        value, _ = averaged(loss, state.weights, *batch_of(number))
        yield value
