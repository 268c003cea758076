"""Finding a learning rate by trying several on the first batches."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np

from onnxcompress.errors import InputError
from onnxcompress.progress import Steps
from onnxcompress.training.losses import Loss
from onnxcompress.training.parameters import Multipliers
from onnxcompress.training.schedules import Schedule
from onnxcompress.training.trainer import Batch, Recipe, State, train

CANDIDATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Rates of adam, from too low to too high."""

STEPS = 12
"""Of each trial; the mean loss of its second half counts."""

DISTURBANCE = 0.2
"""By which the loss after responses may be higher than with the best rate.

A network whose weights were fitted starts near its best. The first steps of Adam disturb it, and it comes
back as the rate falls. On images that were held back, GoogLeNet at a third of its MACs did best with 0.001,
the trial of which was 12 % worse than that of 0.0003; at half of them, 43 % worse in the trial, it did harm.
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
    """The highest rate, of `CANDIDATES`, with which a few steps leave the least training loss, or nearly so.

    Each is tried from the same state on the same batches, the lowest first, until one does worse. Only
    training data is looked at.

    Args:
        loss: see `trainer.train`.
        state: where training starts; not touched.
        multipliers: by weight.
        batch_of: from the number of a step to its batch.
        recipe: whose rate is to be found.
        tolerance: share by which the loss may be higher than with the best rate.
        progress: called with (steps done, steps that it takes at most).
    """
    batches = [batch_of(step) for step in range(STEPS)]
    found: dict[float, float] = {}
    for number, rate in enumerate(CANDIDATES):
        trial = replace(recipe, rate=rate, schedule=Schedule("fixed"))
        try:
            losses = []
            for step in train(loss, deepcopy(state), multipliers, batches.__getitem__, STEPS, trial):
                losses.append(step.loss)
                if progress is not None:
                    progress(number * STEPS + len(losses), len(CANDIDATES) * STEPS)
            found[rate] = float(np.mean(losses[STEPS // 2 :]))
        except InputError:  # not finite any more
            break
        if found[rate] > (1 + tolerance) * min(found.values()):
            break
    allowed = (1 + tolerance) * min(found.values(), default=0.0)
    return max((rate for rate in found if found[rate] <= allowed), default=CANDIDATES[0])
