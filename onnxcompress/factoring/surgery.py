"""Replacing layers by chains of thinner ones, at the ranks that a plan names."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.errors import InputError
from onnxcompress.factoring.fitted import Factors, Inputs, fit_factors
from onnxcompress.factoring.tucker import truncated_svd, tucker2
from onnxcompress.layers import CONVOLUTIONS, Application, FactorLayer, factor_layers, names_of, swap_sides
from onnxcompress.model import refresh
from onnxcompress.names import Names
from onnxcompress.plan import Ranks
from onnxcompress.shapes import concrete_shapes
from onnxcompress.weights import weights_of

Array = NDArray[np.float64]

GEMM_WITHOUT_BIAS = 11
"""Opset from which Gemm's third input may be missing."""


def factor(
    model: ir.Model, ranks: dict[str, Ranks], fitted: Mapping[str, Sequence[Factors]] | None = None
) -> ir.Model:
    """Return the network with these layers factored.

    A k×k convolution becomes 1×1 → core → 1×1 (Kim et al. 2015, section 3.1): the core has the original's
    stride, pads and dilation, the last one its bias. A side at full rank has no 1×1 convolution. Where
    the core is depthwise, the chain always has three parts. Groups stay groups in every part. The core of a
    ConvTranspose is a ConvTranspose, between two Conv.

    1×1 convolutions, Gemm and MatMul become two of their kind. Where a stride is: in the first part of a
    Conv, in the last of a ConvTranspose, so that both parts compute at the fewer positions.

    Layers that read the same weights read the same factors, which are stored once.

    Args:
        model: a simplified network; not touched.
        ranks: by layer, per group.
        fitted: by layer, factors of each group at these ranks, to be used instead of those of the weights.

    Raises:
        InputError: when a layer does not exist or cannot have such ranks, or layers that read the same
            weights are not all given the same.
    """
    check_ranks(model, ranks)
    result = model.clone()
    layers = factor_layers(result, concrete_shapes(model))
    names = Names(result.graph)
    for layer in layers:
        if layer.name in ranks:
            wanted, chains = ranks[layer.name], (fitted or {}).get(layer.name)
            weights = _factors(layer, wanted) if chains is None else _given(layer, chains)
            factors = _stored(layer, wanted, weights, names)
            for each in layer.applications:
                _replace(layer, each, wanted, factors, names)
    return refresh(result)


def check_ranks(model: ir.Model, ranks: dict[str, Ranks]) -> None:
    """See that the layers of a network exist and can have these ranks.

    Raises:
        InputError: as `factor`.
    """
    layers = factor_layers(model, concrete_shapes(model))
    known = names_of(layers)
    if unknown := [name for name in ranks if name not in known]:
        raise InputError(f"decompose: there is no layer '{unknown[0]}' to factor; see `onnxcompress inspect`")
    for layer in layers:
        if given := [name for name in layer.names if name in ranks]:
            _check(layer, given[0], ranks)


def _check(layer: FactorLayer, name: str, ranks: dict[str, Ranks]) -> None:
    """See that a layer, one of whose nodes has this name, can have its ranks."""
    wanted = ranks[name]
    if layer.obstacle:
        raise InputError(f"decompose: {name} cannot be factored: {layer.obstacle}")
    for other in layer.names:
        if ranks.get(other) != wanted:
            raise InputError(f"decompose: {name} and {other} read the same weights: give both the same ranks")
    out, into = layer.sides
    per_group = " per group" if layer.groups > 1 else ""
    if wanted.depthwise and layer.kind != "kxk":
        raise InputError(f"decompose: {layer.name}: there is no kernel for a depthwise core")
    if wanted.depthwise:
        if wanted.out > (most := layer.highest_cp_rank):
            raise InputError(f"decompose: {layer.name}: no CP rank is higher than {most}{per_group}")
    elif layer.kind == "kxk":
        if wanted.out > out or wanted.into > into:
            raise InputError(
                f"decompose: {layer.name}: ranks {wanted} are impossible: "
                f"it has {out} filters and {into} input channels{per_group}"
            )
    elif wanted.out != wanted.into or wanted.out > min(out, into):
        raise InputError(
            f"decompose: {layer.name}: needs one rank, given twice, of at most {min(out, into)}{per_group}; "
            f"got {wanted.out}, {wanted.into}"
        )


def _factors(layer: FactorLayer, ranks: Ranks) -> dict[str, Array]:
    """The chain's weights by the name of the part, each of shape (M, C / groups, *kernel)."""
    point = (1,) * (len(layer.shape) - 2)
    parts = np.split(layer.weight, layer.groups)
    if layer.kind != "kxk":
        pairs = [truncated_svd(part.reshape(layer.sides), ranks.out) for part in parts]
        out, into = (np.concatenate(each) for each in zip(*pairs, strict=True))
        return {"in": into.reshape(*into.shape, *point), "out": out.reshape(*out.shape, *point)}
    if ranks.depthwise:
        alike = Inputs(np.eye(layer.width), layer.sides[1])
        flat = [part.reshape(len(part), -1) for part in parts]
        return _given(layer, [fit_factors(part, alike, ranks) for part in flat])
    triples = [tucker2(part, ranks.out, ranks.into) for part in parts]
    out, core, into = (
        np.concatenate(each) for each in zip(*((o, c, i.T) for o, c, i in triples), strict=True)
    )
    factors = {}
    if ranks.into < layer.sides[1]:
        factors["in"] = into.reshape(*into.shape, *point)
    factors["core"] = core
    if ranks.out < layer.sides[0]:
        factors["out"] = out.reshape(*out.shape, *point)
    return factors


