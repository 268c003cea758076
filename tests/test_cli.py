"""The command line: one JSON object, exit codes, and one clear line for whatever is wrong."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

import onnxcompress as oc
from onnxcompress import preprocessing
from onnxcompress.cli.terminal import Printed, show
from tests.caffe.reference import caffemodel
from tests.networks import Builder

COMMANDS = [
    "import-caffe",
    "inspect",
    "prune",
    "decompose",
    "compress",
    "apply",
    "evaluate",
    "bench",
    "finetune",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with model.onnx (a small residual network), as the working folder."""
    monkeypatch.chdir(tmp_path)
    b = Builder(0)
    x = b.conv("x", 16, 3)
    y = b.add("Relu", [x], b.shapes[x])
    z = b.add("Add", [y, b.conv(y, 16, 3)], b.shapes[x])
    c, h, w = b.shapes[z]
    flat = b.add("Flatten", [z], (c * h * w,))
    oc.save(b.model([b.add("Gemm", [flat, b.weight(5, c * h * w)], (5,), transB=1)]), "model.onnx")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "--json" in out


def test_compress_apply_evaluate_bench(run, folder):
    code, out, err = run("compress", "model.onnx", "-o", "small.onnx", "--ratio", "0.5", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [stage["name"] for stage in found["stages"]] == ["original", "pruned", "decomposed"]
    assert found["stages"][0]["macs"] > found["stages"][1]["macs"] > found["stages"][2]["macs"]
    assert found["file_bytes"]["after"] == Path("small.onnx").stat().st_size

    code, out, _ = run("apply", "model.onnx", "small.plan.yaml", "-o", "again.onnx", "--json")
    assert code == 0
    assert Path("again.onnx").read_bytes() == Path("small.onnx").read_bytes()
    assert run("apply", "model.onnx", "small.plan.yaml", "-o", "small.onnx", "-q")[0] == 0
    assert Path("again.onnx").read_bytes() == Path("small.onnx").read_bytes()

    random = np.random.default_rng(0)
    np.savez("data.npz", x=random.random((12, 3, 8, 8), np.float32), y=random.integers(0, 5, 12))
    code, out, _ = run("evaluate", "small.onnx", "--data", "data.npz", "--reference", "model.onnx", "--json")
    assert code == 0
    assert json.loads(out)["n"] == 12
    assert 0 < json.loads(out)["relative_l2"] < 2

    code, out, _ = run("bench", "model.onnx", "small.onnx", "--runs", "5", "--threads", "1", "--json")
    assert code == 0
    assert [network["name"] for network in json.loads(out)["networks"]] == ["model.onnx", "small.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compress --target macs=0.5 --ratio 0.3", "--ratio: does not go with --target"),
        ("compress --keep-accuracy 0.9 --scope global", "--scope: does not go with"),
        ("compress --epochs 3", "--epochs: applies to --finetune"),
        ("compress --labels", "--labels: applies to"),
        ("prune --step 0.1", "--step: applies to --iterative"),
        ("prune --flops-weight 0.1", "--flops-weight: applies to Taylor"),
        ("decompose --limit 5", "--limit: says how --data are used"),
        ("decompose --no-mirror", "decompose: --no-mirror: says how --data are used"),
        ("apply plan.yaml --mean 3", "--mean: says how --data are used"),
    ],
)
def test_options_that_would_change_nothing_are_refused(run, folder, arguments, message):
    Path("plan.yaml").write_text("format: 1\n")
    verb, *rest = arguments.split()
    code, out, err = run(verb, "model.onnx", *rest, "-o", "out.onnx")
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("out.onnx").exists()


def test_plans_of_names_without_onnx_do_not_overwrite_each_other(run, folder):
    for share in ("0.3", "0.5"):
        assert run("decompose", "model.onnx", "-o", f"small_{share}", "--rank", f"fraction:{share}")[0] == 0
    assert {path.name for path in folder.glob("*.yaml")} == {"small_0.3.plan.yaml", "small_0.5.plan.yaml"}


