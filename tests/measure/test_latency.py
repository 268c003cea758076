import itertools
import tempfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.errors import InputError
from onnxcompress.measure import latency
from onnxcompress.measure.latency import LAYOUT, bench, node_times
from tests.onnx_text import network

RANDOM = np.random.default_rng(0)


def convolutions(body: str, widths: dict[str, tuple[int, ...]], size: int = 32) -> ir.Model:
    """A network from ONNX's text form; `widths` are the shapes of its weights, drawn at random."""
    weights = {name: RANDOM.uniform(0.01, 0.1, shape).astype(np.float32) for name, shape in widths.items()}
    model = network(f"g (float[n, 3, {size}, {size}] x) => (float[n, k] y) {{ {body} }}", weights)
    for node in model.graph:
        node.name = f"node {node.outputs[0].name}"
    return model


def stack(depth: int, size: int = 32, batch: str | int = "n") -> ir.Model:
    """That many 3×3 convolutions of 16 channels."""
    lines = [f"c{i} = Conv <pads = [1, 1, 1, 1]> ({f'c{i - 1}' if i else 'x'}, w{i})" for i in range(depth)]
    widths = {f"w{i}": (16, 16 if i else 3, 3, 3) for i in range(depth)}
    model = convolutions(" ".join(lines) + f" y = Flatten(c{depth - 1})", widths, size)
    model.graph.inputs[0].shape = ir.Shape([batch, 3, size, size])
    return model


@pytest.fixture
def clock(monkeypatch):
    """Replaces time and runs: every run takes what `durations` (seconds, by input size) gives next."""
    fake = SimpleNamespace(now=0.0, durations={}, order=[])

    def fake_run(_, feeds):
        size = feeds["x"].shape[-1]
        fake.order.append(size)
        fake.now += next(fake.durations[size])

    monkeypatch.setattr(latency, "run", fake_run)
    ticks = SimpleNamespace(perf_counter=lambda: fake.now, monotonic=lambda: fake.now)
    monkeypatch.setattr(latency, "time", ticks)
    return fake


def test_statistics_are_of_pairs_in_rounds(clock):
    first, second = RANDOM.uniform(0.01, 0.02, 30), RANDOM.uniform(0.01, 0.02, 30)
    clock.durations = {8: itertools.chain([9.0], first), 9: itertools.chain([9.0], second)}
    calls = []
    found = bench(
        [stack(1, 8), stack(1, 9)],
        names=["a", "b"],
        runs=30,
        warmup=1,
        progress=lambda *call: calls.append(call),
    )
    assert [entry.name for entry in found] == ["a", "b"]
    for entry, times in zip(found, (first, second), strict=True):
        assert (entry.p10, entry.median, entry.p90) == pytest.approx(np.percentile(1e3 * times, (10, 50, 90)))
        ratios = np.percentile(times / first, (10, 50, 90))
        assert (entry.ratio_p10, entry.ratio, entry.ratio_p90) == pytest.approx(ratios)
        assert (entry.runs, entry.batch) == (30, 1)
    assert calls == [("timing", n, 30) for n in range(1, 31)]


def test_no_network_always_follows_the_same_one(clock):
    clock.durations = {size: itertools.repeat(0.01) for size in (8, 9, 10)}
    bench([stack(1, size) for size in (8, 9, 10)], runs=40, warmup=0)
    assert len(clock.order) == 120
    for start in range(0, 120, 3):
        assert sorted(clock.order[start : start + 3]) == [8, 9, 10]
    follows = set(itertools.pairwise(clock.order))
    assert follows >= set(itertools.permutations((8, 9, 10), 2))


@pytest.mark.parametrize(("seconds_per_run", "expected"), [(0.1, 40), (2.0, 25), (100.0, 5)])
def test_the_time_is_capped(clock, seconds_per_run, expected):
    clock.durations = {8: itertools.repeat(seconds_per_run)}
    (found,) = bench([stack(1, 8)], seconds=60)
    assert found.runs == expected
    assert bench([stack(1, 8)], runs=3)[0].runs == 3


def test_the_same_input_for_networks_that_take_the_same(monkeypatch):
    seen = []
    monkeypatch.setattr(latency, "run", lambda _, feeds: seen.append(feeds["x"]))
    bench([stack(1), stack(2)], runs=1, warmup=0, batch=2)
    assert seen[0].shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_a_deeper_network_takes_longer(tmp_path):
    ir.save(stack(12, 64), tmp_path / "deep.onnx")
    shallow, deep = bench(
        [stack(1, 64, batch=3), tmp_path / "deep.onnx"], threads=1, batch=3, runs=10, warmup=1
    )
    assert shallow.ratio == shallow.ratio_p10 == shallow.ratio_p90 == 1
    assert deep.ratio > 1
    assert deep.ratio_p10 <= deep.ratio <= deep.ratio_p90
    assert 0 < shallow.p10 <= shallow.median <= shallow.p90
    assert shallow.median < deep.median
    assert deep.name == str(tmp_path / "deep.onnx")
    assert (shallow.name, shallow.batch, deep.batch) == ("g", 3, 3)


