"""What is fitted to data, against brute-force least squares."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.calibration.samples import Samples
from onnxcompress.factoring.fitted import error_curve, fit_factors, regular, response_error
from onnxcompress.layers import factor_layers
from onnxcompress.model import simplify
from onnxcompress.plan import Ranks
from onnxcompress.planning.budget import Decision, GroupChoice, LayerChoice, Problem, decide, ranks_of
from onnxcompress.planning.choices import layer_choice
from onnxcompress.planning.search import KINDS, through
from onnxcompress.pruning.elimination import Reader, eliminate, repaired
from onnxcompress.pruning.surgery import remove_filters
from onnxcompress.recovery.least_squares import fit_group, refit, together
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes
from onnxcompress.unfolding import Unfolding
from tests.onnx_text import network

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
kernels = st.sampled_from([((), None), ((2, 2), None), ((3, 3), None), ((3, 2), 0), ((2, 3), 1)])
"""And the axis that the input factor has; () for a product."""

sizes = st.integers(2, 6)


def problem(seed: int, filters: int, channels: int, kernel: int, n: int = 400):
    """Weights (M, C · kernel), correlated patches (n, C · kernel) and their covariance."""
    random = np.random.default_rng(seed)
    width = channels * kernel
    x = random.standard_normal((n, width)) @ random.standard_normal((width, width)) + random.standard_normal(
        width
    )
    return random.standard_normal((filters, width)), x, np.cov(x.T, bias=True)


@SETTINGS
@given(st.integers(0, 10**6), sizes, sizes, kernels)
def test_full_ranks_are_exact(seed, filters, channels, kernel):
    kernel, axis = kernel
    weights, _, covariance = problem(seed, filters, channels, math.prod(kernel))
    seen = Unfolding((channels, *kernel), axis)
    full = Ranks(filters, seen.columns, axis) if kernel else Ranks(*[min(filters, channels)] * 2)
    factors = fit_factors(weights, covariance, seen.inputs, full)
    np.testing.assert_allclose(factors.weights, weights, atol=1e-6 * np.abs(weights).max())


@SETTINGS
@given(st.integers(0, 10**6), sizes, sizes, st.data())
def test_a_1x1_layer_gets_the_best_response_of_its_rank(seed, filters, channels, data):
    """Eckart and Young: no matrix of that rank is nearer to the responses themselves."""
    weights, x, covariance = problem(seed, filters, channels, 1)
    rank = data.draw(st.integers(1, min(filters, channels)))
    factors = fit_factors(weights, covariance, (channels,), Ranks(rank, rank))
    y = (x - x.mean(axis=0)) @ weights.T
    best = np.sum(np.linalg.svd(y, compute_uv=False)[rank:] ** 2) / len(x)
    actual = np.sum((y - (x - x.mean(axis=0)) @ factors.weights.T) ** 2) / len(x)
    assert actual == pytest.approx(best, rel=1e-3, abs=1e-4 * np.var(y))


@SETTINGS
@given(st.integers(0, 10**6), sizes, st.integers(3, 6), st.data())
def test_the_core_is_the_least_squares_one(seed, filters, channels, data):
    weights, x, covariance = problem(seed, filters, channels, 4)
    into = data.draw(st.integers(1, channels - 1))
    factors = fit_factors(weights, covariance, (channels, 2, 2), Ranks(filters, into))
    x = x - x.mean(axis=0)
    seen = np.einsum("qc,nck->nqk", factors.into, x.reshape(len(x), channels, 4)).reshape(len(x), -1)
    core = np.linalg.lstsq(seen, x @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(factors.core, core, atol=1e-3 * np.abs(core).max())


@SETTINGS
@given(st.integers(0, 10**6), sizes, st.integers(2, 6), kernels, st.data())
def test_curves_say_what_the_factors_lose_and_fall(seed, filters, channels, kernel, data):
    kernel, axis = kernel
    weights, _, covariance = problem(seed, filters, channels, math.prod(kernel))
    seen = Unfolding((channels, *kernel), axis)
    below = st.integers(1, seen.columns)
    into = sorted(data.draw(st.sets(below, min_size=1)), reverse=True) if kernel else [channels]
    curve = error_curve(weights, covariance, seen, into)
    assert (np.diff(curve.errors, axis=1) <= 1e-9 * curve.errors.max()).all()
    total = response_error(weights, 0 * weights, covariance)
    for row, into in enumerate(curve.into.tolist()):
        for out in range(1, min(filters, into * seen.rest) + 1):
            ranks = Ranks(out, into, axis) if kernel else Ranks(min(out, channels), min(out, channels))
            fitted = fit_factors(weights, covariance, seen.inputs, ranks)
            real = response_error(weights, fitted.weights, regular(covariance))
            assert curve.errors[row, out] == pytest.approx(real, rel=1e-3, abs=1e-5 * total)


@SETTINGS
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 6))
def test_outer_factors_are_orthonormal(seed, filters, channels):
    weights, _, covariance = problem(seed, filters, channels, 4)
    factors = fit_factors(weights, 1e4 * covariance, (channels, 4), Ranks(filters - 1, channels - 1))
    assert np.allclose(factors.out.T @ factors.out, np.eye(filters - 1), atol=1e-9)
    assert np.allclose(factors.into @ factors.into.T, np.eye(channels - 1), atol=1e-9)


class _AnyLayer:
    name = "layer"


def reader(weights: np.ndarray, covariance: np.ndarray, channels: int) -> Reader:
    return Reader(_AnyLayer(), 0, weights, covariance, np.arange(channels), 1.0)  # type: ignore[arg-type]


def lost(weights: np.ndarray, x: np.ndarray, gone: list[int], channels: int) -> float:
    """Of the response's variance, when the other columns do their best: brute force."""
    x = x - x.mean(axis=0)
    y, kernel = x @ weights.T, x.shape[1] // channels
    stay = np.repeat(~np.isin(np.arange(channels), gone), kernel)
    rest = y - x[:, stay] @ np.linalg.lstsq(x[:, stay], y, rcond=None)[0]
    return float(np.sum(rest**2) / len(x))


