"""The parameters of layers: from a caffemodel, or drawn from the prototxt's fillers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from onnxcompress.caffe import fillers
from onnxcompress.caffe.network import Layer, shape_text
from onnxcompress.caffe.schema import NetParameter
from onnxcompress.errors import InputError

DRAWN_LIMIT = 2**29
"""Numbers that may be drawn for one network: 2 GiB, what one ONNX file can hold."""

HDF5 = b"\x89HDF\r\n\x1a\n"
"""How files of that format begin."""


@dataclass(frozen=True)
class Parameter:
    """What a layer expects one of its parameters to be: the shape, and the filler of an untrained one."""

    shape: tuple[int, ...]
    filler: Any


Source = Callable[[Layer, tuple[Parameter, ...]], list[np.ndarray]]
"""Gives the float32 arrays of a layer's parameters, in Caffe's order."""


def from_caffemodel(path: Path) -> Source:
    """Parameters by the name of the layer. Layers of the file that nobody asks for do not matter.

    Raises:
        InputError: when the file is missing, empty, truncated or not a caffemodel; later, when it does not
            hold what a layer expects.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}") from None
    if not content:
        raise InputError(f"{path}: the file is empty")
    if content.startswith(HDF5):
        raise InputError(
            f"{path}: an HDF5 snapshot, which is not read; save one with snapshot_format: BINARYPROTO"
        )
    try:
        net = NetParameter.FromString(content)
    except DecodeError:
        raise InputError(f"{path}: truncated, or not a caffemodel; fetch it again") from None
    if any(layer.HasField("layer") for layer in net.layers):
        raise InputError(
            f"{path}: has the oldest form; first convert it with upgrade_net_proto_binary of Caffe"
        )
    blobs = {layer.name: layer.blobs for layer in (*net.layers, *net.layer) if layer.blobs}
    if not blobs:
        raise InputError(f"{path}: holds no weights; give the trained caffemodel")

    def read(layer: Layer, expected: tuple[Parameter, ...]) -> list[np.ndarray]:
        found = blobs.get(layer.name, [])
        if not found:
            raise layer.error(f"{path} holds no weights for it; give the caffemodel of this prototxt")
        if len(found) != len(expected):
            raise layer.error(
                f"the prototxt asks for {len(expected)} blobs of weights, but {path} holds {len(found)}; "
                "give the caffemodel of this prototxt"
            )
        return [
            _array(layer, index, blob, parameter.shape, path)
            for index, (blob, parameter) in enumerate(zip(found, expected, strict=True))
        ]

    return read


def from_fillers(seed: int) -> Source:
    """Parameters drawn from the layers' fillers; the same seed gives the same network the same parameters.

    Raises:
        InputError: later, when a filler is not Caffe's or a network is too large.
    """
    random = np.random.default_rng(seed)
    total = 0

    def draw(layer: Layer, expected: tuple[Parameter, ...]) -> list[np.ndarray]:
        nonlocal total
        total += sum(math.prod(parameter.shape) for parameter in expected)
        if total > DRAWN_LIMIT:
            raise layer.error(
                f"more than {DRAWN_LIMIT:,} parameters up to this layer; check the sizes in the prototxt"
            )
        try:
            arrays = [fillers.draw(parameter.filler, parameter.shape, random) for parameter in expected]
        except InputError as error:
            raise layer.error(str(error)) from None
        if not all(np.isfinite(array).all() for array in arrays):
            raise layer.error("its fillers give NaN or infinite values; correct them in the prototxt")
        return arrays

    return draw


def _array(layer: Layer, index: int, blob: Any, expected: tuple[int, ...], path: Path) -> np.ndarray:
    legacy = ("num", "channels", "height", "width")
    if any(map(blob.HasField, legacy)):
        shape = (blob.num, blob.channels, blob.height, blob.width)
    else:  # of a single number Caffe writes neither
        shape = tuple(blob.shape.dim)
    if _without_leading_ones(shape) != _without_leading_ones(expected):
        raise layer.error(
            f"blob {index} is {shape_text(shape)} in {path}, but {shape_text(expected)} by the prototxt; "
            "give the caffemodel of this prototxt"
        )
    dtype, content = (np.dtype("<f4"), blob.data) if blob.data else (np.dtype("<f8"), blob.double_data)
    if len(content) != math.prod(expected) * dtype.itemsize:
        raise layer.error(
            f"blob {index} holds {len(content) // dtype.itemsize} numbers in {path}, but its shape is "
            f"{shape_text(expected)}; fetch the file again"
        )
    array = np.frombuffer(content, dtype).astype("<f4", copy=False)
    if not np.isfinite(array).all():
        raise layer.error(f"blob {index} holds NaN or infinite weights in {path}; train or fetch it again")
    return array.reshape(expected)


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What is compared: the 4-D shapes of old files have ones in front of the true dimensions."""
    return shape[next((axis for axis, size in enumerate(shape) if size != 1), len(shape)) :]
