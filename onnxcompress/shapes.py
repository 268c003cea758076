"""The shape of every value once the free dimensions of the inputs are given numbers."""

from weakref import WeakKeyDictionary

import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxcompress.errors import InputError
from onnxcompress.runtime import FREE_BATCH, FREE_SIZE, random_feeds, run, session

_KNOWN: WeakKeyDictionary[ir.Model, dict[tuple[int, int], dict[str, tuple[int, ...]]]] = WeakKeyDictionary()


def concrete_shapes(
    model: ir.Model, batch: int = FREE_BATCH, size: int = FREE_SIZE
) -> dict[str, tuple[int, ...]]:
    """Shapes by value name, for one sample; initializers included.

    Free dimensions of the inputs become ``batch`` (the first), ``size`` (from the third on) and 1. Where
    shapes are computed in a way that ONNX's inference cannot follow, ONNX Runtime runs on random input.
    Values whose shape cannot be told even so are missing from the result. It is kept for as long as the
    network is: ask only about networks that do not change any more.
    """
    known = _KNOWN.setdefault(model, {})
    if (batch, size) not in known:
        known[batch, size] = _find_shapes(model, batch, size)
    return known[batch, size]


def _find_shapes(model: ir.Model, batch: int, size: int) -> dict[str, tuple[int, ...]]:
    bound = model.clone()
    for value in bound.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    dim if isinstance(dim, int) else (batch, 1, size)[min(axis, 2)]
                    for axis, dim in enumerate(value.shape)
                ]
            )
    for node in bound.graph:
        for value in node.outputs:
            value.shape = None
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(bound)
    values = [*bound.graph.inputs, *(value for node in bound.graph for value in node.outputs)]
    shapes = {str(value.name): shape for value in values if (shape := _shape(value)) is not None}
    for name, value in bound.graph.initializers.items():
        if value.const_value is not None:
            shapes[name] = tuple(value.const_value.shape.numpy())
    missing = [
        value for node in bound.graph for value in node.outputs if value.name and value.name not in shapes
    ]
    return shapes | _measured(bound, missing) if missing else shapes


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(value.shape.numpy())


def _measured(model: ir.Model, values: list[ir.Value]) -> dict[str, tuple[int, ...]]:
    """Shapes that values have when ONNX Runtime runs a network on random input; none if it cannot."""
    model.graph.outputs.clear()
    for value in values:
        shape = ir.node("Shape", [value])
        shape.outputs[0].name = f"{value.name}/shape"
        model.graph.append(shape)
        model.graph.outputs.append(shape.outputs[0])
    try:
        runnable = session(model)
        found = run(runnable, random_feeds(runnable))
    except InputError:
        return {}
    return {str(v.name): tuple(int(size) for size in shape) for v, shape in zip(values, found, strict=True)}
