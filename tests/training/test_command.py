"""`onnxcompress finetune` on the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.__main__ import main
from tests.networks import Builder
from tests.training.small import network, samples


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    oc.save(network(), "model.onnx")
    oc.save(network(4), "teacher.onnx")
    Path("s").write_text("base_lr: 0.01 max_iter: 6")
    b = Builder(0)
    flat = b.add("Flatten", [b.conv("x", 4)], (4 * 64,))
    oc.save(b.model([b.add("Gemm", [flat, b.weight(4, 4 * 64)], (4,), transB=1)]), "other.onnx")
    data = samples(64)
    np.savez("labelled.npz", x=data.samples, y=data.labels)
    np.save("plain.npy", data.samples)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["onnxcompress", "finetune", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return command


def test_after_a_teacher(run):
    code, out, err = run(
        *("model.onnx", "-o", "tuned.onnx", "--teacher", "teacher.onnx", "--data", "plain.npy"),
        *("--val", "plain.npy", "--epochs", 2, "--batch", 16),
    )
    assert (code, err) == (0, "")
    assert out.startswith("before  agreement with the teacher")
    assert "epoch 2  loss" in out
    assert "tuned.onnx: the weights after epoch" in out


def test_by_labels_with_a_solver_as_json(run, tmp_path):
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 max_iter: 6')
    code, out, _ = run(
        *("model.onnx", "-o", "tuned.onnx", "--labels", "--data", "labelled.npz", "--batch", 16),
        *("--solver", "solver.prototxt", "--json"),
    )
    assert code == 0
    found = json.loads(out)
    assert found["rate"] == pytest.approx(0.01)
    assert [epoch["number"] for epoch in found["epochs"]] == [0, 1, 2]
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_checkpoint_that_is_not_there_is_not_gone_on_with_in_silence(run):
    code, out, err = run(
        *("model.onnx", "-o", "tuned.onnx", "--labels", "--data", "labelled.npz", "--resume"),
        *("--epochs", 1, "--rate", 0.01),
    )
    assert code == 0
    assert err == "tuned.onnx.checkpoint: there is none, training starts anew\n"
    assert out.startswith("epoch 1")  # nothing is measured before


def test_an_older_checkpoint_is_not_overwritten(run, tmp_path):
    checkpoint = tmp_path / "tuned.onnx.checkpoint"
    checkpoint.write_bytes(b"of an earlier run")
    code, _, err = run("model.onnx", "-o", "tuned.onnx", "--labels", "--data", "labelled.npz")
    assert code == 2
    assert "--resume goes on, or remove it" in err
    assert checkpoint.read_bytes() == b"of an earlier run"


def test_a_new_head(run):
    code, _, _ = run(
        *("model.onnx", "-o", "tuned.onnx", "--labels", "--data", "labelled.npz", "--new-head", 6),
        *("--epochs", 1, "--rate", 0.01),
    )
    assert code == 0
    assert oc.load("tuned.onnx").graph.outputs[0].shape[1] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "labelled.npz", "--labels", "--epochs", "inf"), "not a number above 0"),
        (("--data", "labelled.npz", "--labels", "--solver", "tuned.onnx"), "overwrite the input"),
        (("--data", "plain.npy"), "nothing to learn from"),
        (("--data", "plain.npy", "--labels"), "has no labels"),
        (("--data", "missing", "--labels"), "no such file"),
        (("--data", "labelled.npz", "--labels", "--policy", "stairs"), "'stairs' is not one of"),
        (("--data", "labelled.npz", "--labels", "--policy", "exp"), "others come with --solver"),
        (("--data", "labelled.npz", "--labels", "--optimizer", "sgd"), "give a rate"),
        (
            ("--data", "labelled.npz", "--labels", "--solver", "s", "--epochs", 3),
            "--epochs: does not go with",
        ),
        (("--data", "labelled.npz", "--labels", "--temperature", 2), "--temperature: is for the answers"),
        (
            ("--data", "plain.npy", "--teacher", "teacher.onnx", "--teacher-weight", 0.3),
            "--teacher-weight: is",
        ),
        (("--data", "plain.npy", "--teacher", "other.onnx"), "the teacher takes samples of"),
    ],
)
def test_bad_usage_is_one_line(run, tmp_path, arguments, message):
    code, out, err = run("model.onnx", "-o", "tuned.onnx", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "tuned.onnx").exists()


def test_new_classes_are_learnt_from_labels(run):
    code, _, err = run(
        *("model.onnx", "-o", "tuned.onnx", "--teacher", "teacher.onnx", "--data", "plain.npy"),
        *("--new-head", 4),
    )
    assert code == 2
    assert "new-head: new classes are learnt from labels" in err


def test_a_solver_says_nothing_of_warmup(run, tmp_path):
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.01 lr_policy: "fixed" max_iter: 4')
    command = ("model.onnx", "-o", "tuned.onnx", "--labels", "--data", "labelled.npz", "--batch", 16)
    losses = []
    for more in ((), ("--warmup", 3)):
        code, out, _ = run(*command, "--json", "--solver", "solver.prototxt", *more)
        assert code == 0
        losses.append(json.loads(out)["epochs"][-1]["loss"])
    assert losses[0] != losses[1]


def test_epochs_are_free_where_a_solver_says_none(run, tmp_path):
    (tmp_path / "solver.prototxt").write_text('base_lr: 0.01 lr_policy: "fixed"')
    code, out, _ = run(
        *("model.onnx", "-o", "tuned.onnx", "--labels", "--data", "labelled.npz", "--batch", 16),
        *("--solver", "solver.prototxt", "--epochs", 1),
    )
    assert code == 0
    assert "epoch 1" in out
    assert "epoch 2" not in out
