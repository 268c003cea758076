"""The verb that turns a Caffe network into ONNX."""

from pathlib import Path
from typing import Annotated

import typer

import onnxcompress as verbs
from onnxcompress.cli.options import Output, numbers, size
from onnxcompress.cli.terminal import Printed, show
from onnxcompress.model import check_output, save
from onnxcompress.preprocessing import Preprocessing
from onnxcompress.report.tables import millions


def import_caffe(
    prototxt: Annotated[
        Path, typer.Argument(help="Network definition, deploy.prototxt.", show_default=False)
    ],
    caffemodel: Annotated[Path, typer.Argument(help="Its weights.", show_default=False)],
    output: Output,
    *,
    channel_order: Annotated[
        str, typer.Option(help="Order of the input's channels: BGR, RGB, GRAY.")
    ] = "BGR",
    mean: Annotated[
        str, typer.Option(help="Subtracted from pixels in 0…255; one or one per channel.")
    ] = "104,117,123",
    scale: Annotated[str, typer.Option(help="Multiplied after that; one or one per channel.")] = "1",
    resize: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH to which images are warped, or none.")
    ] = "256x256",
    crop: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH cut from the centre, or input (the network's).")
    ] = "input",
    printed: Printed,
) -> None:
    """Turn a Caffe network into ONNX.

    It computes the same, and how its images are prepared goes into the file's metadata.
    """
    check_output(output, prototxt, caffemodel)
    preprocessing = Preprocessing(
        channel_order=channel_order,  # type: ignore[arg-type]  # checked there
        mean=numbers("mean", mean),
        scale=numbers("scale", scale),
        resize=size("resize", resize, "none"),
        crop=size("crop", crop, "input"),
    )
    model = verbs.import_caffe(prototxt, caffemodel, preprocessing=preprocessing)
    save(model, output)
    total = verbs.cost(model)
    show(
        {"output": str(output), "params": total.params, "macs": total.macs, "layers": len(total.layers)},
        [f"{output}: {millions(total.params)} parameters, {millions(total.macs)} MACs"],
        printed,
    )