@SETTINGS
@given(st.integers(0, 10**6), sizes, st.integers(2, 6), st.sampled_from([1, 4]))
def test_elimination_knows_what_goes_with_each_channel(seed, filters, channels, kernel):
    weights, x, covariance = problem(seed, filters, channels, kernel)
    group = type("G", (), {"sets": np.arange(channels)})()
    found = eliminate(group, [reader(weights, covariance, channels)])
    assert found is not None
    assert sorted(found.order) == list(range(channels))
    assert (np.diff(found.damage) >= -1e-9).all()
    total = lost(weights, x, list(range(channels)), channels)
    for count, damage in enumerate(found.damage):
        real = lost(weights, x, found.order[:count].tolist(), channels)
        assert damage == pytest.approx(real, rel=2e-3, abs=1e-4 * total)
    # The first one is the cheapest of all.
    single = [lost(weights, x, [each], channels) for each in range(channels)]
    assert single[found.order[0]] <= min(single) * 1.01 + 1e-4 * total


@SETTINGS
@given(st.integers(0, 10**6), sizes, st.integers(3, 6))
def test_repaired_weights_are_the_least_squares_ones(seed, filters, channels):
    weights, x, covariance = problem(seed, filters, channels, 4)
    gone = np.array([0, 2])
    found = repaired(reader(weights, covariance, channels), gone)
    x = x - x.mean(axis=0)
    stay = np.repeat(~np.isin(np.arange(channels), gone), 4)
    expected = np.linalg.lstsq(x[:, stay], x @ weights.T, rcond=None)[0].T
    assert not found[:, ~stay].any()
    np.testing.assert_allclose(found[:, stay], expected, atol=1e-3 * np.abs(expected).max())


def test_a_fit_without_limits_gives_the_responses_back():
    random = np.random.default_rng(0)
    x = random.standard_normal((3000, 12)).astype(np.float32)
    wanted, bias = random.standard_normal((5, 12)), random.standard_normal(5)
    y = (x @ wanted.T + bias).astype(np.float32)
    start = wanted + 0.3 * random.standard_normal(wanted.shape)
    weights, shift, _ = fit_group(x, y, start, 2400, (12,), None, relu=False)
    before = np.sum((start - wanted) ** 2)
    assert np.sum((weights - wanted) ** 2) < 1e-4 * before
    np.testing.assert_allclose(shift, bias, atol=1e-2)


def test_errors_that_a_relu_hides_do_not_count():
    random = np.random.default_rng(0)
    x = random.standard_normal((4000, 8)).astype(np.float32)
    given = random.standard_normal((6, 8))
    y = (x @ given.T - 1).astype(np.float32)
    error = {}
    for relu in (False, True):
        weights, bias, _ = fit_group(x.copy(), y, given, 3200, (8,), Ranks(3, 3), relu=relu)
        error[relu] = np.sum((np.maximum(x @ weights.T + bias, 0) - np.maximum(y, 0)) ** 2)
    assert error[True] < 0.98 * error[False]


