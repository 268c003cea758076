import numpy as np

import onnxcompress as oc
from tests.networks import Builder
from tests.onnx_text import network


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


def test_macs_behind_an_if_that_onnx_runtime_folds():
    """torch's squeeze(dim), as TorchScript exports it, behind shapes that only running tells."""
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv(x, u) s = Shape(a) first = Slice(s, zero, one) all = Concat <axis = 0> (first, rest)
            b = Reshape(a, all) n = InstanceNormalization(b, m, m) t = Shape(a) d = Reshape(n, t)
            c = Conv(d, v) r = Relu(c) p = AveragePool <kernel_shape = [8, 8]> (r)
            h = Shape(p) last = Gather(h, axis) e = Equal(last, one)
            f = If (e) <then_branch = t () => (float[] q) { q = Squeeze(p, axis) },
                        else_branch = o () => (float[] j) { j = Identity(p) }>
            k = Reshape(f, two) y = Gemm(k, w)
        }""",
        {
            "u": np.ones((4, 3, 1, 1), np.float32),
            "v": np.ones((6, 4, 1, 1), np.float32),
            "w": np.ones((6, 5), np.float32),
            "m": np.ones(2, np.float32),
            "zero": np.array([0]),
            "one": np.array([1]),
            "axis": np.array([3]),
            "rest": np.array([2, -1]),
            "two": np.array([-1, 6]),
        },
    )
    model.opset_imports[""] = 13
    assert [layer.macs for layer in oc.cost(model).layers if layer.macs] == [64 * 12, 64 * 24, 30]
