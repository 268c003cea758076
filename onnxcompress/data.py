"""Photographs or arrays, with or without labels, streamed from the disk in batches."""

import csv
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile
from PIL import Image, ImageOps, UnidentifiedImageError

from onnxcompress.errors import InputError, one_line
from onnxcompress.preprocessing import CHANNELS, Preprocessing, View, resized, taken
from onnxcompress.shapes import times

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

LABELS_FILE = "labels.csv"

LABEL_DIGITS = 9
"""A class number with more is a mistake."""


Reader = Callable[..., np.ndarray]
"""From indices, and the views of the images, to samples."""


@dataclass(frozen=True)
class Data:
    """Samples in a fixed order.

    Attributes:
        name: the path that was opened.
        samples: image files, or one array whose first axis counts the samples.
        labels: int64, (len(samples),), class numbers from 0; None without labels.
        classes: names of the classes, where folders have them.
    """

    name: str
    samples: Sequence[Path] | np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def images(self) -> bool:
        """Whether the samples are image files, which need preprocessing."""
        return not isinstance(self.samples, np.ndarray)


def open_data(path: str | Path) -> Data:
    """Find the samples and their labels; images are not decoded yet.

    Args:
        path: one of

            - a folder with ``labels.csv`` (header ``file,label``) that names images in it,
            - a folder with one folder of images per class; classes are numbered from 0 in order of name,
            - a folder of images, without labels,
            - an ``.npz`` file with the array ``x``, (samples, …), and optionally ``y``, (samples,),
            - an ``.npy`` file with the array itself, without labels.

    Raises:
        InputError: when there is nothing of the kind, or labels and samples do not go together.
    """
    path = Path(path)
    if path.is_dir():
        try:
            return _open_folder(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() not in (".npz", ".npy"):
        raise InputError(f"{path}: data must be a folder of images, an .npz or an .npy file")
    return _open_arrays(path)


def subset(data: Data, limit: int | None) -> Data:
    """At most `limit` samples, spread evenly over the data; the same ones each time.

    Raises:
        InputError: when the limit is not positive.
    """
    check_limit(limit)
    if limit is None or limit >= len(data):
        return data
    return pick(data, spread(len(data), limit))


def check_limit(limit: int | None) -> None:
    """Raise an InputError when a number of samples is not positive."""
    if limit is not None and limit < 1:
        raise InputError(f"the limit of {limit} samples leaves none; give at least 1")


def spread(count: int, limit: int | None) -> np.ndarray:
    """Numbers of at most `limit` of `count` samples, evenly spread: they often come ordered by class."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def pick(data: Data, numbers: np.ndarray) -> Data:
    """The samples with these numbers, in this order."""
    if isinstance(data.samples, np.ndarray):
        samples: Sequence[Path] | np.ndarray = data.samples[numbers]
    else:
        samples = [data.samples[int(index)] for index in numbers]
    return replace(data, samples=samples, labels=None if data.labels is None else data.labels[numbers])


def batches(
    data: Data,
    *,
    shape: Sequence[int | None],
    dtype: npt.DTypeLike = np.float32,
    preprocessing: Preprocessing | None = None,
    batch: int = 16,
    limit: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Read the data in order, a batch at a time; the last batch may be smaller.

    Args:
        data: what `open_data` returned. Arrays are fed as they are.
        shape: of one sample, as the network takes it: for images (channels, height, width), or with the
            channels last, as TensorFlow has them. None stands for a dimension that the network leaves open;
            images then keep the size that preprocessing gives them.
        dtype: type of the network's input.
        preprocessing: the steps from image to array; needed for images only.
        batch: samples per batch.
        limit: as for `subset`.

    Yields:
        Samples, `dtype`, (≤ batch, *shape), and their labels, int64, (≤ batch,), or None without labels.

    Raises:
        InputError: naming the file that cannot be decoded or does not fit the network.
    """
    data = subset(data, limit)
    read = reader(data, shape=shape, dtype=dtype, preprocessing=preprocessing)
    for start in range(0, len(data), batch):
        part = slice(start, start + batch)
        yield read(np.arange(len(data))[part]), None if data.labels is None else data.labels[part]


def reader(
    data: Data,
    *,
    shape: Sequence[int | None],
    dtype: npt.DTypeLike = np.float32,
    preprocessing: Preprocessing | None = None,
) -> Reader:
    """A function that reads samples by their indices, as the network takes them; see `batches`.

    Its second argument, if given, is the view of each image; arrays have only one. An image whose views
    follow each other is decoded once.
    """
    start = _array_reader if isinstance(data.samples, np.ndarray) else _image_reader
    return start(data, tuple(shape), np.dtype(dtype), preprocessing)


def _array_reader(
    data: Data, shape: tuple[int | None, ...], dtype: np.dtype, _: Preprocessing | None
) -> Reader:
    samples = np.asanyarray(data.samples)
    found = samples.shape[1:]
    if not fits(found, shape):
        raise InputError(f"{data.name}: its samples are {times(found)}, but the network takes {times(shape)}")
    if not np.can_cast(samples.dtype, dtype, "same_kind"):
        raise InputError(f"{data.name}: its samples are {samples.dtype}, but the network takes {dtype}")

    def read(part: np.ndarray, _: Sequence[View] | None = None) -> np.ndarray:
        x = np.array(samples[part], dtype)
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise InputError(f"{data.name}: sample {part[finite.argmin()]} holds NaN or infinite values")
        return x

    return read


def _image_reader(
    data: Data, shape: tuple[int | None, ...], dtype: np.dtype, preprocessing: Preprocessing | None
) -> Reader:
    if preprocessing is None:
        raise InputError(
            f"{data.name}: images need preprocessing, and the network carries none: say how they are "
            "prepared (PyTorch's for ImageNet: --channel-order RGB --mean 123.675,116.28,103.53 "
            "--scale 0.01712,0.01751,0.01743; of one channel, from 0 to 1: --channel-order GRAY --mean 0 "
            "--scale 0.00392157; from Python: onnxcompress.Preprocessing)"
        )
    if len(shape) != 3 or dtype.kind != "f":
        raise InputError(f"{data.name}: images cannot be fed to a network that takes {dtype} {times(shape)}")
    order = preprocessing.channel_order
    last = shape[0] != CHANNELS[order] == shape[2]
    channels, *sizes = (shape[2], *shape[:2]) if last else shape
    if channels not in (None, CHANNELS[order]):
        raise InputError(f"{data.name}: the network takes {channels} channels, preprocessing gives {order}")
    known = zip(sizes, preprocessing.crop or preprocessing.resize or (None, None), strict=True)
    height, width = (want or given for want, given in known)
    if height is None or width is None:
        raise InputError(
            f"{data.name}: the network takes any size; give a resize or a crop in the preprocessing"
        )
    size = height, width

    def read(part: np.ndarray, views: Sequence[View] | None = None) -> np.ndarray:
        chosen = zip(part, views or [View()] * len(part), strict=True)
        images: list[np.ndarray] = []
        for index, seen in itertools.groupby(chosen, key=lambda each: each[0]):
            images += _decode(data.samples[index], preprocessing, *size, [view for _, view in seen])
        stacked = np.stack(images).astype(dtype)
        return np.ascontiguousarray(stacked.transpose(0, 2, 3, 1)) if last else stacked

    return read


def _decode(
    file: Path, preprocessing: Preprocessing, height: int, width: int, views: Sequence[View]
) -> list[np.ndarray]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                pixels = resized(ImageOps.exif_transpose(image), preprocessing)
                return [taken(pixels, preprocessing, height, width, view) for view in views]
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{file}: more than {Image.MAX_IMAGE_PIXELS} pixels; give a smaller image") from None
    except UnidentifiedImageError:
        raise InputError(f"{file}: not an image, or damaged") from None
    except Exception as error:  # Pillow's decoders raise what their formats call for
        raise InputError(f"{file}: the image cannot be decoded: {one_line(error)}") from None


def _open_folder(folder: Path) -> Data:
    if (folder / LABELS_FILE).is_file():
        return _open_labelled(folder)
    images = _images_in(folder)
    classes = {
        sub: _images_in(sub) for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name[0] != "."
    }
    if images and any(classes.values()):
        raise InputError(f"{folder}: holds both images and folders of images; keep one of the two")
    if images:
        return Data(str(folder), images, None)
    if not any(classes.values()):
        raise InputError(f"{folder}: no images in it")
    for sub, files in classes.items():
        if not files:
            raise InputError(f"{sub}: no images of this class; remove the folder or fill it")
    return Data(
        str(folder),
        list(itertools.chain.from_iterable(classes.values())),
        np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()]),
        tuple(sub.name for sub in classes),
    )


