"""How a photograph becomes a network's input; kept in the ONNX file, so that it travels with the network."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import scipy.sparse
from PIL import Image

from onnxcompress.errors import InputError

METADATA_KEY = "onnxcompress.preprocessing"

CHANNELS = {"BGR": 3, "RGB": 3, "GRAY": 1}


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a decoded image to an array: warp, crop, and (pixel − mean) · scale, pixels in 0…255.

    The defaults are Caffe's for ImageNet networks.

    Attributes:
        channel_order: order of the channels in the network's input.
        mean: one value per channel in that order, or a single one for all.
        scale: likewise.
        resize: height and width to which the image is warped, whatever its proportions: by the mean over
            areas along a side that shrinks, bilinearly along one that grows. None leaves its size.
        crop: height and width of the part taken from the centre; None takes those of the network's input.

    Raises:
        InputError: when a value does not fit its description.
    """

    channel_order: Literal["BGR", "RGB", "GRAY"] = "BGR"
    mean: tuple[float, ...] = (104.0, 117.0, 123.0)
    scale: tuple[float, ...] = (1.0,)
    resize: tuple[int, int] | None = (256, 256)
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.channel_order not in CHANNELS:
            raise InputError(f"preprocessing: channel_order is {self.channel_order!r}; give BGR, RGB or GRAY")
        channels = CHANNELS[self.channel_order]
        for name, numbers in (("mean", self.mean), ("scale", self.scale)):
            if (
                not isinstance(numbers, tuple)
                or len(numbers) not in (1, channels)
                or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
            ):
                wanted = "1 number" if channels == 1 else f"1 or {channels} numbers"
                raise InputError(f"preprocessing: {name} is {numbers!r}; {self.channel_order} takes {wanted}")
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and (
                not isinstance(size, tuple)
                or len(size) != 2
                or not all(type(n) is int and n >= 1 for n in size)
            ):
                raise InputError(
                    f"preprocessing: {name} is {size!r}; give a height and a width of at least 1"
                )


@dataclass(frozen=True)
class View:
    """Which part of an image is taken, and whether it is mirrored.

    Attributes:
        top: where the crop begins, as a share of the room that there is, in [0, 1); None for the centre.
        left: likewise.
        mirror: whether left and right are exchanged.
        zoom: by which the crop is enlarged; it is as much smaller before.
    """

    top: float | None = None
    left: float | None = None
    mirror: bool = False
    zoom: float = 1.0


def in_words(p: Preprocessing) -> str:
    """What is done to an image, on one line."""

    def listed(numbers: tuple[float, ...]) -> str:
        return ",".join(f"{number:g}" for number in numbers)

    size = "their own size" if p.resize is None else f"warped to {p.resize[0]}x{p.resize[1]}"
    crop = "the network's input" if p.crop is None else f"{p.crop[0]}x{p.crop[1]}"
    return f"{p.channel_order}, mean {listed(p.mean)}, scale {listed(p.scale)}, {size}, cropped to {crop}"


def attach(model: ir.Model, p: Preprocessing) -> None:
    """Write the preprocessing into the network's metadata, in place of any that is there."""
    model.metadata_props[METADATA_KEY] = json.dumps(asdict(p))


def read(model: ir.Model) -> Preprocessing | None:
    """The preprocessing that the network carries, or None.

    Raises:
        InputError: when the entry is not one that `attach` could have written.
    """
    return from_metadata(model.metadata_props)


def from_metadata(metadata: Mapping[str, str]) -> Preprocessing | None:
    """Like `read`, from the metadata alone."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"the network's metadata '{METADATA_KEY}' is not JSON: {text[:80]!r}") from None
    known = {field.name for field in fields(Preprocessing)}
    if not isinstance(content, dict) or not set(content) <= known:
        raise InputError(f"the network's metadata '{METADATA_KEY}' must hold {', '.join(sorted(known))} only")
    return Preprocessing(**{name: _tuple(value) for name, value in content.items()})


def prepare(image: Image.Image, p: Preprocessing, height: int, width: int, view: View = View()) -> np.ndarray:
    """One image as the network takes it.

    Args:
        image: of any colour mode with 8 bits per channel; transparency is ignored.
        p: the steps.
        height: height of the network's input in pixels.
        width: its width.
        view: the part that is taken.

    Returns:
        float32, (channels, height, width).

    Raises:
        InputError: when the image has more than 8 bits per channel, or the crop is not of the network's size
            or larger than the resized image.
    """
    return taken(resized(image, p), p, height, width, view)


def resized(image: Image.Image, p: Preprocessing) -> np.ndarray:
    """The first half of `prepare`, which all views of an image share: float32 pixels, (H, W, channels)."""
    if image.mode.startswith(("I", "F")):
        raise InputError("more than 8 bits per channel; convert the image to 8 bits")
    pixels = np.asarray(image.convert("L" if p.channel_order == "GRAY" else "RGB"), np.float32)
    pixels = pixels.reshape(image.height, image.width, CHANNELS[p.channel_order])
    return pixels if p.resize is None else _warp(pixels, *p.resize)


def taken(pixels: np.ndarray, p: Preprocessing, height: int, width: int, view: View) -> np.ndarray:
    """The second half of `prepare`: one view of what `resized` gave."""
    if p.crop is not None and p.crop != (height, width):
        raise InputError(
            f"preprocessing: crop is {p.crop[0]}×{p.crop[1]}, but the network takes {height}×{width}"
        )
    size = max(1, round(height / view.zoom)), max(1, round(width / view.zoom))
    room = pixels.shape[0] - size[0], pixels.shape[1] - size[1]
    if min(room) < 0:
        raise InputError(
            f"preprocessing: cannot crop {size[0]}×{size[1]} from an image of "
            f"{pixels.shape[0]}×{pixels.shape[1]}; give a larger resize"
        )
    top, left = (
        free // 2 if at is None else min(free, int(at * (free + 1)))
        for at, free in zip((view.top, view.left), room, strict=True)
    )
    pixels = pixels[top : top + size[0], left : left + size[1]]
    if size != (height, width):
        pixels = _warp(pixels, height, width)
    if view.mirror:
        pixels = pixels[:, ::-1]
    if p.channel_order == "BGR":
        pixels = pixels[:, :, ::-1]
    pixels = (pixels - np.array(p.mean, np.float32)) * np.array(p.scale, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _warp(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, C) and round, as OpenCV does with bytes. Pillow has no exact area mean."""
    old_height, old_width, channels = pixels.shape
    rows = _resampling(old_height, height) @ pixels.reshape(old_height, old_width * channels)
    columns = rows.reshape(height, old_width, channels).swapaxes(0, 1).reshape(old_width, height * channels)
    warped = _resampling(old_width, width) @ columns
    return np.rint(warped.reshape(width, height, channels).swapaxes(0, 1))


@lru_cache(maxsize=512)
def _resampling(old: int, new: int) -> scipy.sparse.csr_array:
    """The (new, old) weights that resample one side: area mean when it shrinks, bilinear when it grows."""
    step = old / new
    left, pixel = np.arange(new)[:, None] * step, np.arange(old)
    if new <= old:
        weights = (np.minimum(left + step, pixel + 1) - np.maximum(left, pixel)) / step
    else:
        centre = np.clip(left + step / 2 - 0.5, 0, old - 1)
        weights = 1 - np.abs(centre - pixel)
    return scipy.sparse.csr_array(np.maximum(weights, 0).astype(np.float32))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
