"""Feed-forward networks of a few operators as PyTorch modules, for tools that prune those, and back."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxcompress.model import refresh
from onnxcompress.weights import weights_of

LAYERS = ("Conv", "Gemm")


class Network(nn.Module):
    """Runs the nodes of an ONNX network in their order.

    Attributes:
        layers: the modules that hold weights, by index, in the order of the network.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self.graph = model.graph
        self.nodes = [node for node in model.graph if node.op_type in LAYERS]
        self.layers = nn.ModuleList(_layer(node) for node in self.nodes)

    def forward(self, x: Tensor) -> Tensor:
        """The network's first output, (N, classes)."""
        values = {self.graph.inputs[0]: x}
        layers = dict(zip(self.nodes, self.layers, strict=True))
        for node in self.graph:
            inputs = [values[value] for value in node.inputs if value in values]
            run = layers[node] if node in layers else FUNCTIONS[node.op_type]
            values[node.outputs[0]] = run(inputs[0]) if node in layers else run(node, *inputs)
        return values[self.graph.outputs[0]].flatten(1)

    def write_back(self, model: ir.Model) -> ir.Model:
        """The ONNX network that this one was made from, with the weights as they are now: a copy."""
        result = model.clone()
        nodes = [node for node in result.graph if node.op_type in LAYERS]
        for node, layer in zip(nodes, self.layers, strict=True):
            for value, parameter in zip(node.inputs[1:], (layer.weight, layer.bias), strict=False):
                array = parameter.detach().numpy()
                value.const_value = ir.tensor(array, name=value.name)
                value.shape = ir.Shape(array.shape)
        return refresh(result)


def _layer(node: ir.Node) -> nn.Conv2d | nn.Linear:
    weight, bias = (torch.tensor(np.asarray(weights_of(value))) for value in node.inputs[1:3])
    if node.op_type == "Gemm":
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        groups, pads = node.attributes["group"].as_int(), node.attributes["pads"].as_ints()
        layer = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=tuple(node.attributes["strides"].as_ints()),
            padding=tuple(pads[:2]),
            groups=groups,
        )
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _pool(run: Callable[..., Tensor], filling: float) -> Callable[[ir.Node, Tensor], Tensor]:
    def pool(node: ir.Node, x: Tensor) -> Tensor:
        top, left, bottom, right = node.attributes["pads"].as_ints()
        kernel, strides = (tuple(node.attributes[name].as_ints()) for name in ("kernel_shape", "strides"))
        return run(functional.pad(x, (left, right, top, bottom), value=filling), kernel, strides)

    return pool


def _lrn(node: ir.Node, x: Tensor) -> Tensor:
    alpha, beta, bias = (node.attributes[name].as_float() for name in ("alpha", "beta", "bias"))
    return functional.local_response_norm(x, node.attributes["size"].as_int(), alpha, beta, bias)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "AveragePool": _pool(functional.avg_pool2d, 0.0),  # only without pads: they would count here
    "Concat": lambda node, *inputs: torch.cat(inputs, node.attributes["axis"].as_int()),
    "Flatten": lambda node, x: x.flatten(1),
    "GlobalAveragePool": lambda node, x: x.mean((2, 3), keepdim=True),
    "LRN": _lrn,
    "MaxPool": _pool(functional.max_pool2d, -torch.inf),
    "Relu": lambda node, x: functional.relu(x),
    "Softmax": lambda node, x: functional.softmax(x, node.attributes["axis"].as_int()),
}
