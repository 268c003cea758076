"""The shape of every value once the free dimensions of the inputs are given numbers."""

from weakref import WeakKeyDictionary

import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxcompress.errors import InputError
from onnxcompress.runtime import FREE_BATCH, FREE_SIZE, random_feeds, run, session

SHAPING = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Inputs on whose numbers the shape of an operator's output depends."""


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
    _infer(bound)
    if any(_shape(value) is None for node in bound.graph for value in node.outputs):
        _compute_sizes(bound)
        _infer(bound)
    values = [*bound.graph.inputs, *(value for node in bound.graph for value in node.outputs)]
    shapes = {str(value.name): shape for value in values if (shape := _shape(value)) is not None}
    for name, value in bound.graph.initializers.items():
        if value.const_value is not None:
            shapes[name] = tuple(value.const_value.shape.numpy())
    return shapes


def _infer(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(value.shape.numpy())


def _compute_sizes(model: ir.Model) -> None:
    """Replace the computed sizes that shape other values by the numbers they have on random input."""
    computed = {
        value: None
        for node in model.graph
        for index in SHAPING.get(node.op_type, ())
        if index < len(node.inputs)
        and (value := node.inputs[index]) is not None
        and value.producer() is not None
    }
    outputs = list(model.graph.outputs)
    model.graph.outputs.clear()
    model.graph.outputs.extend(computed)
    try:
        runnable = session(model)
        arrays = run(runnable, random_feeds(runnable)) if computed else []
    except InputError:
        arrays = []
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    for value, array in zip(computed, arrays, strict=False):
        name = f"{value.name}.computed"
        constant = ir.val(name, const_value=ir.tensor(array, name=name))
        model.graph.initializers[name] = constant
        for reader, index in list(value.uses()):
            reader.replace_input_with(index, constant)
