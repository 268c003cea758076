"""Networks as commands read them, and what becomes of them."""

from pathlib import Path

import onnx_ir as ir

from onnxcompress.cli.terminal import DONE, SHORT, Printed, show, stderr
from onnxcompress.drafts import write_text
from onnxcompress.model import check_output, copy, load, save
from onnxcompress.plan import to_yaml
from onnxcompress.report.compressed import compressed_json, compressed_lines
from onnxcompress.report.tables import change
from onnxcompress.results import Compressed
from onnxcompress.runtime import runner
from onnxcompress.weights import files_of, fit_one_message


def read(source: Path, output: Path, *others: Path | None, write_plan: bool = True) -> ir.Model:
    """The network, once it is known that it can be run and that the outputs can be written.

    Args:
        source: of the network.
        output: to write.
        others: files that are read, too.
        write_plan: whether a plan is written beside the output.
    """
    inputs = [source, *(path for path in others if path is not None)]
    check_output(output, *inputs)
    network = load(source)
    for path in (output, _weights_of(output), *([_plan_of(output)] if write_plan else [])):
        check_output(path, *inputs, *files_of(network))
    runner(source)
    return network


def finish(
    result: Compressed,
    output: Path,
    layers: bool,
    printed: Printed,
    write_plan: bool = True,
) -> int:
    """Write a network and its plan, say what became of it, and give the exit code."""
    original = result.stages[0].model
    if len(result.stages) == 1:
        copy(original, output)
    else:
        save(result.model, output, original=original)
    plan = _plan_of(output)
    if write_plan:
        write_text(plan, to_yaml(result.plan))
    weights = [] if fit_one_message(result.model) else [_weights_of(output)]
    sizes = {
        stage: sum(file.stat().st_size for file in files)
        for stage, files in (("before", files_of(original)), ("after", [output, *weights]))
    }
    lines = compressed_lines(result, layers)
    if result.shortfall and printed.quiet and not printed.as_json:
        stderr.print(lines[-1])
    saved = change(sizes["before"], sizes["after"])
    line = f"{output}: {sizes['after'] / 1e6:.2f} MB, was {sizes['before'] / 1e6:.2f} MB"
    lines.append(line + (f" ({saved})" if saved else "") + (f"; plan in {plan}" if write_plan else ""))
    content = compressed_json(result) | {
        "output": str(output),
        "plan": str(plan) if write_plan else None,
        "file_bytes": sizes,
    }
    show(content, lines, printed)
    return SHORT if result.shortfall else DONE


def _plan_of(output: Path) -> Path:
    return output.with_name(f"{output.name.removesuffix('.onnx')}.plan.yaml")


def _weights_of(output: Path) -> Path:
    """The file beside a network that is too large for one."""
    return output.with_name(f"{output.name}.data")
