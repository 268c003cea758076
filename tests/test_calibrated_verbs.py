"""prune, decompose, compress, apply and tradeoff with calibration data, on the network that ships."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import onnxcompress as oc
from models.digits import SHIPPED
from models.digits_data import load_digits_parts
from onnxcompress.calibration.samples import Samples
from onnxcompress.cli import app
from onnxcompress.measure.closeness import closeness
from onnxcompress.model import simplify
from onnxcompress.plan import matches, members
from onnxcompress.report.compressed import fitted_lines
from tests.onnx_text import network
from tests.training import small as quarters

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("digits")
    paths = {}
    for name, part in load_digits_parts().items():
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], x=part.images, y=part.labels)
    return paths


@pytest.fixture(scope="module")
def calibration(digits) -> oc.Calibration:
    return oc.Calibration(digits["calibration"], stats=digits["calibration"].with_name("stats.npz"))


@pytest.fixture(scope="module")
def small(calibration) -> oc.Compressed:
    return oc.compress(SHIPPED, data=calibration, target="macs=0.3")


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and all that was printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


def damage(model: ir.Model, digits: dict[str, Path]) -> float:
    """On the test part, which nothing was fitted to."""
    x = np.load(digits["test"])["x"]
    return closeness(oc.load(SHIPPED), model, Samples({"data": x}, np.arange(len(x)))).damage


def test_what_the_samples_were_used_for_is_said(small, calibration):
    all_the_same = replace(small.fitted, closeness=replace(small.fitted.closeness, agreement=1.0))
    first, *_, last = fitted_lines(replace(small, fitted=all_the_same))
    assert first.startswith("weights fitted to 216 samples, choices made on 27 others, measured on 27 that")
    assert last == "the standard error of that agreement is 4.4 points"  # sqrt(29/31 · 2/31 / 31)
    nothing = oc.prune(SHIPPED, ratio=0, data=calibration)
    assert fitted_lines(nothing)[0].startswith("no weights were fitted, measured on 27 samples")


def test_a_path_is_enough_for_data(digits):
    path = digits["calibration"]
    one, other = (oc.prune(SHIPPED, ratio=0.2, data=data) for data in (str(path), oc.Calibration(path)))
    assert (one.plan, one.fitted) == (other.plan, other.fitted)
    x = np.load(path)["x"]
    assert oc.prune(SHIPPED, ratio=0.2, data=[{"data": x[:50]}, {"data": x[50:]}]).fitted == one.fitted


def test_the_budget_is_met_within_a_hundredth(small, calibration):
    of_params = oc.compress(SHIPPED, data=calibration, target="params=0.15")
    for result, kind, share in ((small, "macs", 0.3), (of_params, "params", 0.15)):
        before, after = (getattr(result.stages[index].cost, kind) for index in (0, -1))
        assert 0.99 * share <= after / before <= share


@pytest.mark.parametrize("skip", ["classifier", "inception_4a/*", "*3x3*"])
def test_layers_that_are_skipped_stay_under_a_budget(calibration, skip):
    result = oc.compress(SHIPPED, data=calibration, target="macs=0.6", skip=[skip])
    touched = {*result.plan.prune, *(each for name in result.plan.decompose for each in members(name))}
    assert touched
    assert not [name for name in touched if matches(name, [skip])]


def test_filters_and_ranks_are_multiples_where_that_is_asked_for(calibration):
    result = oc.compress(SHIPPED, data=calibration, target="macs=0.3", round_to=4)
    before = {layer.name: layer.output_shape[1] for layer in oc.cost(oc.load(SHIPPED)).layers}
    assert result.plan.prune
    assert all((before[name] - len(gone)) % 4 == 0 for name, gone in result.plan.prune.items())
    assert result.plan.decompose
    assert all(ranks.out % 4 == 0 for ranks in result.plan.decompose.values())
    assert 0.25 < result.stages[-1].cost.macs / result.stages[0].cost.macs <= 0.3


def test_the_file_has_the_size_that_was_asked_for(calibration, tmp_path):
    oc.save(oc.compress(SHIPPED, data=calibration, target="size=0.4").model, tmp_path / "small.onnx")
    share = (tmp_path / "small.onnx").stat().st_size / SHIPPED.stat().st_size
    assert 0.39 <= share <= 0.401


def test_less_is_lost_than_by_weights_alone_at_the_same_macs(small, digits):
    budget = small.stages[-1].cost.macs
    rivals = [oc.prune(SHIPPED, ratio=ratio) for ratio in (0.3, 0.4, 0.5)]
    rivals += [
        oc.decompose(SHIPPED, rank=f"fraction:{share}", include_pointwise=True) for share in (0.3, 0.4)
    ]
    within = [rival for rival in rivals if rival.stages[-1].cost.macs <= budget]
    assert within
    assert damage(small.model, digits) < 0.2 * min(damage(rival.model, digits) for rival in within)


def test_what_is_reported_was_measured_on_samples_of_its_own(small):
    fitted = small.fitted
    assert (fitted.fit, fitted.choose, fitted.report) == (216, 27, 27)
    assert fitted.closeness.agreement > 0.9
    assert fitted.expected_damage is not None
    assert not small.fitted.unfitted


def test_fitted_pruning_and_factoring_lose_less_than_plain(calibration, digits):
    pairs = [
        (oc.prune(SHIPPED, ratio=0.5), oc.prune(SHIPPED, ratio=0.5, data=calibration)),
        (
            oc.decompose(SHIPPED, rank="fraction:0.3"),
            oc.decompose(SHIPPED, rank="fraction:0.3", data=calibration),
        ),
        (
            oc.compress(SHIPPED, criterion="l2", rank="fraction:0.5"),
            oc.compress(SHIPPED, criterion="l2", rank="fraction:0.5", data=calibration, method="paper"),
        ),
    ]
    for plain, fitted in pairs:
        assert fitted.stages[-1].cost.macs <= plain.stages[-1].cost.macs * 1.2
        assert damage(fitted.model, digits) < 0.5 * damage(plain.model, digits)


def test_criteria_that_look_at_the_data_choose_for_themselves(calibration):
    chosen = [
        oc.prune(SHIPPED, ratio=0.3, criterion=name, data=calibration).plan.prune
        for name in ("apoz", "activation", "reconstruction", "l2")
    ]
    assert len({json.dumps(each) for each in chosen}) == 4


def test_a_plan_applied_with_the_same_data_gives_the_same_bytes(digits, tmp_path):
    small, again = tmp_path / "small.onnx", tmp_path / "again.onnx"
    data = ["--data", digits["calibration"], "--quiet"]
    assert command("decompose", SHIPPED, "-o", small, *data, "--rank", "fraction:0.5") == (0, "")
    assert command("apply", SHIPPED, tmp_path / "small.plan.yaml", "-o", again, *data) == (0, "")
    assert small.read_bytes() == again.read_bytes()


def test_the_smallest_network_that_keeps_the_accuracy(monkeypatch):
    monkeypatch.setattr("onnxcompress.methods.PRECISION", 1.0)
    model, x = quarters.network(), quarters.samples(300).samples
    result = oc.compress(model, data=[{"data": x[:200]}], keep_accuracy=0.9)
    assert result.stages[-1].cost.macs < 0.7 * result.stages[0].cost.macs
    kept = closeness(model, result.model, Samples({"data": x}, np.arange(200, 300)))
    assert kept.agreement > 0.8


def test_the_tradeoff_is_written_and_drawn(tmp_path):
    model, data = tmp_path / "quarters.onnx", tmp_path / "data.npz"
    oc.save(quarters.network(), model)
    np.savez(data, x=quarters.samples(100).samples)
    curve, plot = tmp_path / "curve.json", tmp_path / "curve.png"
    options = ["--data", data, "--shares", "0.6,0.2", "-o", curve, "--plot", plot]
    code, printed = command("tradeoff", model, *options)
    assert code == 0
    assert "same best class" in printed
    points = json.loads(curve.read_text())["points"]
    assert [point["share"] for point in points] == [0.6, 0.2]
    assert points[0]["macs"] > points[1]["macs"]
    assert points[0]["expected_damage"] <= points[1]["expected_damage"]
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--kind", "flops", "kind: 'flops' is not one of macs, params, size"),
        ("--shares", "0.5,1.5", "shares: 1.5 is not above 0 and below 1"),
    ],
)
def test_costs_and_shares_that_are_none(digits, tmp_path, option, value, message):
    curve = tmp_path / "curve.json"
    code, printed = command("tradeoff", SHIPPED, "--data", digits["train"], "-o", curve, option, value)
    assert code == 2
    assert message in printed
    assert not curve.exists()


def test_what_cannot_be_drawn_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcompress.plots.find_spec", lambda name: None)
    monkeypatch.setattr("onnxcompress.tradeoff", None)
    curve, plot = tmp_path / "curve.json", tmp_path / "curve.png"
    data = tmp_path / "data.npz"
    np.savez(data, x=quarters.samples(100).samples)
    code, printed = command("tradeoff", SHIPPED, "--data", data, "-o", curve, "--plot", plot)
    assert code == 2
    assert "pip install 'onnxcompress[plot]'" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "macs=0.5"], "needs calibration data"),
        (["--criterion", "apoz"], "needs calibration data"),
        (["--data", "DATA", "--target", "macs=1.5"], "target: 'macs=1.5'"),
        (["--data", "DATA", "--target", "time=0.5"], "target: 'time=0.5'"),
        (["--data", "DATA", "--target", "macs=0.5", "--round-to", "0"], "round-to: 0 is not at least 1"),
        (["--data", "DATA", "--method", "joint"], "method: joint needs"),
        (["--data", "DATA", "--target", "macs=0.5", "--keep-accuracy", "0.9"], "not both"),
        (["--data", "DATA", "--limit", "5", "--target", "macs=0.5"], "too few"),
        (["--data", "missing/", "--target", "macs=0.5"], "no such file or folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(options, message, digits, tmp_path):
    given = [digits["calibration"] if option == "DATA" else option for option in options]
    code, printed = command("compress", SHIPPED, "-o", tmp_path / "o.onnx", *given)
    assert code == 2
    assert message in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("operator", "shortfall"), [("Relu (x)", ""), ("Conv <group = 3> (x, w)", "no more was found to go")]
)
def test_a_network_with_nothing_to_choose_stays_as_it_is(operator, shortfall):
    weights = {"w": np.ones((3, 1, 1, 1), np.float32)} if "w" in operator else {}
    model = network(f"g (float[N, 3, 6, 6] x) => (float[N, 3, 6, 6] y) {{ y = {operator} }}", weights)
    x = np.random.default_rng(0).standard_normal((20, 3, 6, 6)).astype(np.float32)
    result = oc.compress(model, data=oc.Calibration([{"x": x}]), target="macs=0.5")
    assert result.model is model
    assert shortfall in result.shortfall


HEADS = """g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y, float[N, 2, 4, 4] z, float[N, 5, 8, 8] v) {{
  s = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, stem)  a = Relu (s)
  t = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, other)  b = Relu (t)
  y = Conv (a, head, {first})  z = Conv (b, head, {second})  v = Conv (a, own)
}}"""


def heads(first: str, second: str) -> tuple[ir.Model, np.ndarray]:
    """Two levels with a head that they share, with these biases; one of them has another reader, too."""
    random = np.random.default_rng(0)
    shapes = {"stem": (16, 3, 3, 3), "other": (16, 3, 3, 3), "head": (2, 16, 1, 1), "own": (5, 16, 1, 1)}
    shapes |= dict.fromkeys((first, second), (2,))
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = network(HEADS.format(first=first, second=second), weights)
    return model, random.standard_normal((40, 3, 8, 8)).astype(np.float32)


def test_what_several_levels_share_is_fitted_to_all_of_them(tmp_path):
    model, x = heads("bias", "bias")
    result = oc.compress(model, data=oc.Calibration([{"x": x}]), target="macs=0.6")
    assert not result.shortfall
    assert not result.fitted.unfitted
    stem, other, head, second, _ = [node.name for node in simplify(model).graph if node.op_type == "Conv"]
    assert result.plan.prune[stem] == result.plan.prune[other]
    assert result.plan.decompose.get(head) == result.plan.decompose.get(second)
    unfitted = oc.apply(model, result.plan).model
    np.savez(tmp_path / "data.npz", x=x)
    fitted, not_fitted = (
        oc.evaluate(each, tmp_path / "data.npz", reference=model).damage for each in (result.model, unfitted)
    )
    assert fitted < 0.7 * not_fitted


def test_what_an_unfitted_layer_reads_keeps_its_channels(tmp_path):
    model, x = heads("bias", "another")
    result = oc.compress(model, data=oc.Calibration([{"x": x}]), target="macs=0.6")
    assert not result.plan.prune
    stem, other, head, second, _ = [node.name for node in simplify(model).graph if node.op_type == "Conv"]
    why = "its weights are shared, its biases are not"
    assert result.plan.kept[stem] == result.plan.kept[other] == f"read by '{head}': {why}"
    assert result.fitted.unfitted == {head: why, second: why}
    oc.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=x)
    given = [tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "-o"]
    code, printed = command("compress", *given, tmp_path / "out.onnx", "--target", "macs=0.6")
    assert why in printed
    code, printed = command("tradeoff", *given, tmp_path / "curve.json", "--shares", "0.9,0.01")
    assert code == 1
    assert "of the macs are left, not 0.010" in printed
    assert "not 0.010" in json.loads((tmp_path / "curve.json").read_text())["points"][1]["shortfall"]


def test_a_bias_of_one_number_is_fitted(tmp_path):
    random = np.random.default_rng(0)
    shapes = {"w": (6, 4, 3, 3), "v": (216, 5), "b": (1,)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = network(
        """g (float[N, 4, 6, 6] x) => (float[N, 5] y) {
          c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  f = Flatten (r)
          y = Gemm (f, v, b) }""",
        weights,
    )
    x = random.standard_normal((40, 4, 6, 6)).astype(np.float32)
    result = oc.prune(model, data=oc.Calibration([{"x": x}]), ratio=0.3)
    oc.save(result.model, tmp_path / "out.onnx")
    assert len(result.stages) == 2


BODY = "c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)"


def odd(tail: str, output: str, **weights: np.ndarray) -> tuple[ir.Model, oc.Calibration]:
    """A network that begins with a convolution, and data for it."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((8, 3, 3, 3)).astype(np.float32), **weights}
    model = network(f"g (float[N, 3, 6, 6] x) => ({output} y) {{ {BODY} {tail} }}", weights)
    x = random.standard_normal((40, 3, 6, 6)).astype(np.float32)
    return model, oc.Calibration([{"x": x}])


