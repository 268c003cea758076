"""Compressed networks compute in edge runtimes what they do in ONNX Runtime. `make edge` installs these."""

from importlib.util import find_spec
from pathlib import Path

import pytest

import onnxcompress as oc
from benchmarks.edge import measure
from models.digits import SHIPPED
from models.digits_data import load_digits_parts

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> dict[str, Path]:
    """Tucker-2 by weights alone; CP under a budget. Both are pruned, and LRN is written as bands."""
    folder = tmp_path_factory.mktemp("edge")
    data = [{"data": load_digits_parts()["calibration"].images[:60]}]
    results = {"tucker": oc.compress(SHIPPED), "cp": oc.compress(SHIPPED, data=data, target="macs=0.3")}
    for name, result in results.items():
        assert result.plan.prune
        assert result.plan.rewrite
        assert any(ranks.depthwise for ranks in result.plan.decompose.values()) == (name == "cp")
        oc.save(result.model, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in results}


@pytest.mark.parametrize("runtime", ["openvino", "MNN", "ncnn"])
def test_compressed_networks_compute_the_same(runtime, compressed):
    if not all(map(find_spec, ["pnnx", runtime] if runtime == "ncnn" else [runtime])):
        pytest.skip(f"needs {runtime}: make edge installs it")
    for name, path in compressed.items():
        row = measure(path, "digits", name, runtime)
        assert not row.failure
        assert row.error < 1e-4
