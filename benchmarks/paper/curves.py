"""From measured networks to the headline: how far each arm compresses at the same accuracy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

LOSSES = (0.0, 0.01, 0.02, 0.05)
"""Of accuracy, at which the arms are compared."""


@dataclass(frozen=True)
class Measured:
    """What is known of one operating point: means over its seeds.

    Attributes:
        setting: its name.
        compression: the original's cost over its own.
        accuracy: on the test part.
        spread: standard deviation of the accuracy over the seeds; None of one seed.
        seeds: their number.
    """

    setting: str
    compression: float
    accuracy: float
    spread: float | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Reach:
    """How far an arm gets at a level of accuracy.

    Attributes:
        compression: 1 when only the original network is that accurate.
        beyond: whether the arm's smallest network is still that accurate, so that this is a lower bound.
        rests_on: settings of the measured points that the curve is drawn from there.
    """

    compression: float
    beyond: bool
    rests_on: tuple[str, ...]


def averaged(runs: Iterable[tuple[str, float, float]]) -> list[Measured]:
    """Points from (setting, compression, accuracy) of single runs, in order of compression."""
    by_setting: dict[str, list[tuple[float, float]]] = {}
    for setting, compression, accuracy in runs:
        by_setting.setdefault(setting, []).append((compression, accuracy))
    points = []
    for setting, found in by_setting.items():
        compression, accuracy = np.mean(found, axis=0)
        spread = float(np.std([each[1] for each in found], ddof=1)) if len(found) > 1 else None
        points.append(Measured(setting, float(compression), float(accuracy), spread, len(found)))
    return sorted(points, key=lambda point: point.compression)


def falling(points: Sequence[Measured], original: float) -> tuple[np.ndarray, np.ndarray]:
    """The curve of an arm: accuracy that never rises with compression and is nearest to what was measured.

    Test sets are small and training is noisy; the isotonic regression keeps a lucky point from being taken
    for the arm's reach. The original network is its first point.

    Args:
        points: in order of compression.
        original: accuracy of the original network.

    Returns:
        (logarithms of the compression, accuracies), each of shape (len(points) + 1,)
    """
    logs = np.log([1.0, *(point.compression for point in points)])
    accuracies = np.array([original, *(point.accuracy for point in points)])
    weights = np.array([1.0, *(point.seeds for point in points)])
    return logs, isotonic_regression(accuracies, weights=weights, increasing=False).x


def reach(points: Sequence[Measured], original: float, level: float) -> Reach:
    """The compression at which an arm's curve falls below a level, linear in its logarithm between points."""
    logs, accuracies = falling(points, original)
    if accuracies[0] < level:
        return Reach(1.0, False, ())
    last = int(np.flatnonzero(accuracies >= level)[-1])
    # A point that the regression has levelled with others counts as much as they do.
    around = np.isin(accuracies[1:], accuracies[last : last + 2])
    rests_on = tuple(point.setting for point, near in zip(points, around, strict=True) if near)
    if last == len(points):
        return Reach(float(np.exp(logs[last])), True, rests_on)
    share = (accuracies[last] - level) / (accuracies[last] - accuracies[last + 1])
    log = logs[last] + share * (logs[last + 1] - logs[last])
    return Reach(float(np.exp(log)), False, rests_on)


@dataclass(frozen=True)
class Comparison:
    """An arm against the better of the single techniques.

    Attributes:
        loss: of accuracy that is allowed.
        reaches: by arm.
        gain: by arm other than the single ones: its compression over that of the better one, less 1. Of
            none where one of these was not measured far enough.
        fewer: likewise, by which share less is left than of the better one.
    """

    loss: float
    reaches: dict[str, Reach]
    gain: dict[str, float]
    fewer: dict[str, float]


def compared(
    arms: dict[str, list[Measured]], original: float, alone: Sequence[str], loss: float
) -> Comparison:
    """Both readings of "57 % higher compression" at one loss of accuracy.

    Args:
        arms: points by arm.
        original: accuracy of the original network.
        alone: the arms of one technique.
        loss: of accuracy.
    """
    reaches = {arm: reach(points, original, original - loss) for arm, points in arms.items() if points}
    better = max((reaches[arm].compression for arm in alone if arm in reaches), default=1.0)
    far_enough = not any(reaches[arm].beyond for arm in alone if arm in reaches)
    rest = [arm for arm in reaches if arm not in alone and far_enough]
    return Comparison(
        loss,
        reaches,
        {arm: reaches[arm].compression / better - 1 for arm in rest},
        {arm: 1 - better / reaches[arm].compression for arm in rest},
    )


def headline_points(arms: dict[str, list[Measured]], original: float, loss: float) -> list[tuple[str, str]]:
    """(arm, setting) of the measured points that the reaches at a loss of accuracy rest on."""
    return [
        (arm, setting)
        for arm, points in arms.items()
        for setting in reach(points, original, original - loss).rests_on
    ]