def test_a_network_that_works_on_one_sample_only_whatever_it_says():
    v = np.random.default_rng(1).standard_normal((288, 5)).astype(np.float32)
    shape = np.array([1, -1], np.int64)
    model, data = odd("f = Reshape (r, shape)  y = MatMul (f, v)", "float[N, 5]", v=v, shape=shape)
    result = oc.prune(model, data=data, ratio=0.5)
    assert len(result.plan.prune) == 1
    assert result.fitted.closeness.damage < 1


def test_values_that_inference_cannot_type():
    v = np.random.default_rng(1).standard_normal((5, 8, 1, 1)).astype(np.float32)
    model, data = odd("q = com.microsoft.QuickGelu (r)  y = Conv (q, v)", "float[N, 5, 6, 6]", v=v)
    model.opset_imports["com.microsoft"] = 1
    result = oc.compress(model, data=data, target="macs=0.9")
    assert result.fitted.closeness.damage < 1


def test_as_many_outputs_as_objects_are_refused_in_words():
    v = np.random.default_rng(1).standard_normal((1, 8, 1, 1)).astype(np.float32)
    model, data = odd("t = Conv (r, v)  u = Relu (t)  y = NonZero (u)", "int64[4, M]", v=v)
    with pytest.raises(oc.InputError, match="cut the network before its NonMaxSuppression"):
        oc.prune(model, data=data, ratio=0.5)


