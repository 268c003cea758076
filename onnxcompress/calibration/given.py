"""Calibration data as a user gives them, and what is read from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import onnx_ir as ir

from onnxcompress.calibration.samples import Parts, Source, read_samples, split
from onnxcompress.calibration.statistics import Moments, kept_statistics
from onnxcompress.errors import InputError
from onnxcompress.layers import factor_layers
from onnxcompress.preprocessing import Preprocessing
from onnxcompress.progress import Progress, steps_of
from onnxcompress.shapes import concrete_shapes


@dataclass(frozen=True)
class Calibration:
    """Calibration data, and how they are read.

    Attributes:
        source: see `calibration.samples.read_samples`.
        preprocessing: from image to array; None takes what the network carries.
        limit: take at most so many samples, spread evenly.
        stats: file in which the statistics of the network on these data are kept from one call to the next.
        labels: whether Taylor importance and training use the data's labels; nothing else does.
        values: whether the network's outputs are numbers even where they could be class scores, (n, classes).
        mirror: whether images are seen with left and right exchanged, too, in training as well.
    """

    source: Source
    preprocessing: Preprocessing | None = None
    limit: int | None = None
    stats: str | Path | None = None
    labels: bool = False
    values: bool = False
    mirror: bool = True


@overload
def calibration(data: Calibration | Source) -> Calibration: ...
@overload
def calibration(data: Calibration | Source | None) -> Calibration | None: ...
def calibration(data: Calibration | Source | None) -> Calibration | None:
    """Calibration data, of which the source may be all that is said."""
    return data if data is None or isinstance(data, Calibration) else Calibration(data)


def read_parts(original: ir.Model, data: Calibration | None, progress: Progress | None) -> Parts | None:
    """The samples, each for one purpose; None without data.

    Raises:
        InputError: when they cannot be read, are too few, or lack the labels that are wanted.
    """
    if data is None:
        return None
    samples = read_samples(
        original,
        data.source,
        preprocessing=data.preprocessing,
        limit=data.limit,
        mirror=data.mirror,
        progress=steps_of(progress, "reading the data"),
    )
    origin = samples.origin
    if data.labels and (origin is None or origin.labels is None):
        name = "the calibration data" if origin is None else origin.name
        raise InputError(f"{name}: has no labels: give labelled data, or leave out --labels")
    if origin is not None and not data.labels:
        samples = replace(samples, origin=replace(origin, labels=None))
    return split(replace(samples, values=data.values))


def moments_on(
    network: ir.Model, data: Calibration | None, parts: Parts | None, progress: Progress | None
) -> Mapping[str, Moments] | None:
    """Of what a simplified network's layers read on the samples to fit to; None without data."""
    if parts is None:
        return None
    layers = factor_layers(network, concrete_shapes(network))
    steps = steps_of(progress, "collecting statistics")
    return kept_statistics(data.stats if data is not None else None, network, layers, parts.fit, steps)
