"""One converter per type of Caffe's layers: each appends to the graph the ONNX nodes that compute the layer.

The node that writes a layer's blob has the layer's name; nodes before it are called `layer/step`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.caffe import windows
from onnxcompress.caffe.graph import Blob, Graph, emit, emit_many, initializer, parameters, reshape
from onnxcompress.caffe.network import Layer, shape_text, unique
from onnxcompress.caffe.parameters import Parameter
from onnxcompress.caffe.schema import FillerParameter

ZEROS, ONES, QUARTERS = (FillerParameter(value=value) for value in (0, 1, 0.25))
"""Fillers of parameters that a prototxt does not have to give one."""


def convert(graph: Graph, layer: Layer) -> None:
    """Append a layer to the graph.

    Raises:
        InputError: when the layer's type is unknown, or its bottoms, tops or settings do not make sense.
    """
    if layer.type not in CONVERTERS:
        raise layer.error(
            f"this type of layer is not supported; supported are {', '.join(sorted(CONVERTERS))}"
        )
    most_bottoms, most_tops = ARITIES.get(layer.type, (1, 1))
    if not (1 <= len(layer.bottoms) <= most_bottoms and 1 <= len(layer.tops) <= most_tops):
        raise layer.error(
            f"has {len(layer.bottoms)} bottoms and {len(layer.tops)} tops, which is not supported"
        )
    CONVERTERS[layer.type](graph, layer)


def _convolution(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.convolution_param
    window = windows.of_convolution(layer, x)
    filters, group = param.num_output, _group(layer, x.shape[1])
    weights = _weights(graph, layer, param, (filters, x.shape[1] // group, *window.kernel), filters)
    shape = (x.shape[0], filters, *windows.convolved(window, x.shape[2:]))
    emit(graph, layer, "Conv", [x, *weights], shape, x.batch, group=group, **_attributes(window))


def _deconvolution(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.convolution_param
    window = windows.of_convolution(layer, x)
    filters, group = param.num_output, _group(layer, x.shape[1])
    weights = _weights(graph, layer, param, (x.shape[1], filters // group, *window.kernel), filters)
    shape = (x.shape[0], filters, *windows.deconvolved(window, x.shape[2:]))
    emit(graph, layer, "ConvTranspose", [x, *weights], shape, x.batch, group=group, **_attributes(window))


def _group(layer: Layer, channels: int) -> int:
    param = layer.message.convolution_param
    if param.num_output < 1 or param.group < 1 or channels % param.group or param.num_output % param.group:
        raise layer.error(
            f"{param.group} groups must divide the {channels} channels that it reads and its num_output "
            f"{param.num_output}"
        )
    return param.group


def _attributes(window: windows.Window) -> dict[str, Any]:
    return {
        "kernel_shape": window.kernel,
        "pads": window.pad * 2,
        "strides": window.stride,
        "dilations": window.dilation,
    }


def _weights(graph: Graph, layer: Layer, param: Any, shape: tuple[int, ...], outputs: int) -> list[ir.Value]:
    """Weight and, unless the layer has none, bias of a layer with `outputs` filters or units."""
    expected = [Parameter(shape, param.weight_filler), Parameter((outputs,), param.bias_filler)]
    arrays = parameters(graph, layer, *expected[: 1 + param.bias_term])
    return [
        initializer(graph, f"{layer.name}.{role}", array)
        for role, array in zip(("weight", "bias"), arrays, strict=False)
    ]


def _inner_product(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.inner_product_param
    axis, outputs = _axis(layer, param.axis, x), param.num_output
    _check_batch_free(layer, x, range(axis, len(x.shape)))
    rows, inputs = math.prod(x.shape[:axis]), math.prod(x.shape[axis:])
    matrix = x if x.shape == (rows, inputs) else reshape(graph, layer, x, (rows, inputs), step="flatten")
    shape = (inputs, outputs) if param.transpose else (outputs, inputs)
    product = emit(
        graph,
        layer,
        "Gemm",
        [matrix, *_weights(graph, layer, param, shape, outputs)],
        (rows, outputs),
        matrix.batch,
        step="" if axis == 1 else "gemm",
        transB=int(not param.transpose),
    )
    if axis != 1:
        reshape(graph, layer, product, (*x.shape[:axis], outputs))


def _relu(graph: Graph, layer: Layer) -> None:
    slope = layer.message.relu_param.negative_slope
    if slope:
        _emit_like(graph, layer, "LeakyRelu", alpha=slope)
    else:
        _emit_like(graph, layer, "Relu")


def _prelu(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.prelu_param
    _check_batch_free(layer, x, [1])
    shape = () if param.channel_shared else x.shape[1:2]
    (slope,) = parameters(graph, layer, Parameter(shape, _filler_or(param, QUARTERS)))
    aligned = initializer(graph, f"{layer.name}.slope", _aligned(slope, 1, x))
    emit(graph, layer, "PRelu", [x, aligned], x.shape, x.batch)


def _elu(graph: Graph, layer: Layer) -> None:
    _emit_like(graph, layer, "Elu", alpha=layer.message.elu_param.alpha)


def _elementwise(op: str) -> Callable[[Graph, Layer], None]:
    return lambda graph, layer: _emit_like(graph, layer, op)


def _power(graph: Graph, layer: Layer) -> None:
    param = layer.message.power_param
    _chain(
        graph,
        layer,
        [("Mul", param.scale)] * (param.scale != 1)
        + [("Add", param.shift)] * (param.shift != 0)
        + [("Pow", param.power)] * (param.power != 1),
    )


def _pooling(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.pooling_param
    if param.pool not in (param.MAX, param.AVE):
        raise layer.error("stochastic pooling is not supported; MAX and AVE are")
    if len(x.shape) != 4:
        raise layer.error(f"needs a bottom of 4 axes, got {shape_text(x.shape)}")
    kind = "Max" if param.pool == param.MAX else "Average"
    if param.global_pooling:
        _check_batch_free(layer, x, (1, 2, 3))
        emit(graph, layer, f"Global{kind}Pool", [x], (*x.shape[:2], 1, 1), x.batch)
        return
    window = windows.of_pooling(layer, x)
    floor = param.round_mode == param.FLOOR or not param.ceil_mode
    sizes = windows.pooled(window, x.shape[2:], floor=floor)
    if any(
        (count - 1) * stride >= size + pad
        for count, size, (_, pad, stride, _) in zip(sizes, x.shape[2:], window.axes(), strict=True)
    ):
        raise layer.error("its last window lies outside of the bottom; correct its kernel or stride")
    _pool(graph, layer, kind, x, window, sizes)


def _pool(
    graph: Graph,
    layer: Layer,
    kind: str,
    x: Blob,
    window: windows.Window,
    sizes: tuple[int, ...],
    step: str = "",
) -> Blob:
    """Pool as Caffe does: means count the zeros of the padding, but nothing beyond it."""
    shape = (*x.shape[:2], *sizes)
    begin = window.pad
    end = _overhang(window, x.shape[2:], sizes, begin)
    attributes: dict[str, Any] = {"kernel_shape": window.kernel, "strides": window.stride}
    if kind == "Average" and any(begin):
        if all(after <= pad for after, pad in zip(end, window.pad, strict=True)):
            attributes["count_include_pad"] = 1
        else:
            pads = initializer(graph, f"{layer.name}.pads", np.array((0, 0, *begin) * 2, np.int64))
            padded = (*x.shape[:2], *(size + 2 * pad for size, pad in zip(x.shape[2:], begin, strict=True)))
            x = emit(graph, layer, "Pad", [x, pads], padded, x.batch, step="pad")
            begin = (0, 0)
            end = _overhang(window, x.shape[2:], sizes, begin)
    return emit(
        graph, layer, f"{kind}Pool", [x], shape, x.batch, step=step, pads=(*begin, *end), **attributes
    )


def _overhang(
    window: windows.Window, sizes: Sequence[int], counts: Sequence[int], begin: Sequence[int]
) -> tuple[int, ...]:
    """How far the last window reaches beyond the end of each spatial axis."""
    return tuple(
        max(0, (count - 1) * stride + kernel - size - before)
        for size, count, before, (kernel, _, stride, _) in zip(
            sizes, counts, begin, window.axes(), strict=True
        )
    )


def _lrn(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.lrn_param
    size = param.local_size
    if size % 2 == 0 or not (param.alpha > 0 and param.beta > 0) or len(x.shape) != 4:
        raise layer.error(
            "needs an odd local_size, a positive alpha and beta, and a bottom of 4 axes; got "
            f"{size}, {param.alpha:g}, {param.beta:g} and {shape_text(x.shape)}"
        )
    if param.norm_region == param.ACROSS_CHANNELS:
        emit(
            graph,
            layer,
            "LRN",
            [x],
            x.shape,
            x.batch,
            size=size,
            alpha=param.alpha,
            beta=param.beta,
            bias=param.k,
        )
        return
    square = emit(graph, layer, "Mul", [x, x], x.shape, x.batch, step="square")
    window = windows.Window((size, size), (size // 2, size // 2), (1, 1), (1, 1))
    mean = _pool(graph, layer, "Average", square, window, x.shape[2:], step="mean")
    power = _chain(
        graph, layer, [("Mul", param.alpha), ("Add", 1), ("Pow", -param.beta)], x=mean, step="power"
    )
    emit(graph, layer, "Mul", [x, power], x.shape, x.batch)


def _batch_norm(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.batch_norm_param
    if param.HasField("use_global_stats") and not param.use_global_stats:
        raise layer.error(
            "use_global_stats is false, which needs a whole batch to normalise one image; set it to true"
        )
    if len(x.shape) < 2:
        raise layer.error(f"needs a bottom with channels, got {shape_text(x.shape)}")
    _check_batch_free(layer, x, [1])
    per_channel = x.shape[1:2]
    mean, variance, factor = parameters(
        graph, layer, Parameter(per_channel, ZEROS), Parameter(per_channel, ONES), Parameter((1,), ONES)
    )
    normaliser = 0 if factor[0] == 0 else 1 / factor[0]
    scale, bias = np.ones(per_channel, np.float32), np.zeros(per_channel, np.float32)
    if layer.scale:
        scale, *rest = _scale_and_bias(graph, layer.scale, per_channel)
        bias = rest[0] if rest else bias
    named = {"scale": scale, "bias": bias, "mean": mean * normaliser, "variance": variance * normaliser}
    inputs = [initializer(graph, f"{layer.name}.{role}", array) for role, array in named.items()]
    emit(graph, layer, "BatchNormalization", [x, *inputs], x.shape, x.batch, epsilon=param.eps)


def _scale(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.scale_param
    axis = _axis(layer, param.axis, x)
    if len(layer.bottoms) == 2:
        shape = graph.bottom(layer, 1).shape
        factor: Blob | ir.Value = _second_bottom(graph, layer, axis)
        if param.bias_term:
            _check_batch_free(layer, x, range(axis, axis + len(shape)))
        arrays = parameters(graph, layer, Parameter(shape, param.bias_filler)) if param.bias_term else []
    else:
        array, *arrays = _scale_and_bias(graph, layer, _covered(layer, x, axis, param.num_axes))
        factor = initializer(graph, f"{layer.name}.scale", _aligned(array, axis, x))
    biases = [initializer(graph, f"{layer.name}.bias", _aligned(array, axis, x)) for array in arrays]
    _chain(graph, layer, [("Mul", factor), *(("Add", bias) for bias in biases)])


def _scale_and_bias(graph: Graph, layer: Layer, shape: tuple[int, ...]) -> list[np.ndarray]:
    param = layer.message.scale_param
    expected = [Parameter(shape, _filler_or(param, ONES)), Parameter(shape, param.bias_filler)]
    return parameters(graph, layer, *expected[: 1 + param.bias_term])


def _bias(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.bias_param
    axis = _axis(layer, param.axis, x)
    if len(layer.bottoms) == 2:
        bias: Blob | ir.Value = _second_bottom(graph, layer, axis)
    else:
        (array,) = parameters(graph, layer, Parameter(_covered(layer, x, axis, param.num_axes), param.filler))
        bias = initializer(graph, f"{layer.name}.bias", _aligned(array, axis, x))
    _chain(graph, layer, [("Add", bias)])


def _covered(layer: Layer, x: Blob, axis: int, num_axes: int) -> tuple[int, ...]:
    """Shape of a learned factor or summand: `num_axes` axes of the blob from `axis` on, all if -1."""
    end = len(x.shape) if num_axes == -1 else axis + num_axes
    if not axis <= end <= len(x.shape):
        raise layer.error(
            f"covers {num_axes} axes from axis {axis} on of a bottom that is {shape_text(x.shape)}"
        )
    _check_batch_free(layer, x, range(axis, end))
    return x.shape[axis:end]


def _aligned(array: np.ndarray, axis: int, x: Blob) -> np.ndarray:
    """The array with as many axes of size 1 behind its own as it takes to start at `axis` of the blob."""
    return array.reshape(array.shape + (1,) * (len(x.shape) - axis - array.ndim))


def _second_bottom(graph: Graph, layer: Layer, axis: int) -> Blob:
    """The second bottom, aligned like `_aligned`."""
    x, y = graph.bottom(layer), graph.bottom(layer, 1)
    if y.shape != x.shape[axis : axis + len(y.shape)]:
        raise layer.error(
            f"its bottoms {shape_text(x.shape)} and {shape_text(y.shape)} do not agree from axis {axis} on"
        )
    missing = len(x.shape) - axis - len(y.shape)
    return reshape(graph, layer, y, y.shape + (1,) * missing, step="align") if missing else y


def _concat(graph: Graph, layer: Layer) -> None:
    param, blobs = layer.message.concat_param, [graph.blobs[name] for name in layer.bottoms]
    x = blobs[0]
    axis = _axis(layer, param.concat_dim if param.HasField("concat_dim") else param.axis, x)
    _check_alike(layer, blobs, axis)
    shape = (*x.shape[:axis], sum(blob.shape[axis] for blob in blobs), *x.shape[axis + 1 :])
    emit(graph, layer, "Concat", blobs, shape, x.batch, axis=axis)


def _slice(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.slice_param
    axis = _axis(layer, param.slice_dim if param.HasField("slice_dim") else param.axis, x)
    _check_batch_free(layer, x, [axis])
    size, parts = x.shape[axis], len(layer.tops)
    points = list(param.slice_point) or [size * part // parts for part in range(1, parts)]
    bounds = [0, *points, size]
    lengths = [end - begin for begin, end in pairwise(bounds)]
    if len(lengths) != parts or min(lengths) < 1 or (not param.slice_point and size % parts):
        raise layer.error(f"cannot cut axis {axis} of {shape_text(x.shape)} into {parts} tops at {points}")
    split = initializer(graph, f"{layer.name}.split", np.array(lengths, np.int64))
    outputs = {
        top: (*x.shape[:axis], length, *x.shape[axis + 1 :])
        for top, length in zip(layer.tops, lengths, strict=True)
    }
    emit_many(graph, layer, "Split", [x, split], outputs, x.batch, name=layer.name, axis=axis)


def _eltwise(graph: Graph, layer: Layer) -> None:
    param, blobs = layer.message.eltwise_param, [graph.blobs[name] for name in layer.bottoms]
    if len(blobs) < 2 or len(param.coeff) not in (0, len(blobs)):
        raise layer.error(
            f"has {len(blobs)} bottoms and {len(param.coeff)} coefficients; give one for each of two or more"
        )
    _check_alike(layer, blobs)
    if param.coeff and param.operation == param.SUM:
        blobs = [
            blob if factor == 1 else _chain(graph, layer, [("Mul", factor)], x=blob, step="coefficient")
            for blob, factor in zip(blobs, param.coeff, strict=True)
        ]
    op = {param.SUM: "Add", param.PROD: "Mul", param.MAX: "Max"}[param.operation]
    _chain(graph, layer, [(op, blob) for blob in blobs[1:]], x=blobs[0])


def _flatten(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.flatten_param
    axis, end = _axis(layer, param.axis, x), _axis(layer, param.end_axis, x) + 1
    if axis >= end:
        raise layer.error(
            f"flattens axes {axis} to {end - 1} of {shape_text(x.shape)}; the first must not be larger"
        )
    reshape(graph, layer, x, (*x.shape[:axis], math.prod(x.shape[axis:end]), *x.shape[end:]))


def _reshape(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.reshape_param
    axes, dims = len(x.shape), list(param.shape.dim)
    begin = param.axis if param.axis >= 0 else axes + 1 + param.axis
    end = axes if param.num_axes == -1 else begin + param.num_axes
    if not 0 <= begin <= end <= axes or min(dims, default=0) < -1 or dims.count(-1) > 1:
        raise layer.error(f"cannot give axes {begin} to {end} of {shape_text(x.shape)} the dimensions {dims}")
    for index, size in enumerate(dims):
        if size == 0:
            if begin + index >= axes:
                raise layer.error(
                    f"its dimension {index} is to stay, but the bottom {shape_text(x.shape)} has none there"
                )
            dims[index] = x.shape[begin + index]
    if -1 in dims:
        known = math.prod(size for size in (*x.shape[:begin], *dims, *x.shape[end:]) if size != -1)
        dims[dims.index(-1)] = math.prod(x.shape) // known
    reshape(graph, layer, x, (*x.shape[:begin], *dims, *x.shape[end:]))


def _permute(graph: Graph, layer: Layer) -> None:
    x, order = graph.bottom(layer), list(layer.message.permute_param.order)
    order += [axis for axis in range(len(x.shape)) if axis not in order]
    if sorted(order) != list(range(len(x.shape))):
        raise layer.error(f"its order {order} is not one of the axes of {shape_text(x.shape)}")
    batch = None if x.batch is None else order.index(x.batch)
    emit(graph, layer, "Transpose", [x], [x.shape[axis] for axis in order], batch, perm=order)


def _arg_max(graph: Graph, layer: Layer) -> None:
    x, param = graph.bottom(layer), layer.message.argmax_param
    if param.HasField("axis"):
        axis = _axis(layer, param.axis, x)
        if param.out_max_val:
            _chain(graph, layer, [], x=_top_k(graph, layer, x, axis)[0])
        else:
            _positions(graph, layer, x, axis)
        return
    samples, count = x.shape[0], math.prod(x.shape[1:])
    flat = x if len(x.shape) == 2 else reshape(graph, layer, x, (samples, count), step="flatten")
    found = [_positions(graph, layer, flat, 1, step="positions")]
    if param.out_max_val:
        found.append(_top_k(graph, layer, flat, 1)[0])
    shape = (samples, 1, param.top_k, *(1,) * (len(x.shape) - 3))
    if len(found) == 1:
        reshape(graph, layer, found[0], shape)
        return
    pairs = [reshape(graph, layer, blob, shape, step="align") for blob in found]
    emit(graph, layer, "Concat", pairs, (samples, 2, *shape[2:]), pairs[0].batch, axis=1)


def _positions(graph: Graph, layer: Layer, x: Blob, axis: int, step: str = "") -> Blob:
    """Indices of the largest numbers, as floats. Of equal ones Caffe takes the last, but see `_top_k`."""
    if layer.message.argmax_param.top_k == 1:
        _check_batch_free(layer, x, [axis])
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        indices = emit(
            graph,
            layer,
            "ArgMax",
            [x],
            shape,
            x.batch,
            step="indices",
            axis=axis,
            keepdims=1,
            select_last_index=1,
        )
        indices.value.dtype = ir.DataType.INT64
    else:
        _, indices = _top_k(graph, layer, x, axis)
    return emit(
        graph, layer, "Cast", [indices], indices.shape, x.batch, step=step, to=ir.DataType.FLOAT.value
    )


def _top_k(graph: Graph, layer: Layer, x: Blob, axis: int) -> list[Blob]:
    """The top_k largest numbers along an axis and their indices; of equal numbers the first come first."""
    count = layer.message.argmax_param.top_k
    _check_batch_free(layer, x, [axis])
    if not 1 <= count <= x.shape[axis]:
        raise layer.error(f"takes the {count} largest of {x.shape[axis]} numbers; correct its top_k")
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    number = initializer(graph, f"{layer.name}.top_k", np.array([count], np.int64))
    names = [unique(f"{layer.name}/{output}", graph.value_names) for output in ("largest", "ranks")]
    node = unique(f"{layer.name}/top_k", graph.node_names)
    largest, indices = emit_many(
        graph, layer, "TopK", [x, number], dict.fromkeys(names, shape), x.batch, name=node, axis=axis
    )
    indices.value.dtype = ir.DataType.INT64
    return [largest, indices]


def _exp(graph: Graph, layer: Layer) -> None:
    """base^(scale · x + shift), as Caffe computes it; base -1 is e."""
    param = layer.message.exp_param
    rate = _log_of_base(layer, param.base)
    factor = math.exp(rate * param.shift)
    x = _chain(graph, layer, [("Mul", rate * param.scale)], step="scaled")
    x = emit(graph, layer, "Exp", [x], x.shape, x.batch, step="power" if factor != 1 else "")
    if factor != 1:
        _chain(graph, layer, [("Mul", factor)], x=x)


def _log(graph: Graph, layer: Layer) -> None:
    """The logarithm of scale · x + shift to a base; base -1 is e."""
    param = layer.message.log_param
    rate = _log_of_base(layer, param.base)
    x = _chain(graph, layer, [("Mul", param.scale), ("Add", param.shift)], step="scaled")
    x = emit(graph, layer, "Log", [x], x.shape, x.batch, step="logarithm" if rate != 1 else "")
    if rate != 1:
        _chain(graph, layer, [("Mul", 1 / rate)], x=x)


def _log_of_base(layer: Layer, base: float) -> float:
    if base != -1 and (base <= 0 or base == 1):
        raise layer.error(f"has base {base:g}; give a positive one other than 1, or -1 for e")
    return 1.0 if base == -1 else math.log(base)


def _clip(graph: Graph, layer: Layer) -> None:
    param = layer.message.clip_param
    if not (param.HasField("min") and param.HasField("max")):
        raise layer.error("gives no min and max to clip at")
    _chain(graph, layer, [("Max", param.min), ("Min", param.max)])


def _crop(graph: Graph, layer: Layer) -> None:
    """From its first bottom a part as large as the second, on all axes from one on."""
    if len(layer.bottoms) != 2:
        raise layer.error(f"has {len(layer.bottoms)} bottoms instead of 2")
    (x, like), param = (graph.bottom(layer, index) for index in (0, 1)), layer.message.crop_param
    axis, offsets = _axis(layer, param.axis, x), list(param.offset) or [0]
    axes = range(axis, len(x.shape))
    if len(offsets) not in (1, len(axes)) or len(x.shape) != len(like.shape):
        raise layer.error(
            f"crops {shape_text(x.shape)} to {shape_text(like.shape)} from axis {axis} on at {offsets}; "
            "give one offset, or one for each of these axes"
        )
    _check_batch_free(layer, x, axes)
    starts = offsets * len(axes) if len(offsets) == 1 else offsets
    ends = [start + like.shape[each] for start, each in zip(starts, axes, strict=True)]
    if any(end > x.shape[each] for end, each in zip(ends, axes, strict=True)):
        raise layer.error(f"its part up to {ends} is not inside of {shape_text(x.shape)}")
    bounds = {"starts": starts, "ends": ends, "axes": axes}
    values = [
        initializer(graph, f"{layer.name}.{role}", np.array(each, np.int64)) for role, each in bounds.items()
    ]
    emit(graph, layer, "Slice", [x, *values], (*x.shape[:axis], *like.shape[axis:]), x.batch)


def _softmax(graph: Graph, layer: Layer) -> None:
    x = graph.bottom(layer)
    axis = _axis(layer, layer.message.softmax_param.axis, x)
    _check_batch_free(layer, x, [axis])
    emit(graph, layer, "Softmax", [x], x.shape, x.batch, axis=axis)


CONVERTERS: dict[str, Callable[[Graph, Layer], None]] = {
    "AbsVal": _elementwise("Abs"),
    "ArgMax": _arg_max,
    "BNLL": _elementwise("Softplus"),
    "BatchNorm": _batch_norm,
    "Bias": _bias,
    "Clip": _clip,
    "Concat": _concat,
    "Convolution": _convolution,
    "Crop": _crop,
    "Deconvolution": _deconvolution,
    "ELU": _elu,
    "Eltwise": _eltwise,
    "Exp": _exp,
    "Flatten": _flatten,
    "InnerProduct": _inner_product,
    "LRN": _lrn,
    "Log": _log,
    "PReLU": _prelu,
    "Permute": _permute,
    "Pooling": _pooling,
    "Power": _power,
    "ReLU": _relu,
    "Reshape": _reshape,
    "Scale": _scale,
    "Sigmoid": _elementwise("Sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "TanH": _elementwise("Tanh"),
}
"""By Caffe's names of the types. Input, Dropout, Split and Silence layers are gone before."""

