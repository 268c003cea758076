"""The loop: batches in, weights changed."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from onnxcompress.errors import InputError
from onnxcompress.threads import ahead, side_by_side
from onnxcompress.training.losses import Loss
from onnxcompress.training.optimizers import OPTIMIZERS, Arrays, Settings, clip, empty_state
from onnxcompress.training.parameters import Multipliers
from onnxcompress.training.schedules import Schedule, share

Batch = tuple[np.ndarray, list[np.ndarray]]
"""Samples, and a target for every term of the loss."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: a name from `OPTIMIZERS`; None: chosen by `finetune`.
        rate: of SGD and Adam as Caffe has them its ``base_lr``, for which there is no default that fits every
            network. Of the others the share of its own size (the root mean square of its tensor at the start)
            by which a weight moves per step, which fits whatever the scale of inputs and weights; None:
            found by `rates.find_rate`.
        schedule: of the rate.
        settings: of the optimizer.
        weight_decay: λ: λ · w is added to the gradient.
        clip_gradients: limit to the joint norm of all gradients; None for none.
        batch: samples per run.
        iter_size: runs per step, whose gradients are averaged.
        seed: of order and augmentation.

    Raises:
        InputError: when a number is out of range.
    """

    optimizer: str | None = None
    rate: float | None = None
    schedule: Schedule = field(default_factory=Schedule)
    settings: Settings = field(default_factory=Settings)
    weight_decay: float = 0.0
    clip_gradients: float | None = None
    batch: int = 8
    iter_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer is not None and self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer: '{self.optimizer}' is not one of {', '.join(OPTIMIZERS)}")
        if self.rate is None and self.optimizer is not None and not OPTIMIZERS[self.optimizer].relative:
            raise InputError(
                f"{self.optimizer}: give a rate; for Caffe's networks 0.0002, for others 0.01 is a start"
            )
        if self.rate is not None and not 0 < self.rate < np.inf:
            raise InputError(f"rate: {self.rate} is not a number above 0")
        if self.batch < 1 or self.iter_size < 1:
            raise InputError(f"batch: {self.batch} times {self.iter_size} is not at least 1")
        if not 0 <= self.weight_decay < np.inf:
            raise InputError(f"weight-decay: {self.weight_decay} is not a number of at least 0")
        if self.clip_gradients is not None and not self.clip_gradients > 0:
            raise InputError(f"clip-gradients: {self.clip_gradients} is not above 0")


@dataclass
class State:
    """All that the next step depends on, besides the data.

    Attributes:
        step: steps done.
        weights: by name.
        optimizer: arrays of state by weight and name.
        units: what the rate of each weight is multiplied by, besides `Multipliers.rate`.
    """

    step: int
    weights: Arrays
    optimizer: dict[str, Arrays]
    units: dict[str, float]


@dataclass(frozen=True)
class Step:
    """What happened in a step.

    Attributes:
        number: counted from 1.
        loss: of its batch, before the weights changed.
        rate: at which they did.
        seconds: that it took.
    """

    number: int
    loss: float
    rate: float
    seconds: float


def start(weights: Arrays, recipe: Recipe) -> State:
    """The state before the first step of a recipe with an optimizer."""
    assert recipe.optimizer is not None
    return State(0, weights, empty_state(recipe.optimizer, weights), _units(weights, recipe.optimizer))


def _units(weights: Arrays, optimizer: str) -> dict[str, float]:
    if not OPTIMIZERS[optimizer].relative:
        return dict.fromkeys(weights, 1.0)
    sizes = {name: float(np.sqrt(np.mean(np.square(w, dtype=np.float64)))) for name, w in weights.items()}
    usual = float(np.median([size for size in sizes.values() if size > 0] or [1.0]))
    return {name: size or usual for name, size in sizes.items()}


def train(
    loss: Loss,
    state: State,
    multipliers: Mapping[str, Multipliers],
    batch_of: Callable[[int], Batch],
    steps: int,
    recipe: Recipe,
) -> Iterator[Step]:
    """Take the steps that are left, changing the state in place; control returns after each.

    While a step is taken, the next one's batch is made; weights change side by side.

    Args:
        loss: whose batches may be smaller than the recipe's: their gradients are averaged then.
        state: where to go on.
        multipliers: by weight.
        batch_of: from the number of a step, counted from 0, to its batch: the same for the same number.
        steps: in all.
        recipe: how; with an optimizer and a rate.

    Raises:
        InputError: when the loss is not finite any more.
    """
    base = recipe.rate
    assert recipe.optimizer is not None
    assert base is not None
    update = OPTIMIZERS[recipe.optimizer].update

    def change(rate: float, name: str, gradient: np.ndarray) -> None:
        weight, factor = state.weights[name], multipliers[name]
        if recipe.weight_decay and factor.decay:
            gradient = gradient + np.float32(recipe.weight_decay * factor.decay) * weight
        own_rate = rate * factor.rate * state.units[name]
        update(weight, gradient, state.optimizer[name], own_rate, state.step, recipe.settings)

    begun = time.perf_counter()
    for x, targets in ahead(map(batch_of, range(state.step, steps))):
        value, gradients = averaged(loss, state.weights, x, targets)
        if not np.isfinite(value) or not all(np.isfinite(g).all() for g in gradients.values()):
            raise InputError(_diverged(state.step, value, base))
        if recipe.clip_gradients is not None:
            clip(gradients, recipe.clip_gradients)
        rate = base * share(recipe.schedule, state.step, steps)
        list(side_by_side(partial(change, rate), gradients, gradients.values()))
        state.step += 1
        yield Step(state.step, value, rate, time.perf_counter() - begun)
        begun = time.perf_counter()


def _diverged(steps: int, loss: float, rate: float) -> str:
    if not steps:
        return (
            "the loss or its gradients are not finite before any step: the network computes NaN or "
            "infinite values on the data; check the preprocessing"
        )
    return (
        f"the loss or its gradients are not finite after {steps} steps (loss {loss:.3g}): the "
        f"rate {rate:g} is too high; try --rate {rate / 10:g}"
    )


def averaged(loss: Loss, weights: Arrays, x: np.ndarray, targets: list[np.ndarray]) -> tuple[float, Arrays]:
    """Loss and gradients of a batch, which may be several of the loss's.

    Targets have one row for each sample, or as many for each: windows of an image, frames.
    """
    values: list[float] = []
    total: Arrays = {}
    for first in range(0, len(x), loss.samples):
        last = min(first + loss.samples, len(x))
        rows = [len(target) // len(x) for target in targets]
        parts = [target[first * each : last * each] for each, target in zip(rows, targets, strict=True)]
        value, gradients = loss(weights, x[first:last], parts)
        values.append(value)
        if not total:
            total = gradients
            continue
        for name, gradient in gradients.items():
            total[name] += gradient
    if len(values) > 1:
        for gradient in total.values():
            gradient /= np.float32(len(values))
    return float(np.mean(values)), total
