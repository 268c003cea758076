"""Whole networks: agreement with OpenCV, names, old forms and shared parameters."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from models import zoo
from onnxcompress.caffe import import_caffe, import_caffe_text
from onnxcompress.preprocessing import Preprocessing, prepare, read
from tests.caffe.reference import (
    MODELS,
    caffemodel,
    input_layer,
    layer,
    random_feeds,
    random_weights,
    relative_difference,
    run_onnx,
    run_opencv,
)

needs_models = pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is absent")
IMAGES = MODELS.parent / "images" / "imagenet_eval"


def node_names(model):
    return [node.name for node in model.graph]


def outputs_of(model):
    return [value.name for value in model.graph.outputs]


def initializers(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def import_with(text, weights, tmp_path, form="layer"):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(weights, form))
    return import_caffe_text(text, path)


@needs_models
@pytest.mark.parametrize("name", ["bvlc_googlenet", "squeezenet_v1.0"])
def test_published_network_agrees_with_opencv(name):
    prototxt, weights = MODELS / name / "deploy.prototxt", MODELS / name / f"{name}.caffemodel"
    model = import_caffe(prototxt, weights)
    size = model.graph.inputs[0].shape[2]
    feeds = {"data": 60 * random_feeds({"data": (2, 3, size, size)})["data"]}
    if IMAGES.is_dir():
        with Image.open(min(IMAGES.glob("*.jpg"))) as image:
            feeds["data"][1] = prepare(image, read(model), size, size)
    text = re.sub(r"dim: 10 ", "dim: 1 ", prototxt.read_text())
    expected = run_opencv(text, weights.read_bytes(), feeds)["prob"]
    assert relative_difference(run_onnx(model, feeds)["prob"], expected) < 1e-4


@needs_models
def test_googlenet_imports_in_3_seconds_and_1_gigabyte():
    program = (
        "import resource, sys, time; from onnxcompress.caffe import import_caffe;"
        "start = time.perf_counter(); import_caffe(*sys.argv[1:]);"
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    folder = MODELS / "bvlc_googlenet"
    files = [str(folder / "deploy.prototxt"), str(folder / "bvlc_googlenet.caffemodel")]
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 3
    assert kilobytes * 1024 < 1e9


def without_softmax(text):
    """Softmax of random scores is nearly flat and would hide differences."""
    return text[: text.index('layer { name: "prob"')]


def small_vgg16():
    """VGG-16 with an eighth of its filters, for images of 64 x 64."""
    text = re.sub(r"num_output: (\d+)", lambda match: f"num_output: {int(match[1]) // 8}", zoo.vgg16())
    return text.replace("dim: 224", "dim: 64")


@pytest.mark.parametrize(
    "text",
    [zoo.alexnet(), small_vgg16(), zoo.resnet18(size=64, width=8)],
    ids=["alexnet", "vgg16", "resnet18"],
)
def test_random_network_agrees_with_opencv(text, tmp_path):
    text = without_softmax(text)
    drawn = initializers(import_caffe_text(text))
    weights: dict[str, list[np.ndarray]] = {}
    for name, array in drawn.items():
        layer_name, role = name.rsplit(".", 1)
        if role in ("weight", "bias") and not layer_name.startswith("bn"):
            weights.setdefault(layer_name, []).append(array)
    shapes = {name: array.shape for name, array in drawn.items() if name.endswith(".variance")}
    for name, shape in shapes.items():
        norm = name.removesuffix(".variance")
        weights |= random_weights(
            {norm: [shape, shape, (1,)], norm.replace("bn", "scale", 1): [shape, shape]}
        )
    model = import_with(text, weights, tmp_path)
    feeds = random_feeds({"data": (2, *(int(size) for size in model.graph.inputs[0].shape[1:]))})
    (expected,) = run_opencv(text, (tmp_path / "net.caffemodel").read_bytes(), feeds).values()
    (result,) = run_onnx(model, feeds).values()
    assert relative_difference(result, expected) < 1e-4


DATA = input_layer("data", 1, 4, 6, 6)
CONV = "convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: 'xavier' } }"


def test_blobs_that_layers_work_on_in_place():
    text = (
        DATA
        + layer("Convolution", CONV, tops=("conv",))
        + 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }'
        + 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }'
        + layer("AbsVal", bottoms=("conv",))
    )
    model = import_caffe_text(text)
    assert [(node.name, node.outputs[0].name) for node in model.graph] == [
        ("conv", "conv/conv"),
        ("relu", "conv"),
        ("out", "out"),
    ]
    assert list(model.graph.initializers) == ["conv.weight", "conv.bias"]
    assert model.graph.inputs[0].shape == ir.Shape(["N", 4, 6, 6])
    assert model.graph.outputs[0].shape == ir.Shape(["N", 3, 4, 4])


def test_input_that_a_layer_works_on_in_place():
    text = DATA + 'layer { name: "relu" type: "ReLU" bottom: "data" top: "data" }'
    model, feeds = import_caffe_text(text), random_feeds({"data": (2, 4, 6, 6)})
    np.testing.assert_array_equal(run_onnx(model, feeds)["data/relu"], np.maximum(feeds["data"], 0))


def test_output_that_a_dropped_layer_writes():
    text = DATA + layer("ReLU", tops=("relu",)) + layer("Split", bottoms=("relu",), tops=("a", "b"))
    model, feeds = import_caffe_text(text), random_feeds({"data": (2, 4, 6, 6)})
    results = run_onnx(model, feeds)
    assert results.keys() == {"a", "b"}
    np.testing.assert_array_equal(results["a"], np.maximum(feeds["data"], 0))
    np.testing.assert_array_equal(results["b"], results["a"])


def test_names_of_helper_nodes_give_way_to_names_of_layers():
    text = (
        DATA
        + layer("InnerProduct", "inner_product_param { num_output: 2 }", tops=("ip",))
        + layer("ReLU", bottoms=("ip",), tops=("ip/flatten",))
    )
    model = import_caffe_text(text)
    assert node_names(model) == ["ip/flatten_", "ip", "ip/flatten"]
    run_onnx(model, random_feeds({"data": (2, 4, 6, 6)}))


def test_batch_norm_takes_in_the_scale_that_alone_reads_it():
    text = (
        DATA
        + 'layer { name: "bn" type: "BatchNorm" bottom: "data" top: "norm" }'
        + 'layer { name: "scale" type: "Scale" bottom: "norm" top: "norm" scale_param { bias_term: true } }'
    )
    model = import_caffe_text(text)
    assert [(node.op_type, node.name) for node in model.graph] == [("BatchNormalization", "bn")]
    assert outputs_of(model) == ["norm"]


TRAINING = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } }
layer { name: "noise" type: "Power" bottom: "data" top: "data" include { phase: TRAIN } }
layer { name: "relu" type: "ReLU" bottom: "data" top: "scores" exclude { phase: TRAIN } }
layer { name: "deploy" type: "Softmax" bottom: "scores" top: "prob" include { stage: "deploy" } }
layer { name: "early" type: "Softmax" bottom: "scores" top: "early" include { max_level: -1 } }
layer { name: "debug" type: "AbsVal" bottom: "data" top: "debug" }
layer { name: "silence" type: "Silence" bottom: "debug" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy" }
"""