ARITIES = {
    "Bias": (2, 1),
    "Concat": (2**31, 1),
    "Crop": (2, 1),
    "Eltwise": (2**31, 1),
    "Scale": (2, 1),
    "Slice": (1, 2**31),
}
"""Largest numbers of bottoms and tops, for the types that may have more than one of either."""


def _emit_like(graph: Graph, layer: Layer, op: str, **attributes: Any) -> None:
    """Append a node that keeps the shape."""
    x = graph.bottom(layer)
    emit(graph, layer, op, [x], x.shape, x.batch, **attributes)


def _chain(
    graph: Graph,
    layer: Layer,
    operations: Sequence[tuple[str, float | Blob | ir.Value]],
    *,
    x: Blob | None = None,
    step: str = "",
) -> Blob:
    """Apply one operator after the other, each with its second operand, to `x` or else the layer's bottom.

    Without operators the result is the operand itself under a new name.
    """
    x = x or graph.bottom(layer)
    if not operations:
        return emit(graph, layer, "Identity", [x], x.shape, x.batch, step=step)
    for index, (op, operand) in enumerate(operations, start=1):
        if isinstance(operand, float | int):
            operand = initializer(graph, f"{layer.name}.{op.lower()}", np.array(operand, np.float32))
        last = index == len(operations)
        x = emit(graph, layer, op, [x, operand], x.shape, x.batch, step=step if last else op.lower())
    return x


def _axis(layer: Layer, axis: int, x: Blob) -> int:
    """An axis that may count from the end, as one that counts from the start."""
    if not -len(x.shape) <= axis < len(x.shape):
        raise layer.error(f"has axis {axis}, but the bottom is {shape_text(x.shape)}")
    return axis % len(x.shape)


def _check_batch_free(layer: Layer, x: Blob, axes: Sequence[int]) -> None:
    if x.batch in axes:
        raise layer.error(f"works across the samples of a batch (axis {x.batch}), which must stay free")


def _check_alike(layer: Layer, blobs: Sequence[Blob], but: int | None = None) -> None:
    """The blobs must have the same shape, except along the axis `but`."""
    kinds = {
        (blob.batch, *(0 if axis == but else size for axis, size in enumerate(blob.shape))) for blob in blobs
    }
    if len(kinds) > 1:
        raise layer.error(
            f"its bottoms do not fit together: {', '.join(shape_text(blob.shape) for blob in blobs)}"
        )


def _filler_or(param: Any, default: Any) -> Any:
    return param.filler if param.HasField("filler") else default
