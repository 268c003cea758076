import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.data import Data, batches
from onnxcompress.model import simplify
from onnxcompress.outputs import scoring, softmax
from onnxcompress.pruning.analysis import analyse
from onnxcompress.pruning.importance import set_scores
from onnxcompress.pruning.iterative import prune_in_steps
from onnxcompress.pruning.surgery import remove_filters
from onnxcompress.pruning.taylor import taylor_scores
from onnxcompress.recovery.interleaved import prune_and_train
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes
from onnxcompress.training.finetuning import finetune
from onnxcompress.training.parameters import current, with_weights
from onnxcompress.training.trainer import Recipe
from tests.onnx_text import network as from_text
from tests.training.small import network, samples


@pytest.fixture(scope="module")
def trained():
    recipe = Recipe(rate=0.02, batch=16)
    return finetune(network(), samples(256), labels=True, epochs=6, recipe=recipe).model


def scores_on(model, data, samples_per_batch=8, **options):
    graph = analyse(model, concrete_shapes(model))
    shape = data.samples.shape[1:]
    stream = batches(data, shape=shape, batch=samples_per_batch)
    return graph, taylor_scores(model, graph, stream, samples=samples_per_batch, **options)


def losses(model, data):
    (scores,) = run(session(scoring(model)), {"data": data.samples})
    return -np.log(softmax(scores)[np.arange(len(scores)), data.labels].astype(np.float64))


def test_scores_are_the_change_of_the_loss_when_a_filter_shrinks_a_little(trained):
    model, data = simplify(trained), samples(20, seed=3)
    graph, scores = scores_on(model, data)
    for layer in graph.layers[:2]:
        names = [str(value.name) for value in layer.node.inputs[1:]]
        weights = current(model, names)
        measured = []
        for index in range(len(layer.atoms)):
            changed = []
            for sign in (1, -1):
                scaled = {name: w.copy() for name, w in weights.items()}
                for w in scaled.values():
                    w[index] *= 1 + sign * 1e-2
                changed.append(losses(with_weights(model, scaled), data))
            measured.append(np.mean(np.abs(changed[0] - changed[1])) / 2e-2)
        measured = np.array(measured) / np.linalg.norm(measured)
        np.testing.assert_allclose(scores[graph.set_of[layer.atoms]], measured, rtol=0.05, atol=0.01)


def test_without_labels_they_are_drawn_from_the_predictions(trained):
    model, data = simplify(trained), samples(64, seed=3)
    unlabelled = type(data)(data.name, data.samples, None)
    (_, first), (_, again), (_, other) = (scores_on(model, unlabelled, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first > 0).any()


def test_flops_count_against_a_set(trained):
    model, data = simplify(trained), samples(16)
    graph, plain = scores_on(model, data)
    _, regularised = scores_on(model, data, flops_weight=0.5)
    (conv1, *_) = graph.layers
    macs = oc.cost(model).layers[0].macs
    sets = graph.set_of[conv1.atoms]
    np.testing.assert_allclose(plain[sets] - regularised[sets], 0.5 * 2e-6 * macs / 8, rtol=1e-6)


def test_a_label_beyond_the_classes():
    data = samples(8)
    with pytest.raises(oc.InputError, match="label 9, but the network has 4 classes"):
        scores_on(simplify(network()), type(data)(data.name, data.samples, data.labels + 6))


def test_rounds_remove_what_one_application_of_their_filters_removes(trained):
    model = simplify(trained)
    pruned, filters, _ = prune_in_steps(
        model,
        ratio=0.5,
        step=0.2,
        score=lambda _, graph, progress: set_scores(graph, "l2", 0),
        recover=lambda network, progress: network,
        scope="layer",
    )
    at_once = remove_filters(model, filters)
    assert sum(map(len, filters.values())) in (9, 10)
    for name, value in pruned.graph.initializers.items():
        expected = at_once.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(value.const_value.numpy(), expected)


def test_each_round_is_recovered(trained):
    seen = []
    prune_in_steps(
        simplify(trained),
        ratio=0.4,
        step=0.1,
        score=lambda _, graph, progress: set_scores(graph, "l1", 0),
        recover=lambda network, progress: seen.append(oc.cost(network).macs) or network,
    )
    assert len(seen) == 4
    assert seen == sorted(seen, reverse=True)


def test_training_in_between_keeps_the_accuracy(trained):
    model, test = simplify(trained), samples(200, seed=9)
    recipe = Recipe(rate=0.02, batch=16)
    options = {"ratio": 0.6, "step": 0.2, "scope": "layer", "steps": 24, "limit": 64, "recipe": recipe}
    pruned, filters, _ = prune_and_train(model, samples(128), labels=True, **options)
    at_once = remove_filters(model, filters)
    assert oc.cost(pruned).macs == oc.cost(at_once).macs
    assert oc.evaluate(pruned, test).top1 > 0.95


def test_as_a_criterion_of_prune(trained, tmp_path):
    np.save(tmp_path / "data.npy", samples(120).samples)
    data = oc.Calibration(tmp_path / "data.npy")
    plans = [oc.prune(trained, ratio=0.5, criterion="taylor", data=data).plan.prune for _ in range(2)]
    assert plans[0] == plans[1]
    assert {name: len(filters) for name, filters in plans[0].items()} == {"conv1": 4, "conv2": 6}
    with pytest.raises(oc.InputError, match="taylor needs calibration data"):
        oc.prune(trained, criterion="taylor")


def test_rounds_tell_what_is_done_in_them(trained):
    said = []
    prune_and_train(
        simplify(trained),
        samples(64),
        labels=True,
        ratio=0.4,
        step=0.2,
        steps=2,
        limit=20,
        recipe=Recipe(rate=0.02, batch=16),
        progress=lambda *arguments: said.append(arguments),
    )
    for number in (1, 2):
        assert said.index((f"round {number} of 2: scoring", 3, 3)) < said.index(
            (f"round {number} of 2: training", 2, 2)
        )


def test_a_product_with_its_weights_on_the_left():
    random = np.random.default_rng(0)
    shapes = {"c": (8, 3, 3, 3), "m": (6, 8), "v": (6 * 64, 4)}
    text = """g (float[N,3,8,8] data) => (float[N,4] y) {
        a = Conv<pads=[1,1,1,1]>(data, c) r = Relu(a) s = Reshape(r, k) l = MatMul(m, s) e = Relu(l)
        f = Flatten(e) y = MatMul(f, v) }"""
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    model = simplify(from_text(text, weights | {"k": np.array([0, 8, 64])}))
    graph = analyse(model, concrete_shapes(model))
    data = Data("", random.normal(size=(8, 3, 8, 8)).astype(np.float32), np.arange(8) % 4)
    scores = taylor_scores(model, graph, [(data.samples, data.labels)], samples=8)
    (layer,) = (each for each in graph.layers if each.node.inputs[0].name == "m")
    changes = []
    for row in range(6):
        less, more = weights["m"].copy(), weights["m"].copy()
        less[row] *= 0.99
        more[row] *= 1.01
        one, other = (losses(with_weights(model, {"m": each}), data) for each in (less, more))
        changes.append(np.abs(one - other).mean())
    expected = np.array(changes) / np.linalg.norm(changes)
    np.testing.assert_allclose(scores[graph.set_of[layer.atoms]], expected, rtol=0.05, atol=0.01)
