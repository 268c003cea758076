"""Options that several commands have, and what is read from them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import onnx_ir as ir
import typer

from onnxcompress.calibration.given import Calibration
from onnxcompress.cli.terminal import Printed, stderr
from onnxcompress.errors import InputError
from onnxcompress.model import check_output
from onnxcompress.preprocessing import CHANNELS, Preprocessing, in_words, read

Model = Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="File to write.", show_default=False)]
Ratio = Annotated[float, typer.Option(help="Share of the filters to remove, in [0, 1).")]
Criterion = Annotated[
    str,
    typer.Option(
        help="What tells which filters matter least: l1, l2, fpgm, random; with --data also apoz, "
        "activation, reconstruction, taylor. Default: reconstruction with --data, else l2.",
        show_default=False,
    ),
]
Scope = Annotated[
    str, typer.Option(help="The ratio is that of every layer (layer) or of the network (global).")
]
Rank = Annotated[
    str, typer.Option(help="Rule for the ranks: vbmf, vbmf:FACTOR, energy:SHARE or fraction:SHARE.")
]
RoundTo = Annotated[int, typer.Option(help="Keep filters and ranks in multiples of this.")]
Skip = Annotated[
    list[str],
    typer.Option(help="Glob of layers that keep their filters and are not factored; may be repeated."),
]
IncludePointwise = Annotated[bool, typer.Option("--include-pointwise", help="Factor 1×1 convolutions too.")]
IncludeGemm = Annotated[bool, typer.Option("--include-gemm", help="Factor fully connected layers too.")]
Seed = Annotated[int, typer.Option(help="Seed of the random criterion and of training.", min=0)]
CalibrationData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder of images, .npz or .npy: weights are fitted to these. Labels are not needed.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Take so many samples, evenly spread.", min=1)]
Stats = Annotated[
    Path | None, typer.Option(help="File to keep the statistics of the network on the data in.")
]
Labels = Annotated[
    bool, typer.Option("--labels", help="Taylor importance and training use the data's labels.")
]
Values = Annotated[
    bool, typer.Option("--values", help="Outputs (N, K) are numbers, not the scores of K classes.")
]
Mirror = Annotated[
    bool, typer.Option(help="Show images with left and right exchanged, too; not for text and the like.")
]
ChannelOrder = Annotated[
    str | None,
    typer.Option(
        help="How images are prepared, instead of what the file says: BGR, RGB or GRAY. Where the file says "
        "nothing and one of these five options is given, the others are as Caffe has them: BGR, mean "
        "104,117,123, scale 1, resized to 256x256 for a network that takes 224x224, others in proportion."
    ),
]
Mean = Annotated[
    str | None, typer.Option(help="Likewise: taken off pixels in 0…255; one, or one per channel.")
]
Scale = Annotated[str | None, typer.Option(help="Likewise: what is left times this; one or one per channel.")]
Resize = Annotated[str | None, typer.Option(help="Likewise: HEIGHTxWIDTH to warp images to, or none.")]
Crop = Annotated[
    str | None, typer.Option(help="Likewise: HEIGHTxWIDTH cut from the centre, or input (the network's).")
]
Target = Annotated[
    str,
    typer.Option(
        help="What may stay: macs=SHARE, params=SHARE or size=SHARE (of the file).", show_default=False
    ),
]
KeepAccuracy = Annotated[
    float | None,
    typer.Option(
        help="Look for the smallest network, down to a tenth of the MACs, that keeps this share of the "
        "top-1 choices. Counted on one in ten of the samples.",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help="joint: filters and ranks under one budget, the default with one; paper: --ratio, then --rank.",
        show_default=False,
    ),
]
Layers = Annotated[bool, typer.Option("--layers", help="Print a row per layer as well.")]
Threads = Annotated[int, typer.Option(help="Threads of ONNX Runtime; 0 takes all cores.", min=0, max=256)]


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images are prepared, where that is not as the network's file says."""

    channel_order: ChannelOrder = None
    mean: Mean = None
    scale: Scale = None
    resize: Resize = None
    crop: Crop = None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """How data that need no labels are read."""

    limit: Limit = None
    values: Values = False
    mirror: Mirror = True
    images: Images


OF_DATA = ("stats", "labels", "limit", "values", "mirror", *(each.name for each in fields(Images)))
"""Options that say how data are read and used."""


def refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse parameters of a command that were given and would change nothing.

    Raises:
        InputError: naming the option.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            given = context.params[str(parameter.name)]
            spelled = parameter.secondary_opts if given is False else parameter.opts
            raise InputError(f"{spelled[0]}: {why}")


def preprocessing_of(network: ir.Model, data: Path, images: Images, printed: Printed) -> Preprocessing | None:
    """What the options change of the preprocessing that a network carries; None where they change nothing.

    Where there are images to prepare, how they will be is said.
    """
    own = changed(network, images)
    if own is not None and data.is_file():
        raise InputError(f"{data}: preprocessing is for images; arrays are fed as they are")
    found = own or read(network)
    if found is not None and data.is_dir() and printed.tables:
        stderr.print(f"images: {in_words(found)}")
    return own


def changed(network: ir.Model, images: Images) -> Preprocessing | None:
    """The preprocessing that a network carries with what the options say; None where they say nothing."""
    changes: dict[str, Any] = {}
    if images.channel_order is not None:
        changes["channel_order"] = images.channel_order
    for name, text in (("mean", images.mean), ("scale", images.scale)):
        if text is not None:
            changes[name] = numbers(name, text)
    for name, text, none in (("resize", images.resize, "none"), ("crop", images.crop, "input")):
        if text is not None:
            changes[name] = size(name, text, none)
    if not changes:
        return None
    start = read(network) or Preprocessing(resize=_larger(network))
    if changes.get("channel_order") == "GRAY" and "mean" not in changes and len(start.mean) > 1:
        raise InputError("--mean: GRAY has one channel: give one number, 0 for none")
    return replace(start, **changes)


def _larger(network: ir.Model) -> tuple[int, int]:
    """The size from whose centre a network's input is cut: 256 where it takes 224, others in proportion."""
    dims = network.graph.inputs[0].shape or ()
    sides = [dim for dim in dims[1:] if isinstance(dim, int) and dim not in CHANNELS.values()]
    if len(sides) != 2:
        return 256, 256
    return round(sides[0] * 8 / 7), round(sides[1] * 8 / 7)


def calibration_of(
    context: typer.Context,
    network: ir.Model,
    data: Path | None,
    samples: Samples,
    printed: Printed,
    stats: Path | None = None,
    labels: bool = False,
) -> Calibration | None:
    """The data that the options name; None where they name none."""
    if data is None:
        refuse(context, OF_DATA, "says how --data are used, which is not given")
        return None
    if stats is not None:
        check_output(stats)
    return Calibration(
        data,
        preprocessing_of(network, data, samples.images, printed),
        limit=samples.limit,
        stats=stats,
        labels=labels,
        values=samples.values,
        mirror=samples.mirror,
    )


def numbers(option: str, text: str) -> tuple[float, ...]:
    """One number, or several with commas between."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--{option}: '{text}' is not a number or several with commas between") from None


def size(option: str, text: str, none: str) -> tuple[int, int] | None:
    """HEIGHTxWIDTH, or a word for none."""
    if text == none:
        return None
    try:
        height, width = (int(number) for number in text.lower().split("x"))
    except ValueError:
        raise InputError(f"--{option}: '{text}' is neither HEIGHTxWIDTH, as in 256x256, nor {none}") from None
    return height, width