def _given(layer: FactorLayer, chains: Sequence[Factors]) -> dict[str, Array]:
    """Fitted factors as `_factors` gives them."""
    point = (1,) * (len(layer.shape) - 2)
    core = np.concatenate([chain.core for chain in chains])
    kernel = layer.shape[2:]
    parts = {"core" if layer.kind == "kxk" else "in": core.reshape(len(core), -1, *kernel)}
    if chains[0].into is not None:
        into = np.concatenate([chain.into for chain in chains if chain.into is not None])
        parts = {"in": into.reshape(*into.shape, *point)} | parts
    if chains[0].out is not None:
        out = np.concatenate([chain.out for chain in chains if chain.out is not None])
        parts["out"] = out.reshape(*out.shape, *point)
    return parts


def _inherits(layer: FactorLayer, part: str) -> bool:
    """Whether this part of the chain has the layer's operator; the others are 1×1 Conv."""
    if layer.kind == "gemm":
        return True
    if layer.kind == "kxk":
        return part == "core"
    return part == ("out" if layer.node.op_type == "ConvTranspose" else "in")


def _stored(layer: FactorLayer, ranks: Ranks, factors: dict[str, Array], names: Names) -> dict[str, ir.Value]:
    """Put the factors among the graph's initializers, in the type and the layout of the layer's weights."""
    values = {}
    for part, weight in factors.items():
        groups = layer.groups * (ranks.out if ranks.depthwise else 1)
        array = swap_sides(weight, groups) if layer.mirrored and _inherits(layer, part) else weight
        dtype = (layer.weights.dtype or ir.DataType.FLOAT).numpy()
        values[part] = names.initializer(f"{layer.name}/{part}.weight", array.astype(dtype))
    return values


def _replace(
    layer: FactorLayer, applied: Application, ranks: Ranks, factors: dict[str, ir.Value], names: Names
) -> None:
    """Put a chain of nodes in a node's place; the last one has its bias and its output's name."""
    node = applied.node
    graph = node.graph
    assert graph is not None
    chain: list[ir.Node] = []
    x = node.inputs[1 - applied.constant]
    for part, weights in factors.items():
        name = names.fresh(f"{applied.name}/{part}")
        operands = [x, weights] if applied.constant == 1 else [weights, x]
        if part == list(factors)[-1]:
            operands += node.inputs[2:]
        elif node.op_type == "Gemm" and graph.opset_imports.get("", 11) < GEMM_WITHOUT_BIAS:
            operands.append(names.initializer(f"{name}.bias", _zero_bias(layer, applied, weights)))
        operator = node.op_type if _inherits(layer, part) else "Conv"
        step = ir.Node("", operator, operands, _attributes(layer, applied, ranks, part, weights), name=name)
        step.metadata_props.update(node.metadata_props)
        step.outputs[0].name = names.fresh(f"{name}:0")
        step.outputs[0].type = node.outputs[0].type
        chain.append(step)
        x = step.outputs[0]
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], chain, [node.outputs[0]], [chain[-1].outputs[0]]
    )


def _zero_bias(layer: FactorLayer, applied: Application, weights: ir.Value) -> NDArray:
    """A bias for the first part of a Gemm's chain, which has as many outputs as `weights` has rows."""
    array = np.asarray(weights_of(weights))
    rank = array.shape[1 if layer.mirrored else 0]
    return np.zeros(rank if applied.constant == 1 else (rank, 1), array.dtype)


def _attributes(
    layer: FactorLayer, applied: Application, ranks: Ranks, part: str, weights: ir.Value
) -> list[ir.Attr]:
    attributes = applied.node.attributes
    if applied.node.op_type not in CONVOLUTIONS:
        # The input's transposition and its factor are applied first, the bias's last.
        dropped = {"in": {"beta"}, "out": {"alpha", "transA" if applied.constant == 1 else "transB"}}
        return [attribute for name, attribute in attributes.items() if name not in dropped[part]]
    assert weights.shape is not None
    if ranks.depthwise and part == "core":
        group = ir.AttrInt64("group", layer.groups * ranks.out)
        return list({**attributes, "group": group}.values())
    if _inherits(layer, part):
        return list(attributes.values())
    return [
        ir.AttrInt64s("kernel_shape", weights.shape.numpy()[2:]),
        ir.AttrInt64("group", layer.groups),
    ]
