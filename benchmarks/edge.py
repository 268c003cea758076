"""Do edge runtimes compute what ONNX Runtime does, and how fast? OpenVINO, MNN and ncnn. `make edge`.

The network that ships and those given as arguments run in each of them, as they are and compressed by weights
alone (the one that ships under a budget, too). One thread, one sample, random input.
"""

import argparse
import csv
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

import onnxcompress as oc
from models.digits import SHIPPED
from models.digits_data import load_digits_parts
from onnxcompress.report.tables import table
from onnxcompress.runtime import random_feeds, run, session
from onnxcompress.shapes import stand_ins

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RUNS = 30
TIMEOUT = 300
"""Seconds for one network in one runtime."""

Feeds = Mapping[str, np.ndarray]
Compute = Callable[[], list[np.ndarray]]

console = Console(highlight=False, width=120)


@dataclass(frozen=True)
class Row:
    """A network in a runtime.

    Attributes:
        network, stage, runtime: which.
        error: largest difference from ONNX Runtime's outputs, relative to the largest number in them.
        milliseconds: median of the time of a run.
        failure: why there are none; empty where there are.
    """

    network: str
    stage: str
    runtime: str
    error: float = np.nan
    milliseconds: float = np.nan
    failure: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files to run as well")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for path in (*arguments.models, SHIPPED):
        try:
            stages = _stages(path)
        except oc.InputError as error:
            parser.error(str(error))
        with tempfile.TemporaryDirectory() as folder:
            for stage, model in stages.items():
                copy = Path(folder) / "network.onnx"
                oc.save(model, copy)
                rows += [
                    measure(copy, path.stem, stage, runtime) for runtime in RUNTIMES if find_spec(runtime)
                ]
        console.print(_table([row for row in rows if row.network == path.stem]))
    with (RESULTS / "edge.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    console.print(f"written: {RESULTS / 'edge.csv'}")


def _stages(path: Path) -> dict[str, ir.Model]:
    result = oc.compress(path)
    stages = {stage.name: stage.model for stage in result.stages}
    if path == SHIPPED:
        samples = load_digits_parts()["calibration"].images
        stages["macs=0.3"] = oc.compress(path, data=[{"data": samples}], target="macs=0.3").model
    return stages


def measure(path: Path, network: str, stage: str, runtime: str) -> Row:
    """One row, from a process of its own: runtimes crash on what they do not know."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            error, milliseconds = pool.submit(compared, path, runtime).result()
        except BrokenProcessPool:
            return Row(network, stage, runtime, failure="crashes or hangs")
        except Exception as problem:  # of any runtime
            return Row(network, stage, runtime, failure=f"{type(problem).__name__}: {problem}"[:60])
    return Row(network, stage, runtime, error, milliseconds)


def compared(path: Path, runtime: str) -> tuple[float, float]:
    """Error and milliseconds of a network in a runtime, see `Row`. The process ends after `TIMEOUT`."""
    signal.alarm(TIMEOUT)
    model, reference = oc.load(path), session(path, threads=1)
    feeds = random_feeds(reference, stand_ins(model, 1))
    expected = run(reference, feeds)
    with tempfile.TemporaryDirectory() as folder:
        compute = RUNTIMES[runtime](path, feeds, [str(value.name) for value in model.graph.outputs], folder)
        found = compute()
        error = max(
            float(np.abs(a.reshape(b.shape) - b).max() / max(np.abs(b).max(), np.finfo(np.float32).tiny))
            for a, b in zip(found, expected, strict=True)
        )
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            compute()
            times.append(time.perf_counter() - start)
    return error, float(np.median(times)) * 1e3


def onnxruntime(path: Path, feeds: Feeds, outputs: Sequence[str], folder: str) -> Compute:
    """Itself, for the time."""
    runnable = session(path, threads=1)
    return lambda: run(runnable, feeds)


def openvino(path: Path, feeds: Feeds, outputs: Sequence[str], folder: str) -> Compute:
    """OpenVINO reads ONNX."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda: [compiled(dict(feeds))[name] for name in outputs]


def mnn(path: Path, feeds: Feeds, outputs: Sequence[str], folder: str) -> Compute:
    """By MNN's converter."""
    converted = f"{folder}/network.mnn"
    converter = Path(sys.executable).with_name("mnnconvert")
    _convert(converter, "-f", "ONNX", "--modelFile", path, "--MNNModel", converted, "--bizCode", "x")
    from MNN import expr, nn

    network = nn.load_module_from_file(converted, list(feeds), list(outputs))
    inputs = [expr.placeholder(list(x.shape), expr.NCHW, expr.float) for x in feeds.values()]
    for variable, x in zip(inputs, feeds.values(), strict=True):
        variable.write(x)

    def compute() -> list[np.ndarray]:
        values = network.forward(inputs)
        return [
            np.array(expr.convert(v, expr.NCHW).read() if len(v.shape) == 4 else v.read()) for v in values
        ]

    return compute


def ncnn(path: Path, feeds: Feeds, outputs: Sequence[str], folder: str) -> Compute:
    """By ncnn's converter, pnnx."""
    copy = Path(folder) / "network.onnx"
    copy.write_bytes(path.read_bytes())
    shapes = ",".join(f"[{','.join(map(str, x.shape))}]" for x in feeds.values())
    spec = find_spec("pnnx")
    assert spec is not None
    assert spec.origin is not None
    # Its Python wrapper would need PyTorch.
    _convert(Path(spec.origin).with_name("pnnx"), copy, f"inputshape={shapes}", "fp16=0")
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = 1
    for short in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{short}", False)
    if network.load_param(f"{folder}/network.ncnn.param") or network.load_model(f"{folder}/network.ncnn.bin"):
        raise RuntimeError("cannot be loaded")
    arrays = [np.ascontiguousarray(x[0]) for x in feeds.values()]

    def compute() -> list[np.ndarray]:
        extractor = network.create_extractor()
        for index, x in enumerate(arrays):
            extractor.input(f"in{index}", ncnn.Mat(x))
        found = [extractor.extract(f"out{index}") for index in range(len(outputs))]
        if any(code for code, _ in found):
            raise RuntimeError("cannot be run")
        return [np.array(value) for _, value in found]

    return compute


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino, "MNN": mnn, "ncnn": ncnn}
"""By the name of the package."""


def _convert(program: Path, *arguments: object) -> None:
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT / 2)
    if done.returncode:
        raise RuntimeError(f"{program.name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def _table(rows: Sequence[Row]) -> Table:
    stages = list(dict.fromkeys(row.stage for row in rows))
    columns = ["runtime", *(name for stage in stages for name in (f"{stage}: error", "ms"))]
    found = {(row.runtime, row.stage): row for row in rows}
    lines = []
    for runtime in dict.fromkeys(row.runtime for row in rows):
        line = [runtime]
        for row in (found[runtime, stage] for stage in stages):
            line += [row.failure, ""] if row.failure else [f"{row.error:.0e}", f"{row.milliseconds:.2f}"]
        lines.append(line)
    return table(rows[0].network, columns, lines)


if __name__ == "__main__":
    main()
