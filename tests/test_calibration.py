"""Calibration data: read, split, and turned into the patches and moments of every layer."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

import onnxcompress as oc
from onnxcompress.calibration.inside import revealing
from onnxcompress.calibration.patches import fitted_layers, patches, per_sample
from onnxcompress.calibration.responses import Responses
from onnxcompress.calibration.samples import Samples, fed, read_samples, split
from onnxcompress.calibration.stages import Stages
from onnxcompress.calibration.statistics import kept_statistics, statistics
from onnxcompress.errors import InputError
from onnxcompress.layers import CONVOLUTIONS, factor_layers, reads
from onnxcompress.model import simplify
from onnxcompress.plan import Ranks
from onnxcompress.preprocessing import Preprocessing
from onnxcompress.recovery.least_squares import refit
from onnxcompress.runtime import random_feeds, run, session
from onnxcompress.shapes import concrete_shapes
from tests.factor_networks import networks
from tests.onnx_text import network

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
ALL = 10**6


def chain(seed: int = 0) -> ir.Model:
    """Two convolutions with a Relu between them, and one that reads both ways round an Add."""
    random = np.random.default_rng(seed)
    return simplify(
        network(
            """g (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) {
                a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
                r = Relu (a)
                b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, wb, bb)
                c = Conv <strides = [2, 2]> (r, wc, bb)
                y = Add (b, c)
            }""",
            {
                "wa": random.standard_normal((6, 3, 3, 3)).astype(np.float32),
                "ba": random.standard_normal(6).astype(np.float32),
                "wb": random.standard_normal((4, 6, 3, 3)).astype(np.float32),
                "wc": random.standard_normal((4, 6, 1, 1)).astype(np.float32),
                "bb": random.standard_normal(4).astype(np.float32),
            },
        )
    )


def samples(count: int = 40, shape: tuple[int, ...] = (3, 8, 8)) -> Samples:
    x = np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)
    return Samples({"x": x}, np.arange(count))


@SETTINGS
@given(networks())
def test_patches_times_weights_are_the_layer_s_output(model: ir.Model):
    """In every geometry: kernels of 1 to 3 axes, strides, dilations, pads, groups, transposed, products."""
    model = simplify(model)
    runnable = session(model)
    feeds = random_feeds(runnable)
    known = fitted_layers(factor_layers(model, concrete_shapes(model)))
    for layer, each in [(whole, part) for whole in known for part in whole.applications]:
        names = [each.reads, str(each.node.outputs[0].name)]
        x, y = run(session(revealing(model, names)), feeds)
        alone = replace(layer, applications=(each,))
        found = patches(alone, {each.reads: x}, len(x), [ALL], (0,)).astype(np.float64)
        weight = layer.by_group
        response = (found @ weight.swapaxes(1, 2)).transpose(1, 0, 2).reshape(found.shape[1], -1)
        response += 0 if layer.bias is None else layer.bias
        expected = np.moveaxis(y, 1, -1) if each.node.op_type in CONVOLUTIONS else y
        tolerance = 1e-4 if x.dtype == np.float32 else 5e-2
        np.testing.assert_allclose(
            response, expected.reshape(response.shape), atol=tolerance * max(1, np.abs(y).max())
        )


def test_statistics_are_those_of_all_patches_at_once(monkeypatch):
    monkeypatch.setattr("onnxcompress.calibration.patches.LEAST", ALL)
    model = chain()
    layers = factor_layers(model, concrete_shapes(model))
    given_samples = samples()
    found = statistics(model, layers, given_samples)
    x = given_samples.arrays["x"]
    (a,) = run(session(revealing(model, reads(layers[1:2]))), {"x": x})
    for layer, value in ((layers[0], x), (layers[1], a)):
        values = {layer.applications[0].reads: value}
        everything = patches(layer, values, len(value), [ALL], (0,))[0].astype(np.float64)
        moments = found[layer.name]
        assert moments.count == len(everything)
        np.testing.assert_allclose(moments.mean[0], everything.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(moments.zeros[0], (everything <= 0).mean(axis=0), atol=1e-12)
        width = everything.shape[1]
        expected = np.cov(everything.T, bias=True)
        shrunk = expected * (1 - width / (width + 10 * moments.count))
        np.fill_diagonal(shrunk, np.diag(expected))
        np.testing.assert_allclose(moments.covariance[0], shrunk, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("room", [2**32, 1])
def test_responses_are_what_the_layers_give_in_every_batch(monkeypatch, room):
    monkeypatch.setattr("onnxcompress.calibration.patches.LEAST", ALL)
    monkeypatch.setattr("onnxcompress.calibration.responses.DISK", room)
    model = chain()
    layers = factor_layers(model, concrete_shapes(model))
    given_samples = samples()
    passes = []
    found = Responses(model, layers, given_samples, [2, 0, 1], lambda done, total: passes.append(done))
    inside = session(revealing(model, [str(layer.node.outputs[0].name) for layer in layers]))
    feeds = [each for _, each in fed(given_samples, inside)]
    for number in (2, 0, 1):
        for each, (response,) in zip(feeds, found.of(number), strict=True):
            y = run(inside, each)[number]
            np.testing.assert_allclose(response, np.moveaxis(y, 1, -1).reshape(response.shape), atol=1e-4)
    assert passes.count(len(given_samples)) == (1 if room > 1 else 3)


@pytest.mark.parametrize(("limit", "batch"), [(2**31, 8), (3 * 4 * 960, 3), (1, 1)])
def test_large_networks_are_fed_fewer_samples_at_a_time(monkeypatch, limit, batch):
    """The chain computes twice 6 × 8 × 8 numbers of a sample and three times 4 × 4 × 4: 960."""
    monkeypatch.setattr("onnxcompress.calibration.samples.ACTIVATIONS", limit)
    feeds = [dict(samples().arrays)]
    assert read_samples(chain(), feeds).batch == batch


def test_many_samples_give_fewer_patches_each(monkeypatch):
    monkeypatch.setattr("onnxcompress.calibration.patches.MOST", 640)
    layer = factor_layers(chain(), concrete_shapes(chain()))[0]
    assert [per_sample(layer, samples) for samples in (1, 10, 64, 1000)] == [[64], [40], [10], [1]]


LEVELS = """g (float[N, 4, 8, 8] x) => (float[N, 2, 8, 8] y, float[N, 2, 4, 4] z) {
    [y] y = Conv <pads = [1, 1, 1, 1]> (x, head, bias)
    [s] s = Conv <strides = [2, 2]> (x, small)
    [z] z = Conv <pads = [1, 1, 1, 1]> (s, head, bias)
}"""


@pytest.fixture
def levels() -> ir.Model:
    """A head on two levels, of which one is behind another layer."""
    random = np.random.default_rng(0)
    shapes = {"head": (2, 4, 3, 3), "bias": (2,), "small": (4, 4, 1, 1)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return simplify(network(LEVELS, arrays))


def test_weights_that_several_nodes_apply_are_one_layer(levels):
    head, small = factor_layers(levels, concrete_shapes(levels))
    assert (head.names, head.positions, head.macs) == (["y", "z"], (80, 80, 80), 80 * 72)
    assert small.names == ["s"]
    assert per_sample(head, 10) == [20, 16]
    assert head.chain_macs(Ranks(1, 1)) == 80 * (4 + 9 + 2)


def test_patches_of_all_applications_are_in_the_order_of_the_samples(levels):
    head, _ = factor_layers(levels, concrete_shapes(levels))
    numbers = np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1, 1)
    values = {
        each.reads: np.broadcast_to(numbers, (3, 4, size, size))
        for each, size in zip(head.applications, (8, 4), strict=True)
    }
    found = patches(head, values, 3, [20, 5], (0,))
    np.testing.assert_array_equal(found[0].max(axis=1), np.repeat([1, 2, 3], 25))


def test_a_layer_s_turn_comes_when_all_that_it_is_applied_to_is_known(levels):
    layers = factor_layers(levels, concrete_shapes(levels))
    stages = Stages(levels, layers, samples(shape=(4, 8, 8)))
    assert [[layer.name for layer in each] for each in stages.layers] == [["s"], ["y"]]


def test_weights_applied_to_what_they_gave_are_fitted_all_the_same():
    model = simplify(
        network(
            "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, w) }",
            {"w": np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)},
        )
    )
    parts = split(samples(100, (4, 8, 8)))
    fitted, _ = refit(model, model, {}, {}, parts.fit, parts.choose)
    (given,), (found,) = (factor_layers(each, concrete_shapes(each)) for each in (model, fitted))
    np.testing.assert_allclose(found.weight, given.weight, atol=1e-4)


def test_statistics_are_kept_and_belong_to_one_network(tmp_path):
    model, path = chain(), tmp_path / "stats.npz"
    layers = factor_layers(model, concrete_shapes(model))
    first = kept_statistics(path, model, layers, samples())
    again = kept_statistics(path, model, layers, samples())
    for name in first:
        np.testing.assert_array_equal(first[name].covariance, again[name].covariance)
    other = chain(seed=3)
    with pytest.raises(InputError, match="another network"):
        kept_statistics(path, other, factor_layers(other, concrete_shapes(other)), samples())
    changed = chain()
    changed.graph[0].attributes["pads"] = ir.AttrInt64s("pads", [2, 2, 0, 0])
    with pytest.raises(InputError, match="another network"):
        kept_statistics(path, changed, factor_layers(changed, concrete_shapes(changed)), samples())
    more = samples()
    more.arrays["x"][1] += 1
    with pytest.raises(InputError, match="other data"):
        kept_statistics(path, model, layers, more)
    for damaged in (b"PK\x03\x04 damaged", b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a file of statistics"):
            kept_statistics(path, model, layers, samples())


def test_statistics_belong_to_the_views_that_were_seen(tmp_path):
    model, path = chain(), tmp_path / "stats.npz"
    layers = factor_layers(model, concrete_shapes(model))
    seen = Samples(samples().arrays, np.arange(40), views=2)
    kept_statistics(path, model, layers, seen)
    mirrored = Samples({"x": seen.arrays["x"].copy()}, seen.chosen, views=2)
    mirrored.arrays["x"][1::2] = mirrored.arrays["x"][1::2, ..., ::-1]
    with pytest.raises(InputError, match="other data"):
        kept_statistics(path, model, layers, mirrored)


@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
def test_patches_are_of_each_sample_where_it_has_several_entries(operator):
    """Four windows of every sample, folded into the first dimension; in each all numbers are the sample's."""
    shape, weight = ((12, 6, 2), (2, 3)) if operator == "MatMul" else ((12, 2, 3, 2), (3, 2, 1, 1))
    sizes = ", ".join(map(str, shape[1:]))
    model = network(
        f"""g (float[N, 48] x) => (float[M, {sizes.replace("2", "P", 1)}] y) {{
            s = Constant <value_ints = [-1, {sizes}]> () a = Reshape(x, s) y = {operator}(a, w)
        }}""",
        {"w": np.ones(weight, np.float32)},
    )
    (layer,) = factor_layers(model, concrete_shapes(model))
    x = np.repeat(np.arange(3, dtype=np.float32), 4 * 12).reshape(shape)
    (read,) = reads([layer])
    found = patches(layer, {read: x}, 3, [5], (0,))
    np.testing.assert_array_equal(found[0, :, 0], np.repeat([0, 1, 2], 5))
    values = {read: np.random.default_rng(0).random(shape, np.float32)}
    everything = patches(layer, values, 3, [ALL], (0,))
    assert everything.shape == (1, 72, 2)
    assert len(np.unique(everything)) == 144


