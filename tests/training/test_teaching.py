import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.caffe import import_caffe_text
from onnxcompress.data import Data
from onnxcompress.model import simplify
from onnxcompress.runtime import run, session
from onnxcompress.training.losses import Loss
from onnxcompress.training.parameters import current, trainable
from onnxcompress.training.teaching import by_responses, shared_responses, where_it_errs
from onnxcompress.training.trainer import Recipe
from tests.onnx_text import network as written
from tests.training.small import PROTOTXT, network, samples

RECIPE = Recipe(rate=0.01, batch=16)


@pytest.fixture(scope="module")
def trained():
    return oc.finetune(
        network(), samples(256), labels=True, epochs=6, recipe=Recipe(rate=0.02, batch=16)
    ).model


@pytest.fixture(scope="module")
def compressed(trained):
    plan = oc.Plan(prune={"conv1": [1, 4]}, decompose={"conv2": oc.Ranks(5, 4)})
    return oc.apply(trained, plan)


def responses(model, names, x):
    part = model.clone()
    by_name = {value.name: value for node in part.graph for value in node.outputs}
    part.graph.outputs[:] = [by_name[name] for name in names]
    return run(session(part), {"data": x})


def test_responses_of_pruned_and_factored_layers_are_shared(trained, compressed):
    original = simplify(trained)
    found = {
        each.value: each.kept.tolist()
        for each in shared_responses(original, compressed.model, compressed.plan.prune)
    }
    last = next(node for node in original.graph if node.op_type == "Gemm").outputs[0].name
    assert list(found.values()) == [[0, 2, 3, 5, 6, 7], list(range(12)), list(range(4))]
    assert list(found)[-1] == last
    relus = {node.outputs[0].name for node in original.graph if node.op_type == "Relu"}
    assert set(list(found)[:2]) == relus


def test_the_loss_is_the_mean_of_relative_errors(trained, compressed):
    original, small = simplify(trained), compressed.model
    x = samples(6, seed=3).samples
    teaching = by_responses(original, shared_responses(original, small, compressed.plan.prune), 0.5)
    targets = teaching.targets(x)
    names = list(trainable(small))
    value, _ = Loss(small, names, teaching.terms, samples=6)(current(small, names), x, targets)
    ours = responses(small, [term.value for term in teaching.terms], x)
    errors = [np.sum((a - b) ** 2) / np.sum(b**2) for a, b in zip(ours, targets, strict=True)]
    assert value == pytest.approx(0.5 * np.mean(errors), rel=1e-4)
    theirs = responses(original, [term.value for term in teaching.terms], x)
    np.testing.assert_allclose(targets[0], theirs[0][:, [0, 2, 3, 5, 6, 7]], rtol=1e-5)


def test_gradients_are_the_slopes_of_the_loss(trained, compressed):
    original, small = simplify(trained), compressed.model
    x = samples(6, seed=4).samples
    teaching = by_responses(original, shared_responses(original, small, compressed.plan.prune), 1.0)
    targets, names = teaching.targets(x), list(trainable(small))
    loss, weights = Loss(small, names, teaching.terms, samples=6), current(small, names)
    _, gradients = loss(weights, x, targets)
    for name, gradient in gradients.items():
        direction, step = gradient / np.linalg.norm(gradient), np.float32(1e-2)
        ahead, _ = loss(weights | {name: weights[name] + step * direction}, x, targets)
        behind, _ = loss(weights | {name: weights[name] - step * direction}, x, targets)
        assert np.linalg.norm(gradient) == pytest.approx((ahead - behind) / (2 * step), rel=0.03)


def test_rows_of_a_product_with_the_weights_in_front_are_its_filters():
    random = np.random.default_rng(0)
    model = written(
        """g (float[N, 6, 9] x) => (float[N, 8, 9] z) { y = MatMul(w, x) z = MatMul(v, y) }""",
        {
            "w": random.standard_normal((10, 6)).astype(np.float32),
            "v": random.standard_normal((8, 10)).astype(np.float32),
        },
    )
    assert [(each.axis, len(each.kept)) for each in shared_responses(model, model, {})] == [(1, 10), (1, 8)]
    assert [layer.filters for layer in oc.cost(model).layers] == [10, 8]


@pytest.mark.parametrize("batch", ["N", "4"])
def test_targets_of_layers_with_several_rows_of_each_sample(batch):
    model = written(
        f"""g (float[{batch}, 12] x) => (float[{batch}, 12] z) {{
            s = Constant <value_ints = [-1, 4]> () t = Constant <value_ints = [-1, 12]> ()
            a = Reshape(x, s) y = MatMul(a, w) z = Reshape(y, t)
        }}""",
        {"w": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)},
    )
    x = np.random.default_rng(1).standard_normal((6, 12)).astype(np.float32)
    (found,) = by_responses(model, shared_responses(model, model, {}), 1.0).targets(x)
    (weight,) = (value.const_value.numpy() for name, value in model.graph.initializers.items() if name == "w")
    np.testing.assert_allclose(found, x.reshape(18, 4) @ weight, atol=1e-5)


