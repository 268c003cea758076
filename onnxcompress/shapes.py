"""The shape of every value once the free dimensions of the inputs are given numbers."""

import onnx_ir as ir
from onnx_ir.passes import common as passes

FREE_BATCH = 1
FREE_SIZE = 224
"""Height and width (and length, depth) that stand in for dimensions which the file leaves open."""

LARGER_SIZES = (16 * FREE_SIZE, 256 * FREE_SIZE)
"""Those of networks whose layers would have nothing left of `FREE_SIZE`: of sound, say."""

Shapes = dict[str, tuple[int, ...]]


def concrete_shapes(model: ir.Model) -> Shapes:
    """Shapes by value name, for one sample; initializers included.

    Free dimensions of the inputs become `FREE_BATCH` (the first), the channels that the convolution which
    reads them takes (the second) and `FREE_SIZE` (from the third on; of images with the channels last from
    the second on). Values whose shape ONNX's inference cannot tell are missing from the result.
    """
    shapes = _inferred(model, FREE_SIZE)
    for size in LARGER_SIZES:
        if all(min(shape, default=1) > 0 for shape in shapes.values()):
            break
        if any(is_free(dim) for value in model.graph.inputs for dim in (value.shape or ())[2:]):
            shapes = _inferred(model, size)
    return shapes


def is_free(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dimension has no fixed size; ONNX Runtime takes negative ones for free too."""
    return not isinstance(dim, int) or dim < 0


def _inferred(model: ir.Model, size: int) -> Shapes:
    bound = model.clone()
    for value in bound.graph.inputs:
        if value.shape is not None:
            stand_ins = (FREE_BATCH, _channels(value, size), *[size] * len(value.shape))
            value.shape = ir.Shape(
                [
                    stand_in if is_free(dim) else dim
                    for dim, stand_in in zip(value.shape, stand_ins, strict=False)
                ]
            )
    for node in bound.graph:
        for value in node.outputs:
            value.shape = None
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(bound)
    values = [*bound.graph.inputs, *(value for node in bound.graph for value in node.outputs)]
    shapes = {
        str(value.name): tuple(value.shape.numpy())
        for value in values
        if value.shape is not None and all(isinstance(dim, int) for dim in value.shape)
    }
    for name, value in bound.graph.initializers.items():
        if value.const_value is not None:
            shapes[name] = tuple(value.const_value.shape.numpy())
    return shapes


def _channels(value: ir.Value, size: int) -> int:
    """What stands in for the second dimension of an input."""
    for node, index in value.uses():
        weight = node.inputs[1] if node.op_type == "Conv" and index == 0 else None
        if weight is not None and weight.const_value is not None and len(weight.const_value.shape) > 1:
            groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
            return weight.const_value.shape.numpy()[1] * groups
    return size if value.shape is not None and len(value.shape) > 3 else 1
