"""A network's way in and out: read and checked; checked again, run, and written atomically."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common as passes

from onnxcompress import checks
from onnxcompress.errors import InputError, naming, one_line
from onnxcompress.names import Names
from onnxcompress.runtime import NoKernelError, check_runs, random_feeds, runner, session
from onnxcompress.shapes import LAYERS, Shapes, infer, is_free, stand_ins
from onnxcompress.weights import (
    FILES,
    files_of,
    fit_one_message,
    hide,
    large,
    show_again,
    take_in,
    weight_files,
    weights_of,
)

INITIALIZERS_OWN = 4
"""Version of the IR from which initializers need not be inputs as well."""

VALIDATION_SECONDS = 60
"""After which a network that still runs is taken for one that can."""


def load(source: str | Path | ir.Model) -> ir.Model:
    """Read a network and check it.

    Model-local functions are inlined, Constant nodes become initializers, nodes without a name get one.

    Args:
        source: path of an ONNX file, or a network already in memory, which is returned as it is.

    Raises:
        InputError: when the file is missing, empty, truncated, not ONNX, breaks ONNX's rules, lacks its
            external data, holds NaN or infinite weights or layers that do not fit together, is quantized
            already, has operators of a domain that ONNX Runtime does not know, or values beyond all memory.
    """
    if isinstance(source, ir.Model):
        return source
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {what}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    try:
        return _read(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except DecodeError:
        raise InputError(f"{path}: truncated, or not an ONNX file; fetch or export it again") from None
    except Exception as error:  # the checker and the tensor readers each raise their own kinds
        raise InputError(f"{path}: not a valid ONNX file: {one_line(error, 300)}") from None


def _read(path: Path) -> ir.Model:
    proto = onnx.load(path, format="protobuf", load_external_data=False)
    checks.check_files(proto, path.parent)
    onnx.checker.check_model(str(path))
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.absolute().parent)
    checks.check_functions(model)
    if passes.InlinePass(lambda function: _same_opsets(function, model))(model).modified:
        passes.RemoveUnusedOpsetsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.NameFixPass()(model)
    model.meta[FILES] = (path, *map(Path, weight_files(model)))
    _doubt_shapes(model)
    take_in(model)
    checks.check_operators(model)
    checks.check_weights(model)
    checks.check_layers(model)
    checks.check_sizes(model)
    return model


def _doubt_shapes(model: ir.Model) -> None:
    """Forget what exporters get wrong about shapes: those inside of branches, and dimensions below zero.

    The latter, by which older ones mean free dimensions, inference would compute with.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs if node.graph is not model.graph else ():
            value.shape = None
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None:
            dims = [None if isinstance(dim, int) and is_free(dim) else dim for dim in value.shape]
            value.shape = ir.Shape(dims)


def simplify(model: ir.Model) -> ir.Model:
    """Fold constants, fuse BatchNormalization into convolutions and drop what does nothing (by onnxsim).

    The network computes the same, and its interface and the names of the layers that stay do not change.
    A network that onnxsim cannot take, or of which ONNX Runtime does not take what onnxsim makes, is only
    relieved of its Constant and Identity nodes, or left as it is where even that is refused. Of one that is
    too large for one protobuf message onnxsim does not see the large weights: what is computed from them
    alone stays. Nor does it see weights that several convolutions read, where fusing something different into
    each of these would make them several.

    Returns:
        A new network; the given one is not touched.

    Raises:
        InputError: when what was folded is not finite (a BatchNormalization whose variance is zero).
    """
    lean = model.clone()
    take_in(lean)
    unseen = [] if fit_one_message(lean) else large(lean)
    shared = [name for name, readers in _kernels(lean).items() if readers > 1]
    simplified = _simplified(lean, unseen)
    if shared and len(_kernels(simplified)) > len(_kernels(lean)):
        simplified = _simplified(lean, dict.fromkeys([*unseen, *shared]))
    _keep_metadata(simplified, model)
    _write_out_biases(simplified)
    _unshare_vectors(simplified)
    checks.check_weights(simplified)
    return simplified


def _kernels(model: ir.Model) -> dict[str, int]:
    """How many convolutions read the weights that only convolutions read, by name."""
    found = {}
    for name, value in model.graph.initializers.items():
        uses = list(value.uses())
        if uses and all(node.op_type in ("Conv", "ConvTranspose") and index == 1 for node, index in uses):
            found[name] = len(uses)
    return found


