"""The shape of every value once the free dimensions of the inputs are given numbers."""

import onnx_ir as ir
from onnx_ir.passes import common as passes

FREE_BATCH = 1
FREE_SIZE = 224
"""Height and width (and length, depth) that stand in for dimensions which the file leaves open."""


def concrete_shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Shapes by value name, for one sample; initializers included.

    Free dimensions of the inputs become `FREE_BATCH` (the first) and `FREE_SIZE` (from the third on).
    Values whose shape ONNX's inference cannot tell are missing from the result.
    """
    bound = model.clone()
    for value in bound.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    dim if isinstance(dim, int) else (FREE_SIZE if axis >= 2 else FREE_BATCH)
                    for axis, dim in enumerate(value.shape)
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
