"""What is compressed: a network that was fine-tuned to a small task, and the task's images in three parts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

import onnxcompress as oc
from benchmarks.paper.settings import Settings
from models.digits import SHIPPED
from models.digits_data import load_digits_parts
from onnxcompress import preprocessing
from onnxcompress.data import Data, open_data, pick
from onnxcompress.model import refresh
from onnxcompress.progress import Progress, within
from onnxcompress.shapes import concrete_shapes

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
FLOWERS = SHARED / "images" / "flowers17"
NETWORKS = {"googlenet": "bvlc_googlenet", "squeezenet": "squeezenet_v1.0", "alexnet": "bvlc_alexnet"}
"""Folders of ../shared/data/models, as far as they are there."""

HELD_BACK = 8
"""One of so many training images of every class is kept for validation."""
TESTED = 5
"""One of so many images is a test image where the data does not say which are."""


@dataclass(frozen=True)
class Task:
    """A network for a task, before any compression.

    Attributes:
        name: of the network.
        model: fine-tuned to the task.
        train: to train on and, without labels, to calibrate on.
        validation: to choose the best epoch by.
        test: for the figures that are reported, and nothing else.
    """

    name: str
    model: ir.Model
    train: Data
    validation: Data
    test: Data


def digits() -> Task:
    """The network that ships with the project, which needs no fine-tuning."""
    parts = {name: Data(f"digits/{name}", *part) for name, part in load_digits_parts().items()}
    model = oc.load(SHIPPED)
    return Task("digits", model, parts["train"], parts["calibration"], parts["test"])


def weights_of(name: str) -> Path | None:
    """The file with the weights of a known network, where it is there."""
    return next((SHARED / "models" / NETWORKS[name]).glob("*.caffemodel"), None)


def given(names: list[str], model: Path | None) -> Iterator[tuple[str, ir.Model]]:
    """Networks to fine-tune: a user's, or the known ones that are there."""
    if model is not None:
        yield model.stem, oc.load(model)
        return
    for name in names:
        if (weights := weights_of(name)) is not None:
            yield name, oc.import_caffe(weights.parent / "deploy.prototxt", weights)


def parts_of(folder: Path) -> tuple[Data, Data, Data]:
    """Images for training, validation and test; the last are those in ``test/`` where there is such."""
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        rest, test = open_data(folder / "train"), open_data(folder / "test")
    else:
        rest, test = held_back(open_data(folder), TESTED)
    train, validation = held_back(rest, HELD_BACK)
    return train, validation, test


def held_back(data: Data, share: int) -> tuple[Data, Data]:
    """The data without one of `share` samples of every class, and those.

    Raises:
        InputError: when the data has no labels.
    """
    if data.labels is None:
        raise oc.InputError(f"{data.name}: give a folder with one folder of images per class")
    order = np.argsort(data.labels, kind="stable")
    position = np.empty(len(order), np.int64)
    starts = np.searchsorted(data.labels[order], data.labels[order])
    position[order] = np.arange(len(order)) - starts
    back = position % share == share - 1
    return pick(data, np.flatnonzero(~back)), pick(data, np.flatnonzero(back))


def at_side(model: ir.Model, side: int) -> ir.Model:
    """The network for smaller images: pools over the whole map stay such, preprocessing shrinks alike."""
    shapes = concrete_shapes(model)
    result = model.clone()
    (value,) = result.graph.inputs
    assert value.shape is not None
    before = value.shape[2]
    assert isinstance(before, int)
    for node in result.graph:
        if node.op_type == "AveragePool" and node.inputs[0] is not None:
            whole = shapes[str(node.inputs[0].name)][2:]
            if tuple(node.attributes["kernel_shape"].as_ints()) == whole:
                node.op_type = "GlobalAveragePool"
                node.attributes.clear()
    value.shape = ir.Shape([value.shape[0], value.shape[1], side, side])
    steps = preprocessing.read(result)
    if steps is not None and steps.resize is not None:
        resize = tuple(round(old * side / before) for old in steps.resize)
        crop = None if steps.crop is None else (side, side)
        preprocessing.attach(result, replace(steps, resize=resize, crop=crop))
    return refresh(result)


def fine_tuned(
    name: str, model: ir.Model, folder: Path, settings: Settings, kept: Path, progress: Progress
) -> Task:
    """The network with a new classifier for the classes of a folder; read from the disk where it was kept.

    Args:
        name: of the network.
        model: trained for another task.
        folder: of the images.
        settings: how long to train, and at which size.
        kept: folder for the result.
        progress: called with (what is done, steps done, steps in all).
    """
    train, validation, test = parts_of(folder)
    network, checkpoint = kept / "task.onnx", kept / "task.checkpoint"
    if not network.exists():
        assert train.labels is not None
        found = oc.finetune(
            model if settings.side is None else at_side(model, settings.side),
            train,
            labels=True,
            validation=validation,
            new_head=int(train.labels.max()) + 1,
            epochs=settings.task_epochs,
            recipe=oc.Recipe(batch=settings.batch),
            checkpoint_file=checkpoint,
            resume=True,
            progress=within(progress, "fine-tuning to the task"),
        )
        oc.save(found.model, network)
    checkpoint.unlink(missing_ok=True)
    return Task(name, oc.load(network), train, validation, test)