def _simplified(model: ir.Model, unseen: Iterable[str]) -> ir.Model:
    """The network by the first of several ways whose result ONNX Runtime accepts; none sees these weights."""
    lean = model.clone()
    hidden = hide(lean, unseen)
    proto = ir.to_proto(lean)
    with _silence():
        for attempt in (_folded, _tidied, ir.from_proto):
            simplified = attempt(proto)
            show_again(simplified, hidden)
            passes.NameFixPass()(simplified)
            if _is_accepted(simplified):
                break
    return simplified


def _folded(proto: onnx.ModelProto) -> ir.Model:
    import onnxsim  # takes a third of a second, which reading and writing files need not spend

    try:
        return _tidied(onnxsim.simplify(proto)[0])
    except Exception:  # whatever onnxsim trips over, its user can go on without it
        return _tidied(proto)


def _tidied(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if not any(_hands_out(node) for node in model.graph.all_nodes()):
        passes.IdentityEliminationPass()(model)
    return model


def _hands_out(node: ir.Node) -> bool:
    """Whether a branch gives by this Identity what it has from outside: `onnx_ir` fails to eliminate it."""
    if node.op_type != "Identity" or not node.outputs[0].is_graph_output():
        return False
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.graph is not node.graph


def _is_accepted(model: ir.Model) -> bool:
    try:
        session(model, optimize=False)
    except NoKernelError:
        return True
    except InputError:
        return False
    return True


def refresh(model: ir.Model) -> ir.Model:
    """Drop what nobody reads any more and infer the shapes again, in place, after a rewrite.

    Nodes keep all their outputs, as exporters write them: MNN's converter crashes on an LSTM with one.
    """
    for node in reversed(model.graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del model.graph.initializers[name]
    declared = [value.shape for value in model.graph.outputs]
    values = {value.name: value for node in model.graph for value in node.outputs}
    for value in values.values():
        value.shape = None
    for node in ir.from_proto(infer(model)):
        for found in node.outputs:
            values[found.name].shape, values[found.name].type = found.shape, found.type
    for value, shape in zip(model.graph.outputs, declared, strict=True):
        value.shape = shape
    return model


def check_output(path: str | Path, *inputs: str | Path) -> None:
    """See that a file can be written, before any work is done.

    Raises:
        InputError: when its folder does not exist or takes no files, or it is one of the inputs.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a device or a pipe, whose place an output would take; name a file")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    for source in inputs:
        if path.resolve() == Path(source).resolve():
            raise InputError(f"{path}: the output would overwrite the input; give another name with -o")


def save(model: ir.Model, path: str | Path, *, original: ir.Model | None = None) -> None:
    """Write a network, once `onnx.checker` (full) and ONNX Runtime have accepted and run it.

    The file appears whole or not at all. Weights of 2 GB and more go to ``<name>.data`` beside it.

    Args:
        model: the network.
        path: of the file.
        original: the network that it was made from, for `validate`.

    Raises:
        InputError: when the folder is missing, the network is refused, or ``<name>.data`` exists and is
            another network's.
    """
    with _draft(Path(path)) as draft:
        _write(model, draft)
        validate(draft, original, stand_ins(original or model))


def copy(model: ir.Model, path: str | Path) -> None:
    """Write a network as it was read: the bytes of its file.

    Without them where weights lie in other files, or where what the file says about shapes is wrong.

    Raises:
        InputError: as `save`.
    """
    source, *others = files_of(model)
    with _draft(Path(path)) as draft:
        if others or _broken_rule(source):
            _write(model, draft)
        else:
            shutil.copyfile(source, draft)
        validate(draft, model, stand_ins(model))


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A path in a folder of its own, whose files come to lie at and beside the given one if all goes well."""
    check_output(path)
    path = path.resolve()  # a link stays one
    with tempfile.TemporaryDirectory(prefix=".onnxcompress-", dir=path.parent) as folder:
        yield Path(folder) / path.name
        data = path.with_name(f"{path.name}.data")
        if (Path(folder) / data.name).exists():
            if data.exists() and not path.exists():
                raise InputError(f"{data}: exists, and is not a part of {path}; give another name with -o")
            path.unlink(missing_ok=True)  # rather none than one with another's weights
            os.replace(Path(folder) / data.name, data)
        os.replace(Path(folder) / path.name, path)


def _write(model: ir.Model, path: Path) -> None:
    if model.ir_version < INITIALIZERS_OWN:
        model = model.clone()
        passes.LiftSubgraphInitializersToMainGraphPass()(model)
        passes.AddInitializersToInputsPass()(model)
    data = None if fit_one_message(model) else f"{path.name}.data"
    ir.save(model, path, format="protobuf", external_data=data)


def validate(path: Path, original: ir.Model | None, shapes: Shapes) -> None:
    """Have `onnx.checker` (full) and ONNX Runtime accept a file, and run it once on random input.

    A network with operators that ONNX Runtime lacks (on doubles, mostly) is run by onnx's reference evaluator
    instead.

    Args:
        path: of the file.
        original: the network that it was made from: random input that this one cannot work on either is not
            held against the file.
        shapes: of the input, by name, where the file leaves them open.

    Raises:
        InputError: with the first line of the refusal.
    """
    if problem := _broken_rule(path):
        if original is not None:
            _write(original, path.with_name("original"))
            if own := _broken_rule(path.with_name("original")):
                with naming(files_of(original)):
                    raise InputError(f"breaks ONNX's rules: {own}")
        raise InputError(f"{path.name}: the result breaks ONNX's rules: {problem}")
    try:
        runnable = runner(path)
        feeds = random_feeds(runnable, shapes)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
    try:
        check_runs(runnable, feeds, VALIDATION_SECONDS)
    except InputError as error:
        if original is None or _runs(original, feeds):
            raise InputError(f"{path.name}: {error}") from None


def _broken_rule(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # as in load
        return one_line(error, 300)
    return ""


def _runs(model: ir.Model, feeds: dict[str, np.ndarray]) -> bool:
    try:
        check_runs(runner(model), feeds, VALIDATION_SECONDS)
    except InputError:
        return False
    return True


def _write_out_biases(model: ir.Model) -> None:
    """Give a Gemm whose bias is one number one for each of its outputs."""
    names = Names(model.graph)
    for node in model.graph:
        if node.op_type != "Gemm" or len(node.inputs) < 3:
            continue
        weights, value = weights_of(node.inputs[1]), node.inputs[2]
        bias = weights_of(value)
        if weights is None or value is None or bias is None or bias.size > 1:
            continue
        count = weights.shape[0 if node.attributes.get_int("transB", 0) else 1]
        if count > 1:
            vector = names.initializer(f"{value.name}.each", np.full(count, bias.item(), bias.dtype))
            node.replace_input_with(2, vector)


def _unshare_vectors(model: ir.Model) -> None:
    """Give each reader its own copy of a bias or scale that merely has the same values as another's.

    Where it is a filter, the only one of its layer, it stays shared.
    """
    names = Names(model.graph)
    for value in list(model.graph.initializers.values()):
        array = weights_of(value)
        if array is None or array.dtype.kind != "f" or array.size != max(array.shape, default=1):
            continue
        uses = list(value.uses())
        as_vector = [use for use in uses if use.node.op_type not in LAYERS or use.idx > 1]
        copied = as_vector if len(as_vector) < len(uses) else as_vector[1:]
        for number, (node, index) in enumerate(copied, start=1):
            node.replace_input_with(index, names.initializer(f"{value.name}.{number}", array))


def _same_opsets(function: ir.Function, model: ir.Model) -> bool:
    return all(
        model.opset_imports.get(domain, version) == version
        for domain, version in function.opset_imports.items()
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Let nothing through that native code prints."""
    streams = {1: sys.stdout, 2: sys.stderr}
    for stream in streams.values():
        stream.flush()
    copies = {descriptor: os.dup(descriptor) for descriptor in streams}
    try:
        with open(os.devnull, "wb") as nowhere:
            for descriptor in streams:
                os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        for descriptor, copy_ in copies.items():
            streams[descriptor].flush()
            os.dup2(copy_, descriptor)
            os.close(copy_)


def _keep_metadata(model: ir.Model, original: ir.Model) -> None:
    """Give a network, its inputs and outputs, and nodes of the same name what onnxsim drops or invents."""
    model.ir_version = original.ir_version
    model.metadata_props.clear()
    model.metadata_props.update(original.metadata_props)
    interface = {value.name: value for value in (*original.graph.inputs, *original.graph.outputs)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape, value.type = interface[value.name].shape, interface[value.name].type
        value.metadata_props.update(interface[value.name].metadata_props)
    nodes = {node.name: node for node in original.graph}
    for node in model.graph:
        if node.name in nodes:
            node.metadata_props.update(nodes[node.name].metadata_props)