def deep(stem: int, cells: int = 0, steps: int = 0) -> ir.Model:
    """Convolutions of low rank one after the other; the last of them go round several times."""
    random = np.random.default_rng(0)
    names = [f"s{i}" for i in range(stem)] + [f"c{i}" for i in range(cells)]
    nodes, value = [], "x"
    for i, name in enumerate([*names[:stem], *names[stem:] * steps]):
        nodes.append(f"a{i} = Conv <pads = [1, 1, 1, 1]> ({value}, {name}, {name}b)  r{i} = Relu (a{i})")
        value = f"r{i}"
    weights = {name: _of_low_rank(random, 12, 3 if name == "s0" else 12) for name in names}
    weights |= {f"{name}b": random.standard_normal(12).astype(np.float32) / 10 for name in names}
    weights["head"] = _of_low_rank(random, 4, 12)
    text = " ".join(nodes) + f" y = Conv <pads = [1, 1, 1, 1]> ({value}, head)"
    return network(f"g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {text} }}", weights)


def test_each_layer_sees_what_those_before_it_have_become(tmp_path):
    """However deep a network is: layers that see the same error would correct it twice."""
    model, random = deep(60), np.random.default_rng(1)
    np.savez(tmp_path / "others.npz", x=random.standard_normal((40, 3, 6, 6)).astype(np.float32))
    x = random.standard_normal((50, 3, 6, 6)).astype(np.float32)
    plan = oc.prune(model, ratio=0.3).plan
    fitted, not_fitted = (
        oc.evaluate(oc.apply(model, plan, data=data).model, tmp_path / "others.npz", reference=model).damage
        for data in (oc.Calibration([{"x": x}]), None)
    )
    assert fitted < 0.05 * not_fitted


