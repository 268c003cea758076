"""What is fitted to data, against brute-force least squares."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress import calibration
from onnxcompress.calibration.samples import Samples
from onnxcompress.calibration.statistics import Moments, statistics
from onnxcompress.factoring.cp import cp
from onnxcompress.factoring.fitted import (
    Factors,
    components,
    cp_chains,
    fit_factors,
    inputs,
    product_errors,
    regular,
    response_error,
    responses,
    responses_to,
)
from onnxcompress.layers import factor_layers, set_weights
from onnxcompress.model import simplify
from onnxcompress.plan import Ranks
from onnxcompress.planning.budget import (
    Decision,
    GroupChoice,
    LayerChoice,
    Problem,
    decide,
    expected_damage,
    ranks_of,
)
from onnxcompress.planning.choices import BLOCK, layer_choice, possible
from onnxcompress.planning.costs import KINDS
from onnxcompress.planning.search import through
from onnxcompress.planning.survey import factored, halved, products
from onnxcompress.pruning.elimination import Reader, clusters, eliminate, repaired
from onnxcompress.pruning.surgery import remove_filters
from onnxcompress.recovery.least_squares import RIDGES, fit_group, refit, together
from onnxcompress.runtime import run, session
from onnxcompress.shapes import concrete_shapes
from tests.onnx_text import network

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
kernels = st.sampled_from([1, 4, 9])
"""Elements; 1 for a product."""

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
    weights, _, covariance = problem(seed, filters, channels, kernel)
    full = Ranks(filters, channels) if kernel > 1 else Ranks(*[min(filters, channels)] * 2)
    factors = fit_factors(weights, inputs(covariance, channels), full)
    np.testing.assert_allclose(factors.weights, weights, atol=1e-6 * np.abs(weights).max())


@SETTINGS
@given(st.integers(0, 10**6), sizes, sizes, st.data())
def test_a_1x1_layer_gets_the_best_response_of_its_rank(seed, filters, channels, data):
    """Eckart and Young: no matrix of that rank is nearer to the responses themselves."""
    weights, x, covariance = problem(seed, filters, channels, 1)
    rank = data.draw(st.integers(1, min(filters, channels)))
    factors = fit_factors(weights, inputs(covariance, channels), Ranks(rank, rank))
    y = (x - x.mean(axis=0)) @ weights.T
    best = np.sum(np.linalg.svd(y, compute_uv=False)[rank:] ** 2) / len(x)
    actual = np.sum((y - (x - x.mean(axis=0)) @ factors.weights.T) ** 2) / len(x)
    assert actual == pytest.approx(best, rel=1e-3, abs=1e-4 * np.var(y))


@SETTINGS
@given(st.integers(0, 10**6), sizes, st.integers(3, 6), st.data())
def test_the_core_is_the_least_squares_one(seed, filters, channels, data):
    weights, x, covariance = problem(seed, filters, channels, 4)
    into = data.draw(st.integers(1, channels - 1))
    factors = fit_factors(weights, inputs(covariance, channels), Ranks(filters, into))
    x = x - x.mean(axis=0)
    seen = np.einsum("qc,nck->nqk", factors.into, x.reshape(len(x), channels, 4)).reshape(len(x), -1)
    core = np.linalg.lstsq(seen, x @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(factors.core, core, atol=1e-3 * np.abs(core).max())


@SETTINGS
@given(st.integers(0, 10**6), sizes, sizes)
def test_what_a_matrix_loses_is_what_its_factors_lose(seed, filters, channels):
    weights, _, covariance = problem(seed, filters, channels, 1)
    errors = product_errors(components(responses(weights, covariance)))
    total = response_error(weights, 0 * weights, covariance)
    assert errors[0] == pytest.approx(total, rel=1e-3)
    for rank in range(1, min(filters, channels) + 1):
        fitted = fit_factors(weights, inputs(covariance, channels), Ranks(rank, rank))
        real = response_error(weights, fitted.weights, regular(covariance))
        assert errors[rank] == pytest.approx(real, rel=1e-3, abs=1e-5 * total)


@SETTINGS
@given(st.integers(0, 10**6), sizes, sizes)
def test_a_longer_search_loses_less_than_what_is_expected_of_a_cp(seed, filters, channels):
    weights, _, covariance = problem(seed, filters, channels, 9)
    ranks = [2, 4, 8]
    for rank, look in zip(ranks, cp_chains(weights, inputs(covariance, channels), ranks), strict=True):
        factors = fit_factors(weights, inputs(covariance, channels), Ranks(rank, rank, depthwise=True))
        short, long = (response_error(weights, each.weights, regular(covariance)) for each in (look, factors))
        assert long <= short * (1 + 1e-3)


@SETTINGS
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 6))
def test_outer_factors_are_orthonormal(seed, filters, channels):
    weights, _, covariance = problem(seed, filters, channels, 4)
    factors = fit_factors(weights, inputs(1e4 * covariance, channels), Ranks(filters - 1, channels - 1))
    assert np.allclose(factors.out.T @ factors.out, np.eye(filters - 1), atol=1e-9)
    assert np.allclose(factors.into @ factors.into.T, np.eye(channels - 1), atol=1e-9)


@SETTINGS
@given(st.integers(0, 10**6), sizes, sizes, st.integers(1, 5))
def test_what_is_a_sum_of_few_products_is_found(seed, filters, channels, rank):
    _, _, covariance = problem(seed, filters, channels, 4)
    random = np.random.default_rng(seed)
    out, core, into = (random.standard_normal((rank, n)) for n in (filters, 4, channels))
    weights = np.einsum("rm,rk,rc->mck", out, core, into).reshape(filters, -1)
    ranks = Ranks(rank + 3, rank + 3, depthwise=True)
    factors = fit_factors(weights, inputs(covariance, channels), ranks)
    total = response_error(weights, 0 * weights, covariance)
    assert response_error(weights, factors.weights, covariance) < 1e-3 * total


@SETTINGS
@given(st.integers(0, 10**6), sizes, st.integers(2, 6), st.integers(1, 6))
def test_the_last_factor_of_a_cp_is_the_least_squares_one(seed, filters, channels, rank):
    weights, x, covariance = problem(seed, filters, channels, 4)
    factors = fit_factors(weights, inputs(covariance, channels), Ranks(rank, rank, depthwise=True))
    x = x - x.mean(axis=0)
    inner = np.einsum("rk,rc->rck", factors.core, factors.into).reshape(rank, -1)
    best = x @ inner.T @ np.linalg.lstsq(x @ inner.T, x @ weights.T, rcond=None)[0]
    found = x @ factors.weights.T
    np.testing.assert_allclose(found, best, atol=5e-3 * np.abs(best).max())


@SETTINGS
@given(st.integers(0, 10**6), st.integers(4, 8), st.integers(4, 8))
def test_a_start_makes_a_cp_better(seed, filters, channels):
    weights, _, covariance = problem(seed, filters, channels, 9)
    ranks = Ranks(6, 6, depthwise=True)
    first = fit_factors(weights, inputs(covariance, channels), ranks)
    second = fit_factors(weights, inputs(covariance, channels), ranks, first)
    lost = [response_error(weights, each.weights, covariance) for each in (first, second)]
    assert lost[1] <= lost[0] * (1 + 1e-3)
    one_step = [
        cp(weights, inputs(covariance, channels).whitened, 6, near, 1)
        for near in (None, (first.core, first.into))
    ]
    anew, further = (
        response_error(weights, Factors(*each, depthwise=True).weights, covariance) for each in one_step
    )
    assert further <= lost[0] * (1 + 1e-3) < anew


@pytest.mark.parametrize("size", [0.0, 1e-25, 1.0, 1e25])
@pytest.mark.parametrize("variance", [0.0, 1e-12, 1e12])
def test_a_cp_does_not_mind_how_large_weights_and_data_are(size, variance):
    weights = size * np.eye(4, 27)
    factors = fit_factors(weights, inputs(variance * np.eye(27), 3), Ranks(8, 8, depthwise=True))
    assert all(np.isfinite(each).all() for each in (factors.out, factors.core, factors.into))
    np.testing.assert_allclose(factors.weights, weights, atol=0.05 * size)


def test_cp_ranks_on_offer_come_in_blocks_cost_less_and_lose_more_the_lower_they_are():
    layer = one_conv(24, 16, (3, 3))
    _, _, covariance = problem(0, 24, 16, 9, n=2000)
    weights = np.random.default_rng(1).standard_normal(layer.shape)
    set_weights(layer, weights, None)
    moments = Moments(2000, np.zeros((1, 144)), covariance[None], np.zeros((1, 144)), np.zeros((1, 0, 144)))
    options, (chain,) = possible(layer, moments, [])
    assert len(chain.core) == options[-1][0].out
    assert {ranks.out % BLOCK for ranks, _ in options} == {0}
    assert all(ranks.depthwise and layer.chain_macs(ranks) < layer.macs for ranks, _ in options)
    assert all(a > b > 0 for (_, a), (_, b) in itertools.pairwise(options))


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
    (found,) = eliminate([group], [reader(weights, covariance, channels)])
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
@given(st.integers(0, 10**6), sizes, st.integers(2, 4), st.integers(2, 4))
def test_branches_lose_together_what_all_of_them_lose(seed, filters, first, second):
    weights, x, covariance = problem(seed, filters, first + second, 1)
    groups = [type("G", (), {"sets": each})() for each in np.split(np.arange(first + second), [first])]
    found = eliminate(groups, [reader(weights, covariance, first + second)])
    for each, group in zip(found, groups, strict=True):
        assert sorted(each.order) == group.sets.tolist()
        assert sum(each.shares.values()) == pytest.approx(1)
    gone = [*found[0].order[:-1], *found[1].order[:-1]]
    real = lost(weights, x, [int(each) for each in gone], first + second)
    assert sum(each.damage[-1] for each in found) == pytest.approx(real, rel=5e-3)


def test_of_two_branches_that_say_the_same_one_has_to_stay():
    random = np.random.default_rng(0)
    x = np.tile(random.standard_normal((500, 4)), 2) + 1e-3 * random.standard_normal((500, 8))
    weights, covariance = random.standard_normal((6, 8)), np.cov(x.T, bias=True)
    branches = [type("G", (), {"sets": np.arange(4) + first})() for first in (0, 4)]
    reading = [reader(weights, covariance, 8)]
    total = float(np.sum((weights @ covariance) * weights))
    alone = [eliminate([branch], reading)[0].damage[-1] for branch in branches]
    together = [each.damage[-1] for each in eliminate(branches, reading)]
    assert max(alone) < 1e-3 * total
    assert sum(together) > 0.2 * total


def test_clusters_are_groups_with_the_same_readers():
    groups = [type("G", (), {"sets": np.array(each)})() for each in ([0, 1], [2], [3], [9])]
    weights, covariance = np.ones((1, 3)), np.eye(3)
    of = [
        Reader(_AnyLayer(), 0, weights, covariance, np.array(sets), 1.0)  # type: ignore[arg-type]
        for sets in ([0, 1, 2], [3, 0, 2])
    ]
    assert clusters(groups, of) == [[0, 1], [2]]


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
    weights, shift, _ = fit_group(x, y, start, 2400, 12, None, relu=False)
    before = np.sum((start - wanted) ** 2)
    assert np.sum((weights - wanted) ** 2) < 1e-4 * before
    np.testing.assert_allclose(shift, bias, atol=1e-2)


@SETTINGS
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(9, 20), st.integers(1, 5))
def test_fewer_samples_than_inputs_give_the_weights_that_all_equations_give(seed, n, width, filters):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n + 5, width)).astype(np.float32)
    given = random.standard_normal((filters, width))
    left = x[:, :3] @ random.standard_normal((3, filters)) + 0.1 * random.standard_normal((n + 5, filters))
    y = (x @ given.T + left).astype(np.float32)
    found, _, _ = fit_group(x.copy(), y, given, n, width, None, relu=False, bias=False)
    g, c = x[:n].T @ x[:n] / n, left[:n].T @ x[:n] / n
    changes = [np.linalg.solve(g + ridge * np.trace(g) / width * np.eye(width), c.T).T for ridge in RIDGES]
    changes.append(np.zeros_like(given))
    errors = [np.sum((x[n:] @ change.T - left[n:]) ** 2) for change in changes]
    np.testing.assert_allclose(found, given + changes[int(np.argmin(errors))], atol=1e-3)


@SETTINGS
@given(st.integers(0, 10**6), sizes, sizes)
def test_responses_to_few_inputs_vary_as_their_covariance_says(seed, filters, channels):
    weights, x, covariance = problem(seed, filters, channels, 1)
    found = responses_to(weights, x - x.mean(axis=0))
    expected = responses(weights, covariance)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.trace(expected))


def test_a_product_that_is_too_wide_for_second_moments_is_known_by_its_rows(monkeypatch):
    random = np.random.default_rng(0)
    weights = random.standard_normal((12, 40)).astype(np.float32)
    model = simplify(
        network(
            "g (float[N, 40] x) => (float[N, 12] y) { y = Gemm <transB = 1> (x, w) }",
            {"w": weights},
        )
    )
    x = (random.standard_normal((30, 40)) * np.arange(1, 41) + 5).astype(np.float32)
    samples, (layer,) = Samples({"x": x}, np.arange(30)), factor_layers(model, concrete_shapes(model))
    known = statistics(model, [layer], samples)[layer.name]
    monkeypatch.setattr(calibration.patches, "WIDEST", 39)
    by_rows = statistics(model, [layer], samples)[layer.name]
    assert not known.rows.size
    assert not by_rows.covariance.size
    np.testing.assert_allclose(by_rows.mean, known.mean, rtol=1e-5)
    expected, _ = possible(layer, known, products(layer, known))
    parts = products(layer, by_rows)
    for (ranks, lost), (others, as_known) in zip(possible(layer, by_rows, parts)[0], expected, strict=True):
        assert ranks == others
        assert lost == pytest.approx(as_known, rel=1e-3)
        change, error = factored(layer, by_rows, ranks, parts)
        assert np.linalg.matrix_rank(change.weight, tol=1e-6) == ranks.out
        assert error == pytest.approx(lost)
    assert halved(layer, by_rows)[1] == pytest.approx(halved(layer, known)[1], rel=1e-3)


def test_errors_that_a_relu_hides_do_not_count():
    random = np.random.default_rng(0)
    x = random.standard_normal((4000, 8)).astype(np.float32)
    given = random.standard_normal((6, 8))
    y = (x @ given.T - 1).astype(np.float32)
    error = {}
    for relu in (False, True):
        weights, bias, _ = fit_group(x.copy(), y, given, 3200, 8, Ranks(3, 3), relu=relu)
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
        ranks = sorted(random.integers(1, filters * channels, 5).tolist(), reverse=True)
        options = [Ranks(filters, channels), *(Ranks(rank, rank, depthwise=True) for rank in ranks)]
        damage = np.array([0.0, *np.sort(random.random(5))])
        return LayerChoice(filters, channels, 1, 9, 50, 50, 50, options, damage)

    damage = np.concatenate([[0.0], np.cumsum(random.random(5) * np.arange(5))])
    whole = np.array([True, *(random.random(5) < 0.7)])
    return Problem(
        {"a": layer(6, 3), "b": layer(5, 6)},
        [GroupChoice(damage, whole, {"a": 1.0}, {"b": 1.0}, {"b": 1.0})],
    )


def exhaustive(case: Problem, budget: float) -> float:
    """The least damage of all decisions within the budget."""
    best = np.inf
    group = case.groups[0]
    for count, *picked in itertools.product(np.flatnonzero(group.whole).tolist(), range(6), range(6)):
        a, b = case.layers.values()
        cost = a.cost(picked[0], a.filters - count, a.channels) + b.cost(
            picked[1], b.filters, b.channels - count
        )
        if cost <= budget:
            decision = Decision([count], dict(zip("ab", picked, strict=True)))
            best = min(best, expected_damage(case, decision))
    return best


def one_conv(filters: int, channels: int, kernel: tuple[int, int], operator: str = "Conv"):
    """The factor layer of a network of one convolution."""
    body = f"[conv] y = {operator} <strides = [2, 2]> (x, w)"
    text = f"small (float[1,{channels},9,8] x) => (float[1,{filters},a,b] y) {{ {body} }}"
    sides = (filters, channels) if operator == "Conv" else (channels, filters)
    model = network(text, {"w": np.ones((*sides, *kernel), np.float32)})
    return factor_layers(model, concrete_shapes(model))[0]


@SETTINGS
@given(
    sizes,
    sizes,
    st.sampled_from([(1, 1), (3, 3), (3, 2)]),
    st.sampled_from(["Conv", "ConvTranspose"]),
    st.sampled_from(KINDS),
    st.data(),
)
def test_the_planner_knows_what_a_choice_costs_when_some_filters_and_channels_are_gone(
    filters, channels, kernel, operator, kind, data
):
    whole = one_conv(filters, channels, kernel, operator)
    deep = kernel != (1, 1)
    most = whole.highest_cp_rank if deep else min(filters, channels)
    options = [(Ranks(rank, rank, deep), 0.0) for rank in range(1, most + 1)]
    choice = layer_choice(whole, options, 1.0, kind)
    gone = [data.draw(st.integers(0, filters - 1)), data.draw(st.integers(0, channels - 1))]
    groups = [
        GroupChoice(np.zeros(9), np.ones(9, bool), {"conv": 1.0}, {}, {}),
        GroupChoice(np.zeros(9), np.ones(9, bool), {}, {"conv": 1.0}, {"conv": 1.0}),
    ]
    thin = one_conv(filters - gone[0], channels - gone[1], kernel, operator)
    for index in range(len(choice.options)):
        ranks = ranks_of(Problem({"conv": choice}, groups), Decision(gone, {"conv": index}), "conv")
        if kind == "macs":
            cost = thin.macs if ranks is None else thin.chain_macs(ranks)
        else:
            cost = math.prod(thin.shape) if ranks is None else thin.chain_params(ranks)
            cost *= 4 if kind == "size" else 1
        assert choice.cost(index, *thin.sides) == cost
        assert ranks is None or ranks.depthwise == choice.options[index].depthwise
        assert ranks is None or not ranks.depthwise or ranks.out <= thin.highest_cp_rank


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
    assert case.groups[0].whole[found.removed[0]]
    assert found.damage >= best - 1e-9
    # Prices reach the corners of the convex hull; between them the best may be missed.
    assert found.damage <= best + 1.0


@SETTINGS
@given(st.integers(0, 10**6), st.data())
def test_damage_counts_as_far_as_the_response_it_is_in_is_left(seed, data):
    case = small_problem(seed)
    group, (a, b) = case.groups[0], case.layers.values()
    count, first, second = (data.draw(st.integers(0, 5)) for _ in range(3))
    left = 1 - group.damage[count] / group.damage[-1]
    expected = group.damage[count] + left * a.damage[first] + b.damage[second]
    found = expected_damage(case, Decision([count], {"a": first, "b": second}))
    assert found == pytest.approx(expected)


def test_what_leads_to_a_branch_goes_when_the_branch_does():
    """a → b → c: b's filters do nothing much, and a is dear."""

    def whole(filters: int, channels: int) -> LayerChoice:
        return LayerChoice(filters, channels, 1, 1, 1, 1, 1, [Ranks(filters, channels)], np.zeros(1))

    layers = {"a": whole(8, 100), "b": whole(8, 8), "c": whole(8, 8)}
    into_b = GroupChoice(np.linspace(0, 1, 8), np.ones(8, bool), {"a": 1.0}, {"b": 1.0}, {"b": 1.0})
    into_c = GroupChoice(np.linspace(0, 0.1, 8), np.ones(8, bool), {"b": 1.0}, {"c": 1.0}, {"c": 1.0})
    found = decide(Problem(layers, [into_b, into_c]), 150)
    assert found.removed == [7, 7]
    assert found.damage == pytest.approx(0.1)


@SETTINGS
@given(st.integers(0, 10**6), st.floats(0.3, 0.9))
def test_neither_pruning_nor_factoring_alone_is_better_than_both(seed, share):
    case = small_problem(seed)
    budget = share * decide(case, np.inf).cost
    whole = {
        name: replace(layer, options=layer.options[:1], damage=layer.damage[:1])
        for name, layer in case.layers.items()
    }
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
