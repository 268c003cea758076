"""Rules by which weights follow their gradients. To add one, register a function here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Numbers of the update rules.

    Attributes:
        momentum: μ of SGD and Muon, β₁ of Adam.
        momentum2: β₂ of Adam.
        delta: ε of Adam.
    """

    momentum: float = 0.9
    momentum2: float = 0.999
    delta: float = 1e-8


Update = Callable[[np.ndarray, np.ndarray, Arrays, float, int, Settings], None]
"""From a weight (changed in place), its gradient, its state (likewise), the rate and the step, from 0."""


@dataclass(frozen=True)
class Optimizer:
    """An update rule and what it needs.

    Attributes:
        state: names of the arrays that it keeps for each weight, all of the weight's shape.
        update: the rule.
        relative: whether its rate is a share of each weight's size, see `trainer.Recipe`.
    """

    state: tuple[str, ...]
    update: Update
    relative: bool


OPTIMIZERS: dict[str, Optimizer] = {}

STEPS = 5
"""Of Newton and Schulz; singular values from 0.002 of the gradient's norm on come near to 1."""

QUINTIC = 3.4445, -4.7750, 2.0315
"""Coefficients a, b, c of their polynomial a x + b x³ + c x⁵ (Jordan et al. 2024)."""


def optimizer(name: str, *state: str, relative: bool = False) -> Callable[[Update], Update]:
    """Register an update rule."""

    def register(update: Update) -> Update:
        OPTIMIZERS[name] = Optimizer(state, update, relative)
        return update

    return register


@optimizer("sgd", "velocity")
def sgd(w: np.ndarray, g: np.ndarray, state: Arrays, rate: float, _: int, settings: Settings) -> None:
    """As in Caffe, with the rate in the velocity: V ← μ V + rate · g, w ← w − V."""
    velocity = state["velocity"]
    velocity *= np.float32(settings.momentum)
    velocity += np.float32(rate) * g
    w -= velocity


@optimizer("adam-caffe", "mean", "square")
@optimizer("adam", "mean", "square", relative=True)
def adam(w: np.ndarray, g: np.ndarray, state: Arrays, rate: float, step: int, settings: Settings) -> None:
    """Kingma and Ba (2015)."""
    mean, square = state["mean"], state["square"]
    mean += np.float32(1 - settings.momentum) * (g - mean)
    square += np.float32(1 - settings.momentum2) * (g * g - square)
    correction = np.sqrt(1 - settings.momentum2 ** (step + 1)) / (1 - settings.momentum ** (step + 1))
    w -= np.float32(rate * correction) * mean / (np.sqrt(square) + np.float32(settings.delta))


@optimizer("muon", "mean", "square", relative=True)
def muon(w: np.ndarray, g: np.ndarray, state: Arrays, rate: float, step: int, settings: Settings) -> None:
    """Jordan et al. (2024), Muon: convolutions move equally far in all directions of the gradient's mean.

    All other weights go by Adam. For a product, whose gradient is quickly computed, the iteration would take
    longer than all the rest.
    """
    if w.ndim < 3:
        adam(w, g, state, rate, step, settings)
        return
    mean, share = state["mean"], np.float32(1 - settings.momentum)
    mean += share * (g - mean)
    ahead = mean + share * (g - mean)  # as Nesterov
    direction = orthogonal(ahead.reshape(len(w), -1))
    w -= np.float32(rate * max(direction.shape) ** 0.5) * direction.reshape(w.shape)


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """A matrix with the same singular vectors whose singular values are nearly 1 (0.7 to 1.2).

    Only the products of the shorter side with itself are iterated on. SciPy's `polar`, which is exact, takes
    three to six times as long.
    """
    a, b, c = map(np.float32, QUINTIC)
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + np.finfo(np.float32).tiny)
    gram = x @ x.T
    root = unit = np.eye(len(gram), dtype=np.float32)
    for _ in range(STEPS):
        factor = a * unit + b * gram + c * (gram @ gram)
        root, gram = factor @ root, factor @ gram @ factor
    x = root @ x
    return x.T if len(matrix) > matrix.shape[1] else x


def empty_state(name: str, weights: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """Zeros for every array of state of every weight."""
    return {each: {s: np.zeros_like(w) for s in OPTIMIZERS[name].state} for each, w in weights.items()}


def clip(gradients: Arrays, limit: float) -> None:
    """Scale all gradients, in place, so that their joint norm is at most the limit."""
    norm = np.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if norm > limit:
        for g in gradients.values():
            g *= np.float32(limit / norm)
