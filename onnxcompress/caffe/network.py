"""From Caffe's messages to a plain list of inference layers in which every value has a name of its own."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxcompress.caffe.schema import LayerParameter
from onnxcompress.errors import InputError

DATA_LAYERS = frozenset({"Data", "DummyData", "HDF5Data", "ImageData", "MemoryData", "WindowData"})
LOSS_LAYERS = frozenset(
    {
        "Accuracy",
        "ContrastiveLoss",
        "EuclideanLoss",
        "HDF5Output",
        "HingeLoss",
        "InfogainLoss",
        "MultinomialLogisticLoss",
        "SigmoidCrossEntropyLoss",
        "SoftmaxWithLoss",
    }
)
"""Layers that only training and testing need; what they read becomes an output of the network."""

V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
"""Names of types that are not the old ones in camel case."""


@dataclass(frozen=True)
class Layer:
    """One layer to convert.

    Attributes:
        name: unique in the network.
        type: Caffe's name of the type.
        bottoms: names of the values that it reads.
        tops: names of the values that it writes, each written once in the whole network.
        message: its LayerParameter.
        scale: the Scale layer that this BatchNorm layer absorbs; its top is then this layer's.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Any
    scale: "Layer | None" = None

    def error(self, problem: str) -> InputError:
        """The exception for a problem with this layer, to be raised."""
        return InputError(f"layer '{self.name}' ({self.type}): {problem}")


@dataclass(frozen=True)
class Network:
    """A network for inference.

    Attributes:
        name: the prototxt's name of the network.
        inputs: shapes by value name, with the prototxt's batch size.
        layers: in the order of computation.
        outputs: (blob, value) pairs. The names differ where a dropped layer wrote the blob.
    """

    name: str
    inputs: dict[str, tuple[int, ...]]
    layers: list[Layer]
    outputs: list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class _Version:
    """What one layer wrote into a blob: layers that work in place give a blob several versions."""

    blob: str
    writer: str


def normalise(net: Any) -> Network:
    """Keep what inference needs of a NetParameter: no training layers, no old forms, no in-place blobs.

    The last value that a blob holds has the blob's name; earlier ones are called `blob/layer` after the layer
    that writes them. An input keeps the blob's name for itself. Dropout and Split layers vanish: their tops
    are other names for their bottoms. Outputs come in the order of their losses' weights, that of an
    auxiliary classifier after that of the network, then in that of the layers.

    Raises:
        InputError: when the layers do not form a network.
    """
    messages = [message for message in _modern_layers(net) if _included(message, net.state)]
    training = {
        blob: message
        for message in messages
        if message.type in DATA_LAYERS | LOSS_LAYERS
        for blob in message.top
    }
    weights = {
        blob: sum(message.loss_weight or [1.0])
        for message in messages
        if message.type in LOSS_LAYERS - {"Accuracy"}
        for blob in message.bottom
    }
    messages = [message for message in messages if message.type not in DATA_LAYERS | LOSS_LAYERS]
    _check_names(messages)

    current: dict[str, _Version] = {}
    unread: dict[str, None] = {}
    shapes: dict[_Version, tuple[int, ...]] = {}
    computed: list[tuple[Any, list[_Version], list[_Version]]] = []
    for message in messages:
        bottoms = [_read(message, blob, current, training) for blob in message.bottom]
        for blob in message.bottom:
            unread.pop(blob, None)
        if message.type == "Silence":
            continue
        tops = [_Version(blob, message.name) for blob in message.top]
        if message.type == "Input":
            shapes.update(zip(tops, _input_shapes(message), strict=True))
        elif message.type in ("Dropout", "Split"):
            if len(bottoms) != 1:
                raise _error(message, f"has {len(bottoms)} bottoms instead of 1")
            tops = bottoms * len(tops)
        else:
            computed.append((message, bottoms, tops))
        for index, (blob, top) in enumerate(zip(message.top, tops, strict=True)):
            if blob in current and list(message.bottom[index : index + 1]) != [blob]:
                raise _error(
                    message, f"an earlier layer writes the blob '{blob}' too; rename one of the two tops"
                )
            current[blob] = top
            unread[blob] = None

    names = _value_names([*shapes, *(top for _, _, tops in computed for top in tops)], shapes)
    layers = [
        Layer(
            message.name,
            message.type,
            tuple(names[version] for version in bottoms),
            tuple(names[version] for version in tops),
            message,
        )
        for message, bottoms, tops in computed
    ]
    read = {version for _, bottoms, _ in computed for version in bottoms}
    inputs = {names[version]: shape for version, shape in shapes.items() if version in read}
    ends = sorted(unread, key=lambda blob: weights.get(blob, 1.0), reverse=True)
    outputs = [
        (names[version] if blob in inputs else blob, names[version])
        for blob, version in ((blob, current[blob]) for blob in ends)
        if version not in shapes
    ]
    if not outputs:
        raise InputError("no layer computes an output; give the deploy prototxt of a network")
    return Network(net.name, inputs, _absorb_scales(layers, {value for _, value in outputs}), outputs)


def _error(message: Any, problem: str) -> InputError:
    return InputError(f"layer '{message.name}' ({message.type}): {problem}")


def _modern_layers(net: Any) -> list[Any]:
    """All layers as LayerParameter; the old `input` fields become Input layers."""
    if net.layer and net.layers:
        raise InputError("has both 'layer' and 'layers' entries; keep one of the two forms")
    return [*_legacy_inputs(net), *net.layer, *map(_modern_layer, net.layers)]


