"""Parameters drawn from a prototxt's fillers have the distributions of Caffe's source."""

import numpy as np
import pytest

from onnxcompress.caffe import import_caffe_text
from onnxcompress.caffe.fillers import draw
from onnxcompress.caffe.schema import FillerParameter
from tests.caffe.reference import input_layer, layer

SHAPE = (40, 30, 5, 5)
FAN_IN, FAN_OUT = 30 * 25, 40 * 25


def drawn(shape=SHAPE, **filler):
    array = draw(FillerParameter(**filler), shape, np.random.default_rng(0))
    assert array.dtype == np.float32
    assert array.shape == shape
    return array


def test_constant():
    assert (drawn(type="constant", value=0.2) == np.float32(0.2)).all()
    assert (drawn() == 0).all()


def test_uniform():
    array = drawn(type="uniform", min=-1, max=3)
    assert -1 <= array.min() < -0.99
    assert 2.99 < array.max() <= 3
    assert array.mean() == pytest.approx(1, abs=0.05)


def test_gaussian():
    array = drawn(type="gaussian", mean=2, std=0.5)
    assert array.mean() == pytest.approx(2, abs=0.02)
    assert array.std() == pytest.approx(0.5, rel=0.02)
    sparse = drawn(type="gaussian", sparse=10)
    assert np.count_nonzero(sparse) / sparse.size == pytest.approx(10 / 40, rel=0.05)


@pytest.mark.parametrize(("norm", "fan"), [(0, FAN_IN), (1, FAN_OUT), (2, (FAN_IN + FAN_OUT) / 2)])
def test_fans(norm, fan):
    xavier = drawn(type="xavier", variance_norm=norm)
    assert np.abs(xavier).max() == pytest.approx(np.sqrt(3 / fan), rel=1e-3)
    assert np.abs(xavier).max() <= np.sqrt(3 / fan) * (1 + 1e-6)
    assert xavier.mean() == pytest.approx(0, abs=1e-3)
    assert drawn(type="msra", variance_norm=norm).std() == pytest.approx(np.sqrt(2 / fan), rel=0.02)


def test_positive_unitball():
    array = drawn(type="positive_unitball")
    assert array.min() >= 0
    np.testing.assert_allclose(array.reshape(40, -1).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "profile",
    [
        np.array([1, 1]) / 2,
        np.array([1, 2, 1]) / 2,
        np.array([1, 3, 3, 1]) / 4,
        np.array([1, 2, 3, 2, 1]) / 3,
        np.array([1, 3, 5, 5, 3, 1]) / 6,
        np.array([1, 2, 3, 4, 3, 2, 1]) / 4,
    ],
)
def test_bilinear(profile):
    size = len(profile)
    found = drawn((3, 1, size, size), type="bilinear")[2, 0]
    np.testing.assert_allclose(found, np.outer(profile, profile), rtol=1e-6)


def test_seed_decides():
    text = input_layer("data", 1, 4) + layer(
        "InnerProduct", 'inner_product_param { num_output: 3 weight_filler { type: "xavier" } }'
    )
    first, same, other = (
        import_caffe_text(text, seed=seed).graph.initializers["out.weight"].const_value.numpy()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_untrained_batch_norm_keeps_its_input():
    model = import_caffe_text(input_layer("data", 1, 4) + layer("BatchNorm"))
    constants = {name: value.const_value.numpy().tolist() for name, value in model.graph.initializers.items()}
    assert constants == {
        "out.scale": [1] * 4,
        "out.bias": [0] * 4,
        "out.mean": [0] * 4,
        "out.variance": [1] * 4,
    }
