"""Values inside a network, batch by batch, in one pass over the data."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.calibration.samples import Samples, fed
from onnxcompress.lrn import lrn_nodes, rewrite_lrn
from onnxcompress.runtime import own, run, session


def values_inside(
    model: ir.Model, names: Sequence[str], samples: Samples
) -> Iterator[tuple[NDArray[np.int64], dict[str, np.ndarray]]]:
    """Of every batch the places of its samples, and these values, by name.

    Memory: one batch of all of them.
    """
    wanted = list(dict.fromkeys(names))
    runnable = session(revealing(rewrite_lrn(model, lrn_nodes(model)), wanted))  # LRN nodes are slow
    for places, feeds in fed(samples, runnable):
        rows = len(next(iter(feeds.values())))
        found = zip(wanted, run(runnable, feeds), strict=True)
        yield places, {name: own(value, len(places), rows) for name, value in found}


def revealing(model: ir.Model, names: list[str]) -> ir.Model:
    """A copy of a network whose outputs are these values."""
    copy = model.clone()
    values = {v.name: v for v in (*copy.graph.inputs, *(v for node in copy.graph for v in node.outputs))}
    copy.graph.outputs.clear()
    for name in names:
        value = values[name]
        if value.is_graph_input():  # ONNX Runtime gives no input back as an output
            node = ir.node("Identity", [value])
            node.outputs[0].name = f"{name}/given"
            copy.graph.append(node)
            value = node.outputs[0]
        copy.graph.outputs.append(value)
    return copy
