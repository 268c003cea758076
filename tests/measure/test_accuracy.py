from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import scipy.special
from PIL import Image

from onnxcompress.caffe import import_caffe
from onnxcompress.data import Data
from onnxcompress.errors import InputError
from onnxcompress.measure.accuracy import evaluate
from onnxcompress.preprocessing import Preprocessing, attach
from tests.onnx_text import network

RANDOM = np.random.default_rng(0)
SAMPLES, FEATURES, CLASSES = 23, 4, 7
X = RANDOM.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
W = RANDOM.standard_normal((FEATURES, CLASSES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, SAMPLES)


def linear(weights: np.ndarray = W, batch: str | int = "n") -> ir.Model:
    into, out = weights.shape
    graph = f"g (float[{batch}, {into}] x) => (float[{batch}, {out}] y)"
    return network(f"{graph} {{ y = MatMul(x, w) }}", {"w": weights})


def data(x: np.ndarray = X, labels: np.ndarray | None = LABELS) -> Data:
    return Data("numbers", x, labels)


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label, counted directly."""
    return np.array(
        [
            sum(other > row[label] or (other == row[label] and k < label) for k, other in enumerate(row))
            for row, label in zip(scores, labels, strict=True)
        ]
    )


def test_top1_and_top5():
    calls = []
    found = evaluate(linear(), data(), batch=5, progress=lambda *call: calls.append(call))
    place = ranks(X @ W, LABELS)
    top1 = np.mean(place < 1)
    assert (found.n, found.nonfinite) == (SAMPLES, 0)
    assert found.top1 == pytest.approx(top1)
    assert found.top5 == pytest.approx(np.mean(place < 5))
    assert 0 < found.top1 < found.top5 < 1
    likely = scipy.special.log_softmax(X.astype(float) @ W, axis=1)[np.arange(SAMPLES), LABELS]
    assert found.cross_entropy == pytest.approx(-likely.mean(), rel=1e-5)
    assert found.top1_error == pytest.approx(np.sqrt(top1 * (1 - top1) / SAMPLES))
    assert found.agreement is found.cosine is found.relative_l2 is found.damage is None
    assert found.reference_top1 is None
    assert calls == [("evaluating", done, 23) for done in (5, 10, 15, 20, 23)]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_comparison_with_the_reference(labels):
    changed = W + np.float32(0.5) * RANDOM.standard_normal(W.shape).astype(np.float32)
    found = evaluate(linear(changed), data(labels=labels), reference=linear(), batch=6)
    y, target = (X.astype(float) @ w for w in (changed, W))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(y, target, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosines), rel=1e-5)
    assert found.relative_l2 == pytest.approx(np.linalg.norm(y - target) / np.linalg.norm(target), rel=1e-5)
    theirs, ours = (scipy.special.softmax(scores, axis=1) for scores in (target, y))
    assert found.damage == pytest.approx(np.mean(np.sum(theirs * np.log(theirs / ours), axis=1)), rel=1e-4)
    assert found.agreement == pytest.approx(np.mean(y.argmax(1) == target.argmax(1)))
    assert 0 < found.agreement < 1
    if labels is None:
        assert (
            found.top1
            is found.top1_error
            is found.top5
            is found.cross_entropy
            is found.reference_top1
            is found.reference_top5
            is None
        )
    else:
        place = ranks(X @ W, labels)
        assert (found.reference_top1, found.reference_top5) == (np.mean(place < 1), np.mean(place < 5))


def test_a_network_agrees_with_itself():
    found = evaluate(linear(), data(), reference=linear())
    assert (found.agreement, found.relative_l2, found.damage) == (1, 0, 0)
    assert found.cosine == pytest.approx(1)
    assert (found.reference_top1, found.reference_top5) == (found.top1, found.top5)


def test_equal_scores_rank_by_class_number():
    zeros = np.zeros((FEATURES, CLASSES), np.float32)
    found = evaluate(linear(zeros), data(labels=np.arange(SAMPLES) % CLASSES), reference=linear(zeros))
    assert found.top1 == pytest.approx(np.mean(np.arange(SAMPLES) % CLASSES == 0))
    assert found.top5 == pytest.approx(np.mean(np.arange(SAMPLES) % CLASSES < 5))
    assert found.cosine == 1


def test_no_top5_of_less_than_five_classes():
    found = evaluate(linear(W[:, :4]), data(labels=LABELS % 4))
    assert found.top5 is None
    assert found.top1 == pytest.approx(np.mean((X @ W[:, :4]).argmax(1) == LABELS % 4))


@pytest.mark.parametrize("fixed", [1, 8])
def test_fixed_batch_is_padded(fixed):
    free = evaluate(linear(), data(), reference=linear())
    found = evaluate(linear(batch=fixed), data(), reference=linear(), batch=5)
    assert asdict(found) == pytest.approx(asdict(free), abs=1e-6)


def test_limit():
    found = evaluate(linear(), data(), limit=6)
    chosen = np.arange(6) * SAMPLES // 6
    assert found.n == 6
    assert found.top1 == pytest.approx(np.mean((X @ W).argmax(1)[chosen] == LABELS[chosen]))


def test_scores_with_trailing_ones_behind_another_output():
    model = network(
        f"""g (float[n, {FEATURES}] x) => (float[n, 2, 2] a, float[n, {CLASSES}, 1, 1] y) {{
            shape = Constant <value_ints = [0, 2, 2]> () a = Reshape(x, shape)
            axes = Constant <value_ints = [2, 3]> () z = MatMul(x, w) y = Unsqueeze(z, axes)
        }}""",
        {"w": W},
    )
    assert evaluate(model, data()) == evaluate(linear(), data())


def two_maps(factor: float) -> ir.Model:
    return network(
        f"""g (float[n, 2, 2] x) => (float[n, 2, 2] a, float[n, 2, 2] b) {{
            half = Constant <value_float = {factor}> () a = Mul(x, half) b = Relu(x)
        }}"""
    )


def test_all_outputs_are_compared_where_none_is_of_classes():
    maps = data(X.reshape(-1, 2, 2), None)
    found = evaluate(two_maps(0.5), maps, reference=two_maps(1.0), batch=4)
    y, target = (np.concatenate([factor * X, np.maximum(X, 0)], axis=1).astype(float) for factor in (0.5, 1))
    assert found.relative_l2 == pytest.approx(np.linalg.norm(y - target) / np.linalg.norm(target))
    cosines = (y * target).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(target, axis=1)
    assert found.cosine == pytest.approx(cosines.mean())
    halved = np.mean((0.5 * X) ** 2) / X.var()
    assert found.damage == pytest.approx((halved + 0) / 2, rel=1e-5)
    assert found.agreement is None
    with pytest.raises(InputError, match="labelled"):
        evaluate(two_maps(1.0), data(X.reshape(-1, 2, 2)))


def scores_and_boxes(factor: float) -> ir.Model:
    return network(
        f"""g (float[n, {FEATURES}] x) => (float[n, {CLASSES}] y, float[n, {FEATURES}, 1, 2] boxes) {{
            y = MatMul(x, w) factor = Constant <value_float = {factor}> () a = Mul(x, factor)
            axes = Constant <value_ints = [2, 3]> () b = Unsqueeze(a, axes)
            boxes = Concat <axis = 3> (b, b)
        }}""",
        {"w": W},
    )


def test_damage_is_that_of_all_outputs_where_both_networks_have_them():
    found = evaluate(scores_and_boxes(0.5), data(labels=None), reference=scores_and_boxes(1.0))
    assert found.damage == pytest.approx(np.mean((0.5 * X) ** 2) / X.var() / 2, rel=1e-5)
    assert found.agreement == found.cosine == 1
    assert evaluate(linear(), data(labels=None), reference=scores_and_boxes(1.0)).damage == 0


def test_nonfinite_outputs_count_as_wrong():
    logarithms = network(
        f"g (float[n, {FEATURES}] x) => (float[n, {CLASSES}] y) {{ l = Log(x) y = MatMul(l, w) }}", {"w": W}
    )
    good = np.abs(X) + 1
    x = np.where(np.arange(SAMPLES)[:, None] < 3, -good, good)  # three samples give NaN
    expected = (np.log(good) @ W).argmax(axis=1)
    found = evaluate(logarithms, data(x, expected), reference=linear())
    assert found.nonfinite == 3
    assert found.top1 == pytest.approx((SAMPLES - 3) / SAMPLES)
    assert found.top5 == pytest.approx((SAMPLES - 3) / SAMPLES)
    likely = scipy.special.log_softmax(np.log(good[3:].astype(float)) @ W, axis=1)
    assert found.cross_entropy == pytest.approx(-likely.max(axis=1).mean(), rel=1e-4)
    y, target = np.log(good[3:].astype(float)) @ W, good[3:].astype(float) @ W
    assert found.agreement == pytest.approx((y.argmax(1) == target.argmax(1)).sum() / SAMPLES)
    assert found.relative_l2 == pytest.approx(np.linalg.norm(y - target) / np.linalg.norm(target), rel=1e-5)
    with pytest.raises(InputError, match="reference's output holds NaN"):
        evaluate(linear(), data(x, None), reference=logarithms)


def test_only_nonfinite_outputs():
    broken = linear(np.full_like(W, np.inf))
    found = evaluate(broken, data(), reference=linear())
    assert (found.nonfinite, found.top1, found.agreement) == (SAMPLES, 0, 0)
    assert np.isnan([found.cosine, found.relative_l2, found.damage]).all()


def mean_colour(order: str = "RGB") -> ir.Model:
    """Scores a photograph by the mean of each channel."""
    model = network("g (float[n, 3, 4, 4] x) => (float[n, 3, 1, 1] y) { y = GlobalAveragePool(x) }")
    attach(model, Preprocessing(order, (0.0,), resize=(4, 4)))
    return model


def test_photographs_with_the_preprocessing_of_the_network(tmp_path):
    for index, colour in enumerate([(200, 0, 0), (0, 200, 0), (0, 0, 200), (0, 0, 220)]):
        (tmp_path / f"class{min(index, 2)}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"class{min(index, 2)}" / f"{index}.png")
    assert evaluate(mean_colour(), tmp_path).top1 == 1
    swapped = evaluate(mean_colour("BGR"), str(tmp_path))
    assert swapped.top1 == 0.25
    assert (
        evaluate(mean_colour("BGR"), tmp_path, preprocessing=Preprocessing("RGB", (0.0,), resize=(4, 4))).top1
        == 1
    )
    path = tmp_path / "network.onnx"
    ir.save(mean_colour("BGR"), path)
    assert evaluate(path, Data("named", sorted(tmp_path.glob("*/*.png")), np.array([0, 1, 2, 2]))) == swapped
    bare = mean_colour()
    bare.metadata_props.clear()
    with pytest.raises(InputError, match="need preprocessing"):
        evaluate(bare, Data("named", sorted(tmp_path.glob("*/*.png")), np.array([0, 1, 2, 2])))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (linear(), {"data": data(labels=np.full(SAMPLES, 7))}, "label 7, but the network has 7 classes"),
        (linear(), {"data": data(X[:, :3])}, "numbers: its samples are 3, but the network takes 4"),
        (
            linear(),
            {"data": data(), "reference": linear(W[:, :5])},
            "gives 7 numbers per sample, the reference 5",
        ),
        (linear(), {"data": data(), "limit": 0}, "at least 1"),
        (linear(), {"data": "nowhere"}, "nowhere: no such file"),
        ("nowhere.onnx", {"data": data()}, "nowhere.onnx: no such file"),
        (
            network("g (float[n, 4] a, float[n, 4] b) => (float[n, 4] y) { y = Add(a, b) }"),
            {"data": data()},
            r"2 inputs \(a, b\)",
        ),
        (
            network("g (string[n, 4] a) => (string[n, 4] y) { y = Identity(a) }"),
            {"data": data()},
            r"tensor\(string\)",
        ),
        (
            network("g (float[n, 4] a) => (float y) { y = ReduceSum <keepdims = 0> (a) }"),
            {"data": data()},
            "one entry per sample",
        ),
    ],
)
def test_what_does_not_fit(model, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(model, **options)


SHARED = Path(__file__).parents[3] / "shared/data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_squeezenet_reads_what_the_anchors_say():
    folder = SHARED / "models/squeezenet_v1.0"
    model = import_caffe(folder / "deploy.prototxt", folder / "squeezenet_v1.0.caffemodel")
    found = evaluate(model, SHARED / "images/imagenet_eval", preprocessing=Preprocessing())
    assert found.n == 500
    assert found.top1 == pytest.approx(0.518, abs=0.01)
    assert found.top5 == pytest.approx(0.776, abs=0.01)


def test_numbers_leave_labels_aside():
    found = evaluate(linear(), data(), reference=linear(W + 0.1), values=True)
    assert found == evaluate(linear(), data(labels=None), reference=linear(W + 0.1), values=True)
    assert found.top1 is None
    with pytest.raises(InputError, match=r"values: .* give --reference"):
        evaluate(linear(), data(), values=True)
