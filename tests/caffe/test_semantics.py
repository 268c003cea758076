"""Caffe's rules where OpenCV has no such layer or a rule of its own, transcribed into NumPy.

OpenCV cannot create Bias and ArgMax layers, ignores InnerProduct's `transpose`, LRN's `k` and pooling's
`round_mode`, and drops a last pooling window by the padding of its own axis only.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.caffe import import_caffe_text
from onnxcompress.errors import InputError
from tests.caffe.reference import (
    caffemodel,
    input_layer,
    layer,
    random_feeds,
    random_weights,
    run_onnx,
)


def run(text, feeds, weights=None, tmp_path=None):
    """The output `out` of layers on the given inputs; the prototxt says a batch of one."""
    header = "".join(input_layer(blob, 1, *array.shape[1:]) for blob, array in feeds.items())
    path = None
    if weights:
        path = tmp_path / "net.caffemodel"
        path.write_bytes(caffemodel(weights))
    return run_onnx(import_caffe_text(header + text, path), feeds)["out"]


def feed(*shape):
    return random_feeds({"data": shape})


def pooled_size(size, kernel, stride, pad, other_pad, floor):
    """PoolingLayer::Reshape."""
    rounding = math.floor if floor else math.ceil
    count = rounding((size + 2 * pad - kernel) / stride) + 1
    if (pad or other_pad) and (count - 1) * stride >= size + pad:
        count -= 1
    return count


def pool(x, kernel, stride, pad, kind, floor):
    """PoolingLayer::Forward_cpu; None where a window would hold no pixel."""
    height, width = x.shape[2:]
    rows = pooled_size(height, kernel[0], stride[0], pad[0], pad[1], floor)
    columns = pooled_size(width, kernel[1], stride[1], pad[1], pad[0], floor)
    if rows < 1 or columns < 1:
        return None
    result = np.empty((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride[0] - pad[0], j * stride[1] - pad[1]
            bottom, right = min(top + kernel[0], height + pad[0]), min(left + kernel[1], width + pad[1])
            count = (bottom - top) * (right - left)
            window = x[:, :, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            if window.size == 0:
                return None
            result[:, :, i, j] = window.max(axis=(2, 3)) if kind == "MAX" else window.sum(axis=(2, 3)) / count
    return result


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 9)] * 2),
    kernel=st.tuples(*[st.integers(1, 5)] * 2),
    stride=st.tuples(*[st.integers(1, 4)] * 2),
    pad=st.tuples(*[st.integers(0, 4)] * 2),
    kind=st.sampled_from(["MAX", "AVE"]),
    floor=st.sampled_from(["", "round_mode: FLOOR", "ceil_mode: false"]),
)
def test_pooling(size, kernel, stride, pad, kind, floor):
    pad = tuple(min(p, k - 1) for p, k in zip(pad, kernel, strict=True))
    feeds = feed(2, 1, *size)
    geometry = " ".join(
        f"{name}_{side}: {value}"
        for name, values in (("kernel", kernel), ("stride", stride), ("pad", pad))
        for side, value in zip("hw", values, strict=True)
    )
    text = layer("Pooling", f"pooling_param {{ pool: {kind} {geometry} {floor} }}")
    expected = pool(feeds["data"], kernel, stride, pad, kind, bool(floor))
    if expected is None:
        with pytest.raises(InputError, match="layer 'out'"):
            run(text, feeds)
    else:
        np.testing.assert_allclose(run(text, feeds), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn_across_channels_adds_k(size):
    feeds = feed(2, 6, 3, 4)
    x = feeds["data"].astype(float)
    square = np.pad(x**2, ((0, 0), (size // 2, size // 2), (0, 0), (0, 0)))
    total = sum(square[:, start : start + 6] for start in range(size))
    body = f"lrn_param {{ local_size: {size} alpha: 0.9 beta: 0.6 k: 1.7 }}"
    np.testing.assert_allclose(
        run(layer("LRN", body), feeds), x / (1.7 + 0.9 / size * total) ** 0.6, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn_within_channel_divides_by_the_mean_square_plus_one(size):
    feeds = feed(2, 3, 6, 4)
    x = feeds["data"].astype(float)
    mean = pool(x**2, (size, size), (1, 1), (size // 2, size // 2), "AVE", False)
    body = f"lrn_param {{ local_size: {size} alpha: 0.9 beta: 0.6 k: 3 norm_region: WITHIN_CHANNEL }}"
    np.testing.assert_allclose(
        run(layer("LRN", body), feeds), x * (1 + 0.9 * mean) ** -0.6, rtol=1e-5, atol=1e-6
    )


def test_inner_product_transposed(tmp_path):
    feeds, weights = feed(3, 4, 5), random_weights({"out": [(20, 6), (6,)]})
    text = layer("InnerProduct", "inner_product_param { num_output: 6 transpose: true }")
    matrix, bias = weights["out"]
    expected = feeds["data"].reshape(3, 20) @ matrix + bias
    np.testing.assert_allclose(run(text, feeds, weights, tmp_path), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
@pytest.mark.parametrize(
    ("param", "shape", "aligned"),
    [
        ("", (4,), (4, 1, 1)),
        ("axis: 2", (5,), (5, 1)),
        ("axis: -1", (6,), (6,)),
        ("num_axes: 2", (4, 5), (4, 5, 1)),
        ("num_axes: -1", (4, 5, 6), (4, 5, 6)),
        ("num_axes: 0", (), ()),
    ],
)
def test_learned_scale_and_bias(kind, param, shape, aligned, tmp_path):
    feeds, weights = feed(3, 4, 5, 6), random_weights({"out": [shape]})
    operand = weights["out"][0].reshape(aligned)
    expected = feeds["data"] * operand if kind == "Scale" else feeds["data"] + operand
    result = run(layer(kind, f"{kind.lower()}_param {{ {param} }}"), feeds, weights, tmp_path)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_scale_and_bias_by_another_blob(kind):
    feeds = random_feeds({"data": (3, 4, 5, 6), "other": (3, 4)})
    operand = feeds["other"][:, :, None, None]
    expected = feeds["data"] * operand if kind == "Scale" else feeds["data"] + operand
    text = layer(kind, f"{kind.lower()}_param {{ axis: 0 }}", bottoms=("data", "other"))
    np.testing.assert_allclose(run(text, feeds), expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 0])
@pytest.mark.parametrize("scaled", [False, True])
def test_batch_norm_divides_its_statistics_by_the_factor(factor, scaled, tmp_path):
    feeds, weights = feed(3, 4, 5, 6), random_weights({"norm": [(4,), (4,)], "out": [(4,), (4,)]})
    mean, variance = (values[:, None, None] / factor if factor else 0 for values in weights["norm"])
    weights["norm"].append(np.array([factor], np.float32))
    expected = (feeds["data"] - mean) / np.sqrt(variance + 1e-5)
    if scaled:
        gain, bias = (values[:, None, None] for values in weights["out"])
        expected = expected * gain + bias
        text = layer("BatchNorm", tops=("norm",)) + layer(
            "Scale", "scale_param { bias_term: true }", bottoms=("norm",)
        )
    else:
        weights = {"out": weights["norm"]}
        text = layer("BatchNorm")
    np.testing.assert_allclose(run(text, feeds, weights, tmp_path), expected, rtol=1e-5, atol=1e-5)


def arg_max(x, param):
    """ArgMaxLayer::Forward_cpu: (value, index) pairs in falling order."""
    count, axis = param.get("top_k", 1), param.get("axis")
    rows = x.reshape(len(x), -1) if axis is None else np.moveaxis(x, axis, -1)
    order = np.argsort(rows, axis=-1, kind="stable")[..., ::-1][..., :count]
    values = np.take_along_axis(rows, order, -1)
    if axis is not None:
        return np.moveaxis(values if param.get("out_max_val") else order, -1, axis)
    shape = (len(x), 1, count, *(1,) * (x.ndim - 3))
    parts = [order, values] if param.get("out_max_val") else [order]
    return np.concatenate([part.reshape(shape) for part in parts], axis=1)


@pytest.mark.parametrize("shape", [(3, 7), (3, 4, 5, 6)])
@pytest.mark.parametrize(
    "param",
    [
        {},
        {"top_k": 3},
        {"out_max_val": 1},
        {"top_k": 3, "out_max_val": 1},
        {"axis": 1},
        {"axis": -1, "top_k": 2},
        {"axis": 1, "out_max_val": 1},
    ],
)
def test_arg_max(shape, param):
    feeds = feed(*shape)
    body = " ".join(f"{name}: {value}" for name, value in param.items())
    result = run(layer("ArgMax", f"argmax_param {{ {body} }}"), feeds)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, arg_max(feeds["data"], param))


def test_arg_max_takes_the_last_of_equal_numbers():
    feeds = {"data": np.array([[1, 5, 5, 0]], np.float32)}
    assert run(layer("ArgMax"), feeds).ravel() == 2


@pytest.mark.parametrize(
    ("param", "function"),
    [
        ("power: 2", lambda x: x**2),
        ("power: 3 scale: 0.5", lambda x: (0.5 * x) ** 3),
        ("power: 0 shift: 2", lambda x: np.ones_like(x)),
        ("shift: 2", lambda x: x + 2),
        ("", lambda x: x),
    ],
)
def test_power(param, function):
    feeds = feed(2, 3)
    np.testing.assert_allclose(
        run(layer("Power", f"power_param {{ {param} }}"), feeds), function(feeds["data"]), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("dim: 0 dim: 0 dim: -1", (3, 4, 30)),
        ("dim: 1 dim: 2 dim: 2 dim: -1", (3, 2, 2, 30)),
        ("dim: 2 dim: -1 } axis: 1 num_axes: 2", (3, 2, 10, 6)),
        ("dim: 1 } axis: 1 num_axes: 0", (3, 1, 4, 5, 6)),
        ("dim: 1 } axis: -1", (3, 4, 5, 6, 1)),
        ("dim: -1 dim: 6", (60, 6)),
    ],
)
def test_reshape_keeps_the_batch_free(dims, shape):
    feeds = feed(3, 4, 5, 6)
    closing = "}" if "}" not in dims else ""
    result = run(layer("Reshape", f"reshape_param {{ shape {{ {dims} {closing} }}"), feeds)
    np.testing.assert_array_equal(result, feeds["data"].reshape(shape))


def test_batch_of_the_prototxt_is_free():
    header = input_layer("data", 10, 4, 5)
    text = header + layer("Reshape", "reshape_param { shape { dim: 10 dim: 20 } }")
    feeds = feed(3, 4, 5)
    result = run_onnx(import_caffe_text(text), feeds)["out"]
    np.testing.assert_array_equal(result, feeds["data"].reshape(3, 20))


def test_permute_moves_the_batch():
    feeds = feed(3, 4, 5)
    text = layer("Permute", "permute_param { order: 2 order: 0 }", tops=("moved",)) + layer(
        "Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: 2 dim: 2 } }", bottoms=("moved",)
    )
    expected = feeds["data"].transpose(2, 0, 1).reshape(5, 3, 2, 2)
    np.testing.assert_array_equal(run(text, feeds), expected)


def test_one_dimensional_convolution(tmp_path):
    feeds, weights = feed(2, 3, 8), random_weights({"out": [(4, 3, 3), (4,)]})
    kernel, bias = weights["out"]
    windows = np.lib.stride_tricks.sliding_window_view(feeds["data"], 3, axis=2)
    expected = np.einsum("nctk,fck->nft", windows, kernel) + bias[:, None]
    text = layer("Convolution", "convolution_param { num_output: 4 kernel_size: 3 }")
    np.testing.assert_allclose(run(text, feeds, weights, tmp_path), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("param", "base"), [("", math.e), ("base: 10 scale: 2 shift: 0.5", 10)])
def test_logarithm(param, base):
    feeds = {"data": np.abs(feed(2, 3, 4)["data"]) + 0.1}
    scale, shift = (2, 0.5) if param else (1, 0)
    expected = np.log(scale * feeds["data"] + shift) / math.log(base)
    np.testing.assert_allclose(run(layer("Log", f"log_param {{ {param} }}"), feeds), expected, atol=1e-5)


def test_clip():
    feeds = feed(2, 3, 4)
    found = run(layer("Clip", "clip_param { min: -0.5 max: 0.25 }"), feeds)
    np.testing.assert_array_equal(found, feeds["data"].clip(-0.5, 0.25))


def test_a_slope_for_all_channels_is_a_single_number(tmp_path):
    feeds, weights = feed(2, 3, 4), {"out": [np.float32(0.3).reshape(())]}
    found = run(layer("PReLU", "prelu_param { channel_shared: true }"), feeds, weights, tmp_path)
    np.testing.assert_allclose(found, np.where(feeds["data"] > 0, 1, 0.3) * feeds["data"], rtol=1e-6)