def test_numbers_are_no_class_scores(tmp_path):
    """Softmax would see only the largest of them."""
    v = np.random.default_rng(1).standard_normal((288, 3)).astype(np.float32)
    b = np.array([1000, 0, 0], np.float32)
    model, data = odd("f = Flatten (r)  y = Gemm (f, v, b)", "float[N, 3]", v=v, b=b)
    oc.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **data.source[0])
    given = [tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "--target", "macs=0.3", "-o"]
    code, printed = command("compress", *given, tmp_path / "classes.onnx")
    assert "give --values" in printed
    code, printed = command("compress", *given, tmp_path / "values.onnx", "--values", "--finetune")
    assert "best class" not in printed
    assert "on the samples for choosing" in printed
    errors = []
    for name in ("classes", "values"):
        options = [
            "--data",
            tmp_path / "data.npz",
            "--reference",
            tmp_path / "model.onnx",
            "--values",
            "--json",
        ]
        code, printed = command("evaluate", tmp_path / f"{name}.onnx", *options)
        errors.append(json.loads(printed)["damage"])
    assert errors[1] < 0.5 * errors[0]
    code, printed = command(
        "finetune", *given[:3], "-o", tmp_path / "o.onnx", "--teacher", given[0], "--values"
    )
    assert code == 2
    assert "give --plan" in printed