def test_a_channel_that_repeats_others_goes_without_a_trace():
    """Pruning a copy, and a constant channel, and fitting the reader gives the original back."""
    random = np.random.default_rng(0)
    first = random.standard_normal((4, 3, 1, 1)).astype(np.float32)
    first[2] = first[1]
    first[3] = 0
    model = simplify(
        network(
            """g (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
                a = Conv (x, wa, ba)
                r = Relu (a)
                y = Conv (r, wb, bb)
            }""",
            {
                "wa": first,
                "ba": np.array([0.1, 0.2, 0.2, 0.7], np.float32),
                "wb": random.standard_normal((5, 4, 1, 1)).astype(np.float32),
                "bb": random.standard_normal(5).astype(np.float32),
            },
        )
    )
    x = random.standard_normal((60, 3, 6, 6)).astype(np.float32)
    name = str(next(iter(model.graph)).name)
    filters = {name: [2, 3]}
    pruned = remove_filters(model, filters)
    fitted, _ = refit(
        model, pruned, filters, {}, Samples({"x": x}, np.arange(40)), Samples({"x": x}, np.arange(40, 50))
    )
    new = {"x": x[50:]}
    (y,), (z,), (plain,) = (run(session(each), new) for each in (model, fitted, pruned))
    spread = np.ptp(y)
    assert np.abs(z - y).max() < 0.01 * spread
    assert np.abs(plain - y).max() > 0.1 * spread


def test_a_fit_leaves_alone_what_is_right_already():
    random = np.random.default_rng(0)
    model = simplify(
        network(
            "g (float[N, 3, 6, 6] x) => (float[N, 5, 4, 4] y) { y = Conv (x, w, b) }",
            {
                "w": random.standard_normal((5, 3, 3, 3)).astype(np.float32),
                "b": random.standard_normal(5).astype(np.float32),
            },
        )
    )
    x = random.standard_normal((30, 3, 6, 6)).astype(np.float32)
    fitted, _ = refit(
        model, model, {}, {}, Samples({"x": x}, np.arange(24)), Samples({"x": x}, np.arange(24, 30))
    )
    (y,), (z,) = (run(session(each), {"x": x}) for each in (model, fitted))
    np.testing.assert_allclose(z, y, atol=1e-4)


def small_problem(seed: int) -> Problem:
    """Two layers in a row and the group of channels between them."""
    random = np.random.default_rng(seed)

    def layer(filters: int, channels: int) -> LayerChoice:
        out = [filters, *random.integers(1, filters + 1, 5).tolist()]
        taken = np.array([1, *random.choice([1, 3], 5)])
        into = [channels, *(int(random.integers(1, channels * each + 1)) for each in taken[1:])]
        axis = [None if each == 1 else 0 for each in taken]
        options = [Ranks(*each) for each in zip(out, into, axis, strict=True)]
        damage = np.array([0.0, *np.sort(random.random(5))])
        return LayerChoice(filters, channels, 1, 9, np.full(6, 50), 50, 50, options, taken, damage, False)

    damage = np.concatenate([[0.0], np.cumsum(random.random(5) * np.arange(5))])
    return Problem({"a": layer(6, 3), "b": layer(5, 6)}, [GroupChoice(damage, {"a": 1.0}, {"b": 1.0})])


def exhaustive(case: Problem, budget: float) -> float:
    """The least damage of all decisions within the budget."""
    best = np.inf
    group = case.groups[0]
    for count, *picked in itertools.product(range(len(group.damage)), range(6), range(6)):
        a, b = case.layers.values()
        cost = a.cost(picked[0], a.filters - count, a.channels) + b.cost(
            picked[1], b.filters, b.channels - count
        )
        if cost <= budget:
            best = min(best, group.damage[count] + a.damage[picked[0]] + b.damage[picked[1]])
    return best


def one_conv(filters: int, channels: int, kernel: tuple[int, int]):
    """The factor layer of a network of one convolution."""
    text = f"small (float[1,{channels},9,8] x) => (float[1,{filters},a,b] y) {{ [conv] y = Conv(x, w) }}"
    model = network(text, {"w": np.ones((filters, channels, *kernel), np.float32)})
    return factor_layers(model, concrete_shapes(model))[0]