def test_times_of_more_samples_are_not_compared_with_those_of_fewer():
    networks = [stack(1, 8), stack(1, 8, batch=3)]
    with pytest.raises(InputError, match="b takes 3 samples at a time, a 1: times do not compare"):
        bench(networks, names=["a", "b"])
    assert [each.batch for each in bench(networks, batch=3, runs=1)] == [3, 3]


def test_networks_that_cannot_run():
    with pytest.raises(InputError, match=r"nowhere.onnx: no such file"):
        bench(["nowhere.onnx"])
    for wrong in ("runs", "batch"):
        with pytest.raises(InputError, match=f"{wrong}: 0 is not at least 1"):
            bench([stack(1, 8)], **{wrong: 0})
    with pytest.raises(InputError, match=r"nowhere.onnx: no such file"):
        node_times("nowhere.onnx")


BRANCHES = """
    a = Conv <pads = [1, 1, 1, 1]> (x, w_a, v_a)
    b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w_c, v_c)
    d = Relu(c)
    e = Conv <pads = [1, 1, 1, 1]> (d, w_e, v_e)
    f = Conv (b, w_f, v_f)
    g = Add(e, f)
    h = Relu(g)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)
    q = BatchNormalization(p, v_c, v_e, v_f, v_a)
    r = Conv <pads = [1, 1, 1, 1], group = 16> (q, w_r)
    s = LeakyRelu(r)
    l = LRN <size = 5> (s)
    t = Conv <pads = [1, 1, 1, 1]> (l, w_t)
    u = Sigmoid(t)
    m = GlobalAveragePool(u)
    n2 = Flatten(m)
    o = Gemm(n2, w_o, v_o)
    z = Relu(o)
    y = Softmax(z)
"""
WEIGHTS = {
    "w_a": (16, 3, 3, 3),
    **{f"w_{name}": (16, 16, 3, 3) for name in "cet"},
    "w_f": (16, 16, 1, 1),
    "w_r": (16, 1, 3, 3),
    **{f"v_{name}": (16,) for name in "acef"},
    "w_o": (16, 10),
    "v_o": (10,),
}


def test_times_go_to_the_layers_that_others_are_fused_into(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    times = node_times(convolutions(BRANCHES, WEIGHTS), runs=5)
    fused = {f"node {name}" for name in "bdghsuz"}
    heavy = {f"node {name}" for name in "acefpqrltmoy"}
    assert heavy <= set(times)
    assert not fused & set(times)
    assert set(times) <= heavy | {"node n2", LAYOUT}
    assert all(0 <= milliseconds < 1000 for milliseconds in times.values())
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_a_branch_counts_once():
    body = "a = Conv <pads = [1, 1, 1, 1]> (r, w_b) o = Relu(a)"
    times = node_times(
        convolutions(
            f"""r = Conv <pads = [1, 1, 1, 1]> (x, w_a)
            m = ReduceMax <keepdims = 0> (r)
            c = Equal(m, m)
            s = If (c) <
                then_branch = t () => (float o) {{ {body} }},
                else_branch = e () => (float o) {{ {body} }}
            >
            y = Flatten(s)""",
            {"w_a": (16, 3, 3, 3), "w_b": (16, 16, 3, 3)},
        )
    )
    assert "node s" in times
    assert "(runtime)" not in times


def test_the_slow_layer_is_seen(monkeypatch):
    # On busy machines a second thread that is not scheduled stalls any layer.
    monkeypatch.setattr(latency, "session", partial(latency.session, threads=1))
    widths = {"w_a": (16, 3, 3, 3), "w_b": (16, 16, 7, 7), "w_c": (16, 16, 1, 1)}
    body = "a = Conv(x, w_a) b = Conv(a, w_b) r = Relu(b) c = Conv(r, w_c) y = Flatten(c)"
    times = node_times(convolutions(body, widths, 64))
    assert max(times, key=times.__getitem__) == "node b"


def test_inspection_tells_how_far_it_is():
    said = []
    oc.inspect(convolutions(BRANCHES, WEIGHTS), time=True, progress=lambda *arguments: said.append(arguments))
    assert [done for what, done, _ in said if what == "timing"] == list(range(1, 11))
    assert {what for what, _, _ in said} == {"looking at ranks", "timing"}


@pytest.mark.parametrize(
    ("inputs", "body", "shape"),
    [
        ("float[N,3,H,W] x", "f = Flatten(c) y = Gemm(f, v)", (5, 32 * 32, 3)),
        ("float[N,H,W,3] x", "p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, v)", (5, 1, 3)),
    ],
)
def test_open_sizes_are_those_at_which_the_network_works(inputs, body, shape):
    filters, positions, channels = shape
    turned = "t = Transpose<perm=[0,3,1,2]>(x)" if inputs.startswith("float[N,H") else "t = Identity(x)"
    weights = {"w": (filters, channels, 3, 3), "v": (filters * positions, 2)}
    numbers = {name: RANDOM.uniform(0.01, 0.1, each).astype(np.float32) for name, each in weights.items()}
    text = f"g ({inputs}) => (float[N,2] y) {{ {turned} c = Conv<pads=[1,1,1,1]>(t, w) {body} }}"
    model = network(text, numbers)
    (found,) = bench([model], runs=1, warmup=1, batch=2)
    assert (found.batch, found.runs) == (2, 1)
    assert node_times(model, runs=1)
