"""Layers that can be factored: their weights as a plan's ranks refer to them, and the MACs of the chain."""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.model import weights_of
from onnxcompress.plan import Ranks


@dataclass(frozen=True)
class FactorLayer:
    """A Conv, Gemm or MatMul with constant weights.

    Attributes:
        node: the node.
        kind: ``kxk`` (Tucker-2), ``1x1`` or ``gemm`` (singular value decomposition).
        weight: float64, shape (M, C / groups, *kernel); a Gemm's is (M, C).
        groups: 1 for Gemm.
        input_size, output_size: positions (height × width) at which the layer is evaluated.
    """

    node: ir.Node
    kind: str
    weight: NDArray[np.float64]
    groups: int
    input_size: int
    output_size: int

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def sides(self) -> tuple[int, int]:
        """(M, C), each per group."""
        return self.weight.shape[0] // self.groups, self.weight.shape[1]

    @property
    def macs(self) -> int:
        """Of the layer as it is."""
        return self.output_size * self.weight.size

    def chain_macs(self, ranks: Ranks) -> int:
        """Of the chain at these ranks; a side at full rank has no convolution of its own."""
        (out, into), kernel = self.sides, math.prod(self.weight.shape[2:])
        if self.kind != "kxk":
            return self.groups * ranks.out * (self.output_size * (into + out))
        macs = self.output_size * ranks.into * ranks.out * kernel
        macs += self.input_size * into * ranks.into if ranks.into < into else 0
        macs += self.output_size * out * ranks.out if ranks.out < out else 0
        return self.groups * macs


def factor_layers(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> list[FactorLayer]:
    """All layers of a simplified network that could be factored; depthwise convolutions could not."""
    layers = []
    for node in model.graph:
        weight = weights_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.domain or weight is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        into, out = (shapes.get(str(value.name)) for value in (node.inputs[0], node.outputs[0]) if value)
        if into is None or out is None:
            continue
        if node.op_type == "Conv":
            groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
            if groups == 1 or weight.shape[1] > 1:
                kind = "kxk" if math.prod(weight.shape[2:]) > 1 else "1x1"
                sizes = math.prod(into[2:]), math.prod(out[2:])
                layers.append(FactorLayer(node, kind, weight.astype(np.float64), groups, *sizes))
        elif weight.ndim == 2 and _plain(node):
            filters_first = node.op_type == "Gemm" and _flag(node, "transB")
            matrix = (weight if filters_first else weight.T).astype(np.float64)
            positions = math.prod(out[:-1])
            layers.append(FactorLayer(node, "gemm", matrix, 1, positions, positions))
    return layers


def _plain(node: ir.Node) -> bool:
    scaled = any(
        name in node.attributes and node.attributes[name].as_float() != 1 for name in ("alpha", "beta")
    )
    return not scaled and not _flag(node, "transA")


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())
