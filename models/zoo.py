"""Well-known networks with Caffe's layer names and shapes, and weights drawn from a seed.

Each network is a function that writes the prototxt text that Caffe's users know; `build` gives that text to
the package's own Caffe importer, which draws the parameters from the fillers. The weights are noise: the
networks are for tests and benchmarks. README.md says where trained weights are published.

    python -m models.zoo googlenet -o googlenet.onnx
"""

import argparse
from collections.abc import Sequence

import onnx_ir as ir

from onnxcompress.caffe import import_caffe_text

XAVIER = 'type: "xavier"'
MSRA = 'type: "msra"'


def gaussian(std: float) -> str:
    """Filler that draws from a normal distribution of mean 0 and standard deviation `std`."""
    return f'type: "gaussian" std: {std}'


def layer(name: str, kind: str, bottoms: str | Sequence[str], body: str = "", top: str | None = None) -> str:
    """Text of one layer that reads the blobs `bottoms` and writes `top` (default: a blob named after it)."""
    blobs = [bottoms] if isinstance(bottoms, str) else bottoms
    reads = "".join(f'bottom: "{blob}" ' for blob in blobs)
    return f'layer {{ name: "{name}" type: "{kind}" {reads}top: "{top or name}" {body} }}\n'


def header(name: str, channels: int, size: int) -> str:
    """Name of the network and its input, the blob `data` of shape (1, channels, size, size)."""
    shape = f"dim: 1 dim: {channels} dim: {size} dim: {size}"
    return (
        f'name: "{name}"\n'
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape: {{ {shape} }} }} }}\n'
    )


def relu(name: str, blob: str) -> str:
    """In-place rectifier on `blob`."""
    return layer(name, "ReLU", blob, top=blob)


def convolution(
    name: str,
    bottom: str,
    filters: int,
    kernel: int,
    *,
    stride: int = 1,
    pad: int = 0,
    group: int = 1,
    weights: str = XAVIER,
    bias: float | None = 0,
) -> str:
    """Square convolution; `bias` is its initial value, None for a convolution without biases."""
    bias_text = "bias_term: false" if bias is None else f'bias_filler {{ type: "constant" value: {bias} }}'
    return layer(
        name,
        "Convolution",
        bottom,
        f"convolution_param {{ num_output: {filters} kernel_size: {kernel} stride: {stride} pad: {pad} "
        f"group: {group} weight_filler {{ {weights} }} {bias_text} }}",
    )


def inner_product(name: str, bottom: str, outputs: int, *, weights: str = XAVIER, bias: float = 0) -> str:
    """Fully connected layer."""
    return layer(
        name,
        "InnerProduct",
        bottom,
        f"inner_product_param {{ num_output: {outputs} weight_filler {{ {weights} }} "
        f'bias_filler {{ type: "constant" value: {bias} }} }}',
    )


def pooling(name: str, bottom: str, kernel: int, *, stride: int, pad: int = 0, kind: str = "MAX") -> str:
    """Square pooling window; `kind` is MAX or AVE. Caffe rounds the output size up."""
    return layer(
        name,
        "Pooling",
        bottom,
        f"pooling_param {{ pool: {kind} kernel_size: {kernel} stride: {stride} pad: {pad} }}",
    )


def global_average(name: str, bottom: str) -> str:
    """Mean of each channel over the whole map."""
    return layer(name, "Pooling", bottom, "pooling_param { pool: AVE global_pooling: true }")


def lrn(name: str, bottom: str, alpha: float = 0.0001) -> str:
    """Local response normalization over 5 neighbouring channels, exponent 0.75."""
    return layer(name, "LRN", bottom, f"lrn_param {{ local_size: 5 alpha: {alpha} beta: 0.75 }}")


def dropout(name: str, blob: str, ratio: float = 0.5) -> str:
    """In-place dropout on `blob`."""
    return layer(name, "Dropout", blob, f"dropout_param {{ dropout_ratio: {ratio} }}", top=blob)


def softmax(bottom: str) -> str:
    """Class probabilities, in the blob `prob`."""
    return layer("prob", "Softmax", bottom)


def inception(
    name: str, bottom: str, filters: tuple[int, int, int, int, int, int], *, bias: float = 0.2
) -> str:
    """GoogLeNet's module; its output is the blob `{name}/output`.

    `filters` holds the widths of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5 and pool_proj.
    """
    one, three_reduce, three, five_reduce, five, projection = filters

    def branch(part: str, source: str, count: int, kernel: int) -> str:
        blob = f"{name}/{part}"
        return convolution(blob, source, count, kernel, pad=kernel // 2, bias=bias) + relu(
            f"{name}/relu_{part}", blob
        )

    return (
        branch("1x1", bottom, one, 1)
        + branch("3x3_reduce", bottom, three_reduce, 1)
        + branch("3x3", f"{name}/3x3_reduce", three, 3)
        + branch("5x5_reduce", bottom, five_reduce, 1)
        + branch("5x5", f"{name}/5x5_reduce", five, 5)
        + pooling(f"{name}/pool", bottom, 3, stride=1, pad=1)
        + branch("pool_proj", f"{name}/pool", projection, 1)
        + layer(f"{name}/output", "Concat", [f"{name}/{part}" for part in ("1x1", "3x3", "5x5", "pool_proj")])
    )


