"""The shape of every value once the free dimensions of the inputs are given numbers."""

from weakref import WeakKeyDictionary

import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxcompress.errors import InputError
from onnxcompress.runtime import FREE_BATCH, FREE_SIZE, random_feeds, run, session

LARGER_SIZES = (16 * FREE_SIZE, 256 * FREE_SIZE)
"""Those of networks whose layers would have nothing left of `FREE_SIZE`: of sound, say."""

SECONDS = 30.0
"""Time that a network may take to show its shapes."""

Shapes = dict[str, tuple[int, ...]]

_KNOWN: WeakKeyDictionary[ir.Model, dict[tuple[int, int], Shapes]] = WeakKeyDictionary()


def concrete_shapes(model: ir.Model, batch: int = FREE_BATCH, size: int = FREE_SIZE) -> Shapes:
    """Shapes by value name, for one sample; initializers included.

    Free dimensions of the inputs become ``batch`` (the first), the channels that the convolution which reads
    them takes (the second) and ``size`` (from the third on; of images with the channels last from the second
    on). Where ONNX's inference cannot tell a shape, the network is run on random input. Values whose shape
    does not show even so are missing from the result, which is kept for as long as the network is: ask only
    about networks that do not change any more.
    """
    known = _KNOWN.setdefault(model, {})
    if (batch, size) not in known:
        bound = _bound(model, batch, _large_enough(model, batch, size))
        shapes = _shapes(bound)
        known[batch, size] = shapes | _measured(bound, shapes)
    return known[batch, size]


def inferred_shapes(model: ir.Model) -> Shapes:
    """As `concrete_shapes`, by ONNX's inference alone: nothing is run."""
    return _shapes(_bound(model, FREE_BATCH, _large_enough(model, FREE_BATCH, FREE_SIZE)))


def is_free(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dimension has no fixed size; ONNX Runtime takes negative ones for free too."""
    return not isinstance(dim, int) or dim < 0


def _large_enough(model: ir.Model, batch: int, size: int) -> int:
    if any(is_free(dim) for value in model.graph.inputs for dim in (value.shape or ())[2:]):
        for larger in (size, *LARGER_SIZES):
            if all(min(shape, default=1) > 0 for shape in _shapes(_bound(model, batch, larger)).values()):
                return larger
    return size


def _bound(model: ir.Model, batch: int, size: int) -> ir.Model:
    """A copy with fixed inputs and the shapes that follow."""
    bound = model.clone()
    for value in bound.graph.inputs:
        if value.shape is not None:
            stand_ins = (batch, _channels(value, size), *[size] * len(value.shape))
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
    return bound


def _channels(value: ir.Value, size: int) -> int:
    """What stands in for the second dimension of an input."""
    for node, index in value.uses():
        weight = node.inputs[1] if node.op_type == "Conv" and index == 0 else None
        if weight is not None and weight.const_value is not None and len(weight.const_value.shape) > 1:
            groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
            return weight.const_value.shape.numpy()[1] * groups
    return size if value.shape is not None and len(value.shape) > 3 else 1


def _shapes(bound: ir.Model) -> Shapes:
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


def _measured(bound: ir.Model, shapes: Shapes) -> Shapes:
    """Shapes that the other values have when ONNX Runtime runs a network on random input, if it can."""
    missing = [v for node in bound.graph for v in node.outputs if v.name and v.name not in shapes]
    if not missing:
        return {}
    bound.graph.outputs.clear()
    for value in missing:
        shape = ir.node("Shape", [value])
        shape.outputs[0].name = f"{value.name}/shape"
        bound.graph.append(shape)
        bound.graph.outputs.append(shape.outputs[0])
    try:
        runnable = session(bound)
        found = run(runnable, random_feeds(runnable), SECONDS)
    except InputError:
        return {}
    return {str(v.name): tuple(int(size) for size in shape) for v, shape in zip(missing, found, strict=True)}