def test_how_images_are_prepared_stays_with_the_result(run, folder):
    """And they are cut out of a size that suits the network, not out of that of ImageNet's."""
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (10, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    options = ("--data", "images", "--channel-order", "RGB", "--mean", "0", "--scale", "0.01")
    assert run("decompose", "model.onnx", "-o", "out.onnx", "--rank", "fraction:0.5", *options)[0] == 0
    found = preprocessing.read(oc.load("out.onnx"))
    assert found == oc.Preprocessing("RGB", (0.0,), (0.01,), resize=(9, 9))  # the network takes 8×8
    assert preprocessing.read(oc.load("model.onnx")) is None
    assert run("evaluate", "out.onnx", "--data", "images", "--reference", "model.onnx")[0] == 0


def test_no_image_is_mirrored_where_that_is_not_wanted(run, folder, monkeypatch):
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        pixels = random.integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    seen = []
    monkeypatch.setattr(
        "onnxcompress.data.taken",
        lambda pixels, steps, height, width, view: (
            seen.append(view.mirror) or preprocessing.taken(pixels, steps, height, width, view)
        ),
    )
    data = ("--data", "images", "--channel-order", "RGB")
    options = (*data, "--target", "macs=0.5", "--finetune", "--epochs", "1")
    assert run("compress", "model.onnx", "-o", "out.onnx", *options, "--no-mirror")[0] == 0
    without, seen[:] = list(seen), []
    assert run("compress", "model.onnx", "-o", "out.onnx", *options)[0] == 0
    assert len(without) == len(seen)
    assert not any(without)
    assert any(seen[: 20 * 8])  # read for the fit
    assert any(seen[20 * 8 :])  # and for training


def test_what_was_not_looked_at_is_said(run, folder):
    _, out, _ = run("prune", "model.onnx", "-o", "out.onnx")
    assert "its accuracy was not looked at" in out
    np.savez("data.npz", x=np.random.default_rng(0).random((20, 3, 8, 8), np.float32))
    _, out, _ = run("prune", "model.onnx", "-o", "out.onnx", "--data", "data.npz")
    assert "not looked at" not in out
    without, few = (
        " ".join(json.loads(run("prune", "model.onnx", "-o", "out.onnx", "--json", *data)[1])["warnings"])
        for data in ((), ("--data", "data.npz"))
    )
    assert "no weights were fitted" in without
    assert "20 samples are few" in few


def test_how_images_are_prepared_is_said_and_arrays_are_not_prepared(run, folder):
    (folder / "images").mkdir()
    for number in range(12):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / "images" / f"{number}.png")
    options = ("--data", "images", "--mean", "0", "--scale", "0.5", "--resize", "8x8")
    said = "images: BGR, mean 0, scale 0.5, warped to 8x8, cropped to the network's input"
    for command in (
        ("evaluate", "model.onnx", "--reference", "model.onnx"),
        ("prune", "model.onnx", "-o", "out.onnx"),
    ):
        assert said in run(*command, *options)[2]
        assert "images:" not in run(*command, *options, "-q")[2]
    np.savez("data.npz", x=np.zeros((20, 3, 8, 8), np.float32))
    code, _, err = run(
        "evaluate", "model.onnx", "--reference", "model.onnx", "--data", "data.npz", "--mean", "0"
    )
    assert (code, "arrays are fed as they are" in err) == (2, True)


def test_short_of_the_target_is_said_even_quietly(run, folder):
    np.savez("data.npz", x=np.random.default_rng(0).random((20, 3, 8, 8), np.float32))
    options = ("--data", "data.npz", "--target", "macs=0.0001", "-q")
    code, out, err = run("compress", "model.onnx", "-o", "out.onnx", *options)
    assert (code, out) == (1, "")
    assert err.startswith("short of what was asked: ")


def test_version_and_short_help(run):
    assert run("--version") == (0, f"{oc.__version__}\n", "")
    assert run("-h")[1] == run("--help")[1]


def test_a_plan_that_does_not_fit_is_named(run, folder):
    Path("other.yaml").write_text("format: 1\nprune:\n  elsewhere: [0]\n")
    code, _, err = run("apply", "model.onnx", "other.yaml", "-o", "out.onnx")
    assert code == 2
    assert "other.yaml: " in err
    assert "'elsewhere'" in err


