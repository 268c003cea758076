"""Gradients of whole networks against PyTorch's."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import onnxcompress as oc
from models import zoo
from onnxcompress.model import simplify
from onnxcompress.outputs import scores_of
from onnxcompress.training.losses import Loss, Term
from onnxcompress.training.parameters import current, trainable

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("onnxscript", reason="needs the extra 'torch'")
nn = torch.nn

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "bvlc_googlenet"


def conv(into, out, kernel=3, stride=1, group=1, act=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=group, bias=False),
        nn.BatchNorm2d(out),
        act(),
    )


class Basic(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, into, out, stride):
        super().__init__()
        self.body = nn.Sequential(conv(into, out, stride=stride), conv(out, out, act=nn.Identity))
        self.short = nn.Identity() if stride == 1 else conv(into, out, 1, stride, act=nn.Identity)

    def forward(self, x):
        return torch.relu(self.body(x) + self.short(x))


class Inverted(nn.Module):
    """A block of MobileNetV3, with squeeze and excitation."""

    def __init__(self, width, wide):
        super().__init__()
        self.first = nn.Sequential(
            conv(width, wide, 1, act=nn.Hardswish), conv(wide, wide, group=wide, act=nn.Hardswish)
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.ReLU(), nn.Conv2d(8, wide, 1), nn.Hardsigmoid()
        )
        self.last = conv(wide, width, 1, act=nn.Identity)

    def forward(self, x):
        y = self.first(x)
        return x + self.last(y * self.gate(y))


def resnet():
    stem = [conv(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1)]
    body = [Basic(16, 16, 1), Basic(16, 32, 2), Basic(32, 32, 1)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def mobilenet():
    stem = [conv(3, 16, 3, 2, act=nn.Hardswish), nn.ReLU6()]
    body = [Inverted(16, 48), Inverted(16, 48), conv(16, 32, 3, 2, group=16)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Gated(nn.Module):
    """Group normalization, then gates by the mean and the maximum of every map, and by directions."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SELU())
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x):
        y = self.body(x)
        gate = self.mix(y.mean((2, 3), keepdim=True) + torch.amax(y, (2, 3), keepdim=True))
        return x + y * torch.sigmoid(gate) + nn.functional.normalize(y, dim=1)


def gated():
    body = [conv(3, 16, 3, 2), Gated(16), conv(16, 32, 3, 2), nn.AdaptiveMaxPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 10))


def exported(module, path):
    torch.manual_seed(0)
    module = module().eval()
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.running_mean, -0.2, 0.2)
            nn.init.uniform_(each.running_var, 0.5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.zeros(2, 3, 64, 64)
        torch.onnx.export(
            module, (x,), path, dynamo=False, input_names=["data"], dynamic_axes={"data": {0: "n"}}
        )
    return oc.load(path)


def compare(model, size, tolerance=1e-4, samples=3):
    """The largest difference of a parameter's gradients, relative to PyTorch's in float64."""
    from tests.training import torch_reference as reference

    network = simplify(model)
    random = np.random.default_rng(1)
    x = random.standard_normal((samples, 3, size, size)).astype(np.float32)
    name = network.graph.inputs[0].name
    names = list(trainable(network))
    loss = Loss(network, names, [Term()], samples)
    labels = random.integers(0, loss.classes, samples)
    value, gradients = loss(current(network, names), x, [np.eye(loss.classes, dtype=np.float32)[labels]])

    tensors = {
        key: tensor.detach().double().requires_grad_() if tensor.is_floating_point() else tensor
        for key, tensor in reference.weights_of(network).items()
    }
    scores = reference.run(network, tensors, {name: x.astype(np.float64)}, scores_of(network).name)
    theirs = nn.functional.cross_entropy(scores.reshape(samples, -1), torch.from_numpy(labels))
    theirs.backward()
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    for key in names:
        expected = tensors[key].grad.numpy()
        difference = np.linalg.norm(gradients[key] - expected) / np.linalg.norm(expected)
        assert difference < tolerance, key


@pytest.mark.parametrize("module", [resnet, mobilenet, gated])
def test_exported_networks(module, tmp_path):
    compare(exported(module, str(tmp_path / "model.onnx")), 64)


def test_squeezenet():
    compare(zoo.build("squeezenet"), 227, samples=1)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is absent")
def test_googlenet():
    # Where two numbers of a pool's window nearly agree, rounding decides which has the gradient.
    model = oc.import_caffe(FOLDER / "deploy.prototxt", FOLDER / "bvlc_googlenet.caffemodel")
    compare(model, 224, tolerance=1e-3, samples=2)
