"""Layers that can be factored: their weights as a plan's ranks refer to them, and the MACs of the chain."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.lrn import sums_squares
from onnxcompress.plan import Ranks
from onnxcompress.weights import weights_of

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Application:
    """A node that applies weights to a value.

    Attributes:
        node: the node.
        constant: which of its inputs holds the weights W: 1, or 0 for a product W·x.
        input_size, output_size: positions (batch × height × width) of its input and output; for Gemm and
            MatMul, both are the number of vectors that the matrix is applied to.
    """

    node: ir.Node
    constant: int = 1
    input_size: int = 0
    output_size: int = 0

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def reads(self) -> str:
        """Name of the value that the weights are applied to."""
        return _name(self.node.inputs[1 - self.constant])

    @property
    def size(self) -> int:
        """Positions at which all the weights are applied: a ConvTranspose applies them at its input's."""
        return self.input_size if self.node.op_type == "ConvTranspose" else self.output_size


@dataclass(frozen=True)
class FactorLayer:
    """A Conv, ConvTranspose, Gemm or MatMul that can be factored, or whose `obstacle` says why not.

    Weights that several nodes apply alike are one layer, which has the name of the first.

    Attributes:
        applications: all that apply the weights, in the order of the network.
        kind: ``kxk`` (Tucker-2, CP), ``1x1`` or ``gemm`` (singular value decomposition), or ``depthwise``.
        obstacle: empty for a layer that can be factored. Of another one, unless it is depthwise, nothing
            below is known.
        mirrored: whether the weights are stored with the input side first: (C, M / groups, *kernel).
        shape: of `weight`.
        groups: 1 for Gemm and MatMul.
    """

    applications: tuple[Application, ...]
    kind: str
    obstacle: str = ""
    mirrored: bool = False
    shape: tuple[int, ...] = ()
    groups: int = 1

    @property
    def node(self) -> ir.Node:
        """The first that applies the weights."""
        return self.applications[0].node

    @property
    def name(self) -> str:
        """That node's."""
        return self.applications[0].name

    @property
    def names(self) -> list[str]:
        """Those of all the nodes."""
        return [each.name for each in self.applications]

    @property
    def weights(self) -> ir.Value:
        """The initializer."""
        value = self.node.inputs[self.applications[0].constant]
        assert value is not None
        return value

    @property
    def weight(self) -> NDArray[np.float64]:
        """A new float64 array of shape (M, C / groups, *kernel); (M, C) for Gemm and MatMul."""
        stored = np.asarray(weights_of(self.weights)).astype(np.float64)
        return swap_sides(stored, self.groups) if self.mirrored else stored

    @property
    def by_group(self) -> NDArray[np.float64]:
        """The same of shape (groups, M / groups, C / groups · kernel)."""
        return self.weight.reshape(self.groups, self.sides[0], -1)

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        assert self.weights.dtype is not None
        return int(self.weights.dtype.itemsize)

    @property
    def sides(self) -> tuple[int, int]:
        """(M, C), each per group."""
        return self.shape[0] // self.groups, self.shape[1]

    @property
    def width(self) -> int:
        """Inputs of one filter: C / groups · kernel."""
        return math.prod(self.shape[1:])

    @property
    def kernel(self) -> int:
        """Elements of the kernel; 1 for Gemm and MatMul."""
        return math.prod(self.shape[2:])

    @property
    def positions(self) -> tuple[int, int, int]:
        """Input size, size and output size of all applications together."""
        sizes = [(each.input_size, each.size, each.output_size) for each in self.applications]
        into, core, out = map(sum, zip(*sizes, strict=True))
        return into, core, out

    @property
    def macs(self) -> int:
        """Of the layer as it is."""
        return self.positions[1] * math.prod(self.shape)

    @property
    def highest_cp_rank(self) -> int:
        """That suffices for any weights, per group (Kruskal 1989)."""
        filters, channels = self.sides
        return min(filters * channels, filters * self.kernel, channels * self.kernel)

    def chain_macs(self, ranks: Ranks) -> int:
        """Of the chain at these ranks; a side that is left as it is has no convolution of its own."""
        return self._chain(ranks, *self.positions)

    def chain_params(self, ranks: Ranks) -> int:
        """Weights of the chain at these ranks."""
        return self._chain(ranks, 1, 1, 1)

    def _chain(self, ranks: Ranks, at_input: int, at_core: int, at_output: int) -> int:
        """Weights of the chain's parts, each counted so many times."""
        out, into = self.sides
        if self.kind != "kxk":
            return self.groups * ranks.out * at_core * (into + out)
        if ranks.depthwise:
            return self.groups * ranks.out * (into * at_input + self.kernel * at_core + out * at_output)
        found = ranks.into * ranks.out * self.kernel * at_core
        found += into * ranks.into * at_input if ranks.into < into else 0
        found += out * ranks.out * at_output if ranks.out < out else 0
        return self.groups * found

    @property
    def bias(self) -> NDArray[np.float64] | None:
        """A new float64 array of shape (M,); None where the layer has none that can change."""
        return self.biases[0]

    @property
    def biases(self) -> list[NDArray[np.float64] | None]:
        """The same of every application."""
        return [self._bias(each.node) for each in self.applications]

    def _bias(self, node: ir.Node) -> NDArray[np.float64] | None:
        stored = weights_of(node.inputs[2] if len(node.inputs) > 2 else None)
        if stored is None:
            return None
        if stored.size > 1 and stored.size != stored.shape[-1]:  # of a Gemm: another one for every row
            return None
        return np.broadcast_to(np.asarray(stored, np.float64).ravel(), self.shape[:1]).copy()


