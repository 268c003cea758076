"""Every type of layer, against OpenCV's independent importer."""

from dataclasses import dataclass, field

import pytest

from onnxcompress.caffe import import_caffe_text
from tests.caffe.reference import (
    caffemodel,
    input_layer,
    layer,
    random_feeds,
    random_weights,
    relative_difference,
    run_onnx,
    run_opencv,
)

IMAGE = {"data": (4, 9, 7)}
TWO_IMAGES = {"data": (4, 9, 7), "other": (4, 9, 7)}


@dataclass
class Case:
    """A network of few layers; shapes of inputs are without the batch."""

    text: str
    inputs: dict[str, tuple[int, ...]] = field(default_factory=lambda: IMAGE)
    weights: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)


def conv(body: str, *weights: tuple[int, ...], kind: str = "Convolution") -> Case:
    return Case(layer(kind, f"convolution_param {{ {body} }}"), weights={"out": list(weights)})


def pool(body: str) -> Case:
    return Case(layer("Pooling", f"pooling_param {{ {body} }}"))


def two(kind: str, body: str = "") -> Case:
    return Case(layer(kind, body, bottoms=("data", "other")), TWO_IMAGES)


CASES = {
    "convolution": conv("num_output: 6 kernel_size: 3", (6, 4, 3, 3), (6,)),
    "convolution without bias": conv("num_output: 6 kernel_size: 1 bias_term: false", (6, 4, 1, 1)),
    "convolution, groups": conv("num_output: 6 kernel_size: 3 group: 2 pad: 1", (6, 2, 3, 3), (6,)),
    "convolution, depthwise": conv("num_output: 4 kernel_size: 3 group: 4", (4, 1, 3, 3), (4,)),
    "convolution, dilation": conv("num_output: 6 kernel_size: 3 dilation: 2 pad: 1", (6, 4, 3, 3), (6,)),
    "convolution, rectangular": conv(
        "num_output: 6 kernel_h: 3 kernel_w: 2 pad_h: 2 pad_w: 1 stride_h: 2 stride_w: 3", (6, 4, 3, 2), (6,)
    ),
    "deconvolution": conv(
        "num_output: 6 kernel_size: 4 stride: 2 pad: 1", (4, 6, 4, 4), (6,), kind="Deconvolution"
    ),
    "deconvolution, groups": conv(
        "num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 4 bias_term: false",
        (4, 1, 4, 4),
        kind="Deconvolution",
    ),
    "inner product": Case(
        layer("InnerProduct", "inner_product_param { num_output: 5 }"), weights={"out": [(5, 252), (5,)]}
    ),
    "inner product of vectors": Case(
        layer("InnerProduct", "inner_product_param { num_output: 5 bias_term: false }"),
        {"data": (12,)},
        {"out": [(5, 12)]},
    ),
    "inner product, axis": Case(
        layer("InnerProduct", "inner_product_param { num_output: 5 axis: 2 }"),
        weights={"out": [(5, 63), (5,)]},
    ),
    "relu": Case(layer("ReLU")),
    "relu, slope": Case(layer("ReLU", "relu_param { negative_slope: 0.1 }")),
    "prelu": Case(layer("PReLU"), weights={"out": [(4,)]}),
    "prelu, shared": Case(layer("PReLU", "prelu_param { channel_shared: true }"), weights={"out": [(1,)]}),
    "elu": Case(layer("ELU", "elu_param { alpha: 1 }")),
    "sigmoid": Case(layer("Sigmoid")),
    "tanh": Case(layer("TanH")),
    "power": Case(
        layer("AbsVal", tops=("magnitude",))
        + layer("Power", "power_param { power: 1.5 scale: 2 shift: 0.5 }", bottoms=("magnitude",))
    ),
    "exponential": Case(layer("Exp", "exp_param { base: 2 scale: 0.5 shift: 0.3 }")),
    "exponential of e": Case(layer("Exp")),
    "soft plus": Case(layer("BNLL")),
    "crop": Case(
        layer("Crop", "crop_param { axis: 2 offset: 1 offset: 3 }", bottoms=("data", "other")),
        {"data": (4, 9, 7), "other": (4, 6, 4)},
    ),
    "crop, one offset": Case(
        layer("Crop", "crop_param { axis: 1 offset: 1 }", bottoms=("data", "other")),
        {"data": (4, 9, 7), "other": (2, 6, 4)},
    ),
    "power, linear": Case(layer("Power", "power_param { scale: -2 shift: 0.5 }")),
    "power, identity": Case(layer("Power") + layer("ReLU", bottoms=("out",), tops=("relu",))),
    "absolute value": Case(layer("AbsVal")),
    "max pooling": pool("kernel_size: 3 stride: 2"),
    "max pooling, padded": pool("kernel_size: 3 stride: 2 pad: 1"),
    "max pooling, rectangular": pool("kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 3 pad_h: 1 pad_w: 0"),
    "max pooling, global": pool("pool: MAX global_pooling: true"),
    "average pooling": pool("pool: AVE kernel_size: 3 stride: 2"),
    "average pooling, padded": pool("pool: AVE kernel_size: 3 stride: 2 pad: 1"),
    "average pooling, same": pool("pool: AVE kernel_size: 3 stride: 1 pad: 1"),
    "average pooling, global": pool("pool: AVE global_pooling: true"),
    "lrn": Case(layer("LRN", "lrn_param { local_size: 3 alpha: 0.9 beta: 0.6 }")),
    "lrn, wider than channels": Case(layer("LRN", "lrn_param { local_size: 11 alpha: 0.9 }")),
    "lrn, within": Case(layer("LRN", "lrn_param { local_size: 3 alpha: 0.9 norm_region: WITHIN_CHANNEL }")),
    "batch norm": Case(
        layer("BatchNorm", "batch_norm_param { eps: 0.01 }"), weights={"out": [(4,), (4,), (1,)]}
    ),
    "batch norm and scale": Case(
        layer("BatchNorm", tops=("norm",))
        + layer("Scale", "scale_param { bias_term: true }", bottoms=("norm",)),
        weights={"norm": [(4,), (4,), (1,)], "out": [(4,), (4,)]},
    ),
    "batch norm read twice": Case(
        layer("BatchNorm", tops=("norm",))
        + layer("Scale", bottoms=("norm",), tops=("scaled",))
        + layer("Eltwise", bottoms=("norm", "scaled")),
        weights={"norm": [(4,), (4,), (1,)], "scaled": [(4,)]},
    ),
    "scale": Case(layer("Scale", "scale_param { bias_term: true }"), weights={"out": [(4,), (4,)]}),
    "scale by a blob": two("Scale", "scale_param { axis: 0 }"),
    "scale by channels": Case(
        layer("Scale", "scale_param { axis: 0 }", bottoms=("data", "other")),
        {"data": (4, 9, 7), "other": (4,)},
    ),
    "concat": two("Concat"),
    "concat, axis": two("Concat", "concat_param { axis: -1 }"),
    "slice": Case(
        layer("Slice", "slice_param { slice_point: 1 }", tops=("first", "second"))
        + layer("ReLU", bottoms=("first",), tops=("out",))
        + layer("AbsVal", bottoms=("second",), tops=("rest",)),
    ),
    "slice, equal": Case(
        layer("Slice", "slice_param { axis: 1 }", tops=("first", "second"))
        + layer("ReLU", bottoms=("first",), tops=("out",))
        + layer("AbsVal", bottoms=("second",), tops=("rest",)),
    ),
    "split": Case(
        layer("Split", tops=("first", "second"))
        + layer("ReLU", bottoms=("first",), tops=("relu",))
        + layer("Concat", bottoms=("relu", "second")),
    ),
    "eltwise sum": two("Eltwise"),
    "eltwise coefficients": two("Eltwise", "eltwise_param { operation: SUM coeff: 2 coeff: -0.5 }"),
    "eltwise product": two("Eltwise", "eltwise_param { operation: PROD }"),
    "eltwise max": two("Eltwise", "eltwise_param { operation: MAX }"),
    "eltwise of three": Case(
        layer("ReLU", tops=("relu",))
        + layer(
            "Eltwise", "eltwise_param { coeff: 1 coeff: -1 coeff: 3 }", bottoms=("data", "relu", "other")
        ),
        TWO_IMAGES,
    ),
    "dropout": Case(layer("Dropout", tops=("drop",)) + layer("ReLU", bottoms=("drop",))),
    "flatten": Case(layer("Flatten")),
    "flatten, axes": Case(layer("Flatten", "flatten_param { axis: 1 end_axis: 2 }")),
    "reshape": Case(layer("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 7 } }")),
    "reshape, axis": Case(layer("Reshape", "reshape_param { shape { dim: 2 dim: 2 } axis: 1 num_axes: 1 }")),
    "reshape, batch in numbers": Case(layer("Reshape", "reshape_param { shape { dim: 1 dim: 63 dim: 4 } }")),
    "permute": Case(layer("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }")),
    "softmax": Case(layer("Softmax")),
    "softmax, axis": Case(layer("Softmax", "softmax_param { axis: 2 }")),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_opencv(name, tmp_path):
    case = CASES[name]
    text = "".join(input_layer(blob, 1, *shape) for blob, shape in case.inputs.items()) + case.text
    weights = caffemodel(random_weights(case.weights)) if case.weights else b""
    (tmp_path / "net.caffemodel").write_bytes(weights)
    feeds = random_feeds({blob: (3, *shape) for blob, shape in case.inputs.items()})
    model = import_caffe_text(text, tmp_path / "net.caffemodel" if weights else None)
    results, expected = run_onnx(model, feeds), run_opencv(text, weights, feeds)
    assert results.keys() == expected.keys()
    for blob, values in expected.items():
        assert results[blob].shape == values.shape
        assert relative_difference(results[blob], values) < 1e-5


def test_a_convolution_may_name_one_pad():
    """Caffe takes 0 for the other; OpenCV passes over both."""
    found = []
    for pads in ("pad_h: 1", "pad_h: 1 pad_w: 0"):
        body = f"num_output: 6 kernel_h: 3 kernel_w: 1 {pads}"
        text = input_layer("data", 1, *IMAGE["data"]) + conv(body).text
        found.append(import_caffe_text(text).graph[0].attributes["pads"].as_ints())
    assert list(found[0]) == list(found[1]) == [1, 0, 1, 0]
