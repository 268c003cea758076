"""Rules by which weights follow their gradients. To add one, register a function here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Numbers of the update rules.

    Attributes:
        momentum: μ of SGD, β₁ of Adam.
        momentum2: β₂ of Adam.
        delta: ε of Adam.
    """

    momentum: float = 0.9
    momentum2: float = 0.999
    delta: float = 1e-8


Update = Callable[[np.ndarray, np.ndarray, Arrays, float, int, Settings], None]
"""From a weight (changed in place), its gradient, its state (likewise), the rate and the step, from 0."""

OPTIMIZERS: dict[str, tuple[tuple[str, ...], Update]] = {}
"""Names of the arrays of state that a rule keeps for each weight, all of its shape, and the rule."""


def optimizer(name: str, *state: str) -> Callable[[Update], Update]:
    """Register an update rule."""

    def register(update: Update) -> Update:
        OPTIMIZERS[name] = state, update
        return update

    return register


@optimizer("sgd", "velocity")
def sgd(w: np.ndarray, g: np.ndarray, state: Arrays, rate: float, _: int, settings: Settings) -> None:
    """V ← μ V + rate · g, w ← w − V, as in Caffe: the rate is in the velocity."""
    velocity = state["velocity"]
    velocity *= np.float32(settings.momentum)
    velocity += np.float32(rate) * g
    w -= velocity


@optimizer("adam-caffe", "mean", "square")
@optimizer("adam", "mean", "square")
def adam(w: np.ndarray, g: np.ndarray, state: Arrays, rate: float, step: int, settings: Settings) -> None:
    """Kingma and Ba (2015). The rate of ``adam`` is relative to the weights' size, see `trainer.Recipe`."""
    mean, square = state["mean"], state["square"]
    mean += np.float32(1 - settings.momentum) * (g - mean)
    square += np.float32(1 - settings.momentum2) * (g * g - square)
    correction = np.sqrt(1 - settings.momentum2 ** (step + 1)) / (1 - settings.momentum ** (step + 1))
    w -= np.float32(rate * correction) * mean / (np.sqrt(square) + np.float32(settings.delta))


def empty_state(name: str, weights: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """Zeros for every array of state of every weight."""
    return {each: {s: np.zeros_like(w) for s in OPTIMIZERS[name][0]} for each, w in weights.items()}


def clip(gradients: Arrays, limit: float) -> None:
    """Scale all gradients, in place, so that their joint norm is at most the limit."""
    norm = np.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if norm > limit:
        for g in gradients.values():
            g *= np.float32(limit / norm)
