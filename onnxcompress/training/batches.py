"""Training data in random order, randomly cropped, mirrored and enlarged; read as it is needed."""

from collections.abc import Callable, Sequence

import numpy as np

from onnxcompress.data import Data, reader
from onnxcompress.errors import InputError
from onnxcompress.preprocessing import Preprocessing, View

ORDER, VIEWS = 0, 1
"""Streams of random numbers."""


def shuffled(
    data: Data,
    *,
    shape: Sequence[int | None],
    preprocessing: Preprocessing | None,
    batch: int,
    seed: int,
    crop: bool = True,
    mirror: bool = True,
    zoom: float = 1.0,
) -> Callable[[int], tuple[np.ndarray, np.ndarray | None]]:
    """Samples and labels of a step, counted from 0: the same for the same number and seed.

    Every epoch has its own order, and leaves out what does not fill a batch. Arrays are fed as they are.

    Args:
        data: with or without labels.
        shape: of one sample, as for `data.batches`.
        preprocessing: the steps from image to array; needed for images only.
        batch: samples per step.
        seed: of order and views.
        crop: take the crop from anywhere in the image, not from its centre.
        mirror: turn every other image left to right, on average.
        zoom: enlarge by up to this factor, at random.

    Raises:
        InputError: when there are fewer samples than a batch takes, one does not fit the network, or the zoom
            is below 1.
    """
    if not 1 <= zoom < np.inf:
        raise InputError(f"zoom: {zoom} is not a number from 1 on")
    check_batch(data, batch)
    read = reader(data, shape=shape, preprocessing=preprocessing)
    per_epoch = len(data) // batch

    def batch_of(step: int) -> tuple[np.ndarray, np.ndarray | None]:
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((seed, ORDER, epoch)).permutation(len(data))
        indices = order[position * batch : (position + 1) * batch]
        random = np.random.default_rng((seed, VIEWS, step))
        views = [_view(random, crop, mirror, zoom) for _ in indices]
        return read(indices, views), None if data.labels is None else data.labels[indices]

    return batch_of


def check_batch(data: Data, batch: int) -> None:
    """See that there are enough samples for a batch.

    Raises:
        InputError: when there are not.
    """
    if batch > len(data):
        raise InputError(f"{data.name}: has {len(data)} samples, fewer than a batch of {batch}")


def _view(random: np.random.Generator, crop: bool, mirror: bool, zoom: float) -> View:
    top, left, side, nearer = random.random(4)
    return View(
        float(top) if crop else None,
        float(left) if crop else None,
        bool(mirror and side < 0.5),
        float(1 / (1 - nearer * (1 - 1 / zoom))),
    )
