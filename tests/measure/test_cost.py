import onnxcompress as oc
from tests.networks import Builder


def test_counts_by_hand():
    b = Builder(0)
    x = b.conv("x", 8, 3, stride=2)  # 8×3×3×3 at 4×4
    x = b.conv(x, 16, 1, group=4, bias=False)  # 16×2 at 4×4
    x = b.add("GlobalAveragePool", [x], (16, 1, 1))
    x = b.add("Flatten", [x], (16,))
    cost = oc.cost(b.model([b.add("Gemm", [x, b.weight(5, 16), b.weight(5)], (5,), transB=1)]))
    assert [layer.params for layer in cost.layers] == [8 * 27 + 8, 16 * 2, 5 * 16 + 5]
    assert [layer.macs for layer in cost.layers] == [8 * 27 * 16, 16 * 2 * 16, 5 * 16]
    assert cost.params == 224 + 32 + 85
    assert cost.macs == 3456 + 512 + 80


def test_shared_weights_count_once():
    b = Builder(0)
    first = b.conv("x", 3, 3)
    shared = b.nodes[-1].input[1]
    b.add("Conv", [first, shared], b.shapes[first], kernel_shape=[3, 3], pads=[1] * 4)
    cost = oc.cost(b.model([b.nodes[-1].output[0]]))
    assert [layer.params for layer in cost.layers] == [81 + 3, 0]
    assert cost.layers[0].macs == cost.layers[1].macs
