"""Calibration samples: read once, kept on the disk as the network takes them, in batches and in parts."""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from onnxcompress.data import Data, Reader, check_limit, open_data, pick, reader, spread, subset
from onnxcompress.errors import InputError, one_line
from onnxcompress.preprocessing import Preprocessing, View, from_metadata
from onnxcompress.progress import Steps
from onnxcompress.runtime import DTYPES, Runnable, run, session
from onnxcompress.shapes import concrete_shapes, fixed_sizes

Feeds = Mapping[str, np.ndarray]
Source = Data | str | Path | Iterable[Feeds]

BATCH = 8
"""Samples that a network is fed at a time, …"""

ACTIVATIONS = 2**31
"""… or fewer, so that all that it computes of them takes no more bytes than this."""

VIEWS, MOST_VIEWS = 3, 8
"""Ways in which an image is seen: at least, and at most."""

SEEN = 2000
"""Few images are seen in more ways, so that they are so many together."""


@dataclass(frozen=True)
class Samples:
    """Inputs of a network.

    Attributes:
        arrays: by the name of the input, (samples in all, …), most often on the disk.
        chosen: rows of the arrays that belong to this part.
        views: rows that show each sample, one after the other; 1 where samples and views are not told apart.
        origin: what the arrays were read from; None where they were given as such.
        batch: samples that the network is fed at a time, where it does not fix that.
        values: whether outputs that could be class scores, (n, classes), are none.
        preprocessing: from image to array, where it was given; the network need not carry it.
    """

    arrays: dict[str, np.ndarray]
    chosen: NDArray[np.int64]
    views: int = 1
    origin: Data | None = None
    batch: int = BATCH
    values: bool = False
    preprocessing: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def count(self) -> int:
        """Samples, whatever the number of their views."""
        return len(self.chosen) // self.views

    @property
    def data(self) -> Data:
        """The samples as they came: with their labels, and images that can be cropped anew.

        Raises:
            InputError: when they are of several inputs.
        """
        if len(self.arrays) != 1:
            raise InputError(f"this needs a network with one input, not with {', '.join(self.arrays)}")
        (array,) = self.arrays.values()
        rows = self.chosen[:: self.views]
        if self.origin is None:
            return Data("calibration data", np.asarray(array[rows]), None)
        return pick(self.origin, rows // (len(array) // len(self.origin)))


@dataclass(frozen=True)
class Parts:
    """The same samples, each used for one purpose.

    Attributes:
        fit: weights are fitted to these.
        choose: ranks and filters are chosen by these.
        report: nothing is; what is said of the result is measured on them.
    """

    fit: Samples
    choose: Samples
    report: Samples


def split(samples: Samples) -> Parts:
    """Of ten samples that follow each other eight are for fitting, one for choosing and one to report on.

    Only for fitting they are seen in all their views.

    Raises:
        InputError: when there are fewer than 10 samples.
    """
    first = samples.chosen[:: samples.views]
    if len(first) < 10:
        raise InputError(
            f"{len(first)} calibration samples are too few: give at least 10, better 100 to 1000"
        )
    place = np.arange(len(first)) % 10
    fit = first[~np.isin(place, (2, 7))]
    return Parts(
        replace(samples, chosen=(fit[:, None] + np.arange(samples.views)).ravel()),
        replace(samples, chosen=first[place == 2], views=1),
        replace(samples, chosen=first[place == 7], views=1),
    )


def read_samples(
    model: ir.Model,
    source: Source,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    mirror: bool = True,
    progress: Steps | None = None,
) -> Samples:
    """Read calibration data; images are decoded and prepared once, into a temporary file.

    Images are seen in several ways: as the network is meant to see them, and cropped at random.

    Args:
        model: the network that they are for.
        source: what `open_data` takes, or its result; for several inputs an ``.npz`` file with an array of
            each input's name, (samples, …); or an iterable of feeds, arrays by the name of the input.
        preprocessing: from image to array; None takes what the network carries.
        limit: take at most so many samples, spread evenly.
        mirror: exchange left and right in every other one of these ways.
        progress: called with (samples read, samples in all) where that is known.

    Raises:
        InputError: when the data cannot be read or does not fit the network.
    """
    check_limit(limit)
    runnable = session(model)
    inputs = {value.name: value for value in runnable.get_inputs()}
    views, data = 1, None
    if isinstance(source, (str, Path)) and (named := _named_arrays(Path(source), set(inputs))) is not None:
        arrays = named
    elif isinstance(source, (Data, str, Path)):
        data = subset(source if isinstance(source, Data) else open_data(source), limit)
        if len(inputs) != 1:
            names = ", ".join(inputs)
            raise InputError(
                f"{data.name}: the network takes several inputs: give an .npz with arrays named {names}"
            )
        ((name, value),) = inputs.items()
        read = reader(
            data,
            shape=fixed_sizes(value.shape[1:]),
            dtype=DTYPES[value.type],
            preprocessing=preprocessing or from_metadata(model.metadata_props),
        )
        views = int(np.clip(math.ceil(SEEN / len(data)), VIEWS, MOST_VIEWS)) if data.images else 1
        arrays = {name: _on_disk(read, len(data), views, mirror, progress)}
    else:
        arrays = _gathered(source, set(inputs))
    if preprocessing is not None and (data is None or not data.images):
        raise InputError("preprocessing: is for images; arrays are fed as they are")
    arrays = {name: arrays[name] for name in inputs}
    count = _check(arrays, inputs) // views
    if data is None:  # others were checked as they were read
        _check_finite(arrays)
    numbers = spread(count, limit)
    rows = (numbers[:, None] * views + np.arange(views)).ravel()
    batch = _batch(model, arrays)
    return _that_run(Samples(arrays, rows, views, data, batch, preprocessing=preprocessing), runnable)


def _batch(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> int:
    shapes = concrete_shapes(model)
    values = [shapes.get(str(value.name), ()) for node in model.graph for value in node.outputs]
    expected = sum(math.prod(shapes.get(name, ())) for name in arrays)
    larger = sum(array[0].size for array in arrays.values()) / max(expected, 1)
    each = 4 * sum(map(math.prod, values)) * larger
    return int(np.clip(ACTIVATIONS // max(each, 1), 1, BATCH))


def _that_run(samples: Samples, runnable: Runnable) -> Samples:
    """The samples, one at a time if need be: some networks leave the batch open and work on one sample only.

    Raises:
        InputError: when the network cannot work on them.
    """
    for each in (samples, replace(samples, batch=1)):
        try:
            run(runnable, next(fed(each, runnable))[1])
        except InputError as error:
            problem = error
        else:
            return each
    raise problem


def batched(samples: Samples, runnable: Runnable) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Batches of a size that the network takes: places of the samples in this part, and rows of the arrays.

    Where the network fixes its batch, the last one is filled up with its last sample.
    """
    fixed = {
        value.shape[0] for value in runnable.get_inputs() if value.shape and isinstance(value.shape[0], int)
    }
    size = max(fixed, default=samples.batch)
    for start in range(0, len(samples), size):
        places = np.arange(start, min(start + size, len(samples)))
        rows = samples.chosen[
            np.minimum(np.arange(start, start + size), len(samples) - 1) if fixed else places
        ]
        yield places, rows


def fed(samples: Samples, runnable: Runnable) -> Iterator[tuple[NDArray[np.int64], Feeds]]:
    """The batches' places, see `batched`, and their feeds."""
    for places, rows in batched(samples, runnable):
        yield places, {name: np.ascontiguousarray(array[rows]) for name, array in samples.arrays.items()}


def _named_arrays(path: Path, names: set[str]) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file that has one of each name; None when it is nothing of the kind.

    One whose only name is x is data like any other, perhaps with labels.
    """
    if names == {"x"} or path.suffix.lower() != ".npz" or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as loaded:
            if not isinstance(loaded, NpzFile) or not names <= set(loaded):
                return None
            return {name: loaded[name] for name in names}
    except Exception as error:  # as in data
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None


def _gathered(source: Iterable[Feeds], names: set[str]) -> dict[str, np.ndarray]:
    feeds = list(source)
    for number, each in enumerate(feeds):
        if not isinstance(each, Mapping) or set(each) != names:
            raise InputError(
                f"feed {number} must be a dictionary with an array for each of: {', '.join(names)}; "
                "samples of one array are Data('name', array, None)"
            )
    if not feeds:
        raise InputError("the calibration data holds no feeds")
    try:
        return {name: np.concatenate([np.asarray(each[name]) for each in feeds]) for name in names}
    except ValueError as error:
        raise InputError(f"the feeds do not go together: {error}") from None


def _on_disk(read: Reader, count: int, views: int, mirror: bool, progress: Steps | None) -> np.ndarray:
    array = None
    random = np.random.default_rng(0)
    for start in range(0, count, BATCH):
        numbers = np.arange(start, min(start + BATCH, count))
        places = random.random((views - 1, len(numbers), 2)).swapaxes(0, 1).tolist()
        seen = list[View]()
        for crops in places:
            seen.append(View())
            seen += [View(top, left, mirror and i % 2 == 0) for i, (top, left) in enumerate(crops)]
        chunk = read(np.repeat(numbers, views), seen)
        if array is None:
            with tempfile.TemporaryFile() as file:  # it goes when the array does
                if hasattr(os, "posix_fallocate"):  # a full disk would kill the process later on
                    os.posix_fallocate(file.fileno(), 0, count * views * chunk[0].nbytes)
                array = np.memmap(file, chunk.dtype, "w+", shape=(count * views, *chunk.shape[1:]))
        array[start * views : start * views + len(chunk)] = chunk
        if progress is not None:
            progress(int(numbers[-1]) + 1, count)
    assert array is not None
    return array


def _check_finite(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise InputError(f"sample {finite.argmin()} of '{name}' holds NaN or infinite values")


def _check(arrays: dict[str, np.ndarray], inputs: dict) -> int:
    for name, array in arrays.items():
        if not inputs[name].shape:
            raise InputError(
                f"the input '{name}' is one number for all samples: write it into the network as a constant"
            )
        if not array.ndim:
            raise InputError(f"'{name}' is a single number: give an array with an entry per sample")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"the inputs have different numbers of samples: {counts}")
    for name, array in arrays.items():
        want = inputs[name].shape[1:]
        if array.dtype != DTYPES.get(inputs[name].type):
            raise InputError(
                f"the samples of '{name}' are {array.dtype}, the network takes {inputs[name].type}"
            )
        fits = len(want) == array.ndim - 1 and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(want, array.shape[1:], strict=True)
        )
        if not fits:
            raise InputError(
                f"the samples of '{name}' have shape {array.shape[1:]}, the network takes {want}"
            )
    return next(iter(counts.values()))
