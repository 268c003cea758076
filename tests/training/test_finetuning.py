import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.caffe import import_caffe_text
from onnxcompress.data import Data
from onnxcompress.training.finetuning import finetune
from onnxcompress.training.trainer import Recipe
from tests import onnx_text
from tests.training.small import FROZEN, PROTOTXT, learning, network, samples

RECIPE = Recipe(rate=0.02, batch=16)


@pytest.fixture(scope="module")
def trained():
    return finetune(network(), samples(256), labels=True, epochs=6, recipe=RECIPE).model


def unlabelled(data):
    return Data(data.name, data.samples, None)


def weights(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_labels_are_learnt(trained):
    assert oc.evaluate(network(), samples(200, seed=9)).top1 < 0.6
    assert oc.evaluate(trained, samples(200, seed=9)).top1 > 0.95


def test_a_teacher_is_followed_without_labels(trained):
    result = finetune(
        network(5), unlabelled(samples(256)), teacher=trained, epochs=6, recipe=RECIPE, temperature=2
    )
    assert oc.evaluate(result.model, samples(200, seed=9), reference=trained).agreement > 0.95


def test_sgd_learns_too():
    recipe = Recipe(optimizer="sgd", rate=0.05, batch=16, weight_decay=1e-4, clip_gradients=5.0)
    result = finetune(network(), samples(256), labels=True, epochs=6, recipe=recipe)
    assert oc.evaluate(result.model, samples(200, seed=9)).top1 > 0.95


def test_the_best_epoch_is_kept(trained):
    wild = Recipe(rate=0.5, batch=16)
    result = finetune(
        trained, samples(64), labels=True, validation=samples(100, seed=8), epochs=3, recipe=wild
    )
    curve = [epoch.validation.top1 for epoch in result.curve]
    assert curve[result.best] == max(curve)
    assert oc.evaluate(result.model, samples(100, seed=8)).top1 == max(curve)


def test_the_same_seed_gives_the_same_weights():
    def run(seed):
        recipe = Recipe(rate=0.02, batch=16, seed=seed)
        return weights(finetune(network(), samples(64), labels=True, epochs=1, recipe=recipe).model)

    first, again, other = run(1), run(1), run(2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    recipes = [Recipe(optimizer="sgd", rate=0.05, batch=b, iter_size=i) for b, i in ((16, 1), (4, 4))]
    whole, parts = (
        weights(finetune(network(), samples(16), labels=True, steps=1, recipe=recipe).model)
        for recipe in recipes
    )
    for name, array in whole.items():
        np.testing.assert_allclose(parts[name], array, rtol=1e-4, atol=1e-6)


def test_a_new_head_learns_a_new_task(trained):
    data = samples(256)
    halves = Data("halves", data.samples, data.labels // 2)
    result = finetune(trained, halves, labels=True, new_head=2, epochs=3, recipe=RECIPE)
    test = samples(200, seed=9)
    assert oc.evaluate(result.model, Data("halves", test.samples, test.labels // 2)).top1 > 0.95


def test_loss_that_is_not_finite_stops_with_advice():
    recipe = Recipe(optimizer="sgd", rate=1e38, batch=16)
    with pytest.raises(oc.InputError, match=r"try --rate 1e\+37"):
        finetune(network(), samples(64), labels=True, epochs=4, recipe=recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to learn from"),
        ({"labels": True, "epochs": 0}, "not a number above 0"),
        ({"labels": True, "recipe": Recipe(batch=100)}, "fewer than a batch of 100"),
        ({"labels": True, "new_head": 3}, "finetune --new-head 4"),
        ({"labels": True, "new_head": 1}, "at least 2"),
        ({"labels": True, "temperature": 0.0}, "temperature"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(oc.InputError, match=message):
        finetune(network(), samples(64), **options)


def test_labels_must_be_there():
    with pytest.raises(oc.InputError, match="has no labels"):
        finetune(network(), unlabelled(samples(64)), labels=True)


def command(folder, output):
    return [
        *(sys.executable, "-m", "onnxcompress", "finetune", str(folder / "model.onnx"), "-o", str(output)),
        *("--labels", "--data", str(folder / "data.npz"), "--val", str(folder / "data.npz")),
        *("--epochs", "12", "--batch", "16", "--resume"),
    ]


def test_killed_and_resumed_gives_the_same_file(tmp_path):
    oc.save(network(), tmp_path / "model.onnx")
    data = samples(192)
    np.savez(tmp_path / "data.npz", x=data.samples, y=data.labels)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command(tmp_path, tmp_path / "whole.onnx"), check=True, env=environment)
    random = np.random.default_rng()
    broken = tmp_path / "broken.onnx"
    kills = 0
    for _ in range(60):
        process = subprocess.Popen(command(tmp_path, broken), env=environment)
        checkpoint = tmp_path / "broken.onnx.checkpoint"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        if process.poll() is None and kills < 2:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
    assert kills
    assert broken.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.checkpoint"
    options = {"labels": True, "checkpoint_file": path, "recipe": RECIPE}
    finetune(network(), samples(64), epochs=1, **options)
    with pytest.raises(oc.InputError, match="other networks, data or options"):
        finetune(network(), samples(64), epochs=2, resume=True, **options)
    path.write_bytes(b"nothing")
    with pytest.raises(oc.InputError, match="not a checkpoint"):
        finetune(network(), samples(64), epochs=1, resume=True, **options)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "run.checkpoint"
    path.write_bytes(content)
    with pytest.raises(oc.InputError, match="not a checkpoint"):
        finetune(network(), samples(64), labels=True, epochs=1, checkpoint_file=path, resume=True)


@pytest.mark.parametrize(
    "other",
    [{"data": samples(64, seed=1)}, {"validation": samples(32, seed=3)}, {"validation": None}],
)
def test_a_checkpoint_of_a_run_on_other_data_is_refused(tmp_path, other):
    given = {"data": samples(64), "validation": samples(32, seed=2)}
    options = {"labels": True, "epochs": 1, "checkpoint_file": tmp_path / "run", "recipe": RECIPE}
    finetune(network(), **given, **options)
    with pytest.raises(oc.InputError, match="other networks, data or options"):
        finetune(network(), **(given | other), resume=True, **options)


def test_of_epochs_that_are_right_as_often_that_of_least_cross_entropy_is_taken(trained):
    data, validation = samples(64), samples(8, seed=8)
    result = finetune(trained, data, labels=True, validation=validation, epochs=6, recipe=RECIPE)
    found = [epoch.validation for epoch in result.curve]
    best = [n for n, each in enumerate(found) if each.top1 == max(each.top1 for each in found)]
    assert len(best) > 3
    assert result.best == min(best, key=lambda number: found[number].cross_entropy)


def test_without_labels_the_epoch_of_least_damage_is_taken(trained):
    options = {
        "epochs": 4,
        "recipe": replace(RECIPE, rate=0.2),
        "validation": unlabelled(samples(64, seed=8)),
    }
    result = finetune(trained, unlabelled(samples(64)), teacher=trained, **options)
    damages = [epoch.validation.damage for epoch in result.curve]
    assert max(damages) > 0.01
    assert result.best == np.argmin(damages) == 0


def test_a_teacher_that_ends_in_scores_tells_the_best_epoch(trained):
    """The network gives probabilities, its teacher the scores before them."""
    scores = trained.clone()
    softmax = scores.graph.outputs[0].producer()
    scores.graph.outputs[0] = softmax.inputs[0]
    data = unlabelled(samples(256))
    options = {"epochs": 3, "recipe": RECIPE, "validation": unlabelled(samples(64, seed=8))}
    result = finetune(network(5), data, teacher=scores, **options)
    assert result.best == 3
    again = finetune(network(5), data, teacher=trained, **options)
    for name, array in weights(result.model).items():
        np.testing.assert_allclose(weights(again.model)[name], array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [3, 16])
def test_a_teacher_of_any_fixed_batch_size(trained, size):
    fixed = trained.clone()
    for value in (*fixed.graph.inputs, *fixed.graph.outputs):
        value.shape = ir.Shape([size, *value.shape[1:]])
    found = [
        finetune(
            network(5), unlabelled(samples(32)), teacher=teacher, steps=2, recipe=Recipe(rate=0.02)
        ).model
        for teacher in (trained, fixed)
    ]
    for name, array in weights(found[0]).items():
        np.testing.assert_allclose(weights(found[1])[name], array, rtol=1e-4, atol=1e-6)


def test_frozen_weights_do_not_count_for_clipping():
    text = learning(FROZEN, "conv2")
    recipe = Recipe(optimizer="sgd", rate=0.1, batch=16, clip_gradients=1e-3)
    before = import_caffe_text(text, seed=0)
    after = finetune(before, samples(16), labels=True, steps=1, recipe=recipe, crop=False).model
    moved = {n: weights(after)[n] - a for n, a in weights(before).items() if n.startswith(("conv", "fc"))}
    assert not moved["conv2.weight"].any()
    rates = {name: 0.2 if name.endswith("bias") else 0.1 for name in moved}
    length = np.sqrt(sum(np.sum((step / rates[name]) ** 2) for name, step in moved.items()))
    assert length == pytest.approx(1e-3, rel=1e-2)


def test_a_frozen_layer_stays_frozen_when_it_is_factored():
    text = learning(FROZEN, "conv2")
    factored = oc.decompose(import_caffe_text(text, seed=0), rank="fraction:0.5").model
    after = weights(finetune(factored, samples(16), labels=True, steps=1, recipe=RECIPE).model)
    frozen = {name: array for name, array in weights(factored).items() if name.startswith("conv2")}
    assert len(frozen) > 2
    for name, array in frozen.items():
        np.testing.assert_array_equal(after[name], array)


def test_a_network_of_frozen_layers_only_is_refused():
    text = learning(FROZEN, "conv1", "conv2", "fc")
    with pytest.raises(oc.InputError, match="all weights are frozen"):
        finetune(import_caffe_text(text, seed=0), samples(32), labels=True, recipe=RECIPE)


def test_a_head_that_was_frozen_learns_where_it_is_new():
    text = learning(FROZEN, "fc")
    result = finetune(import_caffe_text(text), samples(256), labels=True, new_head=4, epochs=4, recipe=RECIPE)
    assert result.curve[-1].loss < 1


def test_a_new_head_behind_which_the_classes_are_reshaped():
    text = """g (float[1, 1, 8, 8] x) => (float[1, 5] y) <int64[2] sizes = {1, 5}>
        { f = Flatten (x)  s = MatMul (f, w)  y = Reshape (s, sizes) }"""
    random = np.random.default_rng(0)
    model = onnx_text.network(text, {"w": random.standard_normal((64, 5)).astype(np.float32)})
    result = finetune(model, samples(16), labels=True, new_head=4, steps=2, recipe=RECIPE)
    assert result.model.graph.outputs[0].shape[1] == 4
    assert oc.evaluate(result.model, samples(16)).n == 16


@pytest.mark.parametrize("opset", [13, 22])
def test_older_and_newer_opsets(opset):
    model = import_caffe_text(PROTOTXT, seed=0, opset=opset)
    result = finetune(model, samples(64), labels=True, steps=8, recipe=RECIPE)
    assert result.model.opset_imports[""] == opset
    assert result.curve[-1].loss < 2


def test_a_network_of_fixed_batch_size():
    model = network()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([2, *value.shape[1:]])
    fixed = finetune(model, samples(32), labels=True, steps=2, recipe=RECIPE).model
    free = finetune(network(), samples(32), labels=True, steps=2, recipe=RECIPE).model
    assert fixed.graph.inputs[0].shape[0] == 2
    for name, array in weights(free).items():
        np.testing.assert_allclose(weights(fixed)[name], array, rtol=1e-3, atol=1e-5)
    with pytest.raises(oc.InputError, match="a multiple of 2"):
        finetune(model, samples(32), labels=True, recipe=Recipe(batch=3))


def test_validation_by_other_classes_is_refused():
    def of(name, classes):
        return replace(samples(32), name=name, classes=classes)

    data = of("train", ("daisy", "rose", "tulip"))
    with pytest.raises(oc.InputError, match="val: a folder 'rose' is only in one of this and train"):
        finetune(network(), data, labels=True, validation=of("val", ("daisy", "tulip")), steps=1)
    for others in (("daisy", "rose", "tulip"), ()):
        found = finetune(network(), data, labels=True, validation=of("val", others), steps=1, recipe=RECIPE)
        assert found.curve[-1].validation.top1 is not None


def test_an_error_about_a_network_names_its_file(tmp_path):
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    oc.save(network(), good)
    text = "g (float[n, 1, 8, 8] data) => (float[n, 1, 8, 8] maps) { maps = Relu (data) }"
    oc.save(onnx_text.network(text), bad)
    for model, teacher in ((bad, good), (good, bad)):
        with pytest.raises(oc.InputError, match=rf"^{re.escape(str(bad))}: .*"):
            finetune(model, samples(32), teacher=teacher, steps=1, recipe=RECIPE)


def test_all_that_takes_long_is_told():
    said = []
    finetune(
        network(),
        samples(64),
        labels=True,
        validation=samples(16, seed=8),
        steps=3,
        recipe=Recipe(batch=16),
        progress=lambda *arguments: said.append(arguments),
    )
    assert {what for what, _, _ in said} == {"looking for a rate", "training", "validation: evaluating"}
    assert all(0 < done <= total for _, done, total in said)
    assert [done for what, done, _ in said if what == "training"] == [1, 2, 3]


@pytest.mark.parametrize(("labels", "optimizer"), [(True, "adam"), (False, "muon")])
def test_labels_are_followed_by_adam_and_a_teacher_by_muon(labels, optimizer):
    def after(**named):
        recipe = oc.Recipe(batch=8, rate=1e-3, **named)
        teacher = None if labels else network(seed=1)
        found = oc.finetune(network(), samples(32), labels=labels, teacher=teacher, steps=2, recipe=recipe)
        return [each.const_value.numpy() for each in found.model.graph.initializers.values()]

    other = {"adam": "muon", "muon": "adam"}[optimizer]
    chosen, named, others = after(), after(optimizer=optimizer), after(optimizer=other)
    assert all(map(np.array_equal, chosen, named))
    assert not all(map(np.array_equal, chosen, others))
