"""The pure parts of the paper's experiment: splits and curves."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.__main__ import experiment
from benchmarks.paper.arms import Run, ours
from benchmarks.paper.curves import Measured, averaged, compared, falling, headline_points, reach
from benchmarks.paper.report import lacking
from benchmarks.paper.settings import Settings
from benchmarks.paper.tasks import Task, at_side, held_back
from onnxcompress.data import Data
from onnxcompress.errors import InputError
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes
from onnxcompress.training.rates import CANDIDATES
from tests.onnx_text import network
from tests.training import small


def points(*pairs):
    return [Measured(f"{c:g}", c, a) for c, a in pairs]


def test_a_reach_is_interpolated_in_the_logarithm():
    found = reach(points((2, 0.9), (8, 0.7)), 0.9, 0.8)
    assert found.compression == pytest.approx(4)
    assert found.rests_on == ("2", "8")
    assert not found.beyond


def test_an_arm_that_never_falls_below_gives_a_lower_bound():
    found = reach(points((2, 0.95), (8, 0.9)), 0.9, 0.85)
    assert (found.compression, found.beyond) == (pytest.approx(8), True)


def test_an_arm_that_falls_at_once_stays_at_the_original():
    assert reach(points((2, 0.5)), 0.9, 0.9).compression == pytest.approx(1)


def test_one_lucky_point_is_not_the_reach():
    arm = points((2, 0.8), (4, 0.7), (8, 0.81), (16, 0.2))
    assert reach(arm, 0.9, 0.81).compression < 2
    assert reach(arm, 0.9, 0.78).rests_on == ("2", "4", "8")


measured = st.lists(
    st.tuples(st.floats(1.01, 100), st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda pair: pair[0]
).map(lambda pairs: points(*sorted(pairs)))


@given(measured, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_reaches_fall_with_the_level_and_curves_with_compression(arm, original, one, other):
    logs, accuracies = falling(arm, original)
    assert np.all(np.diff(logs) >= 0)
    assert np.all(np.diff(accuracies) <= 1e-12)
    low, high = sorted((one, other))
    assert reach(arm, original, low).compression >= reach(arm, original, high).compression - 1e-9


def test_both_readings_of_a_higher_compression():
    arms = {"a": points((2, 0.9), (4, 0.1)), "b": points((3, 0.9), (4, 0.1)), "c": points((6, 0.9), (8, 0.1))}
    found = compared(arms, 0.9, ("a", "b"), 0.0)
    assert found.gain == {"c": pytest.approx(1)}
    assert found.fewer == {"c": pytest.approx(0.5)}
    assert ("c", "6") in headline_points(arms, 0.9, 0.01)
    arms["b"] = points((3, 0.9))  # how much further it would go is not known
    assert compared(arms, 0.9, ("a", "b"), 0.0).gain == {}


def test_seeds_are_averaged():
    (low, high) = averaged([("y", 4, 0.5), ("x", 2, 0.6), ("y", 4, 0.7)])
    assert (low.setting, low.seeds, low.spread) == ("x", 1, None)
    assert (high.accuracy, high.seeds) == (pytest.approx(0.6), 2)
    assert high.spread == pytest.approx(np.sqrt(0.02))


def test_more_seeds_are_made_of_what_the_headline_then_rests_on():
    def point(setting, compression, test, seed=0, arm="pruning"):
        shares = {"params_share": 1 / compression, "macs_share": 1 / compression}
        return {"arm": arm, "setting": setting, "seed": seed, "test": test, **shares}

    made = [point("", 1, 0.9, arm=""), point("0.2", 2, 0.95), point("0.4", 4, 0.8), point("0.6", 8, 0.5)]
    assert lacking(made, 1) == []
    assert lacking(made, 2) == [("pruning", "0.2", 1), ("pruning", "0.4", 1)]
    made += [point("0.2", 2, 0.95, 1), point("0.4", 4, 1.0, 1)]
    assert lacking(made, 2) == [("pruning", "0.6", 1)]
    assert lacking([*made, point("0.6", 8, 0.5, 1)], 2) == []


def test_a_part_of_every_class_is_held_back():
    labels = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1])
    data = Data("x", np.arange(9)[:, None].astype(np.float32), labels)
    rest, back = held_back(data, 2)
    assert sorted([*rest.samples[:, 0], *back.samples[:, 0]]) == list(range(9))
    assert np.bincount(back.labels).tolist() == [2, 2]
    with pytest.raises(InputError, match="folder of images per class"):
        held_back(Data("x", data.samples, None), 2)


def test_a_network_for_smaller_images():
    random = np.random.default_rng(0)
    text = """g (float[1,3,12,12] x) => (float[1,5] y) {
        a = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(x, w)
        b = AveragePool<kernel_shape=[12,12]>(a)
        c = Flatten(b)
        y = Gemm<transB=1>(c, v)
    }"""
    weights = {"w": random.standard_normal((4, 3, 3, 3)), "v": random.standard_normal((5, 4))}
    model = network(text, {name: each.astype(np.float32) for name, each in weights.items()})
    smaller = at_side(model, 8)
    assert concrete_shapes(smaller)["a"] == (1, 4, 8, 8)
    x = random.standard_normal((1, 3, 8, 8)).astype(np.float32)
    large = np.tile(x, (1, 1, 2, 2))[:, :, :12, :12]
    assert run(session(smaller), {"x": x})[0].shape == run(session(model), {"x": large})[0].shape == (1, 5)


SMALL = Settings(
    points={"Tucker": ("vbmf:2",), "both": ("0.3 vbmf:2",), "ours, MACs": ("macs=0.5",)},
    steps=4,
    rounds=1,
    scored=16,
    calibration=60,
    seeds=1,
)


def small_task():
    return Task("quarters", small.network(), *(small.samples(count, count) for count in (120, 40, 64)))


def test_what_is_compressed_before_training_serves_all_seeds(tmp_path):
    task = small_task()
    outcomes, written = [], []
    for seed in (0, 1):
        outcomes.append(ours(Run(task, SMALL, seed, tmp_path, lambda *_: None), "macs=0.5"))
        written.append((tmp_path / "compressed" / "macs=0.5.onnx").stat().st_mtime_ns)
    assert written[0] == written[1]
    first, second = outcomes
    assert (first.removed, first.ranks) == (second.removed, second.ranks)
    x = task.test.samples[:1]
    one, other = (run(session(each.model), {"data": x})[0] for each in (first, second))
    assert not np.array_equal(one, other)


def test_other_seeds_take_the_rate_that_the_first_found(tmp_path):
    task, settings = small_task(), replace(SMALL, points={"both": ("0.3 vbmf:2",)})
    experiment(task, settings, tmp_path)
    (file,) = tmp_path.glob("networks/*.json")
    result = json.loads(file.read_text())
    assert result["rate"] in CANDIDATES
    file.write_text(json.dumps(result | {"rate": 0.003}))
    experiment(task, replace(settings, seeds=2), tmp_path)
    with (tmp_path / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["rate"]) for row in rows[1:]] == [("0", "0.003"), ("1", "0.003")]


def test_a_small_run_goes_on_where_it_was(tmp_path):
    task, settings = small_task(), SMALL
    experiment(task, settings, tmp_path)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.glob("networks/*")}
    assert len(made) == 6
    more = replace(settings, points={**settings.points, "pruning": ("0.3",)})
    experiment(task, more, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    with (tmp_path / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["", "Tucker", "both", "ours, MACs", "pruning"]
    assert all(float(row["macs_share"]) < 1 for row in rows[1:])
    assert "pruning" in (tmp_path / "headline.md").read_text()
