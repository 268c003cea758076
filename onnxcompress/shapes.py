"""The shape of every value once the free dimensions of the inputs are given numbers."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from weakref import WeakKeyDictionary

import onnx
import onnx_ir as ir

from onnxcompress.errors import InputError
from onnxcompress.runtime import FREE_BATCH, FREE_SIZE, random_feeds, run, session
from onnxcompress.weights import hide, large, show_again

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

FIT_SIZES = (
    *(FREE_SIZE, 32, 28, 64, 96, 112, 128, 160, 192, 227, 256, 299, 320, 384, 448, 512, 640),
    *(16 * FREE_SIZE, 256 * FREE_SIZE),
)
"""What may stand in for free heights and widths: the first at which the layers fit. The last are of sound."""

RUN_SIZES = (32, 64, 128, 512)
"""Those at which a network is run as well, where inference cannot tell all and it fails at that first one."""

SECONDS = 30.0
"""Time that a network may take to show its shapes."""

SHAPE_DATA = 2**10
"""Bytes up to which a constant may be a shape, which inference has to see."""

Shapes = dict[str, tuple[int, ...]]
Dims = Sequence[int | None]
"""None is a free dimension."""

_KNOWN: WeakKeyDictionary[ir.Model, dict[tuple[int, int], Shapes]] = WeakKeyDictionary()


def concrete_shapes(model: ir.Model, batch: int = FREE_BATCH, size: int | None = None) -> Shapes:
    """Shapes by value name, for one sample; initializers included.

    Free dimensions of the inputs become ``batch`` (the first), the channels that the convolution which reads
    them takes (the second) and ``size`` (from the third on; of images with the channels last from the second
    on), by default `free_size`. Where ONNX's inference cannot tell a shape, the network is run on random
    input. Values whose shape does not show even so are missing from the result, which is kept for as long as
    the network is: ask only about networks that do not change any more.
    """
    size = size or free_size(model)
    known = _KNOWN.setdefault(model, {})
    if (batch, size) not in known:
        bound = _bound(model, batch, size)
        shapes = _fixed(inferred(bound))
        known[batch, size] = shapes | _measured(bound, shapes)
    return known[batch, size]


def stand_ins(model: ir.Model, batch: int = FREE_BATCH) -> Shapes:
    """Shapes of the inputs that are no weights, by name; free dimensions are as in `concrete_shapes`."""
    inputs = _bound(model, batch, free_size(model)).graph.inputs
    return {
        str(value.name): value.shape.numpy()
        for value in inputs
        if value.shape is not None and not value.is_initializer()
    }


def fixed_sizes(dims: Iterable[object]) -> list[int | None]:
    """Sizes, with None for those that are left open."""
    return [dim if isinstance(dim, int) else None for dim in dims]


def taking(model: ir.Model, sample: Sequence[int]) -> ir.Model:
    """A copy of a network with one input that takes samples of just this shape."""
    result = model.clone()
    (value,) = result.graph.inputs
    assert value.shape is not None
    value.shape = ir.Shape([value.shape[0], *sample])
    return result


def free_size(model: ir.Model) -> int:
    """What stands in for free heights and widths: `FREE_SIZE`, or another at which the network works."""
    if len(_sizes(model)) == 1 or _works(model, FREE_SIZE):
        return FREE_SIZE
    first = _first_fit(model)[0]
    return next((size for size in (first, *RUN_SIZES) if _works(model, size)), first)


def inferred_shapes(model: ir.Model) -> Shapes:
    """As `concrete_shapes`, by ONNX's inference alone: nothing is run."""
    return _first_fit(model)[1]


def inferred(model: ir.Model, *, strict: bool = False) -> dict[str, Dims]:
    """What ONNX's inference tells about the shapes, by value name; initializers included.

    Args:
        model: what it says about the shapes of other values than inputs and weights is forgotten.
        strict: as for `infer`.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    found = infer(model, strict=strict)
    shapes: dict[str, Dims] = {
        value.name: tuple(_dim(dim) for dim in value.type.tensor_type.shape.dim)
        for value in (*found.input, *found.value_info, *found.output)
        if value.type.tensor_type.HasField("shape")
    }
    for name, tensor in weights.items():
        if tensor is not None:
            shapes[name] = tuple(tensor.shape.numpy())
    return shapes


def infer(model: ir.Model, *, strict: bool = False) -> onnx.GraphProto:
    """The graph as ONNX's inference returns it, without large weights; unchanged where that fails.

    Args:
        model: not changed, but that large weights are no inputs besides any more.
        strict: raise what inference raises where types or shapes do not agree.
    """
    hidden = hide(model, large(model, SHAPE_DATA))
    proto = ir.to_proto(model)
    show_again(model, hidden)
    try:
        return onnx.shape_inference.infer_shapes(
            proto, check_type=strict, strict_mode=strict, data_prop=not strict
        ).graph
    except Exception:  # it has no common base of exceptions
        if strict:
            raise
        return proto.graph


def is_free(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dimension has no fixed size; ONNX Runtime takes negative ones for free too."""
    return not isinstance(dim, int) or dim < 0


