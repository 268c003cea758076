"""Work that is shared between the cores."""

import threading
import time
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress import threads
from onnxcompress.threads import ahead, gram, product, side_by_side

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


class Busy:
    """Counts what is worked on at a time."""

    def __init__(self):
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def work(self, _=None):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.002)
        with self.lock:
            self.now -= 1


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [3, 1]), (2, [1, 5]), (3, [4, 4, 4]), (6, [9, 1, 7]), (64, [3])]
)
def test_no_more_work_at_a_time_than_there_are_cores(monkeypatch, cores, counts):
    monkeypatch.setattr(threads, "cores", lambda: cores)
    busy = Busy()
    list(side_by_side(lambda count: list(side_by_side(busy.work, range(count))), counts))
    assert busy.most <= cores
    assert threads._taken == 0


def test_a_core_that_is_done_helps_with_what_is_left(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    done, together = threading.Event(), threading.Barrier(2)

    def work(name):
        if name == "short":
            done.set()
            return
        done.wait(10)
        while not threads._free():
            time.sleep(0.001)
        list(side_by_side(lambda _: together.wait(10), range(2)))  # goes on only where both run at a time

    list(side_by_side(work, ["long", "short"]))
    assert threads._taken == 0


def test_cores_are_given_back_whatever_happens(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 4)
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda each: 1 // each, range(9)))
    assert threads._taken == 0
    found = side_by_side(lambda each: each, range(9))
    assert next(found) == 0
    found.close()
    assert threads._taken == 0


def test_results_come_in_order():
    assert list(side_by_side(lambda a, b: a + b, "abc", "def")) == ["ad", "be", "cf"]
    assert list(side_by_side(str, [])) == []


def test_the_next_item_is_computed_while_one_is_worked_with():
    computed = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(computed):
            event.set()
            yield number

    for number in ahead(items()):
        assert computed[min(number + 1, 2)].wait(10)
    assert list(ahead([])) == []
    assert list(ahead([None, 0, []])) == [None, 0, []]


def test_what_is_computed_ahead_may_fail_or_not_be_wanted():
    found = ahead(1 // (2 - number) for number in count())
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
    without_end = ahead(count())
    assert next(without_end) == 0
    without_end.close()