def test_a_reference_for_other_images_is_refused(run, folder):
    b = Builder(0)
    b.shapes["x"] = (3, 6, 6)
    oc.save(b.model([b.conv("x", 4, 3)]), "other.onnx")
    np.savez("data.npz", x=np.zeros((12, 3, 8, 8), np.float32), y=np.zeros(12, np.int64))
    code, _, err = run("evaluate", "model.onnx", "--data", "data.npz", "--reference", "other.onnx")
    assert code == 2
    assert "the network takes samples of 3×8×8, the reference of 3×6×6" in err


def test_unlabelled_data_need_something_to_compare_with(run, folder):
    np.savez("data.npz", x=np.zeros((12, 3, 8, 8), np.float32))
    code, _, err = run("evaluate", "model.onnx", "--data", "data.npz")
    assert code == 2
    assert "data.npz: has no labels" in err


def test_inspect(run, folder):
    code, out, _ = run("inspect", "model.onnx", "--groups", "--time")
    assert code == 0
    for expected in ("conv0", "16×3×3×3", "tied to conv2", "kept: the network's output", "total", "ms"):
        assert expected in out
    code, out, _ = run("inspect", "model.onnx", "--json")
    assert json.loads(out)["layers"][0]["tied"] == ["conv2"]


def test_inspect_says_nothing_of_filters_that_only_follow(run, folder):
    b = Builder(0)
    oc.save(b.model([b.conv(b.conv(b.conv("x", 6), 6, 3, group=6), 2)]), "depthwise.onnx")
    _, out, _ = run("inspect", "depthwise.onnx", "--json")
    assert [layer["kept"] for layer in json.loads(out)["layers"]] == ["", None, "the network's output"]
    _, out, _ = run("inspect", "depthwise.onnx")
    assert out.count("free") == 1


def test_quiet_prints_nothing(run, folder):
    assert run("decompose", "model.onnx", "-o", "out.onnx", "-q") == (0, "", "")
    assert sorted(os.listdir()) == ["model.onnx", "out.onnx", "out.plan.yaml"]


def test_tables_name_what_was_left_alone_and_why(run, folder):
    _, out, _ = run("prune", "model.onnx", "-o", "out.onnx", "--layers")
    assert "keeps its filters: gemm" in out  # it has fewer inputs
    assert "the network's output" in out
    code, out, _ = run("prune", "model.onnx", "-o", "out.onnx", "--ratio", "0")
    assert code == 0
    assert "nothing to do" in out
    options = ("--rank", "fraction:0.2", "--include-gemm")
    _, out, _ = run("compress", "model.onnx", "-o", "out.onnx", "--ratio", "0.5", *options)
    assert "keeps its filters: gemm" in out


def test_short_of_what_was_asked(run, folder):
    code, out, _ = run("prune", "model.onnx", "-o", "out.onnx", "--ratio", "0.99", "--scope", "global")
    assert code == 0  # one group of 16: 15 of 16 is what 0.99 asks for
    b = Builder(0)
    b.conv(b.conv("x", 8), 8)
    oc.save(b.model([b.conv(b.nodes[-1].output[0], 2)]), "two.onnx")
    code, out, _ = run("prune", "two.onnx", "-o", "out.onnx", "--ratio", "0.95", "--scope", "global")
    assert code == 1
    assert "short of what was asked" in out


