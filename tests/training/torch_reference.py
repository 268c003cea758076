"""ONNX networks run by PyTorch, whose gradients are independent of ours."""

import numpy as np
import torch
from torch.nn import functional


def attributes(node):
    return {name: each.value for name, each in node.attributes.items()}


def padded(x, a, rank, value=0.0):
    pads = a.get("pads", [0] * 2 * rank)
    if not any(pads):
        return x
    widths = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[rank + axis])]
    return functional.pad(x, widths, value=value)


def conv(a, x, w, b=None):
    x = padded(x, a, w.ndim - 2)
    return functional.conv2d(
        x, w, b, stride=a.get("strides", 1), dilation=a.get("dilations", 1), groups=a.get("group", 1)
    )


def max_pool(a, x):
    k, s = a["kernel_shape"], a.get("strides", [1, 1])
    pads = a.get("pads", [0] * 4)
    if pads[:2] == pads[2:] and all(2 * p <= size for p, size in zip(pads[:2], k, strict=True)):
        return functional.max_pool2d(x, k, s, tuple(pads[:2]), ceil_mode=bool(a.get("ceil_mode", 0)))
    return functional.max_pool2d(padded(x, a, 2, -np.inf), k, s, ceil_mode=bool(a.get("ceil_mode", 0)))


def average_pool(a, x):
    return functional.avg_pool2d(
        x,
        a["kernel_shape"],
        a.get("strides", [1, 1]),
        tuple(a.get("pads", [0] * 4)[:2]),
        ceil_mode=bool(a.get("ceil_mode", 0)),
        count_include_pad=bool(a.get("count_include_pad", 0)),
    )


def gemm(a, x, w, b=None):
    y = (x.T if a.get("transA") else x) @ (w.T if a.get("transB") else w)
    return a.get("alpha", 1.0) * y + (0 if b is None else a.get("beta", 1.0) * b)


def clip(a, x, low=None, high=None):
    return torch.clamp(x, low, high)


def axes_of(a, x, axes):
    return tuple(a.get("axes", range(x.ndim)) if axes is None else axes.tolist())


def reduced(function):
    return lambda a, x, axes=None: function(x, axes_of(a, x, axes), keepdim=bool(a.get("keepdims", 1)))


OPERATORS = {
    "Conv": conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "Gemm": gemm,
    "Clip": clip,
    "Relu": lambda a, x: torch.relu(x),
    "HardSwish": lambda a, x: functional.hardswish(x),
    "HardSigmoid": lambda a, x: torch.clamp(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1),
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "LRN": lambda a, x: functional.local_response_norm(
        x, a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0)
    ),
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Add": lambda a, x, y: x + y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Expand": lambda a, x, shape: x.expand(*shape.tolist()),
    "ReduceMean": reduced(torch.mean),
    "ReduceMax": reduced(torch.amax),
    "ReduceL2": reduced(lambda x, axes, keepdim: x.norm(dim=axes, keepdim=keepdim)),
    "InstanceNormalization": lambda a, x, scale, bias: functional.instance_norm(
        x, weight=scale, bias=bias, eps=a["epsilon"]
    ),
    "Selu": lambda a, x: functional.selu(x),
    "GlobalMaxPool": lambda a, x: x.amax((2, 3), keepdim=True),
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Flatten": lambda a, x: x.flatten(a.get("axis", 1)),
    "Reshape": lambda a, x, shape: x.reshape(
        [size or x.shape[axis] for axis, size in enumerate(shape.tolist())]
    ),
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "Dropout": lambda a, x, *_: x,
    "Identity": lambda a, x: x,
}


def weights_of(model):
    """Torch tensors by name; the real ones ask for gradients."""
    tensors = {}
    for name, value in model.graph.initializers.items():
        tensors[name] = torch.from_numpy(value.const_value.numpy().copy())
        if tensors[name].dtype == torch.float32 and tensors[name].ndim:
            tensors[name].requires_grad_()
    return tensors


def run(model, tensors, feeds, target):
    """The value of that name, by PyTorch."""
    values = dict(tensors) | {name: torch.from_numpy(x) for name, x in feeds.items()}
    for node in model.graph:
        given = [None if value is None else values[value.name] for value in node.inputs]
        result = OPERATORS[node.op_type](attributes(node), *given)
        values[node.outputs[0].name] = result
    return values[target]
