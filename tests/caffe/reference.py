"""The two sides of a comparison: ONNX Runtime on the import, and OpenCV's own importer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxcompress.caffe.schema import NetParameter

MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"


def input_layer(name: str, *shape: int) -> str:
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def layer(
    kind: str, body: str = "", *, bottoms: Sequence[str] = ("data",), tops: Sequence[str] = ("out",)
) -> str:
    """Text of one layer, named after its first top."""
    reads = " ".join(f'bottom: "{blob}"' for blob in bottoms)
    writes = " ".join(f'top: "{blob}"' for blob in tops)
    return f'layer {{ name: "{tops[0]}" type: "{kind}" {reads} {writes} {body} }}\n'


def caffemodel(weights: Mapping[str, Sequence[np.ndarray]], form: str = "layer") -> bytes:
    """A file of weights.

    `form` is "layer", "V1" for V1 layers whose blobs have the 4-D legacy shape, or "double" for blobs of
    doubles.
    """
    net = NetParameter()
    for name, arrays in weights.items():
        entry = (net.layers if form == "V1" else net.layer).add(name=name)
        for array in arrays:
            if form == "V1":
                num, channels, height, width = (1,) * (4 - array.ndim) + array.shape
                blob = entry.blobs.add(num=num, channels=channels, height=height, width=width)
            elif array.ndim:
                blob = entry.blobs.add(shape={"dim": array.shape})
            else:  # as Caffe does
                blob = entry.blobs.add()
            if form == "double":
                blob.double_data = array.astype("<f8").tobytes()
            else:
                blob.data = array.astype("<f4").tobytes()
    return net.SerializeToString()


def random_weights(
    shapes: Mapping[str, Sequence[tuple[int, ...]]], seed: int = 1
) -> dict[str, list[np.ndarray]]:
    """Arrays of each layer; all positive, so that they can be variances too."""
    random = np.random.default_rng(seed)
    return {
        name: [random.uniform(0.1, 1, shape).astype(np.float32) for shape in layer_shapes]
        for name, layer_shapes in shapes.items()
    }


def random_feeds(shapes: Mapping[str, tuple[int, ...]], seed: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run_onnx(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check the model in full and run it; every output must have the shape that the model declares."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.get_outputs()
    results = dict(zip([output.name for output in outputs], session.run(None, dict(feeds)), strict=True))
    for output in outputs:
        assert len(output.shape) == results[output.name].ndim
        for declared, size in zip(output.shape, results[output.name].shape, strict=True):
            assert isinstance(declared, str) or declared == size
    return results


def run_opencv(prototxt: str, weights: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run sample by sample, since the prototxt says a batch of one."""
    buffers = [np.frombuffer(content, np.uint8) for content in (prototxt.encode(), weights) if content]
    net = cv2.dnn.readNetFromCaffe(*buffers)
    names = net.getUnconnectedOutLayersNames()
    samples = []
    for index in range(len(next(iter(feeds.values())))):
        for name, array in feeds.items():
            net.setInput(array[index : index + 1], name)
        samples.append([output.copy() for output in net.forward(names)])
    return {
        name: np.concatenate(parts) for name, parts in zip(names, zip(*samples, strict=True), strict=True)
    }


def relative_difference(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest expected magnitude."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())
