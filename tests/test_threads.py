"""Work that is shared between the cores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress import threads
from onnxcompress.threads import gram, product, side_by_side

sizes = st.integers(1, 40)


@pytest.fixture(autouse=True, scope="module")
def all_are_large():
    before, threads.LARGE = threads.LARGE, 1
    yield
    threads.LARGE = before


@settings(deadline=None)
@given(st.integers(0, 10**6), sizes, sizes, sizes)
def test_a_product_in_parts_is_the_product(seed, rows, inner, columns):
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((rows, inner)), random.standard_normal((inner, columns))
    np.testing.assert_allclose(product(a, b), a @ b, atol=1e-12)
    np.testing.assert_allclose(gram(a), a.T @ a, atol=1e-12)
    assert product(a.astype(np.float32), b.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("cores", [1, 2, 5, 64])
def test_the_number_of_cores_does_not_change_a_bit(monkeypatch, cores):
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((90, 90)).astype(np.float32) for _ in range(2))
    expected = product(a, b), gram(a)
    monkeypatch.setattr(threads, "cores", lambda: cores)
    np.testing.assert_array_equal(product(a, b), expected[0])
    np.testing.assert_array_equal(gram(a), expected[1])


def test_what_runs_side_by_side_shares_the_cores_that_are_left(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 12)

    def inner(_):
        return getattr(threads._own, "cores", None)

    assert list(side_by_side(inner, range(3))) == [4, 4, 4]
    assert list(side_by_side(lambda each: list(side_by_side(inner, range(each))), [1, 2, 4])) == [
        [4],
        [2, 2],
        [1, 1, 1, 1],
    ]
    assert next(side_by_side(inner, range(100))) == 1
    assert list(side_by_side(lambda a, b: a + b, "abc", "def")) == ["ad", "be", "cf"]
    assert list(side_by_side(inner, [])) == []
