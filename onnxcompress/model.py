"""A network's way in and out: read and checked; checked again, run, and written atomically."""

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxcompress.errors import InputError
from onnxcompress.runtime import EMBEDDED_LIMIT, random_feeds, session

QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"}
)


def load(source: str | Path | ir.Model) -> ir.Model:
    """Read a network and check it. Nodes without a name get one.

    Args:
        source: path of an ONNX file, or a network already in memory, which is returned as it is.

    Raises:
        InputError: when the file is missing, empty, truncated, not ONNX, breaks ONNX's rules, lacks its
            external data, holds NaN or infinite weights, or is quantized already.
    """
    if isinstance(source, ir.Model):
        return source
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    try:
        onnx.checker.check_model(str(path))
        model = ir.load(path)
        if _weight_bytes(model) < EMBEDDED_LIMIT:
            ir.external_data.load_to_model(model)
        _check_weights(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # protobuf, the checker and the tensor readers each raise their own kinds
        raise InputError(f"{path}: not a valid ONNX file: {_one_line(error)}") from None
    passes.NameFixPass()(model)
    return model


def simplify(model: ir.Model) -> ir.Model:
    """Fold constants, fuse BatchNormalization into convolutions and drop what does nothing (by onnxsim).

    The network computes the same, and its interface and the names of the layers that stay do not change.
    A network that onnxsim cannot take is only relieved of its Constant and Identity nodes.

    Returns:
        A new network; the given one is not touched.
    """
    import onnxsim  # takes a third of a second, which reading and writing files need not spend

    proto = ir.to_proto(model)
    try:
        simplified = ir.from_proto(onnxsim.simplify(proto)[0])
    except Exception:  # whatever onnxsim trips over, its user can go on without it
        simplified = ir.from_proto(proto)
    simplified.metadata_props.clear()
    simplified.metadata_props.update(model.metadata_props)
    for tidy in (
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.IdentityEliminationPass(),
        passes.NameFixPass(),
    ):
        tidy(simplified)
    # Before version 4 every initializer had to be an input as well.
    simplified.ir_version = max(simplified.ir_version, 4)
    _unshare_vectors(simplified)
    return simplified


def refresh(model: ir.Model) -> ir.Model:
    """Drop initializers that nobody reads and infer the shapes again, in place, after a rewrite."""
    passes.RemoveUnusedNodesPass()(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def check_output(path: str | Path, *inputs: str | Path) -> None:
    """See that a file can be written, before any work is done.

    Raises:
        InputError: when its folder does not exist or it is one of the inputs.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file in it")
    for source in inputs:
        if path.resolve() == Path(source).resolve():
            raise InputError(f"{path}: the output would overwrite the input; give another name with -o")


def save(model: ir.Model, path: str | Path) -> None:
    """Write a network, once `onnx.checker` (full) and ONNX Runtime have accepted and run it.

    The file appears whole or not at all. Weights of 2 GB and more go to ``<name>.data`` beside it.

    Raises:
        InputError: when the folder is missing or the network is refused.
    """
    path = Path(path)
    check_output(path)
    large = _weight_bytes(model) >= EMBEDDED_LIMIT
    with tempfile.TemporaryDirectory(prefix=".onnxcompress-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        ir.save(model, draft, external_data=f"{path.name}.data" if large else None)
        validate(draft)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == draft):
            os.replace(file, path.parent / file.name)


def validate(path: Path) -> None:
    """Have `onnx.checker` (full) and ONNX Runtime accept a file, and run it once on random input.

    Raises:
        InputError: with the first line of the refusal.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # as in load
        raise InputError(f"{path.name}: the result breaks ONNX's rules: {_one_line(error)}") from None
    try:
        runnable = session(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    try:
        runnable.run(None, random_feeds(runnable))
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        raise InputError(f"{path.name}: ONNX Runtime cannot run the result: {_one_line(error)}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def weights_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None when the value is computed, an input or absent."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def _unshare_vectors(model: ir.Model) -> None:
    """Give each reader its own copy of a bias or scale that merely has the same values as another's."""
    for value in list(model.graph.initializers.values()):
        array = weights_of(value)
        if array is None or array.dtype.kind != "f" or array.size != max(array.shape, default=1):
            continue
        for number, (node, index) in enumerate(list(value.uses())[1:], start=1):
            name = f"{value.name}.{number}"
            own = ir.val(name, const_value=ir.tensor(array, name=name))
            model.graph.initializers[name] = own
            node.replace_input_with(index, own)


def _check_weights(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type in QUANTIZED:
            raise InputError(
                f"quantized already (node '{node.name}', {node.op_type}): compress first, then quantize"
            )
    for value in model.graph.initializers.values():
        array = weights_of(value)
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"the weights '{value.name}' hold NaN or infinite values; export the network again"
            )


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