def test_layers_that_go_round_have_a_stage_each():
    model = simplify(deep(8, 6, 6))
    layers = fitted_layers(factor_layers(model, concrete_shapes(model)))
    assert [len(each) for each in Stages(model, layers, samples(10, (3, 6, 6))).layers] == [1] * 15


def _of_low_rank(random: np.random.Generator, filters: int, channels: int) -> np.ndarray:
    """3×3 weights whose singular values fall by a quarter each."""
    u, s, v = np.linalg.svd(random.standard_normal((filters, channels * 9)), full_matrices=False)
    return (1.7 * (u * 0.75 ** np.arange(len(s))) @ v).reshape(filters, channels, 3, 3).astype(np.float32)


def test_parts_share_no_sample_and_are_spread_over_the_data():
    parts = split(samples(100))
    numbers = [set(part.chosen.tolist()) for part in (parts.fit, parts.choose, parts.report)]
    assert [len(each) for each in numbers] == [80, 10, 10]
    assert set.union(*numbers) == set(range(100))
    assert all(max(each) - min(each) >= 89 for each in numbers)
    with pytest.raises(InputError, match="at least 10"):
        split(samples(9))


def test_further_views_are_for_fitting_only():
    x = samples(60).arrays["x"]
    parts = split(Samples({"x": x}, np.arange(60), views=3))
    assert [part.count for part in (parts.fit, parts.choose, parts.report)] == [16, 2, 2]
    assert [len(part) for part in (parts.fit, parts.choose, parts.report)] == [48, 2, 2]
    others = np.concatenate([parts.choose.chosen, parts.report.chosen])
    assert not np.isin(others // 3, parts.fit.chosen // 3).any()


def test_stages_compute_what_the_whole_network_does_and_see_changed_weights():
    model = chain()
    layers = factor_layers(model, concrete_shapes(model))
    stages = Stages(model, fitted_layers(layers), samples(20))
    assert [[layer.name for layer in stage] for stage in stages.layers] == [
        [layers[0].name],
        [layers[1].name, layers[2].name],
    ]
    whole = session(model)
    expected = [run(whole, feeds)[0] for _, feeds in fed(samples(20), whole)]
    for stage in range(2):
        for _ in stages.before(stage, []):
            pass
        for values, y in zip(stages.rest(["y"]), expected, strict=True):
            np.testing.assert_allclose(values["y"], y, atol=1e-4)


def test_calibration_data_of_every_kind(tmp_path):
    model = chain()
    x = samples(12).arrays["x"]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "named.npz", x=x)
    for source in (tmp_path / "x.npy", tmp_path / "named.npz", [{"x": x[:5]}, {"x": x[5:]}]):
        np.testing.assert_array_equal(read_samples(model, source).arrays["x"], x)
    assert len(read_samples(model, tmp_path / "x.npy", limit=7)) == 7
    rated = network(
        "g (float[N, 2] x, int64 rate) => (float[N, 2] y) { r = Cast <to = 1> (rate) y = Mul(x, r) }"
    )
    with pytest.raises(InputError, match="'rate' is one number for all samples"):
        read_samples(rated, [{"x": x[:, :2, 0, 0], "rate": np.ones(12, np.int64)}])
    two = network("g (float[N, 2] x, float[N, 2] z) => (float[N, 2] y) { y = Mul(x, z) }")
    np.savez(tmp_path / "single.npz", x=x[:, :2, 0, 0], z=np.float32(1))
    with pytest.raises(InputError, match="'z' is a single number"):
        read_samples(two, tmp_path / "single.npz")
    with pytest.raises(InputError, match="leaves none"):
        read_samples(model, [{"x": x}], limit=0)
    np.savez(tmp_path / "labelled.npz", x=x, y=np.arange(12))
    labels = read_samples(model, tmp_path / "labelled.npz").data.labels
    np.testing.assert_array_equal(labels, np.arange(12))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(folder / f"{number}.png")
    preprocessing = Preprocessing(resize=(8, 8), crop=(8, 8), mean=(0, 0, 0))
    pictures = read_samples(model, folder, preprocessing=preprocessing)
    assert pictures.count == 3
    np.testing.assert_array_equal(
        pictures.arrays["x"][pictures.chosen][:, 2, 0, 0], np.repeat([0, 1, 2], pictures.views)
    )