def alexnet() -> str:
    """BVLC AlexNet: grouped convolutions and LRN, input 3×227×227 (Krizhevsky et al., 2012)."""

    def conv(index: int, bottom: str, filters: int, kernel: int, bias: float, **shape: int) -> str:
        name = f"conv{index}"
        text = convolution(name, bottom, filters, kernel, weights=gaussian(0.01), bias=bias, **shape)
        return text + relu(f"relu{index}", name)

    def hidden(index: int, bottom: str) -> str:
        name = f"fc{index}"
        text = inner_product(name, bottom, 4096, weights=gaussian(0.005), bias=0.1)
        return text + relu(f"relu{index}", name) + dropout(f"drop{index}", name)

    return (
        header("AlexNet", 3, 227)
        + conv(1, "data", 96, 11, 0, stride=4)
        + lrn("norm1", "conv1")
        + pooling("pool1", "norm1", 3, stride=2)
        + conv(2, "pool1", 256, 5, 0.1, pad=2, group=2)
        + lrn("norm2", "conv2")
        + pooling("pool2", "norm2", 3, stride=2)
        + conv(3, "pool2", 384, 3, 0, pad=1)
        + conv(4, "conv3", 384, 3, 0.1, pad=1, group=2)
        + conv(5, "conv4", 256, 3, 0.1, pad=1, group=2)
        + pooling("pool5", "conv5", 3, stride=2)
        + hidden(6, "pool5")
        + hidden(7, "fc6")
        + inner_product("fc8", "fc7", 1000, weights=gaussian(0.01))
        + softmax("fc8")
    )