def test_a_product_too_wide_for_second_moments_is_factored_and_fitted(tmp_path, monkeypatch):
    """As the first of VGG's, at any size; here its weights have rank 6."""
    monkeypatch.setattr("onnxcompress.calibration.patches.WIDEST", 500)
    random = np.random.default_rng(0)
    arrays = {
        "w": random.standard_normal((8, 3, 3, 3)),
        "wide": random.standard_normal((40, 6)) @ random.standard_normal((6, 512)) / 60,
        "last": random.standard_normal((5, 40)),
    }
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  f = Flatten (r)
            h = Gemm <transB = 1> (f, wide)  s = Relu (h)  y = Gemm <transB = 1> (s, last)
        }""",
        {name: array.astype(np.float32) for name, array in arrays.items()},
    )
    x = random.standard_normal((80, 3, 8, 8)).astype(np.float32)
    data = oc.Calibration([{"x": x}], stats=tmp_path / "stats.npz")
    result, again = (oc.compress(model, target="params=0.25", data=data) for _ in range(2))
    assert result.plan == again.plan  # by the statistics that were kept
    conv, wide, _ = [node.name for node in simplify(model).graph if node.op_type in ("Conv", "Gemm")]
    assert result.plan.decompose[wide].out <= 10
    assert result.fitted.closeness.damage < 0.01
    assert not result.fitted.unfitted
    assert "512 inputs is too wide" in result.plan.kept[conv]
    by_rule = oc.decompose(model, rank="energy:0.99", include_gemm=True, data=data)
    assert by_rule.plan.decompose[wide].out <= 6


def twins(random: np.random.Generator) -> ir.Model:
    """Two convolutions with the same weights, which the file holds twice."""
    weights = random.standard_normal((12, 3, 3, 3)).astype(np.float32)
    arrays = {"a": weights, "b": weights.copy(), "head": random.standard_normal((5, 24, 1, 1))}
    return network(
        """g (float[N, 3, 8, 8] x) => (float[N, 5, 6, 6] y) {
            p = Conv (x, a)  r = Relu (p)  t = Tanh (x)  q = Conv (t, b)  s = Relu (q)
            c = Concat <axis = 1> (r, s)  y = Conv (c, head)
        }""",
        {name: array.astype(np.float32) for name, array in arrays.items()},
    )


@pytest.mark.parametrize(
    ("share", "stages"), [(0.4, ["original", "pruned"]), (0.9, ["original", "simplified"])]
)
def test_a_target_is_a_share_of_the_network_as_it_came(share, stages):
    random = np.random.default_rng(0)
    model, x = twins(random), random.standard_normal((40, 3, 8, 8)).astype(np.float32)
    result = oc.compress(model, data=oc.Calibration([{"x": x}]), target=f"params={share}")
    assert [stage.name for stage in result.stages] == stages
    assert oc.cost(result.model).params <= share * oc.cost(model).params