def test_layers_for_training_are_dropped():
    network = TRAINING.replace('type: "Data"', 'type: "Input" input_param { shape { dim: 1 dim: 4 } }')
    network = network.replace('include { phase: TEST } }\nlayer { name: "noise"', '}\nlayer { name: "noise"')
    model = import_caffe_text(network)
    assert [value.name for value in model.graph.inputs] == ["data"]
    assert node_names(model) == ["relu", "debug"]
    assert outputs_of(model) == ["scores"]


def test_auxiliary_classifiers_come_last():
    text = DATA + "".join(
        layer("ReLU", tops=(name,))
        + layer("SoftmaxWithLoss", weight, bottoms=(name, "label"), tops=(name * 2,))
        for name, weight in [("aux", "loss_weight: 0.3"), ("main", ""), ("late", "loss_weight: 0.5")]
    )
    assert outputs_of(import_caffe_text(text)) == ["main", "late", "aux"]


def test_stages_of_the_prototxt_decide():
    text = (
        DATA
        + layer("ReLU", 'include { stage: "a" }', tops=("a",))
        + layer("ReLU", 'include { not_stage: "a" }', tops=("b",))
    )
    assert outputs_of(import_caffe_text(text)) == ["b"]
    assert outputs_of(import_caffe_text(text + 'state { stage: "a" }')) == ["a"]


