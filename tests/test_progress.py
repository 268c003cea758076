import pytest

from onnxcompress import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_at_most_once_in_so_many_seconds(clock):
    said = []
    tell = progress.in_lines(said.append, seconds=60)
    for seconds in (0, 59, 60, 100, 119, 120, 400):
        clock[0] = 100.0 + seconds
        tell("training", seconds, 400)
    assert said == [
        "training, 60 of 400, after 1 min",
        "training, 120 of 400, after 2 min",
        "training, 400 of 400, after 7 min",
    ]


def test_what_is_done_in_parts_says_so():
    said = []
    tell = progress.within(lambda *arguments: said.append(arguments), "round 2")
    for _ in progress.counted("abc", 3, progress.steps_of(tell, "scoring")):
        pass
    assert said == [("round 2: scoring", done, 3) for done in (1, 2, 3)]


def test_where_nobody_listens_nothing_is_made():
    assert progress.within(None, "round 2") is None
    assert progress.steps_of(None, "scoring") is None
    assert list(progress.counted("abc", 3, None)) == ["a", "b", "c"]