def _legacy_inputs(net: Any) -> list[Any]:
    if net.input_dim:
        dims = [list(net.input_dim[start : start + 4]) for start in range(0, len(net.input_dim), 4)]
    else:
        dims = [list(shape.dim) for shape in net.input_shape]
    if len(dims) != len(net.input):
        raise InputError(
            f"has {len(net.input)} 'input' entries and {len(dims)} shapes for them; "
            "give each four input_dim or one input_shape"
        )
    return [
        LayerParameter(name=blob, type="Input", top=[blob], input_param={"shape": [{"dim": dim}]})
        for blob, dim in zip(net.input, dims, strict=True)
    ]


def _modern_layer(old: Any) -> Any:
    if old.HasField("layer"):
        raise InputError(
            f"layer '{old.layer.name}' has the oldest form, layers {{ layer {{ … }} }}; "
            "convert the file with Caffe's upgrade_net_proto_text first"
        )
    kind = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    camel_case = "".join(word.capitalize() for word in kind.split("_"))
    new = LayerParameter(
        name=old.name,
        type=V1_TYPES.get(kind, camel_case),
        bottom=old.bottom,
        top=old.top,
        include=old.include,
        exclude=old.exclude,
        param=_params(old),
        loss_weight=old.loss_weight,
    )
    for field, value in old.ListFields():
        if field.name.endswith("_param"):
            getattr(new, field.name).CopyFrom(value)
    return new


def _params(old: Any) -> list[dict[str, Any]]:
    columns = {"name": old.param, "lr_mult": old.blobs_lr, "decay_mult": old.weight_decay}
    return [
        {key: given[row] for key, given in columns.items() if row < len(given)}
        for row in range(max(map(len, columns.values())))
    ]


def _included(message: Any, state: Any) -> bool:
    """Whether a layer belongs to the network in the TEST phase, at the state's level and stages."""

    def meets(rule: Any) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == state.TEST)
            and (not rule.HasField("min_level") or state.level >= rule.min_level)
            and (not rule.HasField("max_level") or state.level <= rule.max_level)
            and set(rule.stage) <= set(state.stage)
            and not set(rule.not_stage) & set(state.stage)
        )

    if message.include and message.exclude:
        raise _error(message, "has both include and exclude rules; keep one kind")
    if message.include:
        return any(map(meets, message.include))
    return not any(map(meets, message.exclude))


def _check_names(messages: Sequence[Any]) -> None:
    seen: set[str] = set()
    for message in messages:
        if not message.name:
            raise InputError(f"a layer of type '{message.type}' has no name; give it one")
        if "" in (*message.bottom, *message.top):
            raise _error(message, "one of its bottoms or tops has no name; give it one")
        if message.name in seen:
            raise _error(message, "an earlier layer has the same name; rename one of the two")
        if message.type != "Input":
            seen.add(message.name)


def _read(message: Any, blob: str, current: dict[str, _Version], training: dict[str, Any]) -> _Version:
    if blob in current:
        return current[blob]
    if blob in training:
        writer = training[blob]
        raise _error(
            message,
            f"reads the blob '{blob}' of '{writer.name}', a layer for training only ({writer.type}); "
            "give the deploy prototxt, or an Input layer in its place",
        )
    raise _error(message, f"reads the blob '{blob}', which no earlier layer writes")


def _input_shapes(message: Any) -> list[tuple[int, ...]]:
    shapes = [tuple(shape.dim) for shape in message.input_param.shape]
    if len(shapes) == 1:
        shapes *= len(message.top)
    if len(shapes) != len(message.top):
        raise _error(
            message,
            f"has {len(message.top)} tops and {len(shapes)} shapes; give each top an input_param shape",
        )
    for shape in shapes:
        if not shape or min(shape) < 1:
            raise _error(message, f"the shape {shape_text(shape)} needs dimensions of at least 1")
    return shapes


def _value_names(versions: Sequence[_Version], inputs: Container[_Version]) -> dict[_Version, str]:
    by_blob: dict[str, list[_Version]] = {}
    for version in versions:
        by_blob.setdefault(version.blob, []).append(version)
    bearers = {group[0] if group[0] in inputs else group[-1] for group in by_blob.values()}
    names, taken = {}, set(by_blob)
    for version in versions:
        names[version] = (
            version.blob if version in bearers else unique(f"{version.blob}/{version.writer}", taken)
        )
    return names


def shape_text(shape: Sequence[int]) -> str:
    """A shape for messages."""
    return " × ".join(map(str, shape)) or "()"


def unique(name: str, taken: set[str]) -> str:
    """The name, with underscores appended until it is none of those taken; it is added to them."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _absorb_scales(layers: list[Layer], outputs: Container[str]) -> list[Layer]:
    """Join each BatchNorm layer and the learned, per-channel Scale layer that alone reads its result."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for value in layer.bottoms:
            readers.setdefault(value, []).append(layer)

    def scale_of(layer: Layer) -> Layer | None:
        if layer.type != "BatchNorm" or len(layer.tops) != 1 or layer.tops[0] in outputs:
            return None
        match readers.get(layer.tops[0]):
            case [Layer(type="Scale", bottoms=[_], tops=[_], message=message) as scale]:
                return scale if message.scale_param.axis == message.scale_param.num_axes == 1 else None
        return None

    scales = {layer.name: scale for layer in layers if (scale := scale_of(layer))}
    absorbed = {scale.name for scale in scales.values()}
    return [
        replace(layer, tops=scales[layer.name].tops, scale=scales[layer.name])
        if layer.name in scales
        else layer
        for layer in layers
        if layer.name not in absorbed
    ]
