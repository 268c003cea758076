import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.caffe import import_caffe_text
from onnxcompress.errors import InputError
from onnxcompress.lrn import lrn_nodes, rewrite_lrn
from onnxcompress.model import simplify
from onnxcompress.training.parameters import BIAS, Multipliers, trainable
from tests.training.small import FROZEN, learning, network


def test_biases_learn_twice_as_fast_and_do_not_decay():
    found = trainable(simplify(network()))
    assert {name: each for name, each in found.items() if name.endswith("bias")} == dict.fromkeys(
        ["conv1.bias", "conv2.bias", "fc.bias"], BIAS
    )
    assert found["conv1.weight"] == Multipliers()


def test_multipliers_of_a_prototxt_stay_with_the_network(tmp_path):
    text = learning("param { lr_mult: 0 } param { lr_mult: 3 decay_mult: 0.5 }", "conv2")
    oc.save(import_caffe_text(text, seed=0), tmp_path / "model.onnx")
    found = trainable(simplify(oc.load(tmp_path / "model.onnx")))
    assert found["conv2.weight"] == Multipliers(0, 1)
    assert found["conv2.bias"] == Multipliers(3, 0.5)
    assert found["conv1.bias"] == BIAS
    found = trainable(import_caffe_text(learning("", "conv1"), seed=0))
    assert found["conv1.weight"] == found["conv1.bias"] == Multipliers()


SHARING = """
input: "data" input_shape { dim: 1 dim: 4 }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" FIRST }
        inner_product_param { num_output: 4 bias_term: false } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" SECOND }
        inner_product_param { num_output: 4 bias_term: false } }
"""


@pytest.mark.parametrize(("first", "second"), [("", "lr_mult: 0"), ("lr_mult: 0", ""), ("lr_mult: 0",) * 2])
def test_what_a_shared_parameter_learns_by_may_stand_in_any_of_its_layers(first, second):
    found = trainable(import_caffe_text(SHARING.replace("FIRST", first).replace("SECOND", second), seed=0))
    assert [each for name, each in found.items() if name.startswith("a.")] == [Multipliers(0, 1)]


def test_layers_that_share_a_parameter_agree_on_what_it_learns_by():
    text = SHARING.replace("FIRST", "decay_mult: 2").replace("SECOND", "decay_mult: 0")
    with pytest.raises(
        InputError, match=r"layer 'b' .* 'w', but its decay_mult is 2 in an earlier layer and 0"
    ):
        import_caffe_text(text, seed=0)


SCALED = """
input: "data" input_shape { dim: 1 dim: 1 dim: 4 dim: 4 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 0 }
        convolution_param { num_output: 3 kernel_size: 3 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" FROZEN scale_param { bias_term: true } }
layer { name: "slope" type: "PReLU" bottom: "conv" top: "conv" FROZEN prelu_param { channel_shared: SHARED } }
layer { name: "again" type: "Scale" bottom: "conv" top: "conv" FROZEN scale_param { filler { value: 2 } } }
layer { name: "bias" type: "Bias" bottom: "conv" top: "conv" FROZEN bias_param { filler { value: 3 } } }
layer { name: "power" type: "Power" bottom: "conv" top: "conv" power_param { scale: 2 } }
layer { name: "alone" type: "BatchNorm" bottom: "conv" top: "alone" }
layer { name: "fc" type: "InnerProduct" bottom: "alone" top: "fc" inner_product_param { num_output: 2 } }
"""


@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("shared", ["true", "false"])
def test_parameters_of_every_kind_can_be_frozen(simplified, shared):
    text = SCALED.replace("SHARED", shared)
    for change, trained in ((FROZEN, {"fc"}), ("", {"bn", "slope", "again", "bias", "fc"})):
        model = import_caffe_text(text.replace("FROZEN", change), seed=0)
        found = trainable(simplify(model) if simplified else model)
        trained = trained - ({"bn"} if simplified else set())  # its scale is the frozen convolution's
        assert {name.split(".")[0] for name, each in found.items() if each.rate} == trained


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