def _open_labelled(folder: Path) -> Data:
    source = folder / LABELS_FILE
    files, labels = [], []
    try:
        with source.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise InputError(f"{source}: its first line must be 'file,label'")
            for row in rows:
                file, label = folder / (row["file"] or ""), (row["label"] or "").strip()
                if not file.is_file():
                    raise InputError(f"{source}: line {rows.line_num}: no such image: {row['file']}")
                if not label.isdecimal() or len(label) > LABEL_DIGITS:
                    raise InputError(
                        f"{source}: line {rows.line_num}: the label {label[:20]!r} is no class number from 0"
                    )
                files.append(file)
                labels.append(int(label))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source}: cannot be read: {error}") from None
    if not files:
        raise InputError(f"{source}: names no images")
    return Data(str(folder), files, np.array(labels, np.int64))


def _open_arrays(path: Path) -> Data:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, NpzFile):
            with loaded:
                names = list(loaded)
                arrays = {name: loaded[name] for name in ("x", "y") if name in loaded}
        else:
            arrays = {"x": loaded}
    except Exception as error:  # NumPy and zipfile raise many kinds for damaged files
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    if "x" not in arrays:
        held = f", but {', '.join(map(repr, names))}" if names else ""
        raise InputError(f"{path}: holds no array 'x'{held}")
    x, y = arrays["x"], arrays.get("y")
    if x.ndim < 2 or len(x) == 0 or x.dtype.kind not in "fiub":
        raise InputError(f"{path}: 'x' is {x.dtype} {times(x.shape)}; expected numbers, (samples, …)")
    if y is None:
        return Data(str(path), x, None)
    if y.shape != (len(x),):
        raise InputError(f"{path}: 'y' is {times(y.shape)}, but 'x' has {len(x)} samples")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= 10**LABEL_DIGITS:
        raise InputError(f"{path}: 'y' must hold class numbers from 0")
    return Data(str(path), x, y.astype(np.int64))


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "." and file.is_file()
    )


def fits(sample: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a sample has the dimensions that a network takes; None: any."""
    return len(sample) == len(wanted) and all(
        want in (None, got) for want, got in zip(wanted, sample, strict=True)
    )
