"""Published figures on BVLC's GoogLeNet, where ../shared holds it."""

from pathlib import Path

import pytest

import onnxcompress as oc

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "models" / "bvlc_googlenet"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is absent")

VBMF = {
    "conv2/3x3": (41, 32),
    "inception_3a/3x3": (42, 41),
    "inception_3a/5x5": (18, 10),
    "inception_3b/3x3": (38, 42),
    "inception_3b/5x5": (24, 19),
    "inception_4a/3x3": (39, 35),
    "inception_4a/5x5": (14, 9),
    "inception_4b/3x3": (76, 54),
    "inception_4b/5x5": (24, 13),
    "inception_4c/3x3": (87, 62),
    "inception_4c/5x5": (29, 14),
    "inception_4d/3x3": (105, 66),
    "inception_4d/5x5": (27, 17),
    "inception_4e/3x3": (132, 96),
    "inception_4e/5x5": (45, 21),
    "inception_5a/3x3": (140, 91),
    "inception_5a/5x5": (55, 22),
    "inception_5b/3x3": (181, 108),
    "inception_5b/5x5": (68, 32),
}


@pytest.fixture(scope="module")
def googlenet():
    return oc.import_caffe(FOLDER / "deploy.prototxt", FOLDER / "bvlc_googlenet.caffemodel")


def ranks(result):
    return {layer: (ranks.out, ranks.into) for layer, ranks in result.plan.decompose.items()}


def test_cost(googlenet):
    cost = oc.cost(googlenet)
    assert cost.params == pytest.approx(6.999e6, abs=1e3)
    assert cost.macs == pytest.approx(1582.7e6, abs=1e5)


def test_vbmf_ranks_and_what_they_save(googlenet):
    result = oc.decompose(googlenet)
    assert ranks(result) == VBMF | {"conv1/7x7_s2": (25, 3)}
    assert result.stages[-1].cost.macs == pytest.approx(686e6, abs=1e6)
    assert result.stages[-1].cost.params == pytest.approx(4.44e6, abs=1e4)


def test_the_first_layer_skipped(googlenet):
    result = oc.decompose(googlenet, skip=["conv1*"])
    assert ranks(result) == VBMF
    assert result.plan.kept == {"conv1/7x7_s2": "skipped as asked"}
    assert result.stages[-1].cost.macs == pytest.approx(738e6, abs=1e6)
    assert result.stages[-1].cost.params == pytest.approx(4.44e6, abs=1e4)
