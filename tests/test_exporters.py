"""Networks defined in PyTorch, as both of its exporters write them."""

import warnings

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.model import simplify
from onnxcompress.runtime import random_feeds, run, session
from tests.oracle import outputs_with_removed_read_as_zero

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("onnxscript", reason="needs the extra 'torch'")
nn, functional = torch.nn, torch.nn.functional


def conv(into, out, kernel=3, **options):
    """Convolution, BatchNorm with lived-in statistics, ReLU."""
    norm = nn.BatchNorm2d(out)
    nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False, **options), norm, nn.ReLU()
    )


class Residual(nn.Module):
    """A basic block with squeeze and excitation."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
        )

    def forward(self, x):
        y = self.body(x)
        return torch.relu(x + y * self.gate(y))


class Shuffle(nn.Module):
    """A unit of ShuffleNetV2."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, groups=half), conv(half, half, 1))

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Next(nn.Module):
    """A block of ConvNeXt, channels last inside."""

    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.mlp(y).permute(0, 3, 1, 2)


class Dense(nn.Module):
    """Layers that read everything before them, BatchNorm first."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width + 4 * i), nn.ReLU(), nn.Conv2d(width + 4 * i, 4, 3, padding=1))
            for i in range(3)
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class UNet(nn.Module):
    """One level down and up again, by a transposed convolution or by resizing."""

    def __init__(self, width):
        super().__init__()
        self.down, self.middle = conv(width, width), conv(width, 2 * width)
        self.up, self.out = nn.ConvTranspose2d(2 * width, width, 2, stride=2), conv(3 * width, width)
        self.side = conv(2 * width, width, 1)

    def forward(self, x):
        skip = self.down(x)
        deep = self.middle(functional.max_pool2d(skip, 2))
        resized = functional.interpolate(self.side(deep), scale_factor=2, mode="nearest")
        return self.out(torch.cat([skip, self.up(deep), resized], dim=1))


class Upscale(nn.Module):
    """Group norm, weight-shared convolutions, a pixel shuffle and a slice of the channels."""

    def __init__(self, width):
        super().__init__()
        self.shared, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width)
        self.wide = nn.Conv2d(width, 4 * width + 8, 1)

    def forward(self, x):
        x = self.norm(self.shared(torch.tanh(self.shared(x))))
        return functional.pixel_shuffle(self.wide(x)[:, 8:], 2)


class Network(nn.Module):
    """A stem, the blocks under test and a classifier."""

    def __init__(self, block, width=16):
        super().__init__()
        self.features = nn.Sequential(conv(3, width, stride=2), block(width))
        with torch.no_grad():
            out = self.features(torch.zeros(2, 3, 32, 32)).shape[1]
        self.classifier = nn.Sequential(nn.Linear(out * 4, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, x):
        x = functional.adaptive_avg_pool2d(self.features(x), 2)
        return self.classifier(x.flatten(1))


@pytest.fixture(
    scope="module", params=[Residual, Shuffle, Next, Dense, UNet, Upscale], ids=lambda b: b.__name__
)
def network(request):
    torch.manual_seed(0)
    return Network(request.param).eval()


@pytest.mark.parametrize("exporter", ["TorchScript", "dynamo"])
def test_what_pytorch_exports_is_pruned_exactly_and_factored(network, exporter, tmp_path):
    path = tmp_path / "network.onnx"
    image = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            torch.onnx.export(network, (image,), path, dynamo=True, opset_version=18, verbose=False)
        else:
            names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
            torch.onnx.export(network, (image,), path, dynamo=False, opset_version=13, **names)
    model = oc.load(path)
    pruned = oc.prune(model, ratio=0.5)
    assert pruned.stages[-1].cost.macs < 0.7 * pruned.stages[0].cost.macs
    assert not pruned.unknown
    feeds = random_feeds(session(model))
    expected = outputs_with_removed_read_as_zero(simplify(model), pruned.plan.prune, feeds)
    for optimize in (False, True):
        (actual,) = run(session(pruned.model, optimize=optimize), feeds)
        np.testing.assert_allclose(actual, expected[0], rtol=0, atol=1e-4 * np.ptp(expected[0]))
    factored = oc.decompose(model, rank="fraction:0.5", include_pointwise=True, include_gemm=True)
    assert factored.plan.decompose
    oc.save(factored.model, tmp_path / "factored.onnx")