@pytest.mark.parametrize(("seen", "ways"), [(3, 3), (15, 5), (2000, 8)])
def test_few_images_are_seen_in_more_ways(tmp_path, monkeypatch, seen, ways):
    monkeypatch.setattr("onnxcompress.calibration.samples.SEEN", seen)
    for number in range(3):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    model = network("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }")
    pictures = read_samples(model, tmp_path, preprocessing=Preprocessing(resize=(8, 8), mean=(0, 0, 0)))
    assert pictures.views == ways
    assert len(pictures) == 3 * ways


@pytest.mark.parametrize("mirror", [True, False])
def test_every_other_view_is_mirrored_if_that_is_wanted(tmp_path, mirror):
    ramp = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "ramp.png")
    model = network("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }")
    steps = Preprocessing(resize=(8, 8), mean=(0, 0, 0))
    rows = read_samples(model, tmp_path, preprocessing=steps, mirror=mirror).arrays["x"]
    for view, row in enumerate(rows):
        expected = ramp[:, ::-1] if mirror and view % 2 else ramp
        np.testing.assert_array_equal(row, np.broadcast_to(expected, (3, 8, 8)))


def test_two_inputs_take_an_array_each(tmp_path):
    model = network(
        "g (float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Add (a, b) }",
    )
    arrays = {name: np.ones((5, 2), np.float32) for name in "ab"}
    np.savez(tmp_path / "both.npz", **arrays)
    assert set(read_samples(model, tmp_path / "both.npz").arrays) == {"a", "b"}
    np.save(tmp_path / "one.npy", arrays["a"])
    with pytest.raises(InputError, match="several inputs"):
        read_samples(model, tmp_path / "one.npy")
    with pytest.raises(InputError, match="feed 0"):
        read_samples(model, [{"a": arrays["a"]}])
    with pytest.raises(InputError, match="different numbers"):
        read_samples(model, [{"a": arrays["a"], "b": arrays["b"][:2]}])