def with_weights(path: str, change) -> None:
    model = oc.load("model.onnx")
    value = next(v for v in model.graph.initializers.values() if v.const_value.numpy().ndim == 4)
    array = value.const_value.numpy().copy()
    change(array)
    value.const_value = ir.tensor(array, name=value.name)
    ir.save(model, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "none.onnx", "-o", "out.onnx"], "no such file"),
        (["prune", ".", "-o", "out.onnx"], "is a folder"),
        (["inspect", "/dev/null"], "is not a file"),
        (["prune", "empty.onnx", "-o", "out.onnx"], "is empty"),
        (["prune", "truncated.onnx", "-o", "out.onnx"], "truncated, or not an ONNX file; fetch"),
        (["prune", "text.onnx", "-o", "out.onnx"], "truncated, or not an ONNX file; fetch"),
        (["inspect", "noise.onnx"], "truncated, or not an ONNX file; fetch"),
        (["decompose", "nan.onnx", "-o", "out.onnx"], "NaN or infinite"),
        (["decompose", "external.onnx", "-o", "out.onnx"], "lie in gone, which is missing"),
        (["inspect", "quantized.onnx"], "compress first, then quantize"),
        (["prune", "model.onnx", "-o", "out.onnx", "--ratio", "1"], "not in [0, 1)"),
        (["prune", "model.onnx", "-o", "out.onnx", "--ratio", "-0.1"], "not in [0, 1)"),
        (["prune", "model.onnx", "-o", "out.onnx", "--ratio", "nan"], "not in [0, 1)"),
        (["prune", "model.onnx", "-o", "out.onnx", "--criterion", "l7"], "not one of l1, l2"),
        (["prune", "model.onnx", "-o", "out.onnx", "--scope", "all"], "not one of layer"),
        (["prune", "model.onnx", "-o", "out.onnx", "--round-to", "0"], "not at least 1"),
        (["prune", "model.onnx", "-o", "out.onnx", "--skip", "nope*"], "no layer matches"),
        (["prune", "model.onnx", "-o", "model.onnx"], "overwrite the input"),
        (["prune", "model.onnx", "-o", "labels.npz", "--data", "labels.npz"], "overwrite the input"),
        (["tradeoff", "model.onnx", "-o", "labels.npz", "--data", "labels.npz"], "overwrite the input"),
        (
            ["tradeoff", "model.onnx", "-o", "one.png", "--plot", "one.png", "--data", "labels.npz"],
            "one.png: the output would overwrite",
        ),
        (
            [
                "compress",
                "model.onnx",
                "-o",
                "o.onnx",
                "--criterion",
                "l1",
                "--stats",
                "s",
                "--data",
                "labels.npz",
            ],
            "--stats: applies to criteria",
        ),
        (["prune", "model.onnx", "-o", "/proc/out.onnx"], "cannot be written"),
        (["prune", "model.onnx", "-o", "./sub/../model.onnx"], "does not exist"),
        (["prune", "model.onnx", "-o", "missing/out.onnx"], "does not exist"),
        (["decompose", "model.onnx", "-o", "out.onnx", "--rank", "half"], "not a rule"),
        (["compress", "model.onnx", "-o", "out.onnx", "--rank", "energy:2"], "share"),
        (["apply", "model.onnx", "none.yaml", "-o", "out.onnx"], "cannot read the plan"),
        (["apply", "model.onnx", "text.onnx", "-o", "out.onnx"], "not a plan"),
        (["apply", "model.onnx", "layer.yaml", "-o", "out.onnx"], "no layer 'nope'"),
        (["apply", "model.onnx", "rank.yaml", "-o", "out.onnx"], "impossible"),
        (["evaluate", "model.onnx", "--data", "nowhere"], "no such file"),
        (["evaluate", "model.onnx", "--data", "emptyfolder"], "emptyfolder"),
        (["evaluate", "model.onnx", "--data", "labels.npz"], "label"),
        (["bench", "model.onnx", "truncated.onnx"], "truncated, or not an ONNX file; fetch"),
        (
            ["evaluate", "model.onnx", "--data", ".", "--channel-order", "GRAY"],
            "GRAY has one channel: give one",
        ),
        (
            ["decompose", "model.onnx", "-o", "out.onnx", "--data", "labels.npz", "--mean", "1"],
            "fed as they are",
        ),
        (["prune", "model.onnx", "-o", "out.onnx", "--iterative", "--criterion", "l2"], "goes by taylor"),
        (["prune", "model.onnx", "-o", "out.onnx", "--iterative"], "give samples with --data"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(run, folder, arguments, message):
    Path("empty.onnx").touch()
    Path("text.onnx").write_text("hello: world")
    Path("truncated.onnx").write_bytes(Path("model.onnx").read_bytes()[:3000])
    Path("noise.onnx").write_bytes(np.random.default_rng(0).bytes(2000))
    Path("layer.yaml").write_text("format: 1\nprune: {nope: [0]}")
    Path("rank.yaml").write_text("format: 1\ndecompose: {conv0: {out: 99, in: 3}}")
    Path("emptyfolder").mkdir()
    np.savez("labels.npz", x=np.zeros((2, 3, 8, 8), np.float32), y=np.array([0, 99]))
    with_weights("nan.onnx", lambda array: array.fill(np.nan))
    onnx.save(
        onnx.load("model.onnx"),
        "external.onnx",
        save_as_external_data=True,
        location="gone",
        size_threshold=0,
    )
    Path("gone").unlink()
    proto = onnx.load("model.onnx")
    proto.graph.node.append(onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="q"))
    onnx.save(proto, "quantized.onnx")

    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_debug_shows_the_traceback(run, folder):
    code, _, err = run("prune", "none.onnx", "-o", "out.onnx", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_an_interrupted_run_leaves_nothing(run, folder, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxcompress.model.validate", interrupt)
    code, out, err = run("prune", "model.onnx", "-o", "out.onnx")
    assert (code, out) == (2, "")
    assert "interrupted" in err
    assert os.listdir() == ["model.onnx"]


def test_an_interrupt_while_modules_load_is_one_line_too(run, monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "onnxcompress.cli", SimpleNamespace(app=interrupt))
    code, out, err = run("prune", "model.onnx", "-o", "out.onnx")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "interrupted" in err


def test_every_public_name_is_there_and_documented():
    for name in oc.__all__:
        assert getattr(oc, name).__doc__, name


def test_a_defect_of_ours_is_one_line_too(run, folder, monkeypatch):
    monkeypatch.setattr("onnxcompress.compression.prepared", lambda _: 1 / 0)
    code, _, err = run("prune", "model.onnx", "-o", "out.onnx")
    assert code == 2
    assert "internal error, ZeroDivisionError" in err


def test_usage_errors(run, folder):
    for arguments in (
        ["prune", "model.onnx"],
        ["nonsense"],
        ["prune", "model.onnx", "-o", "x", "--ratio", "x"],
        ["prune", "model.onnx", "-o", "x", "--seed", "-1"],
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert "Traceback" not in err


def test_json_has_no_word_for_what_is_no_number(capsys):
    show({"cosine": float("nan"), "epochs": [{"loss": float("inf")}], "n": 3}, [], Printed(as_json=True))
    assert json.loads(capsys.readouterr().out) == {"cosine": None, "epochs": [{"loss": None}], "n": 3}


def test_two_runs_give_the_same_bytes(run, folder):
    for name in ("a.onnx", "b.onnx"):
        run("compress", "model.onnx", "-o", name, "--ratio", "0.4", "-q")
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert Path("a.plan.yaml").read_bytes() == Path("b.plan.yaml").read_bytes()


@pytest.mark.parametrize(
    ("channels", "options", "expected"),
    [
        (3, [], preprocessing.Preprocessing()),
        (1, [], None),
        (1, ["--channel-order", "GRAY", "--mean", "0"], ("GRAY", (9, 9))),
    ],
)
def test_an_import_says_of_images_what_is_known_of_them(run, tmp_path, channels, options, expected):
    dims = f"dim: 1 dim: {channels} dim: 8 dim: 8"
    conv = "convolution_param { num_output: 2 kernel_size: 3 bias_term: false }"
    (tmp_path / "net.prototxt").write_text(
        f"layer {{ name: 'x' type: 'Input' top: 'x' input_param {{ shape {{ {dims} }} }} }}"
        f"layer {{ name: 'c' type: 'Convolution' bottom: 'x' top: 'c' {conv} }}"
    )
    weights = {"c": [np.ones((2, channels, 3, 3))]}
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(weights))
    output = tmp_path / "net.onnx"
    code, _, err = run(
        "import-caffe", tmp_path / "net.prototxt", tmp_path / "net.caffemodel", "-o", output, *options
    )
    assert (code, err) == (0, "")
    found = preprocessing.read(oc.load(output))
    if isinstance(expected, tuple):
        assert (found.channel_order, found.resize) == expected
    else:
        assert found == expected
