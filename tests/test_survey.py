"""What is measured before anything is decided."""

import numpy as np

from onnxcompress.calibration.samples import Samples, split
from onnxcompress.calibration.statistics import statistics
from onnxcompress.layers import factor_layers
from onnxcompress.planning.survey import PROBES, Change, measured_damage, survey
from onnxcompress.shapes import concrete_shapes
from tests.onnx_text import network


def test_damage_is_measured_on_samples_of_all_classes():
    """Samples often come ordered by class: a layer that only the last of them need must count."""
    model = network(
        "g (float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Conv (x, w, b) }",
        {"w": np.ones((2, 1, 1, 1), np.float32), "b": np.zeros(2, np.float32)},
    )
    x = np.zeros((40 * PROBES, 1, 4, 4), np.float32)
    x[-8 * PROBES :] = np.random.default_rng(0).standard_normal((8 * PROBES, 1, 4, 4))
    parts = split(Samples({"x": x}, np.arange(len(x))))
    found = survey(model, parts, statistics(model, factor_layers(model, concrete_shapes(model)), parts.fit))
    (layer,) = found.layers
    doubled = Change(layer, 2 * layer.weight, layer.bias)
    assert measured_damage(found, {"doubled": [doubled]})["doubled"] > 0
