"""ONNX Runtime on the CPU: sessions, runs, and random input that fits a network."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread, Timer
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxcompress.errors import InputError, one_line
from onnxcompress.threads import cores
from onnxcompress.weights import name_of

FREE_BATCH = 1
FREE_SIZE = 224
"""Height and width (and length, depth) that stand in for dimensions which a file leaves open."""

DTYPES: dict[str, np.dtype] = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {
        "float": "float32",
        "double": "float64",
        **{same: same for same in ("float16", "bool")},
        **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    }.items()
}
"""NumPy's types by the names that ONNX Runtime gives its tensors."""


BESIDE = 2**16
"""Bytes from which weights are given to ONNX Runtime beside the network: inside, they are copied twice."""

INPUT_LIMIT = 2**28
"""Numbers that random input may consist of."""

PATIENCE = 0.1
"""Seconds after which it is looked whether a run that cannot be stopped should have ended."""


class OutOfTimeError(InputError):
    """A network took longer than it was given."""


class NoKernelError(InputError):
    """ONNX Runtime knows all operators of a network, but lacks one for its types or version."""


class Runnable(Protocol):
    """What runs a network: a session of ONNX Runtime, or `Reference`."""

    def get_inputs(self) -> Sequence[Any]:
        """The inputs: ``name``, ``type`` as in `DTYPES`, and ``shape``."""

    def run(self, names: None, feeds: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        """All outputs."""


def session(
    model: ir.Model | str | Path,
    *,
    threads: int = 0,
    optimize: bool = True,
    profile_prefix: str | None = None,
) -> ort.InferenceSession:
    """Make a network ready to run on the CPU. Nothing is printed.

    Args:
        model: path of an ONNX file, or a network in memory.
        threads: threads within a layer; 0 takes every core that the process may use.
        optimize: let ONNX Runtime fuse layers and choose memory layouts, as it does by default.
        profile_prefix: where given, the session records a profile; `end_profiling` returns its file name,
            which starts with this.

    Raises:
        InputError: with what ONNX Runtime says, when it refuses the network or the file does not exist.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or cores()
    # Threads that go on spinning after a run take the cores from the caller's next step: networks that run
    # in turns were measured at two to three times their time.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix

    def start(network: str | bytes) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            kind = NoKernelError if "NOT_IMPLEMENTED" in str(error) else InputError
            raise kind(f"{name_of(model)}: ONNX Runtime refuses the network: {_said(error)}") from None

    if not isinstance(model, ir.Model):
        if not Path(model).is_file():
            raise InputError(f"{model}: no such file")
        return start(str(model))
    lean, weights = _without_weights(model)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    found = start(ir.to_proto(lean).SerializeToString())
    found.weights = weights  # it reads them where they are, but does not keep them
    return found


def _without_weights(model: ir.Model) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A copy of a network that says of its larger weights only that they are elsewhere, and these."""
    lean, weights = model.clone(), dict[str, np.ndarray]()
    known = DTYPES.values()
    for graph in lean.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            if graph is lean.graph and tensor.nbytes >= BESIDE and tensor.dtype.numpy() in known:
                weights[name] = np.ascontiguousarray(tensor.numpy())
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor(
                    "memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
                )
            elif isinstance(tensor, ir.ExternalTensor):
                (value.const_value,) = ir.external_data.convert_tensors_from_external([tensor])
    return lean, weights


class Reference:
    """onnx's own evaluator: slow, but it has every operator of ONNX for every type."""

    def __init__(self, model: ir.Model | str | Path) -> None:
        from onnx.reference import ReferenceEvaluator  # seldom needed

        self.evaluator = ReferenceEvaluator(ir.to_proto(model) if isinstance(model, ir.Model) else str(model))

    def get_inputs(self) -> Sequence[Any]:
        """See `Runnable`."""
        types = zip(self.evaluator.input_names, self.evaluator.input_types, strict=True)
        return [
            SimpleNamespace(
                name=name,
                type=f"tensor({onnx.TensorProto.DataType.Name(type_.tensor_type.elem_type).lower()})",
                shape=[
                    dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param
                    for dim in type_.tensor_type.shape.dim
                ],
            )
            for name, type_ in types
        ]

    def run(self, names: None, feeds: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        """See `Runnable`. It cannot be stopped: when the options say that it is to end, it goes on alone."""
        found: list[Any] = []

        def compute() -> None:
            try:
                found.append(list(self.evaluator.run(names, dict(feeds))))
            except Exception as error:  # it has no common base of exceptions
                found.append(error)

        worker = Thread(target=compute, daemon=True)
        worker.start()
        while worker.is_alive() and not (options is not None and options.terminate):
            worker.join(PATIENCE)
        if not found:
            raise TimeoutError
        if isinstance(found[0], Exception):
            raise found[0]
        return list(found[0])


def runner(model: ir.Model | str | Path) -> Runnable:
    """What can run a network: ONNX Runtime, or the reference evaluator where that lacks an operator.

    Raises:
        InputError: as `session`.
    """
    try:
        return session(model)
    except NoKernelError as error:
        try:
            return Reference(model)
        except Exception:  # as in Reference.run
            raise error from None


def run(
    runnable: Runnable, feeds: Mapping[str, np.ndarray], seconds: float | None = None
) -> list[np.ndarray]:
    """All outputs of a network for one set of inputs.

    Raises:
        OutOfTimeError: when it takes more than so many seconds.
        InputError: with what ONNX Runtime says, when it cannot run the network on these inputs.
    """
    options = ort.RunOptions()
    timer = Timer(seconds or 0, setattr, (options, "terminate", True))
    if seconds is not None:
        timer.start()
    try:
        return runnable.run(None, feeds, options)
    except Exception as error:  # as in session
        if options.terminate:
            raise OutOfTimeError(f"the network still ran after {seconds} seconds") from None
        raise InputError(f"ONNX Runtime cannot run the network: {_said(error)}") from None
    finally:
        timer.cancel()


def runs(runnable: Runnable, x: np.ndarray) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Run a network with one input on samples, as many at a time as it fixes, the last ones filled up.

    Yields how many samples a run is of, how many rows it was fed, and the outputs for all of these.
    """
    (value,) = runnable.get_inputs()
    rows = value.shape[0] if isinstance(value.shape[0], int) else len(x)
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        filled = np.concatenate([part, np.repeat(part[-1:], rows - len(part), axis=0)])
        yield len(part), rows, run(runnable, {value.name: filled})


def own(value: np.ndarray, count: int, rows: int) -> np.ndarray:
    """Of a value computed from so many rows, what belongs to the first of them."""
    if count == rows or not value.ndim or len(value) % rows:
        return value
    return value[: len(value) // rows * count]


def check_runs(runnable: Runnable, feeds: Mapping[str, np.ndarray], seconds: float) -> None:
    """See that a network can run; one that still does after so many seconds is taken for one that can.

    Raises:
        InputError: with what ONNX Runtime says, when it cannot.
    """
    with suppress(OutOfTimeError):
        run(runnable, feeds, seconds)


def random_feeds(
    runnable: Runnable, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random arrays for every input of a network, the same for the same arguments.

    Floats are standard normal; integers are 0 or 1, so that they are valid indices; booleans are either.

    Args:
        runnable: the network.
        shapes: of its inputs, by name (see `shapes.stand_ins`). Where one is missing, free dimensions become
            `FREE_BATCH` (the first), 1 (the second) and `FREE_SIZE`.
        seed: of the numbers.

    Raises:
        InputError: when an input is not a tensor of numbers, or is too large.
    """
    random = np.random.default_rng(seed)
    feeds = {}
    for value in runnable.get_inputs():
        dtype = DTYPES.get(value.type)
        if dtype is None:
            raise InputError(
                f"the input '{value.name}' is a {value.type}: only tensors of numbers can be fed"
            )
        free = (FREE_BATCH, 1, *[FREE_SIZE] * len(value.shape))
        shape = (shapes or {}).get(value.name) or [
            dim if isinstance(dim, int) else size for dim, size in zip(value.shape, free, strict=False)
        ]
        if math.prod(shape) > INPUT_LIMIT:
            raise InputError(f"the input '{value.name}' has {math.prod(shape):,} numbers, which is too much")
        numbers = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        feeds[value.name] = np.asarray(numbers, dtype)
    return feeds


def _said(error: Exception) -> str:
    """What ONNX Runtime says, without its codes."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error, 350))
