"""Which networks can be compressed, how far, and how exactly. `make coverage`.

Exports well-known architectures with seeded random weights, or takes the ONNX files of a folder, and writes
one row on each into a Markdown table. Exactness is what shows here, not accuracy: nothing is trained.
"""

import argparse
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rich.console import Console

import onnxcompress as oc
from onnxcompress.drafts import write_text
from onnxcompress.measure.cost import LayerCost
from onnxcompress.model import simplify
from onnxcompress.runtime import random_feeds, run, session
from onnxcompress.shapes import stand_ins
from tests.oracle import outputs_with_removed_read_as_zero

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(tempfile.gettempdir()) / "onnxcompress-coverage"
RATIO, RANK = 0.5, "fraction:0.5"
EXACT = 1e-3
"""Largest error, in spreads of the output, that rounding may cause in deep networks."""
SHOWN = 4
"""Reasons that a row names; the others are counted."""
COLUMNS = (
    *("network", "opset, exporter", "filters", "prunable", "MACs", "pruned", "decomposed", "error", "s"),
    "held back by",
)
ORACLE = "readers read zero"
FOLLOWERS = frozenset(
    {"Add", "Sub", "Mul", "Div", "BatchNormalization", "InstanceNormalization", "MaxPool", "AveragePool"}
    | {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Clip", "Tanh", "Gelu", "HardSwish"}
    | {"Sigmoid", "HardSigmoid", "Softplus", "Exp"}
)
"""Operators that follow a layer channel by channel; some turn zero into something else."""

console = Console(highlight=False, width=120)


@dataclass(frozen=True)
class Row:
    """What became of one network.

    Attributes:
        network: name of its file.
        opset: ONNX operator set and exporter.
        filters: of its convolutions, and how many of them may be pruned.
        macs: before, after pruning, after decomposing the original.
        error: see `_error` and `_compare`; None where nothing was pruned or nothing could be compared.
        oracle: what the pruned network was compared with.
        seconds: for pruning, reading and simplifying included.
        held: layers or nodes by what held them back.
        failure: what went wrong; empty when nothing did.
    """

    network: str
    opset: str = ""
    filters: tuple[int, int] = (0, 0)
    macs: tuple[int, int, int] = (0, 0, 0)
    error: float | None = None
    oracle: str = ""
    seconds: float = 0.0
    held: tuple[tuple[str, int], ...] = ()
    failure: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="take the ONNX files of this folder")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER", help="where exports are kept")
    parser.add_argument("--match", default="*", metavar="GLOB", help="only networks of such names")
    parser.add_argument(
        "--output", type=Path, help="by default docs/, of --files benchmarks/results/coverage.md"
    )
    parser.add_argument("--timeout", type=int, default=600, metavar="S", help="for one network")
    parser.add_argument("--memory", type=int, default=12, metavar="GB", help="address space for one network")
    arguments = parser.parse_args()
    output = arguments.output or ROOT / ("benchmarks/results" if arguments.files else "docs") / "coverage.md"
    output.parent.mkdir(parents=True, exist_ok=True)

    rows = []
    if arguments.files:
        files = sorted(arguments.files.glob(f"{arguments.match}.onnx"))
        if not files:
            parser.error(f"{arguments.files}: no ONNX file of such a name")
    else:
        files, failures = _exports(arguments.cache, arguments.match)
        rows += [Row(name, failure=f"export: {reason}") for name, reason in failures.items()]
    # Each network's process is forked from one that has imported everything but has no threads yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["onnxcompress.compression", "onnxsim", "rich.console"])
    for number, file in enumerate(files, start=1):
        row = _guarded(context, file, arguments.timeout, arguments.memory)
        rows.append(row)
        notes = [row.oracle] if row.oracle not in ("", ORACLE) else []
        line = " · ".join([*_cells(row), *notes])
        console.print(f"{number}/{len(files)} {line}", markup=False, soft_wrap=True)
        write_text(output, _markdown(sorted(rows, key=lambda row: row.network)))
    console.print(f"written: {output}")


def _exports(cache: Path, match: str) -> tuple[list[Path], dict[str, str]]:
    """The exported networks, made where the cache lacks them, and the reasons of those that failed."""
    try:
        from benchmarks.export import ARCHITECTURES, export
    except ImportError as error:
        raise SystemExit(f"{error}: pip install '.[export]', or give --files") from None
    cache.mkdir(parents=True, exist_ok=True)
    files, failures = [], {}
    for architecture in ARCHITECTURES:
        path = cache / architecture.file
        if not fnmatchcase(path.stem, match):
            continue
        if not path.exists():
            console.print(f"exporting {path.stem} ...")
            try:
                export(architecture, path)
            except Exception as error:  # torch's exporters raise kinds of their own
                failures[path.stem] = _one_line(error)
                continue
        files.append(path)
    return files, failures


