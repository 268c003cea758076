"""The verb that turns a Caffe network into ONNX."""

from pathlib import Path
from typing import Annotated

import typer

import onnxcompress as verbs
from onnxcompress.cli.options import Images, Output, changed
from onnxcompress.cli.terminal import Printed, show
from onnxcompress.model import check_output, save
from onnxcompress.preprocessing import attach
from onnxcompress.report.tables import millions


def import_caffe(
    prototxt: Annotated[
        Path, typer.Argument(help="Network definition, deploy.prototxt.", show_default=False)
    ],
    caffemodel: Annotated[Path, typer.Argument(help="Its weights.", show_default=False)],
    output: Output,
    *,
    images: Images,
    printed: Printed,
) -> None:
    """Turn a Caffe network into ONNX.

    It computes the same, and how its images are prepared goes into the file's metadata: as Caffe has it for
    ImageNet where the network takes images of three channels, with what the options change.
    """
    check_output(output, prototxt, caffemodel)
    model = verbs.import_caffe(prototxt, caffemodel)
    if (preprocessing := changed(model, images)) is not None:
        attach(model, preprocessing)
    save(model, output)
    total = verbs.cost(model)
    show(
        {"output": str(output), "params": total.params, "macs": total.macs, "layers": len(total.layers)},
        [f"{output}: {millions(total.params)} parameters, {millions(total.macs)} MACs"],
        printed,
    )
