import onnx_ir as ir

import onnxcompress as oc
from onnxcompress.caffe import import_caffe_text
from onnxcompress.lrn import lrn_nodes, rewrite_lrn
from onnxcompress.model import simplify
from onnxcompress.training.parameters import BIAS, Multipliers, trainable
from tests.training.small import PROTOTXT, network


def test_biases_learn_twice_as_fast_and_do_not_decay():
    found = trainable(simplify(network()))
    assert {name: each for name, each in found.items() if name.endswith("bias")} == dict.fromkeys(
        ["conv1.bias", "conv2.bias", "fc.bias"], BIAS
    )
    assert found["conv1.weight"] == Multipliers()


def test_multipliers_of_a_prototxt_stay_with_the_network(tmp_path):
    text = PROTOTXT.replace(
        'top: "conv2" convolution_param',
        'top: "conv2" param { lr_mult: 0 } param { lr_mult: 3 decay_mult: 0.5 } convolution_param',
    )
    oc.save(import_caffe_text(text, seed=0), tmp_path / "model.onnx")
    found = trainable(simplify(oc.load(tmp_path / "model.onnx")))
    assert found["conv2.weight"] == Multipliers(0, 1)
    assert found["conv2.bias"] == Multipliers(3, 0.5)
    assert found["conv1.bias"] == BIAS


def test_multipliers_of_the_old_form():
    text = """
    input: "data" input_dim: 1 input_dim: 1 input_dim: 4 input_dim: 4
    layers { name: "fc" type: INNER_PRODUCT bottom: "data" top: "fc" blobs_lr: 10 blobs_lr: 20 weight_decay: 1
      weight_decay: 0 inner_product_param { num_output: 3 } }
    """
    assert trainable(import_caffe_text(text, seed=0)) == {
        "fc.weight": Multipliers(10, 1),
        "fc.bias": Multipliers(20, 0),
    }


def test_an_lrn_written_as_convolutions_is_not_trained():
    model = network()
    rewritten = rewrite_lrn(model, lrn_nodes(model))
    assert isinstance(rewritten, ir.Model)
    assert list(trainable(rewritten)) == list(trainable(model))
