import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from models import demo, digits, zoo
from models.digits_data import load_digits_parts

PUBLISHED_PARAMETERS = {"googlenet": 6_998_552, "squeezenet": 1_248_424, "resnet18": 11_699_112}


@pytest.fixture(scope="module")
def parts():
    return load_digits_parts()


@pytest.fixture(scope="module")
def shipped():
    return onnx.load(digits.SHIPPED)


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT
    }


def run(model: ir.Model, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"data": images})[0]


@pytest.mark.parametrize(("name", "count"), PUBLISHED_PARAMETERS.items())
def test_published_networks_have_their_parameters_and_compute_probabilities(name, count):
    model = zoo.build(name)
    size = model.graph.inputs[0].shape[2]
    images = np.random.default_rng(0).normal(0, 50, (1, 3, size, size)).astype(np.float32)

    probabilities = run(model, images)

    assert sum(array.size for array in weights(model).values()) == count
    assert probabilities.size == 1000
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)


def test_alexnet_has_its_61_million_parameters():
    assert sum(array.size for array in weights(zoo.build("alexnet")).values()) == 60_965_224


def test_vgg16_has_the_published_layers():
    text = zoo.vgg16()
    assert text.count('type: "Convolution"') == 13
    assert text.count('type: "InnerProduct"') == 3
    assert 'name: "conv5_3" type: "Convolution" bottom: "conv5_2"' in text


def test_small_resnet_runs():
    model = zoo.build("resnet18", size=64, width=8)
    images = np.random.default_rng(0).normal(0, 50, (2, 3, 64, 64)).astype(np.float32)
    probabilities = run(model, images)
    assert probabilities.shape == (2, 1000)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)


def test_a_seed_fixes_the_weights():
    first, again, other = (weights(zoo.build("squeezenet", seed)) for seed in (3, 3, 4))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert not np.array_equal(first["conv10.weight"], other["conv10.weight"])


def test_parts_are_disjoint_and_complete(parts):
    seen = {name: {image.tobytes() for image in part.images} for name, part in parts.items()}
    assert sum(len(part.labels) for part in parts.values()) == 1797
    assert not seen["train"] & seen["calibration"]
    assert not (seen["train"] | seen["calibration"]) & seen["test"]


def test_parts_hold_every_class_alike(parts):
    for part in parts.values():
        shares = np.bincount(part.labels, minlength=10) / len(part.labels)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)


def test_shipped_network_reads_test_digits(shipped, parts):
    measured = digits.accuracy(shipped, parts["test"])
    recorded = {entry.key: entry.value for entry in shipped.metadata_props}["accuracy on test"]
    assert measured > 0.98
    assert f"{measured:.4f}" == recorded


def test_shipped_network_is_the_described_one(shipped):
    described = digits.untrained(seed=0)
    assert [node.op_type for node in shipped.graph.node] == [node.op_type for node in described.graph.node]
    assert {"Concat", "LRN", "MaxPool"} <= {node.op_type for node in shipped.graph.node}
    assert digits.SHIPPED.stat().st_size < 2_000_000


def test_training_lowers_the_loss(parts, capsys):
    few = digits.Part(*(array[:64] for array in parts["train"]))
    digits.train(digits.untrained(seed=0), few, epochs=3, seed=0)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < losses[0]


def test_the_demo_says_what_came_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxcompress.methods.PRECISION", 4.0)  # one network, not a search
    demo.main()
    out = " ".join(capsys.readouterr().out.split())
    assert "weights fitted to 216 samples" in out
    assert "decomposed" in out
    networks = {"0_original.onnx", "1_pruned.onnx", "2_decomposed.onnx"}
    assert {file.name for file in (tmp_path / "demo-out").iterdir()} == networks | {"plan.yaml", "layers.png"}
