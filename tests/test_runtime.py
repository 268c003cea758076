import re
import time
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.errors import InputError
from onnxcompress.runtime import BESIDE, OutOfTimeError, Reference, random_feeds, run, session
from tests.onnx_text import network


def scaling(weights: np.ndarray) -> ir.Model:
    """y = x · w, elementwise."""
    return network("scaling (float[n, k] x) => (float[n, k] y) { y = Mul(x, w) }", {"w": weights})


WEIGHTS = np.array([1, 2, 3], np.float32)
X = np.array([[1, 10, 100], [4, 5, 6]], np.float32)


def test_networks_run_from_memory_and_from_files(tmp_path):
    path = tmp_path / "network.onnx"
    ir.save(scaling(WEIGHTS), path)
    for source in (scaling(WEIGHTS), path, str(path)):
        (y,) = run(session(source), {"x": X})
        np.testing.assert_array_equal(y, X * WEIGHTS)


@pytest.mark.parametrize("count", [3, BESIDE])
def test_external_weights_are_found(tmp_path, monkeypatch, count):
    weights = np.arange(count, dtype=np.float32)
    path = tmp_path / "network.onnx"
    ir.save(scaling(weights), path, external_data="network.data", size_threshold_bytes=0)
    monkeypatch.chdir("/")
    for source in (path, ir.load(path)):
        (y,) = run(session(source), {"x": weights[None]})
        np.testing.assert_array_equal(y[0], weights**2)


def test_large_weights_are_those_at_the_start_for_as_long_as_the_session_lives():
    weights = np.arange(BESIDE, dtype=np.float32)
    model = scaling(weights.copy())
    tensor = model.graph.initializers["w"].const_value
    runnable = session(model)
    assert model.graph.initializers["w"].const_value is tensor
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros_like(weights), name="w")
    del model, tensor
    others = [np.full_like(weights, 7) for _ in range(20)]  # where the weights were, if they are gone
    (y,) = run(runnable, {"x": weights[None]})
    np.testing.assert_array_equal(y[0], weights**2)
    assert len(others) == 20


def test_large_weights_of_types_that_numpy_does_not_know():
    ones = np.full(BESIDE, 0x3F80, np.uint16)
    model = network(
        "g (float[n, k] x) => (float[n, k] y) { c = Cast <to = 1> (w) y = Mul(x, c) }", {"w": ones}
    )
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(ones, dtype=ir.DataType.BFLOAT16, name="w")
    value.dtype = ir.DataType.BFLOAT16
    (y,) = run(session(model), {"x": np.full((1, BESIDE), 3, np.float32)})
    assert (y == 3).all()


def test_threads_and_optimization(tmp_path):
    options = session(scaling(WEIGHTS), threads=1, optimize=False).get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    options = session(scaling(WEIGHTS)).get_session_options()
    assert options.intra_op_num_threads >= 1
    assert options.graph_optimization_level.name == "ORT_ENABLE_ALL"


def test_profiles_go_where_they_are_told(tmp_path):
    recorded = session(scaling(WEIGHTS), profile_prefix=str(tmp_path / "here"))
    run(recorded, {"x": X})
    assert recorded.end_profiling() == str(next(tmp_path.glob("here*.json")))


def test_refusals_are_one_line(tmp_path, capfd):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x09nonsense")
    unknown = network("peculiar (float[n] x) => (float[n] y) { y = Peculiar(x) }")
    for source, pattern in [
        (tmp_path / "none.onnx", r".*none\.onnx: no such file"),
        (tmp_path, ".*: no such file"),
        (tmp_path / "broken.onnx", r".*broken\.onnx: ONNX Runtime refuses the network: .+"),
        (unknown, "peculiar: ONNX Runtime refuses the network: .*Peculiar.*"),
    ]:
        with pytest.raises(InputError) as caught:
            session(source)
        assert re.fullmatch(pattern, str(caught.value))
        assert "[ONNXRuntimeError]" not in str(caught.value)
    runnable = session(scaling(WEIGHTS))
    for feeds in ({}, {"x": np.zeros((2, 4), np.float32)}, {"x": np.zeros((2, 3))}):
        with pytest.raises(InputError, match=r"^ONNX Runtime cannot run the network: [^\n]+$"):
            run(runnable, feeds)
    assert capfd.readouterr() == ("", "")


TYPES = {
    "image": "float[n, 3, h, w]",
    "half": "float16[2, c]",
    "d": "double[batch]",
    "i": "int64[n, 5]",
    "u": "uint8[4, 2, s]",
    "flag": "bool[n]",
}


def everything() -> ir.Model:
    """Passes on inputs of many types."""
    inputs = ", ".join(f"{kind} {name}" for name, kind in TYPES.items())
    outputs = ", ".join(f"{kind} out_{name}" for name, kind in TYPES.items())
    body = " ".join(f"out_{name} = Identity({name})" for name in TYPES)
    return network(f"g ({inputs}) => ({outputs}) {{ {body} }}")


def test_random_feeds_fit_every_input():
    runnable = session(everything())
    feeds = random_feeds(
        runnable, {"image": (6, 3, 9, 9), "d": (6,), "i": (6, 5), "flag": (6,), "u": (4, 2, 9)}
    )
    assert {name: (array.shape, array.dtype.name) for name, array in feeds.items()} == {
        "image": ((6, 3, 9, 9), "float32"),
        "half": ((2, 1), "float16"),  # the first dimension is fixed
        "d": ((6,), "float64"),
        "i": ((6, 5), "int64"),
        "u": ((4, 2, 9), "uint8"),
        "flag": ((6,), "bool"),
    }
    assert set(np.unique(feeds["u"])) == {0, 1}
    assert 0.8 < feeds["image"].std() < 1.2
    for array, output in zip(feeds.values(), run(runnable, feeds), strict=True):
        np.testing.assert_array_equal(array, output)


def test_random_feeds_repeat():
    runnable = session(everything())
    first, second, other = (random_feeds(runnable, seed=seed)["image"] for seed in (0, 0, 1))
    assert first.shape == (1, 3, 224, 224)
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_random_feeds_are_numbers():
    text = network("g (string[n] x) => (string[n] y) { y = Identity(x) }")
    with pytest.raises(InputError, match=r"'x' is a tensor\(string\)"):
        random_feeds(session(text))


def test_what_cannot_be_stopped_is_not_waited_for():
    reference = Reference(network("g (double[n] x) => (double[n] y) { y = Neg(x) }"))
    x = {"x": np.ones(2)}
    np.testing.assert_array_equal(run(reference, x, seconds=60)[0], [-1, -1])
    reference.evaluator = SimpleNamespace(run=lambda *_: time.sleep(30))
    begun = time.monotonic()
    with pytest.raises(OutOfTimeError, match="still ran after"):
        run(reference, x, seconds=0.1)
    assert time.monotonic() - begun < 10
