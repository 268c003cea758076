"""Training networks that are not like a classifier of images of one size, with all names free."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxcompress as oc
from onnxcompress.data import Data
from onnxcompress.outputs import scores_of
from onnxcompress.runtime import run, session
from onnxcompress.training.parameters import trainable
from onnxcompress.training.schedules import Schedule
from tests.onnx_text import network

RECIPE = oc.Recipe(rate=0.01, batch=8)


def weights(**shapes):
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def data(*shape, classes=None, count=32):
    random = np.random.default_rng(1)
    labels = None if classes is None else random.integers(0, classes, count)
    return Data("random", random.normal(0, 1, (count, *shape)).astype(np.float32), labels)


def convolutional(output="float[N,5] y", size="8,8", more="", **others):
    text = f"""g (float[N,3,{size}] x) => ({output}) {{
        c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
        y = Gemm(f, v) {more} }}"""
    return network(text, weights(w=(6, 3, 3, 3), **({"v": (6, 5)} | others)))


def test_one_number_is_no_class():
    one = convolutional("float[N,1] y", v=(6, 1))
    with pytest.raises(oc.InputError, match="no class scores"):
        scores_of(one)
    small = oc.prune(one, ratio=0.3)
    with pytest.raises(oc.InputError, match="no class scores"):
        oc.finetune(small.model, data(3, 8, 8), teacher=one, recipe=RECIPE)
    found = oc.evaluate(small.model, data(3, 8, 8), reference=one)
    assert found.agreement is None
    assert found.relative_l2 > 0


def test_a_class_is_not_taken_for_scores():
    text = "int64[N,1] k, float[N,5] y"
    both = convolutional(text, more="k = ArgMax<axis=1>(y)")
    assert scores_of(both).name == "y"


def test_sizes_that_the_network_leaves_open_are_those_of_the_data():
    free, labelled = convolutional(size="H,W"), data(3, 8, 8, classes=5)
    tuned = oc.finetune(free, labelled, labels=True, steps=3, recipe=RECIPE)
    fixed = oc.finetune(convolutional(), labelled, labels=True, steps=3, recipe=RECIPE)
    x = labelled.samples[:2]
    for one, other in zip(
        run(session(tuned.model), {"x": x}), run(session(fixed.model), {"x": x}), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert tuned.model.graph.inputs[0].shape == free.graph.inputs[0].shape
    calibration = oc.Calibration(data(3, 8, 8))
    assert oc.prune(free, criterion="taylor", data=calibration).plan.prune
    result = oc.compress(free, target="macs=0.6", data=calibration, training=oc.Training(1, RECIPE))
    assert result.stages[-1].name == "trained"


def test_a_new_head_leaves_other_outputs_as_they_are():
    text = "float[N,5] y, float[N,6] f, int64[N,1] k"
    model = convolutional(text, more="k = ArgMax<axis=1>(y)")
    tuned = oc.finetune(
        model, data(3, 8, 8, classes=3), labels=True, new_head=3, steps=2, recipe=RECIPE
    ).model
    assert [output.shape[1] for output in tuned.graph.outputs] == [3, 6, 1]


def test_a_teacher_has_the_classes_of_the_new_task_or_is_refused():
    labelled = data(3, 8, 8, classes=5)
    with pytest.raises(oc.InputError, match="the teacher has 5 classes, the network 7"):
        oc.finetune(convolutional(), labelled, teacher=convolutional(), labels=True, new_head=7)


def test_masks_are_no_weights(tmp_path):
    mask = np.where(np.tri(5), 0, -np.inf).astype(np.float32)
    text = "g (float[N,5] x) => (float[N,4] y) { a = MatMul(x, w) s = Add(a, m) e = Exp(s) y = MatMul(e, v) }"
    masked = network(text, weights(w=(5, 5), v=(5, 4)) | {"m": mask[:1]})
    assert set(trainable(masked)) == {"w", "v"}
    square = network(text.replace("float[N,5] x", "float[5,5] x"), weights(w=(5, 5), v=(5, 4), m=(5, 5)))
    assert set(trainable(square)) == {"w", "v"}


def test_files_of_old_exporters(tmp_path):
    text = """<ir_version: 3, opset_import: ["" : 8]>
        g (float[N,3,8,8] x, float[6,3,3,3] w, float[6,5] v, float[5] b) => (float[N,5] y) {
        c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
        y = Gemm(f, v, b) }"""
    proto = parser.parse_model(text)
    for name, array in weights(w=(6, 3, 3, 3), v=(6, 5), b=(5,)).items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "old.onnx")
    old = tmp_path / "old.onnx"
    assert oc.finetune(old, data(3, 8, 8, classes=5), labels=True, steps=2, recipe=RECIPE).curve
    assert oc.prune(old, criterion="taylor", data=oc.Calibration(data(3, 8, 8))).plan.prune


def test_an_if_on_the_way_is_named():
    text = """g (float[N,3,8,8] x) => (float[N,5] y) {
        c = Conv<pads=[1,1,1,1]>(x, w) m = ReduceMax<keepdims=0>(x) b = Greater(m, half)
        r = If (b) <then_branch = t () => (float[N,6,8,8] s) { s = Relu(c) },
                    else_branch = e () => (float[N,6,8,8] u) { u = Tanh(c) }>
        p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v) }"""
    numbers = weights(w=(6, 3, 3, 3), v=(6, 5)) | {"half": np.array(0.5, np.float32)}
    with pytest.raises(oc.InputError, match="no gradient for If"):
        oc.finetune(network(text, numbers), data(3, 8, 8, classes=5), labels=True, steps=1, recipe=RECIPE)


def test_names_that_are_taken():
    plain = oc.prune(convolutional(), criterion="taylor", data=oc.Calibration(data(3, 8, 8))).plan
    renamed = convolutional().clone()
    renamed.graph.inputs[0].name = "preference"
    assert oc.prune(renamed, criterion="taylor", data=oc.Calibration(data(3, 8, 8))).plan == plain


def test_rates_and_temperatures_are_numbers():
    with pytest.raises(oc.InputError, match="rate: inf is not a number"):
        oc.Recipe(rate=float("inf"))
    with pytest.raises(oc.InputError, match="weight-decay: -1 is not a number"):
        oc.Recipe(weight_decay=-1)
    with pytest.raises(oc.InputError, match="warmup: -1 is not at least 0"):
        Schedule(warmup=-1)
    with pytest.raises(oc.InputError, match="temperature: inf is not a number"):
        oc.finetune(convolutional(), data(3, 8, 8), teacher=convolutional(), temperature=float("inf"))
    with pytest.raises(oc.InputError, match="validation data needs labels"):
        oc.finetune(convolutional(), data(3, 8, 8, classes=5), labels=True, validation=data(3, 8, 8))
