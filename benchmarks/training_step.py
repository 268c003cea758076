"""Time and memory of a training step: this project's, in ONNX Runtime, against PyTorch's.

Networks: the one that ships with the project, those given as arguments, and GoogLeNet of ../shared/data where
it is there. Each side has a process of its own and they take their steps in turns, on all cores: forward,
backward, SGD with momentum. `python -m benchmarks.training_step`; needs PyTorch.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rich.console import Console

import onnxcompress as oc
from models.digits import SHIPPED
from onnxcompress.model import simplify
from onnxcompress.report.tables import table

ROOT = Path(__file__).resolve().parent.parent
GOOGLENET = ROOT.parent / "shared" / "data" / "models" / "bvlc_googlenet"
WARM_UP = 3
"""Steps that are not timed."""

console = Console(highlight=False, width=120)

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="ONNX classifiers to measure as well")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    arguments = parser.parse_args()
    paths: list[Path] = [SHIPPED, *arguments.models, *([GOOGLENET] if GOOGLENET.is_dir() else [])]
    rows = []
    for path in paths:
        ours, theirs = _measured(path, arguments.batch, arguments.steps)
        for name, (seconds, peak) in (("onnxcompress", ours), ("PyTorch", theirs)):
            cells = [f"{1000 * seconds:.1f} ms", f"{peak / 1e6:.0f} MB"]
            ratios = [f"{seconds / theirs[0]:.2f}×", f"{peak / theirs[1]:.2f}×"]
            rows.append([path.stem, name, *cells, *ratios])
    columns = ["network", "by", "step", "peak memory", "time to PyTorch's", "memory to PyTorch's"]
    console.print(table(f"a training step of {arguments.batch} samples", columns, rows))


def _measured(path: Path, batch: int, steps: int) -> list[tuple[float, float]]:
    """Median seconds of a step and the process's highest memory in bytes: ours, PyTorch's."""
    context = multiprocessing.get_context("spawn")
    sides = []
    for make in (our_step, torch_step):
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(make, path, batch, there), daemon=True)
        process.start()
        there.close()
        sides.append((process, here))
    times: list[list[float]] = [[], []]
    for number in range(WARM_UP + steps):
        for side, (_, pipe) in enumerate(sides):
            pipe.send(True)
            seconds = pipe.recv()
            if number >= WARM_UP:
                times[side].append(seconds)
    found = []
    for (process, pipe), each in zip(sides, times, strict=True):
        pipe.send(False)
        found.append((statistics.median(each), pipe.recv()))
        process.join()
    return found


def _serve(make: Callable[[ir.Model, int], Step], path: Path, batch: int, pipe: Connection) -> None:
    step = make(_network(path), batch)
    while pipe.recv():
        begun = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - begun)
    pipe.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _network(path: Path) -> ir.Model:
    if path.is_dir():
        return simplify(oc.import_caffe(path / "deploy.prototxt", path / "bvlc_googlenet.caffemodel"))
    return simplify(oc.load(path))


def our_step(network: ir.Model, batch: int) -> Step:
    """A function that takes one."""
    from onnxcompress.training.losses import Loss, Term
    from onnxcompress.training.parameters import current, trainable
    from onnxcompress.training.trainer import Recipe, start, train

    multipliers = trainable(network)
    loss = Loss(network, list(multipliers), [Term()], batch)
    x, labels = _batch(network, batch, loss.classes)
    targets = [np.eye(loss.classes, dtype=np.float32)[labels]]
    recipe = Recipe(optimizer="sgd", rate=1e-6)
    state = start(current(network, list(multipliers)), recipe)
    taken = train(loss, state, multipliers, lambda _: (x, targets), 10**6, recipe)
    return lambda: next(taken)


def torch_step(network: ir.Model, batch: int) -> Step:
    """A function that takes one."""
    import torch
    from torch.nn.functional import cross_entropy

    from benchmarks.torch_networks import Network
    from onnxcompress.outputs import scoring

    module = Network(scoring(network))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=0.9)
    with torch.no_grad():
        classes = module(torch.from_numpy(_batch(network, batch, 1)[0])).shape[1]
    x, labels = (torch.from_numpy(each) for each in _batch(network, batch, classes))

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(module(x), labels).backward()
        optimizer.step()

    return step


def _batch(network: ir.Model, batch: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    sides = [int(dim) for dim in network.graph.inputs[0].shape[1:]]  # type: ignore[index,arg-type]
    return random.standard_normal((batch, *sides)).astype(np.float32), random.integers(0, classes, batch)


if __name__ == "__main__":
    main()