V1 = """
name: "old" input: "data" input_dim: 1 input_dim: 4 input_dim: 6 input_dim: 6
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 weight_decay: 1
         convolution_param { num_output: 3 kernel_size: 3 } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" }
layers { name: "pool" type: POOLING bottom: "conv" top: "pool"
         pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layers { name: "drop" type: DROPOUT bottom: "pool" top: "pool" }
layers { name: "ip" type: INNER_PRODUCT bottom: "pool" top: "ip" inner_product_param { num_output: 5 } }
layers { name: "prob" type: SOFTMAX bottom: "ip" top: "prob" }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip" bottom: "prob" top: "loss" }
"""


@pytest.mark.parametrize("form", ["layer", "V1", "double"])
def test_old_prototxt_and_weights_of_every_form(form, tmp_path):
    weights = random_weights({"conv": [(3, 4, 3, 3), (3,)], "ip": [(5, 12), (5,)], "unknown": [(2,)]})
    model, feeds = import_with(V1, weights, tmp_path, form), random_feeds({"data": (3, 4, 6, 6)})
    assert model.graph.name == "old"
    assert node_names(model) == ["conv", "relu", "pool", "ip/flatten", "ip", "prob"]
    text = V1[: V1.index('layers { name: "loss"')]
    expected = run_opencv(text, caffemodel(weights), feeds)["prob"]
    assert relative_difference(run_onnx(model, feeds)["prob"], expected) < 1e-5


def test_several_inputs_of_each_form():
    relu = layer("Eltwise", bottoms=("a", "b"))
    shape = "{ dim: 1 dim: 2 dim: 3 dim: 4 }"
    dims = " ".join(f"input_dim: {size}" for size in (1, 2, 3, 4) * 2)
    for header in (
        f'input: "a" input: "b" {dims}',
        f'input: "a" input: "b" input_shape {shape} input_shape {shape}',
        f'layer {{ name: "in" type: "Input" top: "a" top: "b" input_param {{ shape {shape} }} }}',
        input_layer("a", 1, 2, 3, 4) + input_layer("b", 1, 2, 3, 4),
    ):
        feeds = random_feeds({"a": (2, 2, 3, 4), "b": (2, 2, 3, 4)})
        result = run_onnx(import_caffe_text(f"{header}\n{relu}"), feeds)["out"]
        np.testing.assert_array_equal(result, feeds["a"] + feeds["b"])


def test_shared_parameters_are_one_initializer():
    body = (
        'param { name: "w" } param { name: "b" } '
        'inner_product_param { num_output: 4 weight_filler { type: "msra" } }'
    )
    text = (
        input_layer("data", 1, 4)
        + layer("InnerProduct", body, tops=("first",))
        + layer("InnerProduct", body, bottoms=("first",))
    )
    model = import_caffe_text(text)
    assert list(model.graph.initializers) == ["first.weight", "first.bias"]
    weight, feeds = initializers(model)["first.weight"], random_feeds({"data": (2, 4)})
    expected = feeds["data"] @ weight.T @ weight.T
    np.testing.assert_allclose(run_onnx(model, feeds)["out"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 17, 20, 22])
def test_every_opset_runs(opset):
    text = (
        DATA
        + layer("Convolution", CONV, tops=("conv",))
        + layer("BatchNorm", bottoms=("conv",), tops=("norm",))
        + layer(
            "Pooling",
            "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }",
            bottoms=("norm",),
            tops=("pool",),
        )
        + layer("Slice", bottoms=("pool",), tops=("a", "b", "c"))
        + layer("Concat", bottoms=("b", "c", "a"), tops=("joined",))
        + layer("Softmax", bottoms=("joined",))
    )
    model = import_caffe_text(text, opset=opset)
    assert model.graph.opset_imports == {"": opset}
    total = run_onnx(model, random_feeds({"data": (2, 4, 6, 6)}))["out"].sum(axis=1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_preprocessing_goes_into_the_metadata():
    photographs = input_layer("data", 1, 3, 8, 8) + layer("ReLU")
    assert read(import_caffe_text(photographs)) == Preprocessing()
    assert read(import_caffe_text(DATA + layer("ReLU"))) is None
    gray = Preprocessing(channel_order="GRAY", mean=(0.0,))
    assert read(import_caffe_text(photographs, preprocessing=gray)) == gray