def _guarded(context: BaseContext, file: Path, timeout: int, memory: int) -> Row:
    """The row of a file, from a process of its own that may neither hang nor take all memory."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(sender, file, memory))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return Row(file.stem, failure=f"not done after {timeout} s")
        return receiver.recv()
    except EOFError:
        process.join()
        return Row(file.stem, failure=f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send_row(sender: Connection, file: Path, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory << 30, memory << 30))
    try:
        row = measure(file)
    except oc.InputError as error:
        row = Row(file.stem, failure=str(error).replace(f"{file}: ", ""))
    except Exception as error:  # a defect, which shall not hide the other networks' rows
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        row = Row(file.stem, failure=f"{type(error).__name__} at {where}: {_one_line(error)}")
    sender.send(row)


def measure(file: Path) -> Row:
    """Prune and decompose one network, have both results accepted and run, and compare."""
    start = time.perf_counter()
    pruned = oc.prune(file, ratio=RATIO, scope="layer")
    seconds = time.perf_counter() - start
    decomposed = oc.decompose(file, rank=RANK)
    original = pruned.stages[0].model
    network = simplify(original)
    cost = oc.cost(network)
    filters = {layer.name: layer.output_shape[1] for layer in cost.layers if _is_dense_convolution(layer)}
    row = Row(
        network=file.stem,
        opset=f"{original.opset_imports['']}, {_exporter(original)}",
        filters=(
            sum(n for name, n in filters.items() if name not in pruned.plan.kept),
            sum(filters.values()),
        ),
        macs=(cost.macs, pruned.stages[-1].cost.macs, decomposed.stages[-1].cost.macs),
        seconds=seconds,
        held=_held(pruned),
    )
    runnable = session(original)
    feeds = random_feeds(runnable, stand_ins(original))
    before = run(runnable, feeds)
    with tempfile.TemporaryDirectory() as folder:
        oc.save(decomposed.model, Path(folder) / "decomposed.onnx")
        oc.save(pruned.model, Path(folder) / "pruned.onnx")
        after = run(session(Path(folder) / "pruned.onnx"), feeds)
    if not pruned.plan.prune:
        return row
    try:
        error, oracle = _compare(network, pruned.plan.prune, feeds, after)
    except Exception as failure:  # of the comparison
        return replace(row, failure=f"not compared: {_one_line(failure)}")
    return replace(row, error=max(error, _error(run(session(network), feeds), before)), oracle=oracle)


def _compare(
    network: ir.Model, removed: dict[str, list[int]], feeds: dict[str, np.ndarray], after: list[np.ndarray]
) -> tuple[float, str]:
    """How far the pruned network is from the original in which the readers of removed channels read zero.

    Where the tests' oracle cannot follow a channel (the readers it knows are convolutions and matrix
    products), the removed channels are multiplied by zero in the original instead: the same, unless a zero
    turns into something else on its way to a reader.

    Returns:
        The error, and what of the two it is an error to, with the reason if it is the second.
    """
    try:
        error = _error(after, outputs_with_removed_read_as_zero(network, removed, feeds))
        if error <= EXACT:
            return error, ORACLE
        reason = f"error {error:.0e}"
    except Exception as failure:  # an assertion, or what ONNX Runtime says of a node on its own
        reason = _one_line(failure)
    zeroed = run(session(_silenced(network, removed)), feeds)
    return _error(after, zeroed), f"zeroed, for: {reason}"


def _silenced(network: ir.Model, removed: dict[str, list[int]]) -> ir.Model:
    """The network with zeros in the place of removed channels, also behind what follows filter by filter."""
    silenced = network.clone()
    shapes = {layer.name: layer.output_shape for layer in oc.cost(network).layers}
    for node in [node for node in silenced.graph if node.name in removed]:
        shape = shapes[str(node.name)]
        axis = len(shape) - 1 if node.op_type == "MatMul" else 1
        mask = np.ones([size if index == axis else 1 for index, size in enumerate(shape)], np.float32)
        np.moveaxis(mask, axis, 0)[removed[str(node.name)]] = 0
        _multiply(silenced.graph, node, mask)
    return silenced


def _multiply(graph: ir.Graph, node: ir.Node, mask: np.ndarray) -> None:
    value = node.outputs[0]
    readers = list(value.uses())
    factor = ir.val(f"{value.name}.mask", const_value=ir.tensor(mask, name=f"{value.name}.mask"))
    graph.initializers[str(factor.name)] = factor
    product = ir.node("Mul", [value, factor])
    graph.insert_after(node, product)
    for reader, index in readers:
        reader.replace_input_with(index, product.outputs[0])
        others = [other for other in reader.inputs if other not in (None, product.outputs[0])]
        if reader.op_type in FOLLOWERS and all(other.is_initializer() for other in others):
            _multiply(graph, reader, mask)


def _error(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference, in standard deviations of that output (of a single number: in its magnitude)."""
    errors = []
    for one, other in zip(actual, expected, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"an output has shape {list(one.shape)} instead of {list(other.shape)}")
        if one.size:
            spread = np.std(other) if other.size > 1 else np.abs(other).max()
            errors.append(float(np.abs(np.subtract(one, other, dtype=float)).max() / max(spread, 1e-12)))
    return max(errors, default=0.0)


