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


def find_rate(
    loss: Loss,
    state: State,
    multipliers: Mapping[str, Multipliers],
    batch_of: Callable[[int], Batch],
    recipe: Recipe,
    progress: Steps | None = None,
) -> float:
    """The rate, of `CANDIDATES`, with which the training loss falls most in a few steps.

    Each is tried from the same state on the same batches, the lowest first, until one does worse than the
    one before. Only training data is looked at.

    Args:
        loss: see `trainer.train`.
        state: where training starts; not touched.
        multipliers: by weight.
        batch_of: from the number of a step to its batch.
        recipe: whose rate is to be found.
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
        if found[rate] > min(found.values()):
            break
    return min(found, key=found.__getitem__, default=CANDIDATES[0])