def set_weights(layer: FactorLayer, weight: NDArray, bias: NDArray | None) -> None:
    """Store other weights, (M, C / groups, *kernel), and bias, (M,), in the layer's type, in place."""
    _store(layer.weights, swap_sides(weight, layer.groups) if layer.mirrored else weight)
    if bias is None:
        return
    for each in layer.applications:
        value = each.node.inputs[2]
        assert value is not None
        assert value.const_value is not None
        _store(value, bias.reshape(value.const_value.shape.numpy()))


def _store(value: ir.Value, array: NDArray) -> None:
    assert value.dtype is not None
    value.const_value = ir.tensor(np.ascontiguousarray(array, value.dtype.numpy()), name=value.name)
    value.shape = ir.Shape(array.shape)


def factor_layers(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> list[FactorLayer]:
    """Layers of a simplified network, in its order: those that can be factored and those with an `obstacle`.

    Weights that several nodes read can be factored if nothing else reads them and all apply them alike,
    so that their factors can take their place in the file. Products of computed matrices are no layers.
    """
    readers: dict[object, list[FactorLayer]] = {}
    for node in model.graph:
        if (layer := _examine(node, shapes)) is not None:
            alike = (layer.weights, layer.groups, layer.mirrored) if layer.shape else layer.name
            readers.setdefault(alike, []).append(layer)
    layers = [
        replace(group[0], applications=tuple(each for layer in group for each in layer.applications))
        for group in readers.values()
    ]
    return [
        replace(layer, obstacle=f"'{stranger}' reads its weights too, in another way")
        if not layer.obstacle and (stranger := _stranger(layer))
        else layer
        for layer in layers
    ]


def names_of(layers: Iterable[FactorLayer]) -> list[str]:
    """Of all nodes that apply these layers' weights."""
    return [name for layer in layers for name in layer.names]


def reads(layers: Iterable[FactorLayer]) -> list[str]:
    """Names of the values that these layers' weights are applied to."""
    return [each.reads for layer in layers for each in layer.applications]


def channel_axis(node: ir.Node, rank: int) -> int:
    """Axis of the filters in what a layer gives, an array of so many axes: the rows of a product W·x."""
    if node.op_type in CONVOLUTIONS:
        return 1
    mirrored = node.op_type == "MatMul" and weights_of(node.inputs[0]) is not None
    return rank - 2 if mirrored else rank - 1


def relu_after(node: ir.Node) -> ir.Node | None:
    """The Relu that alone reads a node's output."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    alone = len(readers) == 1 and not node.outputs[0].is_graph_output()
    return readers[0] if alone and readers[0].op_type == "Relu" else None


def swap_sides(weight: np.ndarray, groups: int) -> np.ndarray:
    """(A, B / groups, *kernel) to (B, A / groups, *kernel), group by group. Twice changes nothing."""
    parts = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    return parts.reshape(-1, *parts.shape[2:])


def _examine(node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> FactorLayer | None:
    convolution = node.op_type in CONVOLUTIONS
    if node.domain or not (convolution or node.op_type in PRODUCTS):
        return None
    constants = [index for index in (1, 0) if weights_of(node.inputs[index]) is not None]
    kernel = shapes.get(_name(node.inputs[1]), ())[2:]
    kind = "gemm" if not convolution else "1x1" if kernel and math.prod(kernel) == 1 else "kxk"
    unknown = (Application(node),)
    if convolution and 1 not in constants:
        return FactorLayer(unknown, kind, "its weights are computed in the graph")
    if sums_squares(node):
        return FactorLayer(unknown, kind, "it sums squares, as in a normalization")
    if not constants:
        return None
    constant = constants[0]
    stored = shapes[_name(node.inputs[constant])]
    into, out = shapes.get(_name(node.inputs[1 - constant])), shapes.get(_name(node.outputs[0]))
    if into is None or out is None:
        return FactorLayer(unknown, kind, "its shape is unknown until it runs")
    if not all(math.prod(shape) for shape in (stored, into, out)):
        return FactorLayer(unknown, kind, "it computes nothing")
    if convolution:
        groups, mirrored = node.attributes.get_int("group", 1), node.op_type == "ConvTranspose"
        sizes = math.prod(into) // into[1], math.prod(out) // out[1]
    elif len(stored) != 2 or not _is_float(node.inputs[constant]):
        return FactorLayer(unknown, kind, "its weights are not one matrix of floating-point numbers")
    else:
        # Stored the other way round: x·W unless transB says otherwise, W·x if transA says so.
        transposed = node.attributes.get_int("transB" if constant else "transA", 0) != 0
        groups, mirrored = 1, transposed != bool(constant)
        sizes = (math.prod(out) // stored[0 if not mirrored else 1],) * 2
    shape = (stored[1] * groups, stored[0] // groups, *stored[2:]) if mirrored else stored
    obstacle = ""
    if groups > 1 and shape[1] == 1:
        kind, obstacle = "depthwise", "a depthwise convolution mixes no channels"
    return FactorLayer((Application(node, constant, *sizes),), kind, obstacle, mirrored, shape, groups)


def _stranger(layer: FactorLayer) -> str:
    """Name of another node that reads a layer's weights; empty where there is none."""
    nodes = {each.node for each in layer.applications}
    return next((str(node.name) for node, _ in layer.weights.uses() if node not in nodes), "")


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _name(value: ir.Value | None) -> str:
    return str(value.name) if value is not None else ""
