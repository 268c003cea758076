"""The verbs that measure networks, one command each."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import onnxcompress as verbs
from onnxcompress import plots
from onnxcompress.cli.options import (
    Images,
    Limit,
    Model,
    RoundTo,
    Samples,
    Skip,
    Stats,
    Threads,
    Values,
    calibration_of,
    numbers,
    preprocessing_of,
)
from onnxcompress.cli.terminal import DONE, SHORT, Printed, progress_bar, show, stderr
from onnxcompress.drafts import write_text
from onnxcompress.errors import InputError
from onnxcompress.model import check_output, load
from onnxcompress.report.compressed import tradeoff_json, tradeoff_table
from onnxcompress.report.inspected import groups_table, inspection_json, inspection_table
from onnxcompress.report.measured import accuracy_table, latency_table, records


def inspect(
    model: Model,
    *,
    time: Annotated[bool, typer.Option("--time", help="Measure each layer in ONNX Runtime.")] = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="List the channels that are cut together.")
    ] = False,
    printed: Printed,
) -> None:
    """Show what each layer costs and what is tied.

    VBMF: the ranks that 'decompose' would take; a single one is that of a layer which it factors only with
    --include-pointwise or --include-gemm.

    'free': the layer's filters can go by themselves. 'tied to': they go together with another layer's.
    'kept': they cannot go, and why. Nothing: it has none of its own, as a depthwise convolution.
    """
    with progress_bar(printed) as advance:
        found = verbs.inspect(model, time=time, progress=advance)
    tables: list[Table | str] = [inspection_table(found)]
    if groups:
        tables.append(groups_table(found))
    for node, operator in found.unknown.items():
        tables.append(f"no pruning rule fits {operator} ('{node}'): what reaches it is kept whole")
    show(inspection_json(found), tables, printed)


def tradeoff(
    context: typer.Context,
    model: Model,
    *,
    data: Annotated[
        Path,
        typer.Option(help="Folder of images (labels are not used), .npz or .npy.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON to write.", show_default=False)],
    plot: Annotated[Path | None, typer.Option(help="PNG to draw.", show_default=False)] = None,
    kind: Annotated[str, typer.Option(help="Cost: macs, params or size (of the file).")] = "macs",
    shares: Annotated[str, typer.Option(help="Of the cost that may stay.")] = "0.8,0.65,0.5,0.4,0.3",
    round_to: RoundTo = 1,
    skip: Skip = [],  # noqa: B006
    stats: Stats = None,
    samples: Samples,
    printed: Printed,
) -> int:
    """Show how much is lost at which cost.

    Builds a network for each share, as 'compress --target' would, and measures it on samples that nothing was
    fitted to or chosen by.
    """
    inputs = [model, data, *([] if stats is None else [stats])]
    check_output(output, *inputs)
    if plot is not None:
        check_output(plot, *inputs, output)
        plots.check_installed()
        if plot.suffix.lower() != ".png":
            raise InputError(f"{plot}: what is drawn is a PNG: give a name that ends in .png")
    network = load(model)
    calibration = calibration_of(context, network, data, samples, printed, stats)
    assert calibration is not None
    with progress_bar(printed) as advance:
        points = verbs.tradeoff(
            network,
            data=calibration,
            kind=kind,
            shares=numbers("shares", shares),
            round_to=round_to,
            skip=skip,
            progress=advance,
        )
    content = tradeoff_json(points)
    write_text(output, json.dumps(content, indent=1) + "\n")
    if plot is not None:
        plots.tradeoff(points, kind, plot)
    short = [f"short of what was asked: {point.shortfall}" for point in points if point.shortfall]
    if short and printed.quiet and not printed.as_json:
        stderr.print(*short, sep="\n")
    show(content, [tradeoff_table(points), *short], printed)
    return SHORT if short else DONE


def evaluate(
    model: Model,
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with labels.csv or a folder per class, or .npz with x and y.", show_default=False
        ),
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Network to compare with, most often the original.")
    ] = None,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(help="Samples per run.", min=1)] = 16,
    values: Values = False,
    images: Images,
    printed: Printed,
) -> None:
    """Measure accuracy and output error.

    Top-1 and top-5 on labelled data; with --reference, how close the outputs are to those of that network.
    """
    network = load(model)
    preprocessing = preprocessing_of(network, data, images, printed)
    with progress_bar(printed) as advance:
        found = verbs.evaluate(
            network,
            data,
            reference=None if reference is None else load(reference),
            preprocessing=preprocessing,
            batch=batch,
            limit=limit,
            values=values,
            progress=advance,
        )
    show(asdict(found), [accuracy_table(found)], printed)


def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files; ratios are to the first.", show_default=False)
    ],
    *,
    threads: Threads = 0,
    batch: Annotated[int, typer.Option(help="Samples per run.", min=1)] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs of each network.", min=1)] = 40,
    printed: Printed,
) -> None:
    """Time networks against each other.

    In ONNX Runtime on the CPU, in turns; ratios are to the first one.
    """
    networks = [load(model) for model in models]
    with progress_bar(printed) as advance:
        found = verbs.bench(
            networks,
            threads=threads,
            batch=batch,
            runs=runs,
            progress=advance,
        )
    show({"networks": records(found)}, [latency_table(found)], printed)
