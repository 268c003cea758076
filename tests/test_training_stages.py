"""Training inside prune and compress: after stages, in rounds, with labels and without."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.plan import from_yaml, to_yaml
from tests.onnx_text import network as from_text
from tests.training.small import network, samples

RECIPE = oc.Recipe(batch=16, rate=0.01)


@pytest.fixture(scope="module")
def data():
    return samples(160)


def taught(data):
    return oc.finetune(network(), data, labels=True, epochs=8, recipe=RECIPE).model


@pytest.fixture(scope="module")
def model(data):
    return taught(data)


def test_training_is_the_last_stage_and_lessens_its_loss(model, data):
    options = {"data": oc.Calibration(data), "target": "macs=0.3"}
    plain = oc.compress(model, **options)
    trained = oc.compress(model, training=oc.Training(6, RECIPE), **options)
    assert [stage.name for stage in trained.stages][-1] == "trained"
    assert trained.stages[-1].cost == plain.stages[-1].cost
    done = trained.stages[-1].training
    assert done.best > 0
    assert done.curve[-1].loss < done.curve[1].loss
    assert "on the samples for choosing" in " ".join(trained.plan.trained.values())
    assert from_yaml(to_yaml(trained.plan)) == trained.plan


def test_several_entries_of_a_sample_are_taught_together():
    """Frames that a Reshape puts into the first dimension."""
    random = np.random.default_rng(0)
    shapes = {"a": (6, 3, 3, 3), "b": (6, 6, 3, 3), "c": (6, 5)}
    frames = from_text(
        """g (float[N,2,3,8,8] x) => (float[N,5] y) {
            one = Constant <value_ints = [-1, 3, 8, 8]> ()  f = Reshape (x, one)
            p = Conv (f, a)  q = Relu (p)  r = Conv (q, b)  s = Relu (r)  m = GlobalAveragePool (s)
            two = Constant <value_ints = [-1, 2, 6]> ()  t = Reshape (m, two)
            u = ReduceMean <axes = [1], keepdims = 0> (t)  y = MatMul (u, c)
        }""",
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
    )
    x = random.standard_normal((40, 2, 3, 8, 8)).astype(np.float32)
    result = oc.compress(
        frames, target="macs=0.5", data=oc.Calibration([{"x": x}]), training=oc.Training(1, RECIPE)
    )
    assert result.stages[-1].name == "trained"


def test_by_the_papers_method_both_stages_are_trained(model, data):
    result = oc.compress(
        model, ratio=0.3, rank="fraction:0.5", training=oc.Training(2, RECIPE), data=oc.Calibration(data)
    )
    names = [stage.name for stage in result.stages]
    assert names == ["original", "pruned", "trained", "decomposed", "trained"]
    assert set(result.plan.trained) == {"pruned", "decomposed"}


def test_where_no_layer_is_factored_the_pruned_network_is_reported_on(model, data):
    result = oc.compress(
        model,
        ratio=0.3,
        rank="fraction:0.5",
        skip=["conv*", "fc"],
        training=oc.Training(2, RECIPE),
        data=oc.Calibration(data),
    )
    assert not result.plan.decompose
    assert result.fitted.closeness.damage > 0


def test_the_same_again(model, data):
    def compressed():
        return oc.compress(
            model, target="macs=0.4", training=oc.Training(1, RECIPE), data=oc.Calibration(data)
        ).model

    for one, other in zip(
        compressed().graph.initializers.values(), compressed().graph.initializers.values(), strict=True
    ):
        np.testing.assert_array_equal(one.const_value.numpy(), other.const_value.numpy())


@pytest.mark.parametrize("labels", [False, True])
def test_in_rounds(model, data, labels):
    result = oc.prune(
        model, ratio=0.4, step=0.2, finetune_steps=5, data=oc.Calibration(data, labels=labels), seed=1
    )
    assert {layer: len(gone) for layer, gone in result.plan.prune.items()} == {"conv1": 3, "conv2": 4}
    assert "5 steps after each round" in result.plan.trained["pruned"]
    assert oc.apply(model, result.plan).stages[-1].cost == result.stages[-1].cost


def test_what_does_not_go_together(model, data):
    unlabelled = oc.Calibration(replace(data, labels=None), labels=True)
    with pytest.raises(oc.InputError, match="has no labels"):
        oc.prune(model, criterion="taylor", data=unlabelled)
    with pytest.raises(oc.InputError, match="needs calibration data"):
        oc.compress(model, training=oc.Training())
    with pytest.raises(oc.InputError, match="give samples with --data"):
        oc.prune(model, step=0.1)


def test_rounds_say_what_cannot_be_done(model, data):
    options = {"step": 0.5, "finetune_steps": 1, "data": oc.Calibration(data)}
    with pytest.raises(oc.InputError, match="no layer matches 'nothing'"):
        oc.prune(model, skip=["nothing"], **options)
    result = oc.prune(model, ratio=0.97, scope="global", **options)
    assert "one of every group does" in result.shortfall


@pytest.mark.parametrize(
    ("training", "classes", "message"),
    [
        (oc.Training(0), 0, "epochs"),
        (oc.Training(1, oc.Recipe(batch=500)), 0, "128 samples, fewer than a batch of 500"),
        (oc.Training(1), 20, "label 20, but the network has"),
    ],
)
@pytest.mark.parametrize("way", [{"target": "macs=0.5"}, {"ratio": 0.5}])
def test_what_cannot_be_trained_is_refused_before_anything_is_done(
    model, data, training, classes, message, way
):
    said = set()
    labels = np.full_like(data.labels, classes)
    with pytest.raises(oc.InputError, match=message):
        oc.compress(
            model,
            **way,
            training=training,
            data=oc.Calibration(replace(data, labels=labels), labels=classes > 0),
            progress=lambda what, *_: said.add(what),
        )
    assert said <= {"reading the data"}


def test_networks_of_a_fixed_batch_are_trained(model, data):
    fixed = model.clone()
    for value in (*fixed.graph.inputs, *fixed.graph.outputs):
        value.shape = ir.Shape([12, *value.shape[1:]])
    calibration = oc.Calibration(data)
    assert (
        oc.compress(fixed, target="macs=0.4", training=oc.Training(1), data=calibration).stages[-1].training
    )
    assert oc.prune(fixed, ratio=0.4, step=0.2, finetune_steps=1, data=calibration).plan.trained
