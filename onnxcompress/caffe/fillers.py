"""Caffe's fillers: the initial values of parameters, as a prototxt asks for them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxcompress.errors import InputError


def draw(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """One parameter's initial values.

    Args:
        filler: a FillerParameter.
        shape: of the parameter; its first two dimensions give the fans of xavier and msra.
        random: advanced by what is drawn.

    Returns:
        float32, of that shape.

    Raises:
        InputError: when Caffe has no filler of that type, or it does not fit the shape.
    """
    if filler.type not in FILLERS:
        raise InputError(f"unknown filler '{filler.type}'; Caffe has {', '.join(FILLERS)}")
    return FILLERS[filler.type](filler, shape, random).astype(np.float32, copy=False)


def _constant(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return np.full(shape, filler.value, np.float32)


def _uniform(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return _between(filler.min, filler.max, shape, random)


def _gaussian(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    values = random.standard_normal(shape, np.float32) * np.float32(filler.std) + np.float32(filler.mean)
    if filler.sparse >= 0:
        if not shape:
            raise InputError("a sparse gaussian filler needs at least one dimension")
        values *= random.random(shape, np.float32) < filler.sparse / shape[0]
    return values


def _positive_unitball(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    values = random.random(shape, np.float32)
    return values / values.sum(axis=tuple(range(1, len(shape))), keepdims=True)


def _xavier(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    bound = math.sqrt(3 / _fan(filler, shape))
    return _between(-bound, bound, shape, random)


def _msra(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return random.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / _fan(filler, shape)))


def _bilinear(filler: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise InputError("the bilinear filler needs a square kernel")
    size = shape[3]
    factor = math.ceil(size / 2)
    centre = (size - 1) / (2 * factor)
    profile = 1 - np.abs(np.arange(size) / factor - centre)
    return np.broadcast_to(np.outer(profile, profile), shape)


FILLERS: dict[str, Callable[[Any, tuple[int, ...], np.random.Generator], np.ndarray]] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}


def _between(low: float, high: float, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return random.random(shape, np.float32) * np.float32(high - low) + np.float32(low)


def _fan(filler: Any, shape: tuple[int, ...]) -> float:
    """Caffe's n of a parameter: numbers that enter an output, numbers that an input enters, or their mean."""
    count = math.prod(shape)
    fan_in = count / shape[0] if shape else 1
    fan_out = count / shape[1] if len(shape) > 1 else count
    return {
        filler.FAN_IN: fan_in,
        filler.FAN_OUT: fan_out,
        filler.AVERAGE: (fan_in + fan_out) / 2,
    }[filler.variance_norm]
