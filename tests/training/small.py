"""A small network and a task that it can learn in a second."""

import numpy as np

from onnxcompress.caffe import import_caffe_text
from onnxcompress.data import Data

FROZEN = "param { lr_mult: 0 } param { lr_mult: 0 }"
USUAL = "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }"
PROTOTXT = """
input: "data" input_shape { dim: 1 dim: 1 dim: 8 dim: 8 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" USUAL
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" }
  bias_filler { type: "constant" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" lrn_param { local_size: 5 alpha: 0.1 } }
layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1" pooling_param {
  pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" USUAL
  convolution_param { num_output: 12 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" USUAL
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
""".replace("USUAL", USUAL)


def learning(multipliers, *layers):
    """The prototxt with other multipliers for these layers."""
    text = PROTOTXT
    for layer in layers:
        text = text.replace(f'top: "{layer}" {USUAL}', f'top: "{layer}" {multipliers}')
    return text


def network(seed=0):
    return import_caffe_text(PROTOTXT, seed=seed)


def samples(count, seed=0):
    """A bright quarter somewhere in noise: which one is the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    x = random.normal(0, 0.5, (count, 1, 8, 8)).astype(np.float32)
    for image, label in zip(x, labels, strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[0, top : top + 4, left : left + 4] += 1
    return Data("quarters", x, labels.astype(np.int64))
