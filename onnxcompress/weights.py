"""Where a network and its weights lie: in memory, in files, hidden from tools that cannot carry them."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import InputError

FILES = "onnxcompress.files"
"""Key of a network's `meta` under which the files are noted that it was read from."""

EMBEDDED_LIMIT = 2**31 - 2**20
"""Bytes of weights from which a network cannot be handed over as one protobuf message."""

LARGE = 2**20
"""Bytes above which weights are hidden, or left in their file where all are too large for one message."""


def files_of(model: ir.Model) -> tuple[Path, ...]:
    """The files that a network was read from: its own first, then those of its weights."""
    return model.meta.get(FILES, ())


def name_of(model: ir.Model | str | Path) -> str:
    """What a user calls a network: its file, or its graph's name where it is in memory alone."""
    if not isinstance(model, ir.Model):
        return str(model)
    return str(files_of(model)[0]) if files_of(model) else model.graph.name or "network"


def weights_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None when the value is computed, an input or absent."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def fit_one_message(model: ir.Model) -> bool:
    """Whether all weights, those of subgraphs included, fit into one protobuf message."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) < EMBEDDED_LIMIT


def weight_files(model: ir.Model) -> list[str]:
    """The files that weights are read from when needed."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sorted({str(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def file_size(model: ir.Model) -> int:
    """Bytes that a network takes on disk, weights in files of their own included."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    outside = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
    return ir.to_proto(model).ByteSize() + outside


def take_in(model: ir.Model) -> None:
    """Read weights from other files, but for the large ones of a network too large for one message.

    Raises:
        InputError: when a file does not hold what it should.
    """
    whole = fit_one_message(model)
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                end = (tensor.offset or 0) + tensor.nbytes
                if tensor.length not in (None, tensor.nbytes) or end > os.path.getsize(tensor.path):
                    raise InputError(
                        f"the weights '{value.name}' do not fit what {tensor.path} holds for them: "
                        "fetch both files again"
                    )
                if whole or tensor.nbytes <= LARGE or graph is not model.graph:
                    (value.const_value,) = ir.external_data.convert_tensors_from_external([tensor])


def large(model: ir.Model, limit: int = LARGE) -> list[str]:
    """Names of the weights of more bytes."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return [name for name, tensor in tensors.items() if tensor is not None and tensor.nbytes > limit]


def hide(model: ir.Model, names: Iterable[str]) -> dict[str, ir.TensorProtocol]:
    """Turn weights into inputs, in place; `show_again` is the way back."""
    hidden = {}
    for name in names:
        value = model.graph.initializers.pop(name)
        assert value.const_value is not None
        hidden[name], value.const_value = value.const_value, None
        if not value.is_graph_input():
            model.graph.inputs.append(value)
    return hidden


def show_again(model: ir.Model, hidden: dict[str, ir.TensorProtocol]) -> None:
    """Turn inputs into the weights that `hide` took, in place."""
    for value in [value for value in model.graph.inputs if value.name in hidden]:
        model.graph.inputs.remove(value)
        value.const_value = hidden[str(value.name)]
        model.graph.register_initializer(value)
