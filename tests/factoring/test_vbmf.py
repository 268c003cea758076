import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.factoring.tucker import squared_singular_values
from onnxcompress.factoring.vbmf import evbmf_rank


def noisy(rows: int, columns: int, rank: int, noise: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    signal = random.standard_normal((rows, rank)) @ random.standard_normal((rank, columns))
    return signal + noise * random.standard_normal((rows, columns))


@settings(deadline=None)
@given(st.integers(1, 10), st.sampled_from([1e-4, 1.0, 1e3]), st.integers(0, 1000))
def test_finds_the_rank_under_noise_whatever_the_unit(rank, unit, seed):
    matrix = unit * noisy(60, 200, rank, 0.1, seed)
    assert evbmf_rank(squared_singular_values(matrix), 200) == rank


def test_pure_noise_has_no_component_but_the_rank_is_never_0():
    assert evbmf_rank(squared_singular_values(noisy(80, 300, 0, 1.0, 0)), 300) == 1


def test_dead_rows_do_not_disturb():
    matrix = noisy(60, 200, 5, 0.1, 3)
    matrix[:10] = 0
    assert evbmf_rank(squared_singular_values(matrix), 200) == 5
    assert evbmf_rank(np.zeros(8), 20) == 1


def test_single_row():
    assert evbmf_rank(np.array([3.0]), 9) == 1


def test_refuses_a_matrix_that_is_higher_than_wide():
    with pytest.raises(ValueError, match="transpose"):
        evbmf_rank(np.ones(5), 4)