def test_nothing_is_lost_where_nothing_was_changed(trained):
    original = simplify(trained)
    teaching = by_responses(original, shared_responses(original, original, {}), 1.0)
    x, names = samples(4).samples, list(trainable(original))
    value, gradients = Loss(original, names, teaching.terms, samples=4)(
        current(original, names), x, teaching.targets(x)
    )
    assert value < 1e-10
    assert max(np.abs(gradient).max() for gradient in gradients.values()) < 1e-4


def test_layers_in_front_that_give_what_the_teachers_do_are_left_alone(trained, compressed):
    original, x = simplify(trained), samples(16, seed=3).samples
    plan = oc.Plan(decompose={"conv2": oc.Ranks(5, 4)})
    small = oc.apply(trained, plan).model
    found = shared_responses(original, small, {})
    teaching = where_it_errs(original, small, found, x)
    assert [term.value for term in teaching.terms] == [each.value for each in found[1:]]
    assert teaching.settled == {"conv1.weight", "conv1.bias"}
    unlabelled = Data("", samples(64).samples, None)
    result = oc.finetune(small, unlabelled, teacher=trained, plan=plan, steps=4, recipe=RECIPE)
    before, after = (current(each, list(trainable(small))) for each in (small, result.model))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == set(before) - teaching.settled


def test_a_compressed_network_gets_nearer_to_its_teacher(trained, compressed):
    data, test = samples(128), samples(200, seed=9)
    unlabelled = Data(data.name, data.samples, None)
    result = oc.finetune(
        compressed.model, unlabelled, teacher=trained, plan=compressed.plan, epochs=10, recipe=RECIPE
    )
    before, after = (
        oc.evaluate(each, test, reference=trained).relative_l2 for each in (compressed.model, result.model)
    )
    assert after < 0.6 * before


def test_a_plan_without_a_teacher_and_a_plan_of_another_network(trained, compressed, tmp_path):
    data = samples(32)
    with pytest.raises(oc.InputError, match="give --teacher"):
        oc.finetune(compressed.model, data, labels=True, plan=compressed.plan)
    (tmp_path / "other.yaml").write_text("format: 1\nprune:\n  elsewhere: [0]\n")
    with pytest.raises(oc.InputError, match=r"other\.yaml: prune: there is no layer 'elsewhere'"):
        oc.finetune(compressed.model, data, teacher=trained, plan=tmp_path / "other.yaml")
    fewer = oc.Plan(prune={"conv1": [1, 4, 5]})
    with pytest.raises(oc.InputError, match="'conv1' has 6 filters, by the plan 5"):
        oc.finetune(compressed.model, data, teacher=trained, plan=fewer)
    renamed = compressed.model.clone()
    for node in renamed.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"other.{value.name}"
    with pytest.raises(oc.InputError, match="does not lead to it"):
        oc.finetune(renamed, data, teacher=trained, plan=compressed.plan)


def test_labels_and_responses_together(trained, compressed):
    result = oc.finetune(
        compressed.model,
        samples(128),
        labels=True,
        teacher=trained,
        plan=compressed.plan,
        epochs=6,
        recipe=RECIPE,
    )
    assert oc.evaluate(result.model, samples(200, seed=9)).top1 > 0.95


def test_a_network_without_class_scores():
    maps = import_caffe_text(PROTOTXT[: PROTOTXT.index('layer { name: "fc"')], seed=0)
    data, test = samples(160), samples(64, seed=9)
    unlabelled, test = (Data(each.name, each.samples, None) for each in (data, test))
    plain = oc.apply(maps, oc.Plan(prune={"conv1": [1, 4]}, decompose={"conv2": oc.Ranks(5, 4)}))
    options = {"teacher": maps, "plan": plain.plan, "validation": test, "recipe": RECIPE}
    trained = oc.finetune(plain.model, unlabelled, **options)
    before, after = (oc.evaluate(each.model, test, reference=maps).relative_l2 for each in (plain, trained))
    assert after < 0.6 * before
    assert trained.curve[trained.best].validation.relative_l2 == pytest.approx(after, rel=1e-3)
    options = {"target": "macs=0.4", "data": oc.Calibration(unlabelled), "training": oc.Training(1, RECIPE)}
    assert oc.compress(maps, **options).stages[-1].name == "trained"
    with pytest.raises(oc.InputError, match="no class scores"):
        oc.finetune(plain.model, unlabelled, teacher=maps)
    with pytest.raises(oc.InputError, match="no class scores"):
        oc.compress(maps, target="macs=0.4", data=oc.Calibration(data, labels=True), training=oc.Training())


def test_a_run_with_a_plan_goes_on_as_if_nothing_had_happened(trained, compressed, tmp_path):
    options = {"teacher": trained, "plan": compressed.plan, "epochs": 3, "recipe": RECIPE}

    def stop(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    whole = oc.finetune(compressed.model, samples(64), **options).model
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        oc.finetune(compressed.model, samples(64), checkpoint_file=path, on_epoch=stop, **options)
    resumed = oc.finetune(compressed.model, samples(64), checkpoint_file=path, resume=True, **options).model
    for name, value in whole.graph.initializers.items():
        np.testing.assert_array_equal(
            resumed.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )
