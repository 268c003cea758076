import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from onnxcompress.factoring.tucker import truncated_svd, tucker2

shapes = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3))


def rebuilt(out: np.ndarray, core: np.ndarray, into: np.ndarray) -> np.ndarray:
    return np.einsum("mp,pqij,cq->mcij", out, core, into)


@settings(deadline=None)
@given(shapes, st.integers(0, 1000))
def test_full_rank_rebuilds_the_weights(shape, seed):
    weight = np.random.default_rng(seed).standard_normal(shape)
    np.testing.assert_allclose(rebuilt(*tucker2(weight, shape[0], shape[1])), weight, atol=1e-12)


@settings(deadline=None)
@given(shapes, st.integers(0, 1000), st.data())
def test_factors_are_orthonormal_and_the_error_is_what_the_core_lacks(shape, seed, data):
    weight = np.random.default_rng(seed).standard_normal(shape)
    ranks = data.draw(st.integers(1, shape[0])), data.draw(st.integers(1, shape[1]))
    out, core, into = tucker2(weight, *ranks)
    assert core.shape == (*ranks, *shape[2:])
    np.testing.assert_allclose(out.T @ out, np.eye(ranks[0]), atol=1e-10)
    np.testing.assert_allclose(into.T @ into, np.eye(ranks[1]), atol=1e-10)
    error = np.sum((rebuilt(out, core, into) - weight) ** 2)
    np.testing.assert_allclose(error, np.sum(weight**2) - np.sum(core**2), atol=1e-9)


def test_recovers_an_exact_low_rank_and_is_as_good_as_tensorly():
    random = np.random.default_rng(1)
    low = rebuilt(random.random((20, 4)), random.random((4, 3, 3, 3)), random.random((12, 3)))
    np.testing.assert_allclose(rebuilt(*tucker2(low, 4, 3)), low, atol=1e-10)
    weight = random.standard_normal((24, 16, 3, 3))
    (core, _), _ = partial_tucker(weight, (8, 6), modes=[0, 1])
    assert np.sum(tucker2(weight, 8, 6)[1] ** 2) >= np.sum(core**2) * (1 - 1e-3)


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_truncated_svd_is_the_best_approximation(shape, rank):
    matrix = np.random.default_rng(2).standard_normal(shape)
    left, right = truncated_svd(matrix, rank)
    assert left.shape == (shape[0], rank)
    assert right.shape == (rank, shape[1])
    best = np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2)
    np.testing.assert_allclose(np.sum((left @ right - matrix) ** 2), best, atol=1e-10)
