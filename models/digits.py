"""Train the small Inception network that ships as digits_inception.onnx.

    python -m models.digits

The trainer is the package's own. The test part is read once, at the end, to report; the hyper-parameters
below were chosen on the calibration part.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper
from scipy.ndimage import affine_transform

from models import zoo
from models.digits_data import Part, load_digits_parts
from onnxcompress.caffe import import_caffe_text
from onnxcompress.training.losses import Loss, Term
from onnxcompress.training.parameters import Multipliers, current, trainable, with_weights
from onnxcompress.training.schedules import Schedule
from onnxcompress.training.trainer import Batch, Recipe, start
from onnxcompress.training.trainer import train as steps

SHIPPED = Path(__file__).with_name("digits_inception.onnx")
LRN_ALPHA = 0.1  # GoogLeNet's 0.0001 is for pixels of 0..255; with 0..1 it would do nothing
BATCH = 32
PEAK_RATE = 0.003
SMOOTHING = 0.05
MAX_SHIFT = 1.5
MAX_TURN = np.deg2rad(10)


def prototxt() -> str:
    """Text of the network: input `data` (n, 1, 16, 16), output `prob` (n, 10)."""
    return (
        zoo.header("DigitsInception", 1, 16)
        + zoo.convolution("conv1/3x3", "data", 32, 3, pad=1)
        + zoo.relu("conv1/relu_3x3", "conv1/3x3")
        + zoo.lrn("conv1/norm1", "conv1/3x3", LRN_ALPHA)
        + zoo.convolution("conv2/3x3_reduce", "conv1/norm1", 32, 1)
        + zoo.relu("conv2/relu_3x3_reduce", "conv2/3x3_reduce")
        + zoo.convolution("conv2/3x3", "conv2/3x3_reduce", 64, 3, pad=1)
        + zoo.relu("conv2/relu_3x3", "conv2/3x3")
        + zoo.lrn("conv2/norm2", "conv2/3x3", LRN_ALPHA)
        + zoo.pooling("pool2/2x2_s2", "conv2/norm2", 2, stride=2)
        + zoo.inception("inception_3a", "pool2/2x2_s2", (32, 48, 64, 8, 16, 16), bias=0)
        + zoo.inception("inception_3b", "inception_3a/output", (48, 64, 96, 16, 32, 32), bias=0)
        + zoo.pooling("pool3/2x2_s2", "inception_3b/output", 2, stride=2)
        + zoo.inception("inception_4a", "pool3/2x2_s2", (64, 64, 96, 16, 32, 32), bias=0)
        + zoo.global_average("pool4", "inception_4a/output")
        + zoo.inner_product("classifier", "pool4", 10)
        + zoo.softmax("classifier")
    )


def untrained(seed: int) -> onnx.ModelProto:
    """The network with weights drawn from `seed`."""
    return ir.to_proto(import_caffe_text(prototxt(), seed=seed))


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image turned and shifted a little, at random; same shape, zeros outside."""
    result = np.empty_like(images)
    centre = (np.array(images.shape[2:]) - 1) / 2
    for image, moved in zip(images[:, 0], result[:, 0], strict=True):
        angle = rng.uniform(-MAX_TURN, MAX_TURN)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        offset = centre - turn @ centre + rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
        affine_transform(image, turn, offset, output=moved, order=1)
    return result


def train(model: onnx.ModelProto, part: Part, epochs: int, seed: int) -> onnx.ModelProto:
    """`model` with its weights trained on `part` by Adam, the rate rising briefly and falling as a cosine."""
    rng = np.random.default_rng(seed)
    per_epoch = len(part.labels) // BATCH
    targets = np.eye(10, dtype=np.float32) * (1 - SMOOTHING) + np.float32(SMOOTHING / 10)
    network = ir.from_proto(model)
    names = list(trainable(network))
    recipe = Recipe(
        optimizer="adam-caffe",
        rate=PEAK_RATE,
        schedule=Schedule(warmup=epochs * per_epoch // 20),
        batch=BATCH,
    )
    order = np.empty(0, np.int64)

    def batch_of(step: int) -> Batch:
        nonlocal order
        position = step % per_epoch
        if position == 0:
            order = rng.permutation(len(part.labels))
        batch = order[position * BATCH : (position + 1) * BATCH]
        return augment(part.images[batch], rng), [targets[part.labels[batch]]]

    state = start(current(network, names), recipe)
    loss = Loss(network, names, [Term()], BATCH)
    losses = []
    for step in steps(loss, state, dict.fromkeys(names, Multipliers()), batch_of, epochs * per_epoch, recipe):
        losses.append(step.loss)
        if step.number % per_epoch == 0:
            print(f"epoch {step.number // per_epoch:3d} of {epochs}: loss {np.mean(losses):.4f}", flush=True)
            losses = []
    return ir.to_proto(with_weights(network, state.weights))


def accuracy(model: onnx.ModelProto, part: Part) -> float:
    """Fraction of `part` whose most probable class is the label."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: part.images})
    return float(np.mean(probabilities.argmax(axis=1) == part.labels))


def main() -> None:
    """Train the network, report its accuracy on each part and write it."""
    parser = argparse.ArgumentParser(description="Train the digits network.")
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, the order and the turns")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()

    parts = load_digits_parts()
    model = train(untrained(arguments.seed), parts["train"], arguments.epochs, arguments.seed)
    results = {name: f"{accuracy(model, part):.4f}" for name, part in parts.items()}
    for name, result in results.items():
        print(f"{name:12} {len(parts[name].labels):5d} images   accuracy {result}")
    helper.set_model_props(
        model,
        {
            "task": "digits 0..9 of sklearn.datasets.load_digits, prepared by models/digits_data.py",
            "trained by": f"python -m models.digits --seed {arguments.seed} --epochs {arguments.epochs}",
            **{f"accuracy on {name}": result for name, result in results.items()},
        },
    )
    onnx.save(model, arguments.output)


if __name__ == "__main__":
    main()
