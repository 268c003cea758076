"""Training data in random order, randomly cropped and mirrored; read from the disk as it is needed."""

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
) -> Callable[[int], tuple[np.ndarray, np.ndarray | None]]:
    """Samples and labels of a step, counted from 0: the same for the same number and seed.

    Every epoch has its own order, and leaves out what does not fill a batch. Arrays are neither cropped nor
    mirrored.

    Args:
        data: with or without labels.
        shape: of one sample, as for `data.batches`.
        preprocessing: the steps from image to array; needed for images only.
        batch: samples per step.
        seed: of order and views.
        crop: take the crop from anywhere in the image, not from its centre.
        mirror: turn every other image left to right, on average.

    Raises:
        InputError: when there are fewer samples than a batch takes, or one does not fit the network.
    """
    if batch > len(data):
        raise InputError(f"{data.name}: has {len(data)} samples, fewer than a batch of {batch}")
    read = reader(data, shape=shape, preprocessing=preprocessing)
    per_epoch = len(data) // batch

    def batch_of(step: int) -> tuple[np.ndarray, np.ndarray | None]:
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((seed, ORDER, epoch)).permutation(len(data))
        indices = order[position * batch : (position + 1) * batch]
        random = np.random.default_rng((seed, VIEWS, step))
        views = [_view(random, crop, mirror) for _ in indices]
        return read(indices, views), None if data.labels is None else data.labels[indices]

    return batch_of


def _view(random: np.random.Generator, crop: bool, mirror: bool) -> View:
    top, left, side = random.random(3)
    return View(float(top) if crop else None, float(left) if crop else None, bool(mirror and side < 0.5))