def misfit(node: ir.Node, shapes: Mapping[str, Dims]) -> str:
    """Why a layer cannot work on what it reads; empty where it can. Shape inference does not see it all.

    Args:
        node: of any operator.
        shapes: by value name, as far as they are known.
    """
    if node.domain or node.op_type not in LAYERS:
        return ""
    data, weight = (shapes.get(str(value.name)) if value is not None else None for value in node.inputs[:2])
    if weight is None or _agree(node, data, weight):
        return emptiness(node, shapes)
    what = "its groups" if data is None else f"its input of {times(data)}"
    return f"its weights of {times(weight)} do not fit {what}"


def emptiness(node: ir.Node, shapes: Mapping[str, Dims]) -> str:
    """Which of its values leaves a layer nothing to work on; see `misfit`."""
    for value in (*node.inputs, *node.outputs) if not node.domain and node.op_type in LAYERS else ():
        shape = shapes.get(str(value.name), ()) if value is not None else ()
        if value is not None and any(dim is not None and dim < 1 for dim in shape):
            return f"there is nothing in '{value.name}', which is {times(shape)}"
    return ""


def times(shape: Sequence[int | str | None]) -> str:
    """A shape in words; None: unknown."""
    return "×".join("?" if dim is None else str(dim) for dim in shape) or "a single number"


def _agree(node: ir.Node, data: Dims | None, weight: Dims) -> bool:
    def same(size: int | None, axis: int) -> bool:
        return data is None or size is None or data[axis] is None or size == data[axis]

    rank = len(weight) if data is None else len(data)
    if node.op_type == "MatMul":
        return not rank or not weight or same(weight[-2 if len(weight) > 1 else 0], -1)
    if node.op_type == "Gemm":
        turned, turned_weight = (bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB"))
        return rank == len(weight) == 2 and same(weight[int(turned_weight)], int(not turned))
    groups = node.attributes.get_int("group", 1)
    if not rank == len(weight) > 2 or groups < 1 or (weight[0] or 0) % groups:
        return False
    return same(weight[0] if node.op_type == "ConvTranspose" else weight[1] and weight[1] * groups, 1)


def _fit(model: ir.Model, shapes: Shapes) -> bool:
    return not any(misfit(node, shapes) for node in model.graph)


def _works(model: ir.Model, size: int) -> bool:
    shapes = concrete_shapes(model, FREE_BATCH, size)
    values = (value for node in model.graph for value in node.outputs if value.name)
    return _fit(model, shapes) and all(value.name in shapes for value in values)


def _first_fit(model: ir.Model) -> tuple[int, Shapes]:
    """The first size at which the layers fit, or else the very first, with what inference tells of it."""
    tried = ((size, _fixed(inferred(_bound(model, FREE_BATCH, size)))) for size in _sizes(model))
    first = next(tried)
    return next((each for each in chain([first], tried) if _fit(model, each[1])), first)


def _sizes(model: ir.Model) -> tuple[int, ...]:
    """Those to be tried: one is enough where the network leaves no size open."""
    given = (value.shape for value in model.graph.inputs if value.shape is not None)
    is_open = any(is_free(dim) for shape in given for dim in shape[1 if len(shape) > 3 else 2 :])
    return FIT_SIZES if is_open else FIT_SIZES[:1]


def _bound(model: ir.Model, batch: int, size: int) -> ir.Model:
    """A copy with fixed inputs."""
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
    return bound


def _channels(value: ir.Value, size: int) -> int:
    """What stands in for the second dimension of an input."""
    for node, index in value.uses():
        weight = node.inputs[1] if node.op_type == "Conv" and index == 0 else None
        if weight is not None and weight.const_value is not None and len(weight.const_value.shape) > 1:
            groups = node.attributes.get_int("group", 1)
            return weight.const_value.shape.numpy()[1] * groups
    return size if value.shape is not None and len(value.shape) > 3 else 1


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def _fixed(shapes: dict[str, Dims]) -> Shapes:
    return {
        name: tuple(dim for dim in shape if dim is not None)
        for name, shape in shapes.items()
        if None not in shape
    }


def _measured(bound: ir.Model, shapes: Shapes) -> Shapes:
    """Shapes that the other values have when ONNX Runtime runs a network on random input, if it can."""
    missing = [v for node in bound.graph for v in node.outputs if v.name and v.name not in shapes]
    if not missing or not _fit(bound, shapes):
        return {}
    bound.graph.outputs.clear()
    for value in missing:
        shape = ir.node("Shape", [value])
        shape.outputs[0].name = f"{value.name}/shape"
        bound.graph.append(shape)
        bound.graph.outputs.append(shape.outputs[0])
    try:
        runnable = session(bound, optimize=False)  # an If that it folds may leave our nodes nothing to read
        found = run(runnable, random_feeds(runnable), SECONDS)
    except InputError:
        return {}
    return {str(v.name): tuple(int(size) for size in shape) for v, shape in zip(missing, found, strict=True)}