def _is_dense_convolution(layer: LayerCost) -> bool:
    """Whether it has filters of its own: depthwise ones go with their channels."""
    depthwise = layer.weight_shape[1:2] == (1,) and layer.input_shape[1:2] != (1,)
    return layer.operator in ("Conv", "ConvTranspose") and len(layer.output_shape) > 1 and not depthwise


def _exporter(model: ir.Model) -> str:
    dynamo = any(key.startswith("pkg.torch") for node in model.graph for key in node.metadata_props)
    return f"{model.producer_name or 'unknown'}{' dynamo' if dynamo else ''}"


def _held(pruned: oc.Compressed) -> tuple[tuple[str, int], ...]:
    """What held channels back, most frequent first: nodes without a rule, layers by other reasons."""
    held = Counter(f"no rule for {operator}" for operator in pruned.unknown.values())
    for reason in pruned.plan.kept.values():
        if reason != "the network's output" and "no rule for" not in reason:
            held[re.sub(r" \('[^']*'\)", "", reason)] += 1
    return tuple(held.most_common())


def _markdown(rows: Sequence[Row]) -> str:
    done = [row for row in rows if not row.failure]
    compared = [row for row in done if row.error is not None]
    exact = [row for row in compared if row.error <= EXACT]
    lines = [
        "# Coverage",
        "",
        f"What `prune --ratio {RATIO:g}` and `decompose --rank {RANK}` make of networks with random weights.",
        "`make coverage` writes this page. Nothing here says what accuracy would be left.",
        "",
        f"- {len(rows)} networks, {len(rows) - len(done)} of them failed.",
        f"- {len(compared)} were pruned, {len(exact)} of them exactly (error at most {EXACT:g}).",
    ]
    if shares := [_share(row) for row in done if row.filters[1]]:
        lines.append(
            f"- Median share of filters that may go: {100 * statistics.median(shares):.0f} %; all of them in"
            f" {sum(share == 1 for share in shares)} networks, none in {sum(share == 0 for share in shares)}."
        )
    lines += [
        "",
        "*filters*: of the convolutions, without depthwise ones, which go with their channels. *prunable*:",
        "the share of them in layers that may lose some; layers that make the outputs may not. *error*: the",
        "largest difference of an output to the original in which the readers of removed channels read",
        "zero, in standard deviations of that output; ‡: where the oracle cannot follow a channel to its",
        "readers, to the original in which removed channels are multiplied by zero. *s*: seconds to read,",
        "simplify and prune.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---:|" * (len(COLUMNS) - 3) + "---|",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _cells(row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    if not row.opset:
        return [row.network, *[""] * (len(COLUMNS) - 2), f"**failed**: {row.failure}"]
    error = "" if row.error is None else f"{row.error:.0e}{'' if row.oracle == ORACLE else ' ‡'}"
    reasons = [f"**failed**: {row.failure}"] if row.failure else []
    reasons += [f"{reason} ×{count}" for reason, count in row.held[:SHOWN]]
    if len(row.held) > SHOWN:
        reasons.append(f"{len(row.held) - SHOWN} more")
    return [
        row.network,
        row.opset,
        f"{row.filters[1]:,}",
        f"{100 * _share(row):.0f} %" if row.filters[1] else "",
        *(f"{macs / 1e6:,.1f} M" for macs in row.macs),
        f"**{error}**" if row.error is not None and not row.error <= EXACT else error,
        f"{row.seconds:.1f}",
        "; ".join(reasons),
    ]


def _share(row: Row) -> float:
    return row.filters[0] / row.filters[1]


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


if __name__ == "__main__":
    main()