def vgg16() -> str:
    """VGG with 16 layers, input 3×224×224 (Simonyan and Zisserman, 2014).

    The published deploy file names no fillers; these are the ones of Intel Caffe's `default_vgg_16`.
    """
    text, bottom = header("VGG_ILSVRC_16_layers", 3, 224), "data"
    for stage, (filters, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for index in range(1, depth + 1):
            name = f"conv{stage}_{index}"
            text += convolution(name, bottom, filters, 3, pad=1) + relu(f"relu{stage}_{index}", name)
            bottom = name
        text += pooling(f"pool{stage}", bottom, 2, stride=2)
        bottom = f"pool{stage}"
    for index in (6, 7):
        name = f"fc{index}"
        text += inner_product(name, bottom, 4096, bias=0.1)
        text += relu(f"relu{index}", name) + dropout(f"drop{index}", name)
        bottom = name
    return text + inner_product("fc8", bottom, 1000, bias=0.1) + softmax("fc8")


def googlenet() -> str:
    """BVLC GoogLeNet without its training-time classifiers, input 3×224×224 (Szegedy et al., 2014)."""
    stages = {
        3: {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
        4: {
            "a": (192, 96, 208, 16, 48, 64),
            "b": (160, 112, 224, 24, 64, 64),
            "c": (128, 128, 256, 24, 64, 64),
            "d": (112, 144, 288, 32, 64, 64),
            "e": (256, 160, 320, 32, 128, 128),
        },
        5: {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
    }
    text = (
        header("GoogleNet", 3, 224)
        + convolution("conv1/7x7_s2", "data", 64, 7, stride=2, pad=3, bias=0.2)
        + relu("conv1/relu_7x7", "conv1/7x7_s2")
        + pooling("pool1/3x3_s2", "conv1/7x7_s2", 3, stride=2)
        + lrn("pool1/norm1", "pool1/3x3_s2")
        + convolution("conv2/3x3_reduce", "pool1/norm1", 64, 1, bias=0.2)
        + relu("conv2/relu_3x3_reduce", "conv2/3x3_reduce")
        + convolution("conv2/3x3", "conv2/3x3_reduce", 192, 3, pad=1, bias=0.2)
        + relu("conv2/relu_3x3", "conv2/3x3")
        + lrn("conv2/norm2", "conv2/3x3")
    )
    bottom = "conv2/norm2"
    for stage, modules in stages.items():
        pool = f"pool{stage - 1}/3x3_s2"
        text += pooling(pool, bottom, 3, stride=2)
        bottom = pool
        for letter, filters in modules.items():
            name = f"inception_{stage}{letter}"
            text += inception(name, bottom, filters)
            bottom = f"{name}/output"
    return (
        text
        + pooling("pool5/7x7_s1", bottom, 7, stride=1, kind="AVE")
        + dropout("pool5/drop_7x7_s1", "pool5/7x7_s1", 0.4)
        + inner_product("loss3/classifier", "pool5/7x7_s1", 1000)
        + softmax("loss3/classifier")
    )


def squeezenet() -> str:
    """SqueezeNet v1.0, input 3×227×227 (Iandola et al., 2016)."""
    text = (
        header("SqueezeNet", 3, 227)
        + convolution("conv1", "data", 96, 7, stride=2)
        + relu("relu_conv1", "conv1")
        + pooling("pool1", "conv1", 3, stride=2)
    )
    bottom = "pool1"
    for index in range(2, 10):
        squeeze = 16 * (index // 2)
        name = f"fire{index}"
        for part, source, filters, kernel in (
            ("squeeze1x1", bottom, squeeze, 1),
            ("expand1x1", f"{name}/squeeze1x1", 4 * squeeze, 1),
            ("expand3x3", f"{name}/squeeze1x1", 4 * squeeze, 3),
        ):
            text += convolution(f"{name}/{part}", source, filters, kernel, pad=kernel // 2)
            text += relu(f"{name}/relu_{part}", f"{name}/{part}")
        bottom = f"{name}/concat"
        text += layer(bottom, "Concat", [f"{name}/expand1x1", f"{name}/expand3x3"])
        if index in (4, 8):
            text += pooling(f"pool{index}", bottom, 3, stride=2)
            bottom = f"pool{index}"
    return (
        text
        + dropout("drop9", bottom)
        + convolution("conv10", bottom, 1000, 1, pad=1, weights=gaussian(0.01))
        + relu("relu_conv10", "conv10")
        + global_average("pool10", "conv10")
        + softmax("pool10")
    )


def resnet18(size: int = 224, width: int = 64) -> str:
    """ResNet-18 in the layers and names of Caffe's ResNets (He et al., 2015).

    `size` is the input's height and width; `width` the filters of the first stage, doubled by each later one.
    """

    def normalized(suffix: str, name: str) -> str:
        return layer(f"bn{suffix}", "BatchNorm", name, top=name) + layer(
            f"scale{suffix}", "Scale", name, "scale_param { bias_term: true }", top=name
        )

    def conv(block: str, branch: str, bottom: str, filters: int, kernel: int, stride: int) -> str:
        suffix = f"{block}_{branch}"
        name = f"res{suffix}"
        text = convolution(
            name, bottom, filters, kernel, stride=stride, pad=kernel // 2, weights=MSRA, bias=None
        )
        return text + normalized(suffix, name)

    text = (
        header("ResNet-18", 3, size)
        + convolution("conv1", "data", width, 7, stride=2, pad=3, weights=MSRA, bias=None)
        + normalized("_conv1", "conv1")
        + relu("conv1_relu", "conv1")
        + pooling("pool1", "conv1", 3, stride=2)
    )
    bottom = "pool1"
    for stage in range(2, 6):
        filters = width * 2 ** (stage - 2)
        for letter in "ab":
            block = f"{stage}{letter}"
            stride = 2 if letter == "a" and stage > 2 else 1
            shortcut = bottom
            if stride == 2:
                text += conv(block, "branch1", bottom, filters, 1, stride)
                shortcut = f"res{block}_branch1"
            text += (
                conv(block, "branch2a", bottom, filters, 3, stride)
                + relu(f"res{block}_branch2a_relu", f"res{block}_branch2a")
                + conv(block, "branch2b", f"res{block}_branch2a", filters, 3, 1)
                + layer(f"res{block}", "Eltwise", [shortcut, f"res{block}_branch2b"])
                + relu(f"res{block}_relu", f"res{block}")
            )
            bottom = f"res{block}"
    return (
        text
        + global_average("pool5", bottom)
        + inner_product("fc1000", "pool5", 1000, weights=MSRA)
        + softmax("fc1000")
    )


NETWORKS = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "googlenet": googlenet,
    "squeezenet": squeezenet,
    "resnet18": resnet18,
}


def build(name: str, seed: int = 0, **shape: int) -> ir.Model:
    """Network `name` of NETWORKS with parameters drawn from `seed`; the same seed gives the same weights.

    `shape` goes to the network's function: `build("resnet18", size=64, width=16)`.
    Raises KeyError for a name that is not in NETWORKS.
    """
    return import_caffe_text(NETWORKS[name](**shape), seed=seed)


def main() -> None:
    """Write one network to a file: as ONNX, or its text if the file ends in .prototxt."""
    parser = argparse.ArgumentParser(description="Build a well-known network with seeded weights.")
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("-o", "--output", required=True, help="FILE.onnx, or FILE.prototxt for the text")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.output.endswith(".prototxt"):
        with open(arguments.output, "w", encoding="utf-8") as file:
            file.write(NETWORKS[arguments.network]())
    else:
        ir.save(build(arguments.network, arguments.seed), arguments.output)


if __name__ == "__main__":
    main()
