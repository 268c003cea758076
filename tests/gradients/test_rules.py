"""Every rule against central differences in float64, and in ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import InputError
from onnxcompress.gradients.rules import RULES
from tests.gradients.differences import check

few = settings(max_examples=12, deadline=None, derandomize=True)


def draw_array(*shape, low=-2.0, high=2.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape)


def distinct(*shape, seed=0):
    """No two numbers closer than central differences reach."""
    count = int(np.prod(shape))
    return (np.random.default_rng(seed).permutation(count).reshape(shape) - count / 2) / count + 1e-3


@st.composite
def geometry(draw):
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    size = draw(st.tuples(st.integers(5, 8), st.integers(5, 8)))
    return kernel, strides, dilations, pads, size


@few
@given(geometry(), st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 1), (2, 1, 2)]), st.booleans())
def test_conv(where, widths, bias):
    kernel, strides, dilations, pads, size = where
    group, per_group, filters = widths
    inputs = [
        draw_array(2, group * per_group, *size),
        draw_array(group * filters, per_group, *kernel, seed=1),
        *([draw_array(group * filters, seed=2)] if bias else []),
    ]
    check("Conv", inputs, group=group, kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2)])
def test_conv_by_matrix_products(kernel, stride, pad):
    inputs = [draw_array(2, 16, 23, 22), draw_array(17, 16, kernel, kernel, seed=1)]
    check("Conv", inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_conv_that_pads_itself(mode):
    inputs = [draw_array(1, 2, 7, 6), draw_array(3, 2, 3, 2, seed=1)]
    check("Conv", inputs, kernel_shape=[3, 2], strides=[2, 1], auto_pad=mode)


def test_conv_in_one_and_three_dimensions():
    check("Conv", [draw_array(2, 2, 9), draw_array(3, 2, 3, seed=1)], strides=[2], pads=[1, 0])
    check("Conv", [draw_array(1, 2, 4, 5, 3), draw_array(2, 2, 2, 3, 1, seed=1)], pads=[0, 1, 0, 1, 0, 0])


@few
@given(geometry(), st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 1)]), st.integers(0, 1), st.booleans())
def test_conv_transpose(where, widths, extra, bias):
    kernel, strides, dilations, pads, _ = where
    group, per_group, filters = widths
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [min(pad, span - 1) for pad, span in zip(pads, spans * 2, strict=True)]
    output_padding = [min(extra, s - 1) for s in strides]
    inputs = [
        draw_array(2, group * per_group, 4, 5),
        draw_array(group * per_group, filters, *kernel, seed=1),
        *([draw_array(group * filters, seed=2)] if bias else []),
    ]
    check(
        "ConvTranspose",
        inputs,
        group=group,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=output_padding,
    )


POOLS = (
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 1)] * 4),
    st.tuples(st.integers(5, 8), st.integers(5, 8)),
    st.booleans(),
)
"""Kernel, strides, pads, size of the input, ceil_mode."""


@few
@given(*POOLS)
def test_max_pool(kernel, strides, pads, size, ceil):
    pads = [min(pad, k - 1) for pad, k in zip(pads, kernel * 2, strict=True)]
    check(
        "MaxPool",
        [distinct(2, 3, *size)],
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        ceil_mode=int(ceil),
    )


@few
@given(*POOLS, st.booleans())
def test_average_pool(kernel, strides, pads, size, ceil, padding_counts):
    pads = [min(pad, k - 1) for pad, k in zip(pads, kernel * 2, strict=True)]
    check(
        "AveragePool",
        [draw_array(2, 3, *size)],
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        ceil_mode=int(ceil),
        count_include_pad=int(padding_counts),
    )


@pytest.mark.parametrize(("channels", "size"), [(5, 3), (5, 4), (20, 5), (7, 2)])
def test_lrn(channels, size):
    for beta, bias in ((0.75, 1.5), (0.6, 1.0)):

        def function(x, beta=beta, bias=bias):  # onnx's own reference takes the batch for the channels
            total = np.zeros_like(x)
            for c in range(channels):
                low, high = max(0, c - (size - 1) // 2), c + size // 2 + 1
                total[:, c] = (x[:, low:high] ** 2).sum(axis=1)
            return x / (bias + 0.5 / size * total) ** beta

        x = draw_array(2, channels, 3, 2)
        check("LRN", [x], size=size, alpha=0.5, beta=beta, bias=bias, function=function)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        *((name, {}) for name in ("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Softplus", "Erf", "Gelu")),
        *((name, {}) for name in ("HardSwish", "Mish", "Identity", "LeakyRelu", "Elu", "HardSigmoid")),
        *((name, {}) for name in ("Selu", "GlobalMaxPool", "ReduceMax", "ReduceMin", "ReduceL2")),
        ("Gelu", {"approximate": "tanh"}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.7}),
        ("HardSigmoid", {"alpha": 0.4, "beta": 0.6}),
        ("Softmax", {}),
        ("Softmax", {"axis": 1}),
        ("LogSoftmax", {"axis": 1}),
        ("GlobalAveragePool", {}),
        ("ReduceMean", {}),
        ("ReduceSum", {}),
        ("Flatten", {}),
        ("Flatten", {"axis": 2}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
        ("Transpose", {}),
        ("SpaceToDepth", {"blocksize": 2}),
        ("DepthToSpace", {"blocksize": 2}),
        ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}),
    ],
)
def test_one_operand(operator, attributes):
    check(operator, [4 * distinct(2, 4, 4, 6)], **attributes)


@pytest.mark.parametrize("operator", ["Log", "Sqrt", "Reciprocal"])
def test_one_positive_operand(operator):
    check(operator, [draw_array(2, 3, 4, low=0.5)])


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"])
@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((2, 3, 4), ()), ((2, 3, 4), (1, 3, 1))]
)
def test_broadcasting(operator, shapes):
    first, second = shapes
    check(operator, [distinct(*first), draw_array(*second, low=1, high=2, seed=1)])
    if operator != "PRelu":
        check(operator, [distinct(*second), draw_array(*first, low=1, high=2, seed=1)])


def test_power_and_clip():
    check("Pow", [draw_array(2, 3, low=0.5)], [np.array(1.7)])
    check("Clip", [4 * distinct(2, 30)], [np.array(-0.5), np.array(1.1)])
    check("Clip", [4 * distinct(2, 30)], [None, np.array(1.1)])


@pytest.mark.parametrize(("turn_a", "turn_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(turn_a, turn_b):
    a, b = ((5, 4) if turn_a else (4, 5)), ((3, 5) if turn_b else (5, 3))
    for c in ([], [(3,)], [(4, 1)], [()]):
        inputs = [draw_array(*shape, seed=i) for i, shape in enumerate((a, b, *c))]
        check("Gemm", inputs, alpha=0.7, beta=1.3, transA=turn_a, transB=turn_b)


@pytest.mark.parametrize(
    "shapes",
    [((4, 5), (5, 3)), ((2, 4, 5), (5, 3)), ((2, 4, 5), (2, 5, 3)), ((2, 1, 4, 5), (3, 5, 2)), ((5,), (5, 3)),
     ((4, 5), (5,)), ((2, 4, 5), (5,))],
)  # fmt: skip
def test_matmul(shapes):
    check("MatMul", [draw_array(*shape, seed=i) for i, shape in enumerate(shapes)])


def test_batch_normalization_with_frozen_statistics():
    mean, variance = draw_array(3, seed=3), draw_array(3, low=0.5, seed=4)
    x, scale, bias = (draw_array(*shape, seed=i) for i, shape in enumerate(((2, 3, 4, 2), (3,), (3,))))
    check("BatchNormalization", [x, scale, bias], [mean, variance], epsilon=0.1)


def test_layer_normalization():
    check("LayerNormalization", [draw_array(2, 3, 5), draw_array(5, seed=1), draw_array(5, seed=2)])
    check("LayerNormalization", [draw_array(2, 3, 5), draw_array(3, 5, seed=1)], axis=1)


@pytest.mark.parametrize("size", [(4,), (4, 3), (2, 3, 2)])
def test_normalization_of_maps(size):
    inputs = [draw_array(2, 6, *size), draw_array(6, seed=1), draw_array(6, seed=2)]
    check("InstanceNormalization", inputs, epsilon=0.1)
    for groups in (1, 3, 6):
        check("GroupNormalization", inputs, opset=21, num_groups=groups, epsilon=0.1)


def test_moving():
    x = draw_array(2, 6, 5)
    check("Reshape", [x], [np.array([3, -1])])
    check("Squeeze", [draw_array(2, 1, 3)], [np.array([1])])
    check("Unsqueeze", [x], [np.array([1])])
    check("Expand", [draw_array(2, 1, 3)], [np.array([4, 2, 5, 3])])
    check("Pad", [x], [np.array([0, 1, 2, 1, 0, 3])])
    check("Pad", [x], [np.array([1, -1]), None, np.array([2])])
    check("Concat", [x, draw_array(2, 3, 5, seed=1), draw_array(2, 1, 5, seed=2)], axis=1)
    check("Split", [x], [np.array([1, 3, 2])], outputs=3, axis=1)
    check("Slice", [x], [np.array([1]), np.array([4]), np.array([1])])
    check("Slice", [x], [np.array([-1, 0]), np.array([-9, 5]), np.array([1, 2]), np.array([-2, 2])])
    check("Gather", [x], [np.array([3, 1, 4])], axis=1)
    check("Gather", [x], [np.array([[0, 0, 5], [2, 0, 2]])], axis=1)
    check("Gather", [x], [np.array(2)], axis=2)
    check("ReduceMean", [x], [np.array([1, -1])], keepdims=0)
    for noop in (0, 1):
        check("ReduceMean", [x], [np.zeros(0, np.int64)], noop_with_empty_axes=noop)
    check("ReduceSum", [x], [np.array([1])])
    check("ReduceL2", [x], [np.array([1, -1])], keepdims=0)
    check("ReduceMax", [distinct(2, 6, 5)], [np.array([1, -1])], keepdims=0)


@pytest.mark.parametrize("target", [ir.DataType.DOUBLE, ir.DataType.FLOAT])
def test_cast_between_real_types(target):
    check("Cast", [draw_array(2, 3)], function=lambda x: x, to=int(target))


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "nearest"},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "cubic"},
    ],
)
def test_resize(attributes):
    x = draw_array(2, 3, 4, 5)
    check("Resize", [x], [None, np.array([1, 1, 2, 2], np.float32)], **attributes)
    check("Resize", [x], [None, None, np.array([2, 3, 6, 3])], **attributes)


@pytest.mark.parametrize(("axes", "scales"), [([2], [2]), ([3, 2], [3, 2])])
def test_resize_of_some_axes(axes, scales):
    check("Resize", [draw_array(2, 3, 4, 5)], [None, np.array(scales, np.float32)], axes=axes, mode="linear")


@few
@given(st.integers(2, 20), st.integers(2, 40), st.sampled_from(["half_pixel", "asymmetric", "align_corners"]))
def test_resize_to_any_size(size, target, where):
    sizes = [None, None, np.array([1, 1, target, 3])]
    attributes = {"mode": "linear", "coordinate_transformation_mode": where}
    check("Resize", [draw_array(1, 1, size, 2)], sizes, keep_aspect_ratio_policy="stretch", **attributes)


def test_resize_with_a_policy_is_refused():
    sizes = [None, None, np.array([6, 6])]
    with pytest.raises(InputError, match=r"no gradient for Resize .*aspect ratio"):
        check("Resize", [draw_array(2, 3, 4, 5)], sizes, axes=[2, 3], keep_aspect_ratio_policy="not_larger")


def test_every_rule_is_documented():
    assert all(function.__doc__ for function in RULES.values())
