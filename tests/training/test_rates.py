"""Which of the candidates is taken: the trials are of a loss whose only weight does best where it starts."""

import numpy as np
import pytest

from onnxcompress.training.parameters import Multipliers
from onnxcompress.training.rates import CANDIDATES, STEPS, TESTED, find_rate
from onnxcompress.training.trainer import Recipe, start


class Valley:
    """1 + 100 (w − 1)², with a gradient that always leads away; not finite from a distance on."""

    samples = 4

    def __init__(self, width=np.inf):
        self.width = width

    def __call__(self, weights, x, targets):
        away = abs(float(weights["w"][0]) - 1)
        value = 1 + 100 * away**2 if away < self.width else np.nan
        return value, {"w": np.ones(1, np.float32)}


def found(tolerance, loss=None, said=None, made=None):
    recipe = Recipe(optimizer="adam")
    state = start({"w": np.ones(1, np.float32)}, recipe)

    def batch_of(step):
        if made is not None:
            made.append(step)
        return np.zeros((4, 1), np.float32), []

    progress = None if said is None else lambda *counts: said.append(counts)
    rate = find_rate(loss or Valley(), state, {"w": Multipliers()}, batch_of, recipe, tolerance, progress)
    assert state.step == 0
    assert state.weights["w"] == 1
    return rate


@pytest.mark.parametrize(("tolerance", "rate"), [(0.0, 1e-4), (0.002, 5e-4), (0.02, 2e-3), (10.0, 1e-2)])
def test_the_highest_rate_within_the_tolerance(tolerance, rate):
    assert found(tolerance) == rate


def test_a_rate_that_leaves_no_finite_loss_is_none():
    assert found(10.0, Valley(width=0.015)) == 2e-3
    assert found(10.0, Valley(width=0.0)) == CANDIDATES[0]


class Slope:
    """A loss whose only weight does best a way ahead, where trials at one rate end."""

    samples = 4

    def __init__(self, rate):
        self.rate = rate
        self.calls = 0

    def __call__(self, weights, x, targets):
        self.calls += 1
        ahead = (1 - float(weights["w"][0])) / self.rate
        return (ahead - 6) ** 2, {"w": np.ones(1, np.float32)}


@pytest.mark.parametrize(("best", "trials"), [(0, 5), (1, 5), (2, 4), (3, 3), (4, 3), (5, 4), (6, 4)])
def test_trials_start_in_the_middle_and_end_at_the_first_that_does_worse(best, trials):
    loss = Slope(CANDIDATES[best])
    assert found(0.0, loss) == CANDIDATES[best]
    assert loss.calls == trials * (STEPS + TESTED)


def test_progress_ends_where_the_trials_do():
    said = []
    found(0.0, Slope(CANDIDATES[3]), said=said)
    assert said[-1] == (3 * (STEPS + TESTED), len(CANDIDATES) * (STEPS + TESTED))


@pytest.mark.parametrize(("room", "times"), [(2**20, 1), (5 * 16, 5), (0, 5)])
def test_batches_are_kept_as_far_as_there_is_room(monkeypatch, room, times):
    monkeypatch.setattr("onnxcompress.training.rates.KEPT", room)
    made = []
    assert found(0.002, made=made) == 5e-4
    assert made.count(0) == (1 if room else times)
    assert made.count(STEPS + TESTED - 1) == times
