import pytest

import onnxcompress as oc
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


def test_the_plan_that_is_damaged_is_good(tmp_path):
    """Damage then reaches what lies behind the reading of plans."""
    network, plan = tmp_path / "model.onnx", tmp_path / "plan.yaml"
    network.write_bytes(fuzz.network(fuzz.BRANCHES).SerializeToString())
    plan.write_text(fuzz.PLAN)
    names = [stage.name for stage in oc.apply(network, plan).stages]
    assert names == ["original", "pruned", "decomposed"]
