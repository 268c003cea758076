import pytest

from benchmarks import fuzz

PARTS, CASES = 4, 75


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_end_in_success_or_one_clear_refusal(part, tmp_path):
    """`python -m benchmarks.fuzz` runs thousands."""
    first = 1_000_000 + part * CASES
    wrong = fuzz.run(range(first, first + CASES), keep=tmp_path)
    assert not wrong


def test_a_case_is_the_same_every_time():
    assert all(fuzz.case(number) == fuzz.case(number) for number in range(50))
