import pytest

import onnxcompress as oc
from tests.networks import Builder


@pytest.fixture
def model():
    b = Builder(0)
    x = b.conv("x", 6)
    y = b.conv("x", 6)
    z = b.conv(b.add("Add", [x, y], b.shapes[x]), 4)
    return b.model([b.conv(z, 2)])


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"nowhere": [0]}, "no layer 'nowhere'"),
        ({"conv3": [6]}, "out of range"),
        ({"conv4": [0]}, "must stay: the network's output"),
        ({"conv0": [2]}, "conv1: filter 2 is tied"),
        ({"conv3": [0, 1, 2, 3]}, "at least one filter must stay"),
    ],
)
def test_refuses_impossible_plans(model, filters, message):
    with pytest.raises(oc.InputError, match=message):
        oc.apply(model, oc.Plan(prune=filters))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [({"nowhere": (1, 1)}, "no layer"), ({"conv3": (5, 5)}, "at most 4"), ({"conv3": (2, 3)}, "given twice")],
)
def test_refuses_impossible_ranks(model, ranks, message):
    with pytest.raises(oc.InputError, match=message):
        oc.apply(model, oc.Plan(decompose={name: oc.Ranks(*pair) for name, pair in ranks.items()}))


def test_the_input_network_is_not_touched(model):
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    oc.compress(model, ratio=0.5, rank="fraction:0.5", include_pointwise=True)
    assert {name: value.const_value.numpy().shape for name, value in model.graph.initializers.items()} == {
        name: array.shape for name, array in before.items()
    }


def test_unknown_operators_hold_back_what_reaches_them_and_are_named():
    b = Builder(0)
    x = b.conv("x", 6)
    y = b.add("Trilu", [x], b.shapes[x])
    z = b.conv(y, 8)
    result = oc.prune(b.model([b.conv(z, 2)]), ratio=0.5)
    assert list(result.plan.prune) == ["conv2"]
    assert result.unknown == {"trilu1": "Trilu"}
    assert result.plan.kept["conv0"] == "no rule for Trilu ('trilu1')"


def test_weights_that_also_read_what_is_fixed_keep_their_inputs():
    b = Builder(0)
    weights = [b.weight(6, 3, 1, 1), b.weight(6)]
    inner = b.conv("x", 3)
    both = [b.add("Conv", [each, *weights], (6, 8, 8)) for each in ("x", inner)]
    result = oc.prune(b.model([b.conv(b.add("Add", both, (6, 8, 8)), 2)]), ratio=0.5)
    assert sorted(result.plan.prune) == ["conv1", "conv2"]
    assert result.plan.kept["conv0"] == "weights shared with 'conv1'"
