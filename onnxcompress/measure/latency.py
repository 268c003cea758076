"""How long networks take in ONNX Runtime on this machine's CPU, and which layers take it."""

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import InputError
from onnxcompress.model import load
from onnxcompress.progress import Progress, Steps, counted
from onnxcompress.runtime import random_feeds, run, session
from onnxcompress.shapes import stand_ins
from onnxcompress.weights import name_of

MIN_RUNS = 5
"""Timed runs that `bench` does even when they take longer than its seconds."""

LAYOUT = "(layout)"
"""Key of `node_times` for changes of memory layout, which belong to no node of the network."""

RUNTIME = "(runtime)"
"""Key of `node_times` for what ONNX Runtime adds and cannot be traced to a node of the network."""

AROUND = frozenset({"If", "Loop", "Scan"})
"""Operators that run other nodes, whose time is theirs, too."""

_SUFFIX = "_kernel_time"

_ABSORBED = frozenset({"BatchNormalization", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""What ONNX Runtime may fuse into the convolution before it."""


@dataclass(frozen=True)
class Latency:
    """Times of one network, and its share of the first one's.

    Attributes:
        name: as given to `bench`.
        batch: samples per run; that of the network itself where it is fixed.
        runs: timed runs.
        median: of the time of one run, in milliseconds.
        p10: tenth percentile, in milliseconds.
        p90: ninetieth percentile, in milliseconds.
        ratio: median, over the rounds, of this network's time divided by the first one's in the same round.
        ratio_p10: tenth percentile of the same.
        ratio_p90: ninetieth percentile of the same.
    """

    name: str
    batch: int
    runs: int
    median: float
    p10: float
    p90: float
    ratio: float
    ratio_p10: float
    ratio_p90: float


def bench(
    models: Sequence[ir.Model | str | Path],
    *,
    names: Sequence[str] | None = None,
    threads: int = 0,
    batch: int = 1,
    runs: int = 40,
    warmup: int = 5,
    seconds: float = 60.0,
    progress: Progress | None = None,
) -> list[Latency]:
    """Time networks against each other on random input, the same for networks that take the same.

    Each round runs every network once, in a new random order, so that the state in which the machine is, and
    the caches that one network leaves to the next, spread over all of them.

    Args:
        models: networks; the first one is what the others are compared with.
        names: one each; by default the path, or the name of the graph of one made in memory.
        threads: as for `session`.
        batch: samples per run, where the network leaves it open.
        runs: timed rounds.
        warmup: rounds before them.
        seconds: rounds stop once this has passed, warm-up included, but not before 5 of `runs` are timed.
        progress: called with (what is done, steps done, steps in all).

    Returns:
        One entry per network, in their order.

    Raises:
        InputError: when batch or runs are below 1, ONNX Runtime refuses a network or cannot run it on random
            input, or the networks do not take as many samples at a time.
    """
    for name, number in (("batch", batch), ("runs", runs)):
        if number < 1:
            raise InputError(f"{name}: {number} is not at least 1")
    if names is None:
        names = [name_of(model) for model in models]
    sessions = [session(model, threads=threads) for model in models]
    feeds = [
        random_feeds(runnable, stand_ins(load(model), batch))
        for runnable, model in zip(sessions, models, strict=True)
    ]
    batches = [next((array.shape[0] for array in feed.values() if array.ndim), 1) for feed in feeds]
    for name, size in zip(names, batches, strict=True):
        if size != batches[0]:
            raise InputError(
                f"{name} takes {size} samples at a time, {names[0]} {batches[0]}: times do not compare; give "
                f"--batch {size if size != batch else batches[0]}, or networks that take the same"
            )
    random = np.random.default_rng(0)

    def time_round() -> np.ndarray:
        times = np.empty(len(sessions))
        for index in random.permutation(len(sessions)):
            start = time.perf_counter()
            run(sessions[index], feeds[index])
            times[index] = 1e3 * (time.perf_counter() - start)
        return times

    start = time.monotonic()
    for _ in range(warmup):
        time_round()
        if time.monotonic() - start > seconds / 2:
            break
    rounds: list[np.ndarray] = []
    while len(rounds) < runs and (len(rounds) < MIN_RUNS or time.monotonic() - start < seconds):
        rounds.append(time_round())
        if progress is not None:
            progress("timing", len(rounds), runs)

    times = np.array(rounds)
    p10, median, p90 = np.percentile(times, (10, 50, 90), axis=0)
    ratio_p10, ratio, ratio_p90 = np.percentile(times / times[:, :1], (10, 50, 90), axis=0)
    return [
        Latency(
            name=name,
            batch=batches[index],
            runs=len(rounds),
            median=float(median[index]),
            p10=float(p10[index]),
            p90=float(p90[index]),
            ratio=float(ratio[index]),
            ratio_p10=float(ratio_p10[index]),
            ratio_p90=float(ratio_p90[index]),
        )
        for index, name in enumerate(names)
    ]


def node_times(
    model: ir.Model | str | Path, runs: int = 10, progress: Steps | None = None
) -> dict[str, float]:
    """Milliseconds that each node takes in one run on random input, the median of several, by node name.

    The network runs with every optimization of ONNX Runtime on, as it does for users, so that some nodes are
    fused. A fused node counts under the layer that it grew from: Conv + BatchNormalization + Add + Relu is
    all the Conv's, and the others are missing; an If or Loop takes what its body does. Changes between memory
    layouts are summed under "(layout)".
    What cannot be traced to a node of the network is summed under "(runtime)". Recording itself takes some
    microseconds per node, so that the sum is more than `bench` measures. Progress is told after every run.

    Raises:
        InputError: when the network cannot be read or run.
    """
    model = load(model)
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        runnable = session(model, profile_prefix=str(Path(folder) / "profile"))
        feeds = random_feeds(runnable, stand_ins(model))
        for _ in counted(range(runs), runs, progress):
            run(runnable, feeds)
        events = json.loads(Path(runnable.end_profiling()).read_text(encoding="utf-8"))
    durations: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    kernels = [event for event in events if event["cat"] == "Node" and event["name"].endswith(_SUFFIX)]
    around = [_span(event) for event in kernels if event["args"]["op_name"] in AROUND]
    for event in kernels:
        begun, ended = _span(event)
        if any(first <= begun and ended <= last for first, last in around if (first, last) != (begun, ended)):
            continue
        name, arguments = event["name"].removesuffix(_SUFFIX), event["args"]
        durations[name, arguments["op_name"], arguments["node_index"]].append(event["dur"] / 1e3)
    nodes = {str(node.name): node for node in model.graph}
    producers = {str(value.name): node for node in model.graph for value in node.outputs}
    times: defaultdict[str, float] = defaultdict(float)
    for (name, op_type, _), values in durations.items():
        times[_owner(name, op_type, nodes, producers)] += float(np.median(values))
    return dict(times)


def _span(event: dict[str, Any]) -> tuple[float, float]:
    """When an event began and ended, in microseconds."""
    return event["ts"], event["ts"] + event["dur"]


def _owner(name: str, op_type: str, nodes: dict[str, ir.Node], producers: dict[str, ir.Node]) -> str:
    """The node of the network that a node of ONNX Runtime's optimized network, so named, stands for."""
    if op_type in ("ReorderInput", "ReorderOutput"):
        return LAYOUT
    # "fused fc", "fc/MatMulAddFusion", "fused fc/MatMulAddFusion", "swish/QuickGeluFusion/"
    plain = re.sub(r"/\w+Fusion/?$", "", name.removeprefix("fused "))
    if plain in nodes:
        return plain
    # In the blocked layout nodes are called after their output, which may be that of an absorbed one.
    value, separate, _ = name.partition("_bn_nchwc")
    node = producers.get(value if separate else name.removesuffix("_nchwc"))
    if node is None:
        return RUNTIME
    if op_type == "Conv" and not separate:
        absorbed: ir.Node | None = node
        while absorbed is not None and absorbed.op_type in _ABSORBED:
            absorbed = absorbed.inputs[0].producer() if absorbed.inputs[0] is not None else None
        if absorbed is not None and absorbed.op_type == "Conv":
            node = absorbed
    return str(node.name)
