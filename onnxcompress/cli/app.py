"""The command line: what all commands have in common, and which there are."""

from typing import Annotated

import typer

import onnxcompress
from onnxcompress.cli.compressing import apply, compress, decompose, prune
from onnxcompress.cli.groups import ungrouped
from onnxcompress.cli.importing import import_caffe
from onnxcompress.cli.measuring import bench, evaluate, inspect, tradeoff
from onnxcompress.cli.terminal import guarded
from onnxcompress.cli.training import finetune

COMMANDS = (
    import_caffe,
    inspect,
    prune,
    decompose,
    compress,
    apply,
    tradeoff,
    finetune,
    evaluate,
    bench,
)
"""In the order of a user's way."""

app = typer.Typer(
    name="onnxcompress",
    help=(
        "Make an exported CNN smaller and faster, straight from its ONNX file: remove whole filters, factor "
        "what is left (Tucker-2; under a budget CP), and measure what was gained and lost.\n\n"
        "Start with 'onnxcompress inspect model.onnx', then with some hundred images of the kind that it is "
        "for:\n\n"
        "onnxcompress compress model.onnx -o small.onnx --data images/ --target macs=0.5"
    ),
    epilog="Exit code: 0 done, 1 done but short of what was asked, 2 bad input or usage.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(onnxcompress.__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Options before the command."""


for each in COMMANDS:
    name = each.__name__.replace("_", "-")
    app.command(name)(guarded(name, ungrouped(each)))