@pytest.mark.parametrize("array", [np.ones((4, 3, 8, 7), np.float32), np.ones((4, 3, 8, 8))])
def test_samples_that_do_not_fit_are_refused(array):
    with pytest.raises(InputError, match="the network takes"):
        read_samples(chain(), [{"x": array}])


def test_a_fixed_batch_is_filled_up():
    model = chain()
    model.graph.inputs[0].shape = ir.Shape([8, 3, 8, 8])
    model.graph.outputs[0].shape = None
    batches = list(fed(samples(11), session(model)))
    assert [len(places) for places, _ in batches] == [8, 3]
    assert [len(feeds["x"]) for _, feeds in batches] == [8, 8]


def test_arrays_come_in_the_order_of_the_inputs(tmp_path):
    names = [f"x{number}" for number in range(8)]
    inputs = ", ".join(f"float[N,2] {name}" for name in names)
    model = network(f"g ({inputs}) => (float[N,2] y) {{ y = Sum({', '.join(names)}) }}")
    arrays = {name: np.zeros((10, 2), np.float32) for name in reversed(names)}
    np.savez(tmp_path / "x.npz", **arrays)
    feeds = [{name: array[:1] for name, array in arrays.items()} for _ in range(10)]
    for source in (tmp_path / "x.npz", feeds):
        assert list(read_samples(model, source).arrays) == names
