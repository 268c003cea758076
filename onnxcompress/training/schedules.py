"""How the learning rate changes over the steps: Caffe's policies, and the cosine."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from onnxcompress.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Attributes are those of Caffe's solver; a policy reads only its own.

    Attributes:
        policy: a name from `POLICIES`.
        gamma: base of the falls.
        power: exponent.
        stepsize: steps between falls.
        stepvalues: steps at which the rate falls.
        warmup: steps in which the rate rises linearly from nothing, whatever the policy.

    Raises:
        InputError: when the policy does not exist or lacks a number.
    """

    policy: str = "cosine"
    gamma: float = 0.1
    power: float = 1.0
    stepsize: int = 0
    stepvalues: tuple[int, ...] = ()
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InputError(f"policy: '{self.policy}' is not one of {', '.join(POLICIES)}")
        if self.policy == "step" and self.stepsize < 1:
            raise InputError("policy: 'step' needs a stepsize of at least 1, which a solver.prototxt gives")
        if self.warmup < 0:
            raise InputError(f"warmup: {self.warmup} is not at least 0")
        if not 0 <= self.gamma < math.inf:
            raise InputError(f"gamma: {self.gamma} is not a number of at least 0")


POLICIES: dict[str, Callable[[Schedule, int, int], float]] = {
    "cosine": lambda _, step, total: (1 + math.cos(math.pi * step / total)) / 2,
    "fixed": lambda *_: 1.0,
    "step": lambda s, step, _: s.gamma ** (step // s.stepsize),
    "multistep": lambda s, step, _: s.gamma ** sum(step >= each for each in s.stepvalues),
    "exp": lambda s, step, _: s.gamma**step,
    "inv": lambda s, step, _: (1 + s.gamma * step) ** -s.power,
    "poly": lambda s, step, total: (1 - step / total) ** s.power,
}
"""The share of the base rate at a step, of so many in all."""


def share(schedule: Schedule, step: int, total: int) -> float:
    """Factor to the base rate at a step, counted from 0, of so many in all."""
    rise = min(1.0, (step + 1) / (schedule.warmup + 1))
    try:
        return rise * POLICIES[schedule.policy](schedule, step, total)
    except OverflowError:
        return math.inf
