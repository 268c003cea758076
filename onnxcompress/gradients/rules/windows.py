"""Sliding windows: where a convolution or a pool reads."""

from dataclasses import dataclass

import onnx_ir as ir

from onnxcompress.gradients.tape import Shape


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


def windows(node: ir.Node, kernel: Shape, data: Shape, output: Shape) -> Windows:
    """The windows of a Conv or pool, with ``auto_pad`` and ``ceil_mode`` written out as padding.

    Args:
        node: the Conv or pool.
        kernel: taps by spatial axis.
        data: shape of what it reads.
        output: shape of what it gives.
    """
    size, count = data[2:], output[2:]
    ones = (1,) * len(size)

    def numbers(name: str, default: Shape) -> Shape:
        return tuple(node.attributes.get_ints(name, default))

    strides, dilations = numbers("strides", ones), numbers("dilations", ones)
    pads = numbers("pads", (0,) * 2 * len(size))
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
            behind.append(0)
        else:
            before.append(pads[axis])
            behind.append(max(pads[len(size) + axis], reach - size[axis] - pads[axis]))
    return Windows(kernel, strides, dilations, tuple(before), tuple(behind), size, count)
