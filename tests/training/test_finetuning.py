import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.caffe import import_caffe_text
from onnxcompress.data import Data
from onnxcompress.training.finetuning import finetune
from onnxcompress.training.trainer import Recipe
from tests import onnx_text
from tests.training.small import PROTOTXT, network, samples

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
        ({"labels": True, "epochs": 0}, "no step"),
        ({"labels": True, "recipe": Recipe(batch=100)}, "fewer than a batch of 100"),
        ({"labels": True, "new_head": 3}, "give --new-head 4"),
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


def test_an_error_about_a_network_names_its_file(tmp_path):
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    oc.save(network(), good)
    text = "g (float[n, 1, 8, 8] data) => (float[n, 1, 8, 8] maps) { maps = Relu (data) }"
    oc.save(onnx_text.network(text), bad)
    for model, teacher in ((bad, good), (good, bad)):
        with pytest.raises(oc.InputError, match=rf"^{re.escape(str(bad))}: .*"):
            finetune(model, samples(32), teacher=teacher, steps=1, recipe=RECIPE)
