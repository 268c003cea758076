"""Sliding windows: where a convolution or a pool reads."""

from dataclasses import dataclass

import onnx_ir as ir

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """One number per spatial axis each.

    Attributes:
        kernel: taps of a window.
        strides: from one window to the next.
        dilations: from one tap to the next.
        before: padding in front.
        behind: padding behind, so much that the last window ends in it or before it.
        size: of the input.
        count: of windows, the output's size.
    """

    kernel: Shape
    strides: Shape
    dilations: Shape
    before: Shape
    behind: Shape
    size: Shape
    count: Shape

    @property
    def unread(self) -> Shape:
        """How many lines at the end of the padded input no window reads."""
        return tuple(
            size + before + behind - span - (count - 1) * stride
            for size, before, behind, span, count, stride in zip(
                self.size, self.before, self.behind, self.span, self.count, self.strides, strict=True
            )
        )

    @property
    def span(self) -> Shape:
        """From the first to the last tap of a window, inclusive."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> list[int]:
        """As the attribute of that name."""
        return [*self.before, *self.behind]


def windows(node: ir.Node, kernel: Shape, read: Shape, given: Shape) -> Windows:
    """The windows of a convolution or pool, with ``auto_pad`` and ``ceil_mode`` written out as padding.

    Those of a ConvTranspose are of the Conv whose transpose it is: that reads what the ConvTranspose gives.

    Args:
        node: the Conv, ConvTranspose with explicit pads, or pool.
        kernel: taps by spatial axis.
        read: spatial size of what it reads.
        given: spatial size of what it gives.
    """
    size, count = (given, read) if node.op_type == "ConvTranspose" else (read, given)
    strides, dilations, pads = _attributes(node, kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    before, behind = [], []
    for axis in range(len(size)):
        reach = (count[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        needed = max(0, reach - size[axis])
        if mode.startswith("SAME"):
            front = needed // 2 if mode == "SAME_UPPER" else needed - needed // 2
            before.append(front)
            behind.append(needed - front)
        elif mode == "VALID":
            before.append(0)
            behind.append(needed)
        else:
            before.append(pads[axis])
            behind.append(max(pads[len(size) + axis], reach - size[axis] - pads[axis]))
    return Windows(kernel, strides, dilations, tuple(before), tuple(behind), size, count)


def size_given(node: ir.Node, kernel: Shape, read: Shape) -> Shape:
    """Spatial size of what a convolution gives: a Conv, or a ConvTranspose with explicit pads.

    Args:
        node: the convolution.
        kernel: taps by spatial axis.
        read: spatial size of what it reads.
    """
    strides, dilations, pads = _attributes(node, kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    extra = node.attributes.get_ints("output_padding", (0,) * len(kernel))
    found = []
    for axis, (size, stride) in enumerate(zip(read, strides, strict=True)):
        reach = (kernel[axis] - 1) * dilations[axis]
        padding = 0 if mode == "VALID" else pads[axis] + pads[len(read) + axis]
        if node.op_type == "ConvTranspose":
            found.append((size - 1) * stride + reach + 1 - padding + extra[axis])
        elif mode.startswith("SAME"):
            found.append(-(-size // stride))
        else:
            found.append((size + padding - reach - 1) // stride + 1)
    return tuple(found)


def _attributes(node: ir.Node, kernel: Shape) -> tuple[Shape, Shape, Shape]:
    """Strides, dilations and pads."""
    ones = (1,) * len(kernel)
    defaults = {"strides": ones, "dilations": ones, "pads": (0,) * 2 * len(kernel)}
    strides, dilations, pads = (tuple(node.attributes.get_ints(*each)) for each in defaults.items())
    return strides, dilations, pads
