"""Windows that slide over the spatial axes: where Caffe's layers put them, and the sizes that result."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnxcompress.caffe.graph import Blob
from onnxcompress.caffe.network import Layer, shape_text


@dataclass(frozen=True)
class Window:
    """Geometry along each spatial axis, in pixels.

    Attributes:
        kernel: size of the window.
        pad: rows of zeros before and after the input.
        stride: steps between windows.
        dilation: steps between the pixels of a window.
    """

    kernel: tuple[int, ...]
    pad: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def axes(self) -> Iterator[tuple[int, int, int, int]]:
        """Kernel, pad, stride and dilation of each spatial axis."""
        return zip(self.kernel, self.pad, self.stride, self.dilation, strict=True)


def of_convolution(layer: Layer, x: Blob) -> Window:
    """The window of a Convolution or Deconvolution layer on a blob (N, C, spatial…).

    Raises:
        InputError: when it is not given in full, or the blob has no spatial axes.
    """
    param, axes = layer.message.convolution_param, len(x.shape) - 2
    if param.axis not in (1, 1 - len(x.shape)):
        raise layer.error(f"takes its channels from axis {param.axis}, which is not supported; axis 1 is")
    return _window(layer, x, param, axes, _per_axis(layer, "dilation", list(param.dilation) or [1], axes))


def of_pooling(layer: Layer, x: Blob) -> Window:
    """The window of a Pooling layer on a blob (N, C, H, W).

    Raises:
        InputError: when it is not given in full, or does not fit the blob.
    """
    param = layer.message.pooling_param
    window = _window(layer, x, param, 2, (1, 1))
    if any(pad >= kernel for kernel, pad, _, _ in window.axes()):
        raise layer.error(f"its pad {window.pad} must be smaller than its kernel {window.kernel}")
    return window


def convolved(window: Window, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial sizes after a convolution."""
    return tuple(
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, (kernel, pad, stride, dilation) in zip(sizes, window.axes(), strict=True)
    )


def deconvolved(window: Window, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial sizes after a transposed convolution."""
    return tuple(
        stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad
        for size, (kernel, pad, stride, dilation) in zip(sizes, window.axes(), strict=True)
    )


def pooled(window: Window, sizes: tuple[int, ...], *, floor: bool) -> tuple[int, ...]:
    """Spatial sizes after pooling: rounded up, without windows that would lie in the padding alone."""
    result = []
    for size, (kernel, pad, stride, _) in zip(sizes, window.axes(), strict=True):
        room = size + 2 * pad - kernel
        count = (room // stride if floor else -(-room // stride)) + 1
        if any(window.pad) and (count - 1) * stride >= size + pad:
            count -= 1
        result.append(count)
    return tuple(result)


def _window(layer: Layer, x: Blob, param: Any, axes: int, dilation: tuple[int, ...]) -> Window:
    if axes < 1 or x.batch not in (0, None):
        raise layer.error(f"needs a bottom with batch, channels and spatial axes; got {shape_text(x.shape)}")
    window = Window(
        kernel=_sizes(layer, param, "kernel", axes, []),
        pad=_sizes(layer, param, "pad", axes, [0]),
        stride=_sizes(layer, param, "stride", axes, [1]),
        dilation=dilation,
    )
    if min(*window.kernel, *window.stride, *window.dilation) < 1:
        raise layer.error("its kernel, stride and dilation must be at least 1")
    return window


def _sizes(layer: Layer, param: Any, name: str, axes: int, default: list[int]) -> tuple[int, ...]:
    """A setting that is given for all axes at once or, as `name_h` and `name_w`, for each of two."""
    given = getattr(param, "kernel_size" if name == "kernel" else name)
    sides = [f"{name}_h", f"{name}_w"]
    if isinstance(given, int):
        present = param.HasField("kernel_size" if name == "kernel" else name)
        values = [given] if present else []
    else:
        values = list(given)
    if any(param.HasField(side) for side in sides):
        alone = name == "pad" and not isinstance(given, int)  # of a convolution; the other is 0
        if values or axes != 2 or not (alone or all(param.HasField(side) for side in sides)):
            raise layer.error(
                f"give either {name} or both {name}_h and {name}_w, these on 2 spatial axes only"
            )
        values = [getattr(param, side) for side in sides]
    return _per_axis(layer, name, values or default, axes)


def _per_axis(layer: Layer, name: str, values: list[int], axes: int) -> tuple[int, ...]:
    if len(values) not in (1, axes):
        raise layer.error(f"gives {len(values)} values of {name} for {axes} spatial axes")
    return tuple(values) if len(values) == axes else (values[0],) * axes
