"""What cannot be imported is refused in one line that names the file, the layer and the way out."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import zoo
from onnxcompress.caffe import import_caffe, import_caffe_text
from onnxcompress.caffe.schema import NetParameter
from onnxcompress.errors import InputError
from tests.caffe.reference import caffemodel, input_layer, layer, random_weights

DATA = input_layer("data", 1, 4, 6, 6)
CONV = "convolution_param { num_output: 3 kernel_size: 3 }"
TEXT = DATA + layer("Convolution", CONV, tops=("conv",)) + layer("ReLU", bottoms=("conv",))
SHAPES = [(3, 4, 3, 3), (3,)]


def refused(text, *weights):
    with pytest.raises(InputError) as caught:
        import_caffe_text(text, *weights)
    message = str(caught.value)
    assert "\n" not in message
    return message


def refused_weights(content, tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    message = refused(TEXT, path)
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "describes no layers"),
        (TEXT.encode()[:-9], "truncated"),
        (b"\x08\xff\xfe\x00", "not a text file"),
        (b"a { " * 5000, "nested too deeply"),
        (b'layer { name: "a" type: "Mystery" bottom: "data" top: "a" }', "layer 'a'"),
    ],
)
def test_prototxt_that_cannot_be_read(content, words, tmp_path):
    path = tmp_path / "net.prototxt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        import_caffe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("# réseau\n", "latin-1"),
        ("# 池化层\n", "gbk"),
        ("", "utf-8-sig"),
        ("# conv1 \x85 conv5 } or \x0c stride: 2\n", "latin-1"),
    ],
)
def test_comments_in_any_encoding(tmp_path, head, encoding):
    path = tmp_path / "net.prototxt"
    path.write_bytes((head + TEXT).encode(encoding))
    assert [node.op_type for node in import_caffe(path).graph] == ["Conv", "Relu"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("strides: 2", "line 2: convolution_param has no field 'strides' in Caffe"),
        ("weight_filler { typ: 'xavier' }", "line 2: weight_filler has no field 'typ'"),
        ("weight_filler: < stdd: 1 >", "line 2: weight_filler has no field 'stdd'"),
        ("pads: [1, 1]", "has no field 'pads'"),
        ("} param { lr_mul: 1", "param has no field 'lr_mul'"),
        ("} param: [{ lr_mult: 1 }, { lr_mult: 2 }] relu_param {", ""),
        ("} [its.own] { strides: 2 } convolution_param { pad: 0", "does not have extensions"),
        ("} param: [{ lr_mult: 1 }, { lr_mul: 2 }] relu_param {", "param has no field 'lr_mul'"),
        ("} includes { phase: TRAIN", "layer has no field 'includes'"),
        ("} params { lr_mult: 0", "layer has no field 'params'"),
        ("} propagate_down: true phase: TEST relu_param {", ""),
        ("engine: MKLDNN", ""),
        ("bias_term: true # strides: 2\n", ""),
        ("} transform_param { mean_file: 'strides: 2' scale: 1 } loss_param { of { forks: 3 }", ""),
    ],
)
def test_fields_that_caffe_does_not_have(body, words):
    text = DATA + layer("Convolution", f"{CONV.removesuffix('}')} {body} }}", tops=("conv",))
    if words:
        assert words in refused(text)
    else:
        assert len(import_caffe_text(text).graph) == 1


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        import_caffe(tmp_path)
    assert "Is a directory" in refused(TEXT, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\x0a\x04old!", "holds no weights"),
        (NetParameter(layers=[{"layer": {"name": "conv"}}]).SerializeToString(), "the oldest form"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 snapshot"),
        (caffemodel(random_weights({"conv": SHAPES}))[:-7], "truncated"),
        (caffemodel(random_weights({"other": SHAPES})), "layer 'conv' (Convolution): "),
        (caffemodel(random_weights({"conv": SHAPES[:1]})), "asks for 2 blobs of weights"),
        (caffemodel(random_weights({"conv": [(3, 4, 5, 5), (3,)]})), "blob 0 is 3 × 4 × 5 × 5"),
        (caffemodel(random_weights({"conv": [(4, 4, 3, 3), (4,)]}), "V1"), "3 × 4 × 3 × 3 by the prototxt"),
        (caffemodel({"conv": [np.full((3, 4, 3, 3), np.nan), np.ones(3)]}), "blob 0 holds NaN or infinite"),
        (caffemodel({"conv": [np.ones((3, 4, 3, 3)), np.full(3, np.inf)]}), "blob 1 holds NaN or infinite"),
    ],
)
def test_caffemodel_that_does_not_fit(content, words, tmp_path):
    assert words in refused_weights(content, tmp_path)


def test_caffemodel_that_is_missing(tmp_path):
    assert "No such file" in refused(TEXT, tmp_path / "absent.caffemodel")


@pytest.mark.parametrize("form", ["layer", "double"])
def test_blob_that_is_shorter_than_its_shape(form, tmp_path):
    net = NetParameter.FromString(caffemodel(random_weights({"conv": SHAPES}), form))
    bias = net.layer[0].blobs[1]
    bias.data, bias.double_data = bias.data[:-1], bias.double_data[:-8]
    assert "blob 1 holds 2 numbers" in refused_weights(net.SerializeToString(), tmp_path)


LAYERS = {
    "unknown type": (layer("Mystery"), "this type of layer is not supported"),
    "no name": ('layer { type: "ReLU" bottom: "data" top: "out" }', "has no name"),
    "same name": (layer("ReLU") + layer("ReLU", bottoms=("out",)), "the same name"),
    "same blob": (
        layer("ReLU") + 'layer { name: "b" type: "ReLU" bottom: "data" top: "out" }',
        "writes the blob",
    ),
    "missing blob": (
        layer("ReLU", bottoms=("absent",)),
        "reads the blob 'absent', which no earlier layer writes",
    ),
    "blob of a data layer": (
        'layer { name: "db" type: "Data" top: "image" }' + layer("ReLU", bottoms=("image",)),
        "'db', a layer for training only (Data)",
    ),
    "no bottom": (layer("ReLU", bottoms=()), "has 0 bottoms"),
    "no top": (
        layer("ReLU") + 'layer { name: "b" type: "ReLU" bottom: "out" }' + layer("AbsVal", tops=("c",)),
        "0 tops",
    ),
    "dropout of nothing": (layer("Dropout", bottoms=()), "has 0 bottoms"),
    "top without a name": ('layer { name: "a" type: "ReLU" bottom: "data" top: "" }', "tops has no name"),
    "scalar": (
        input_layer("one", 1) + layer("Reshape", "reshape_param { shape { } }", bottoms=("one",)),
        "cuts through the samples",
    ),
    "sparse scalar": (
        layer("PReLU", "prelu_param { channel_shared: true filler { type: 'gaussian' sparse: 1 } }"),
        "needs at least one dimension",
    ),
    "both rules": (
        layer("ReLU", "include { phase: TEST } exclude { phase: TRAIN }"),
        "both include and exclude",
    ),
    "both forms": (layer("ReLU") + 'layers { name: "a" type: RELU }', "'layer' and 'layers'"),
    "no filters": (layer("Convolution", "convolution_param { kernel_size: 3 }"), "num_output 0"),
    "no kernel": (layer("Convolution", "convolution_param { num_output: 3 }"), "kernel"),
    "kernel 0": (layer("Convolution", "convolution_param { num_output: 3 kernel_size: 0 }"), "at least 1"),
    "stride 0": (layer("Pooling", "pooling_param { kernel_size: 3 stride: 0 }"), "at least 1"),
    "negative pad": (layer("Pooling", "pooling_param { kernel_size: 3 pad: -1 }"), "not a prototxt"),
    "kernel twice": (
        layer("Pooling", "pooling_param { kernel_size: 3 kernel_h: 3 kernel_w: 3 }"),
        "either kernel",
    ),
    "half a kernel": (layer("Pooling", "pooling_param { kernel_h: 3 }"), "either kernel"),
    "three strides": (
        layer(
            "Convolution", "convolution_param { num_output: 1 kernel_size: 1 stride: 1 stride: 1 stride: 1 }"
        ),
        "3 values of stride",
    ),
    "groups": (
        layer("Convolution", "convolution_param { num_output: 4 kernel_size: 1 group: 3 }"),
        "3 groups",
    ),
    "kernel larger than the image": (
        layer("Convolution", "convolution_param { num_output: 3 kernel_size: 9 }"),
        "its output would be 1 × 3 × -2 × -2",
    ),
    "channels on another axis": (
        layer("Convolution", "convolution_param { num_output: 3 kernel_size: 1 axis: 2 }"),
        "axis 2",
    ),
    "pad as large as the kernel": (
        layer("Pooling", "pooling_param { kernel_size: 2 pad: 2 }"),
        "must be smaller",
    ),
    "window outside": (layer("Pooling", "pooling_param { kernel_size: 1 stride: 3 }"), "outside"),
    "stochastic pooling": (
        layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"),
        "stochastic",
    ),
    "mask of pooling": (layer("Pooling", "pooling_param { kernel_size: 2 }", tops=("out", "mask")), "2 tops"),
    "even local size": (layer("LRN", "lrn_param { local_size: 4 }"), "odd local_size"),
    "alpha 0": (layer("LRN", "lrn_param { alpha: 0 }"), "positive alpha"),
    "statistics of the batch": (
        layer("BatchNorm", "batch_norm_param { use_global_stats: false }"),
        "set it to true",
    ),
    "axis": (layer("Softmax", "softmax_param { axis: 4 }"), "has axis 4"),
    "across the batch": (layer("Softmax", "softmax_param { axis: 0 }"), "across the samples of a batch"),
    "inner product of the batch": (
        layer("InnerProduct", "inner_product_param { num_output: 1 axis: 0 }"),
        "across the samples of a batch",
    ),
    "slices": (layer("Slice", "slice_param { slice_point: 4 }", tops=("out", "b")), "cannot cut"),
    "unequal slices": (layer("Slice", "slice_param { axis: 2 }", tops=("out", "b", "c", "d")), "cannot cut"),
    "coefficients": (
        layer("Eltwise", "eltwise_param { coeff: 1 }", bottoms=("data", "data")),
        "1 coefficients",
    ),
    "different bottoms": (
        layer("Flatten", tops=("flat",)) + layer("Eltwise", bottoms=("data", "flat")),
        "do not fit together: 1 × 4 × 6 × 6, 1 × 144",
    ),
    "scale that does not fit": (
        layer("Flatten", tops=("flat",)) + layer("Scale", bottoms=("data", "flat")),
        "do not agree",
    ),
    "scale beyond the axes": (layer("Scale", "scale_param { num_axes: 4 }"), "covers 4 axes"),
    "flatten backwards": (layer("Flatten", "flatten_param { axis: 2 end_axis: 1 }"), "flattens axes 2 to 1"),
    "reshape to another count": (
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 7 } }"),
        "counts differ",
    ),
    "reshape to two unknowns": (
        layer("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }"),
        "cannot give",
    ),
    "reshape beyond the axes": (
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: 0 dim: 0 dim: 0 } }"),
        "has none there",
    ),
    "order": (layer("Permute", "permute_param { order: 1 order: 1 }"), "order"),
    "top_k": (layer("ArgMax", "argmax_param { top_k: 7 axis: 2 }"), "top_k"),
    "unknown filler": (
        layer("InnerProduct", 'inner_product_param { num_output: 1 weight_filler { type: "magic" } }'),
        "unknown filler 'magic'",
    ),
    "infinite filler": (
        layer("InnerProduct", "inner_product_param { num_output: 1 bias_filler { value: inf } }"),
        "NaN or infinite",
    ),
    "too many parameters": (
        layer("InnerProduct", "inner_product_param { num_output: 10000000 }"),
        "parameters",
    ),
    "absurd parameters": (
        layer("InnerProduct", "inner_product_param { num_output: 4294967295 }"),
        "would be",
    ),
    "absurd output": (
        layer("Deconvolution", "convolution_param { num_output: 4 kernel_size: 1 stride: 999999999 }"),
        "its output would be",
    ),
    "shared parameters": (
        layer("InnerProduct", 'param { name: "w" } inner_product_param { num_output: 2 }', tops=("first",))
        + layer(
            "InnerProduct", 'param { name: "w" } inner_product_param { num_output: 2 }', bottoms=("first",)
        ),
        "shares the parameter 'w'",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_that_makes_no_sense(name):
    text, words = LAYERS[name]
    assert words in refused(DATA + text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (input_layer("data", 1, 0, 6) + layer("ReLU"), "at least 1"),
        (input_layer("data") + layer("ReLU"), "at least 1"),
        ('layer { name: "data" type: "Input" top: "data" }' + layer("ReLU"), "1 tops and 0 shapes"),
        ('input: "data" input_dim: 1 input_dim: 0 ' + layer("ReLU"), "at least 1"),
        ('input: "data"' + layer("ReLU"), "1 'input' entries and 0 shapes"),
        (DATA, "no layer computes an output"),
        ('layers { layer { name: "a" type: "relu" } }', "oldest form"),
        (
            input_layer("data", 2, 3) + layer("Reshape", "reshape_param { shape { dim: 3 dim: 2 } }"),
            "samples",
        ),
    ],
)
def test_network_that_makes_no_sense(text, words):
    assert words in refused(text)


def test_opset_that_does_not_exist():
    for opset in (12, 999):
        with pytest.raises(InputError, match=f"opset {opset} is not supported"):
            import_caffe_text(TEXT, opset=opset)


def refusal(text, *weights):
    """The message, or nothing when the network is imported."""
    try:
        import_caffe_text(text, *weights)
    except InputError as error:
        return str(error)
    return ""


WORDS = re.split(r"(?<=\s)", zoo.resnet18(size=32, width=4)[:6000])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_prototxt_is_imported_or_refused(data):
    start = data.draw(st.integers(0, len(WORDS) - 1))
    damage = ["", "0 ", "-1 ", "} ", "4000000000 ", "'data' ", "{ ", "\\ ", "\x00"]
    replacement = data.draw(st.sampled_from(damage))
    text = "".join([*WORDS[:start], replacement, *WORDS[start + data.draw(st.integers(0, 3)) :]])
    assert "\n" not in refusal(text)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 600), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_caffemodel_is_imported_or_refused(tmp_path_factory, position, value, cut):
    content = bytearray(caffemodel(random_weights({"conv": SHAPES})))
    if cut:
        del content[position:]
    else:
        content[position % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "net.caffemodel"
    path.write_bytes(content)
    message = refusal(TEXT, path)
    assert not message or str(path) in message
