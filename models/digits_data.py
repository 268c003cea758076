"""The handwritten digits that ship with scikit-learn, in three parts that never mix.

The 1797 images are 8×8 with values 0..16 (the test set of UCI's Optical Recognition of Handwritten Digits).
Every user of the digits network takes them from `load_digits_parts`, so all see the same preprocessing.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 2026


class Part(NamedTuple):
    """Images, float32 of shape (n, 1, 16, 16) with values 0..1, and labels, int64 of shape (n,)."""

    images: np.ndarray
    labels: np.ndarray


def load_digits_parts() -> dict[str, Part]:
    """Parts `train` (60 %), `calibration` (15 %) and `test` (25 %): disjoint, stratified, always the same.

    Images are enlarged to 16×16 with linear interpolation and divided by 16.
    """
    digits = load_digits()
    images = zoom(digits.images / 16, (1, 2, 2), order=1, mode="nearest", grid_mode=True)
    images = images[:, np.newaxis].astype(np.float32)
    labels = digits.target.astype(np.int64)

    rest, test = train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=SPLIT_SEED
    )
    train, calibration = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=SPLIT_SEED)
    indices = {"train": train, "calibration": calibration, "test": test}
    return {name: Part(images[index], labels[index]) for name, index in indices.items()}
