"""A forward pass being written down, so that the way back can be written behind it.

Reverse-mode differentiation on graphs. Every operator has a rule that emits its forward nodes and returns its
*pullback*: a function that, given the gradients at the outputs, emits the nodes which compute those at the
inputs. Emitting both in one place lets a rule keep what its way back needs (the positions of the maxima, the
sums of an LRN) and choose a forward form that gives it. What is not asked for is not emitted.

Shapes are known numbers, the batch included: undoing a broadcast or a reduction is arithmetic on shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Shape = tuple[int, ...]
Gradients = Sequence[ir.Value | None]
"""One per input; None where there is none or nobody wants it."""

Pullback = Callable[..., Gradients]
"""From the gradient at each output to those at the inputs."""


class NoGradientError(Exception):
    """This form of an operator has no rule; the message says what about it."""


class Tape:
    """The nodes emitted so far, and which values gradients are wanted at.

    Args:
        dtype: of all real numbers.
        network_shapes: by value name, those of the network that is being written down.

    Attributes:
        dtype: of all real numbers.
        nodes: in the order of their emission, which is one in which they can run.
        initializers: the constants that they read.
    """

    def __init__(self, dtype: npt.DTypeLike, network_shapes: Mapping[str, Shape]) -> None:
        self.dtype = np.dtype(dtype)
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._network_shapes = network_shapes
        self._shapes: dict[ir.Value, Shape] = {}
        self._wanted: set[ir.Value] = set()

    # --- what rules ask ----------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape:
        """Shape of a value of the forward pass, or of a constant."""
        assert value is not None
        if value not in self._shapes and value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        return self._shapes[value]

    def shape_in_network(self, value: ir.Value | None) -> Shape:
        """Shape of a value of the network that is being written down.

        Raises:
            NoGradientError: when it is not known.
        """
        try:
            return self._network_shapes[str(value.name if value is not None else None)]
        except KeyError:
            raise NoGradientError("a shape cannot be told") from None

    def wants(self, value: ir.Value | None) -> bool:
        """Whether the gradient at this value is asked for."""
        return value in self._wanted

    # --- what they say -----------------------------------------------------------------------------

    def know(self, value: ir.Value, shape: Shape, wanted: bool = False) -> ir.Value:
        """Note the shape of a value, and whether a gradient is wanted there."""
        self._shapes[value] = shape
        if wanted:
            self._wanted.add(value)
        return value

    def constant(self, array: Any, dtype: Any = None) -> ir.Value:
        """A constant: of the tape's type, if none is given."""
        array = np.asarray(array, self.dtype if dtype is None else dtype)
        name = f"tape/constant.{len(self.initializers)}"
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.initializers.append(value)
        return value

    def ints(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> ir.Value:
        """A constant of integers."""
        return self.constant(numbers, np.int64)

    def emit(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """A new node; its output, or a tuple of them where there are several."""
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=f"tape/node.{len(self.nodes)}")
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}:{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def repeat(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Any:
        """A node of the network on these inputs; its output, or a tuple where there are several.

        It is as it was, but that what is cast to real numbers becomes of the tape's type.
        """
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            [self._to_real(attribute) for attribute in node.attributes.values()],
            num_outputs=len(node.outputs),
            name=f"tape/node.{len(self.nodes)}",
        )
        for index, value in enumerate(copy.outputs):
            value.name = f"{copy.name}:{index}" if node.outputs[index].name else ""
        self.nodes.append(copy)
        return copy.outputs[0] if len(copy.outputs) == 1 else tuple(copy.outputs)

    def _to_real(self, attribute: ir.Attr) -> ir.Attr:
        if attribute.name == "to" and ir.DataType(attribute.as_int()).is_floating_point():
            return ir.AttrInt64("to", ir.DataType.from_numpy(self.dtype))
        return attribute

    # --- arithmetic that many rules share ------------------------------------------------------------

    def mul(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        """a · b."""
        return self.emit("Mul", a, b if isinstance(b, ir.Value) else self.constant(b))

    def add(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        """a + b."""
        return self.emit("Add", a, b if isinstance(b, ir.Value) else self.constant(b))

    def sub(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        """a − b."""
        return self.emit("Sub", a, b if isinstance(b, ir.Value) else self.constant(b))

    def div(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        """a / b."""
        return self.emit("Div", a, b if isinstance(b, ir.Value) else self.constant(b))

    def where(self, condition: ir.Value, gradient: ir.Value) -> ir.Value:
        """The gradient where a condition holds, 0 elsewhere (ONNX Runtime is slow at Where)."""
        return self.mul(gradient, self.emit("Cast", condition, to=ir.DataType.from_numpy(self.dtype)))

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """The same numbers in another shape."""
        return self.emit("Reshape", value, self.ints(shape))

    def sum(self, value: ir.Value, axes: Sequence[int], keep: bool = False) -> ir.Value:
        """Sum over some axes."""
        return self.emit("ReduceSum", value, self.ints(axes), keepdims=int(keep)) if axes else value

    def channel_sum(self, value: ir.Value, rank: int) -> ir.Value:
        """Sum over all axes but the second, in two steps, which ONNX Runtime does four times as fast."""
        return self.sum(self.sum(value, range(2, rank)), [0])

    def sum_to(self, gradient: ir.Value, shape: Shape, target: Shape) -> ir.Value:
        """Undo a broadcast from `target` to `shape`: what was copied is summed."""
        if shape == target:
            return gradient
        missing = len(shape) - len(target)
        padded = (1,) * missing + target
        axes = [axis for axis, size in enumerate(padded) if size == 1 < shape[axis] or axis < missing]
        return self.reshape(self.sum(gradient, axes, keep=True), target)

    def spread(self, gradient: ir.Value, shape: Shape) -> ir.Value:
        """Broadcast to a shape."""
        return self.emit("Expand", gradient, self.ints(shape))

    def pad(self, value: ir.Value, rank: int, axes: Sequence[int], widths: Sequence[int]) -> ir.Value:
        """Zeros at both ends of some axes: the widths in front of all of them, then those behind.

        Written for all axes: ONNX Runtime takes those of some for all when it moves a Transpose past the Pad.
        """
        pads = np.zeros((2, rank), np.int64)
        pads[:, list(axes)] = np.reshape(widths, (2, -1))
        return self.emit("Pad", value, self.ints(pads.ravel()))

    def zeros(self, shape: Shape) -> ir.Value:
        """Zeros."""
        return self.emit(
            "ConstantOfShape", self.ints(shape), value=ir.tensor(np.zeros(1, self.dtype), name="zero")
        )

    def total(self, gradients: Sequence[ir.Value]) -> ir.Value:
        """Sum of gradients of the same shape."""
        result = gradients[0]
        for each in gradients[1:]:
            result = self.add(result, each)
        return result
