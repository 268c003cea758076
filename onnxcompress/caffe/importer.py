"""Networks of Caffe as ONNX."""

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxcompress import preprocessing as prep
from onnxcompress.caffe import prototxt as prototxt_file
from onnxcompress.caffe.graph import multipliers, start
from onnxcompress.caffe.layers import convert
from onnxcompress.caffe.network import Network, normalise, unique
from onnxcompress.caffe.parameters import Source, from_caffemodel, from_fillers
from onnxcompress.caffe.schema import NetParameter
from onnxcompress.errors import InputError
from onnxcompress.training.parameters import note_multipliers

OLDEST_OPSET = 13
"""From which ONNX has the operators in the form that the converters write."""


def import_caffe(
    prototxt: str | Path,
    caffemodel: str | Path | None = None,
    *,
    preprocessing: prep.Preprocessing | None = None,
    seed: int = 0,
    opset: int = 20,
) -> ir.Model:
    """Convert a Caffe network to ONNX, for inference.

    Layers and blobs keep their names. The first dimension of the inputs, the batch, is free (N).

    Args:
        prototxt: path of the network's description, in the present or the V1 form.
        caffemodel: path of its weights. Without them, they are drawn from the fillers that the prototxt names
            (a parameter without a filler is zero, as in Caffe); the statistics of BatchNorm layers are then
            mean 0 and variance 1.
        preprocessing: goes into the metadata. None is Caffe's for ImageNet, where the network has one input
            and that is of images with 3 channels.
        seed: of the drawn weights.
        opset: version of ONNX's operators.

    Raises:
        InputError: when a file cannot be read, the two do not belong together, the weights hold NaN or
            infinite values, or a layer is not supported.
    """
    path = Path(prototxt)
    text = prototxt_file.read(path)
    source = _source(caffemodel, seed)
    try:
        return _convert(text, source, preprocessing, opset)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def import_caffe_text(
    text: str,
    caffemodel: str | Path | None = None,
    *,
    preprocessing: prep.Preprocessing | None = None,
    seed: int = 0,
    opset: int = 20,
) -> ir.Model:
    """Like `import_caffe`, from the text of a prototxt."""
    return _convert(text, _source(caffemodel, seed), preprocessing, opset)


def _source(caffemodel: str | Path | None, seed: int) -> Source:
    return from_fillers(seed) if caffemodel is None else from_caffemodel(Path(caffemodel))


def _convert(text: str, source: Source, preprocessing: prep.Preprocessing | None, opset: int) -> ir.Model:
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise InputError(f"opset {opset} is not supported; give one from {OLDEST_OPSET} to {newest}")
    network = normalise(_parse(text))
    model = _build(network, source, opset)
    if preprocessing is not None:
        prep.attach(model, preprocessing)
    elif [(len(shape), *shape[1:2]) for shape in network.inputs.values()] == [(4, 3)]:
        prep.attach(model, prep.Preprocessing())
    return model


def _parse(text: str) -> Any:
    net = prototxt_file.parse(text, NetParameter())
    if not net.layer and not net.layers:
        raise InputError("describes no layers; give the deploy prototxt of a network")
    return net


def _build(network: Network, source: Source, opset: int) -> ir.Model:
    graph = start(network, source)
    inputs = [graph.blobs[name].value for name in network.inputs]
    for layer in network.layers:
        convert(graph, layer)
    for node in graph.nodes:
        note_multipliers(node, multipliers(graph, node))
    outputs = []
    for blob, name in network.outputs:
        value = graph.blobs[name].value
        if blob != name:
            alias = ir.Value(name=blob, type=value.type, shape=value.shape)
            graph.nodes.append(
                ir.node("Identity", [value], outputs=[alias], name=unique(blob, graph.node_names))
            )
            value = alias
        outputs.append(value)
    return ir.Model(
        ir.Graph(
            inputs,
            outputs,
            nodes=graph.nodes,
            initializers=list(graph.initializers.values()),
            opset_imports={"": opset},
            name=network.name or "network",
        ),
        ir_version=onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]),
        producer_name="onnxcompress",
    )
