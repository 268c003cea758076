import pytest

from onnxcompress.errors import InputError
from onnxcompress.plan import Plan, Ranks, from_yaml, read_plan, to_yaml

BOMB = "[x]"
for level in range(40):
    BOMB = f"[&a{level} {BOMB}, *a{level}, *a{level}]"


def test_yaml_round_trip_with_awkward_names():
    plan = Plan(
        prune={"conv1/7x7_s2": [0, 3, 63], "yes": [1], "5": [2], "a: b #c": [4], "é×": list(range(200))},
        rewrite=["pool1/norm1"],
        decompose={"conv2/3x3": Ranks(41, 32), "b": Ranks(8, 8, depthwise=True)},
        kept={"fc": "the network's output"},
    )
    assert from_yaml(to_yaml(plan)) == plan


def test_sections_may_be_missing_and_filters_come_in_any_order():
    assert from_yaml("format: 1\nprune: {a: [5, 0]}") == Plan(prune={"a": [0, 5]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "format"),
        ("format: 2", "format"),
        ("[1, 2]", "format"),
        ("format: 1\nprun: {}", "prun"),
        ("format: 1\nprune: [1]", "prune"),
        ("format: 1\nprune: {a: [-1]}", "filter numbers"),
        ("format: 1\nprune: {a: [1, 1]}", "twice"),
        ("format: 1\nprune: {a: [true]}", "filter numbers"),
        ("format: 1\ndecompose: {a: {out: 0, in: 1}}", "ranks"),
        ("format: 1\ndecompose: {a: 4}", "ranks"),
        ("format: 1\ndecompose: {a: {out: 8, in: 8, depthwise: 1}}", "true or false"),
        ("format: 1\ndecompose: {a: {out: 8, in: 4, depthwise: true}}", "both ranks"),
        ("format: 1\nrewrite: {a: 4}", "rewrite"),
        ("format: 1\nprune: {a: [1", "not YAML"),
        ("format: 1\nx: !!python/object/apply:os.system [ls]", "not YAML"),
        ("[" * 100000, "not YAML"),
        ("format: 1\nx: !!int ''", "not YAML"),
        ("format: 1\nx: !!bool x", "not YAML"),
        ("format: 1\nx: !!timestamp x", "not YAML"),
        ("format: 1\nprune: {a: [0x" + "f" * 4000 + "]}", "filter numbers"),
        ("format: 1\ndecompose: {a: {out: 0x" + "f" * 4000 + ", in: 1}}", "ranks"),
        ("format: 1\nkept: {a: [b]}", "kept"),
        ("format: 1\nkept: {a: &a [*a]}", "kept"),
        (f"format: 1\nkept: {{a: {BOMB}}}", "kept"),
        (f"format: 1\nprune: {{a: {BOMB}}}", "filter numbers"),
        ("format: 1\n<<: {prune: {a: [1]}}", "not YAML"),
    ],
)
def test_refuses_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as error:
        from_yaml(text, "my.yaml")
    assert str(error.value).startswith("my.yaml")
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_plan(tmp_path / "binary.yaml")
