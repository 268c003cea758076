"""The identities on the published networks' own shapes, with seeded weights."""

import numpy as np
import pytest

import onnxcompress as oc
from models import zoo
from onnxcompress.runtime import run, session
from tests.oracle import outputs_with_removed_read_as_zero


@pytest.mark.parametrize(
    ("name", "shape", "ratio", "scope"),
    [
        ("alexnet", {}, 0.4, "layer"),
        ("googlenet", {}, 0.3, "layer"),
        ("googlenet", {}, 0.9, "global"),
        ("squeezenet", {}, 0.75, "layer"),
        ("resnet18", {"size": 64, "width": 16}, 0.5, "layer"),
    ],
)
def test_pruned_equals_original_whose_readers_read_zero(name, shape, ratio, scope):
    model = zoo.build(name, **shape)
    result = oc.prune(model, ratio=ratio, scope=scope)
    value = model.graph.inputs[0]
    random = np.random.default_rng(0)
    feeds = {value.name: random.uniform(-120, 120, (1, *value.shape[1:])).astype(np.float32)}
    expected = outputs_with_removed_read_as_zero(model, result.plan.prune, feeds)
    for optimize in (False, True):
        actual = run(session(result.model, optimize=optimize), feeds)
        np.testing.assert_allclose(actual[0], expected[0], rtol=0, atol=1e-4 * np.abs(expected[0]).max())
    layers = [node.name for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert set(result.plan.prune) | set(result.plan.kept) == set(layers)
    assert list(result.plan.kept) == [layers[-1]]


def test_nothing_in_googlenet_is_tied_or_held_back():
    found = oc.inspect(zoo.build("googlenet"))
    assert not found.unknown
    assert len(found.groups) == 57
    assert all(len(group.layers) == 1 for group in found.groups)


def test_compress_writes_lrn_as_bands_exactly_even_where_nothing_is_pruned():
    model = zoo.build("alexnet")
    result = oc.compress(model, ratio=0, rank="energy:1")
    assert result.plan.rewrite == ["norm1", "norm2"]
    assert "LRN" not in {node.op_type for node in result.model.graph}
    feeds = {"data": np.random.default_rng(0).uniform(-120, 120, (2, 3, 227, 227)).astype(np.float32)}
    expected, actual = run(session(model), feeds)[0], run(session(result.model), feeds)[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
