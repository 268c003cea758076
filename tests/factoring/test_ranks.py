import math

import numpy as np
import pytest

from onnxcompress.errors import InputError
from onnxcompress.factoring.ranks import parse_rank, tucker_ranks


@pytest.mark.parametrize(
    "text", ["svd", "energy", "energy:0", "energy:1.1", "fraction:x", "fraction:nan", "vbmf:0"]
)
def test_refuses(text):
    with pytest.raises(InputError, match="rank"):
        parse_rank(text)


def test_energy_is_the_fewest_components_that_hold_the_share():
    matrix = np.diag(np.sqrt([50.0, 30.0, 15.0, 5.0]))
    assert [parse_rank(f"energy:{share}")(matrix) for share in (0.4, 0.5, 0.51, 0.8, 0.95, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]


def test_fraction_rounds_up_and_is_never_0():
    assert [parse_rank(f"fraction:{share}")(np.ones((10, 30))) for share in (0.01, 0.25, 0.5, 1)] == [
        1,
        3,
        5,
        10,
    ]


def test_groups_share_the_largest_rank():
    random = np.random.default_rng(0)
    rank_1 = np.einsum("m,c,k->mck", random.random(6), random.random(5), random.random(9))
    weight = np.concatenate([rank_1, random.standard_normal((6, 5, 9))]).reshape(12, 5, 3, 3)
    assert tucker_ranks(weight, 2, parse_rank("energy:0.999")) == (6, 5)
    assert tucker_ranks(weight[:6], 1, parse_rank("energy:0.999")) == (1, 1)
    assert math.isclose(np.linalg.norm(weight[:6]), np.linalg.norm(rank_1))


def test_vbmf_takes_a_factor():
    random = np.random.default_rng(0)
    signal = random.standard_normal((40, 8)) @ random.standard_normal((8, 90))
    matrix = signal + 0.1 * random.standard_normal((40, 90))
    assert [parse_rank(text)(matrix) for text in ("vbmf", "vbmf:1", "vbmf:0.5", "vbmf:0.01", "vbmf:99")] == [
        8,
        8,
        4,
        1,
        40,
    ]