@SETTINGS
@given(sizes, sizes, st.sampled_from([(1, 1), (3, 3), (3, 2)]), st.sampled_from(KINDS), st.data())
def test_the_planner_knows_what_a_choice_costs_when_some_filters_and_channels_are_gone(
    filters, channels, kernel, kind, data
):
    whole = one_conv(filters, channels, kernel)
    options = [
        (Ranks(out, into, axis), 0.0)
        for axis in (None, *whole.axes)
        for out in range(1, filters + 1)
        for into in range(1, whole.unfolding(axis).columns + 1)
        if kernel != (1, 1) or out == into
    ]
    choice = layer_choice(whole, options, 1.0, kind)
    gone = [data.draw(st.integers(0, filters - 1)), data.draw(st.integers(0, channels - 1))]
    groups = [GroupChoice(np.zeros(9), {"conv": 1.0}, {}), GroupChoice(np.zeros(9), {}, {"conv": 1.0})]
    thin = one_conv(filters - gone[0], channels - gone[1], kernel)
    for index in range(len(choice.options)):
        ranks = ranks_of(Problem({"conv": choice}, groups), Decision(gone, {"conv": index}), "conv")
        if kind == "macs":
            cost = thin.macs if ranks is None else thin.chain_macs(ranks)
        else:
            cost = math.prod(thin.shape) if ranks is None else thin.chain_params(ranks)
            cost *= 4 if kind == "size" else 1
        assert choice.cost(index, *thin.sides) == cost
        assert (ranks is not None and ranks.axis is not None) == (choice.options[index].axis is not None)


@SETTINGS
@given(st.integers(0, 10**6), st.floats(0.3, 0.9))
def test_the_planner_keeps_the_budget_and_is_near_the_best_there_is(seed, share):
    case = small_problem(seed)
    whole = decide(case, np.inf)
    assert whole.damage == 0
    budget = share * whole.cost
    best = exhaustive(case, budget)
    if not np.isfinite(best):
        return
    found = decide(case, budget)
    assert found.cost <= budget
    assert found.damage >= best - 1e-9
    # Prices reach the corners of the convex hull; between them the best may be missed.
    assert found.damage <= best + 1.0


@SETTINGS
@given(st.integers(0, 10**6), st.floats(0.3, 0.9))
def test_neither_pruning_nor_factoring_alone_is_better_than_both(seed, share):
    case = small_problem(seed)
    budget = share * decide(case, np.inf).cost
    whole = {
        name: replace(layer, at_input=layer.at_input[:1], options=layer.options[:1], taken=layer.taken[:1])
        for name, layer in case.layers.items()
    }
    whole = {name: replace(layer, damage=layer.damage[:1]) for name, layer in whole.items()}
    for alone in (Problem(case.layers, []), Problem(whole, case.groups)):
        found = decide(alone, budget)
        if found.cost <= budget:
            assert decide(case, budget).damage <= found.damage + 1e-9


def test_the_planner_is_the_best_there_is_in_most_cases_and_monotone():
    hits, cases = 0, 0
    for seed in range(20):
        case = small_problem(seed)
        whole = decide(case, np.inf).cost
        damages = [decide(case, share * whole).damage for share in (0.9, 0.7, 0.5)]
        for share, damage in zip((0.9, 0.7, 0.5), damages, strict=True):
            best = exhaustive(case, share * whole)
            if np.isfinite(best):
                cases += 1
                hits += damage <= best * 1.1 + 1e-9
    assert hits > 0.6 * cases


@given(st.integers(8, 300), st.integers(1, 60), st.integers(1, 3))
def test_samples_that_choose_the_ridge_are_the_last_and_fitted_to_by_none(fit, choose, views):
    parts = Samples({}, np.arange(fit * views), views), Samples({}, np.arange(1000, 1000 + choose))
    rows, fitted = together(*parts)
    assert sorted(rows.chosen) == sorted([*parts[0].chosen, *parts[1].chosen])
    assert not fitted % views
    assert set(parts[1].chosen) <= set(rows.chosen[fitted:])
    held_back = choose + fit - fitted // views
    assert held_back == max(choose, min(50, (fit + choose) // 5))


@SETTINGS
@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=12, unique=True), st.data())
def test_expectations_go_through_what_was_measured(values, data):
    """Where nothing was measured the ratio of both is between those of the neighbours that were."""
    expected = np.array(sorted(values))
    numbers = data.draw(st.sets(st.integers(0, len(expected) - 1), max_size=len(expected)))
    ratios = {i: data.draw(st.floats(0.1, 10)) for i in sorted(numbers)}
    found = through(expected, {i: expected[i] * ratio for i, ratio in ratios.items()})
    for i, ratio in enumerate(found / expected):
        below, above = [n for n in ratios if n <= i], [n for n in ratios if n >= i]
        around = [ratios[n] for n in ([max(below)] if below else []) + ([min(above)] if above else [])] or [1]
        assert min(around) * (1 - 1e-9) <= ratio <= max(around) * (1 + 1e-9)
