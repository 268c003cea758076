"""Running a network from front to back in stages, so that its weights can be changed on the way.

No layer of a stage reads what another one of it gives, so that each sees what those before it have become.
What has been computed before a stage is kept on the disk, and the rest of the network goes on from there.
"""

import math
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.calibration.samples import Samples, batched, fed
from onnxcompress.layers import FactorLayer
from onnxcompress.lrn import lrn_nodes, rewrite_lrn
from onnxcompress.runtime import Runnable, run, session
from onnxcompress.shapes import concrete_shapes

DISK = 4 * 2**30
"""Bytes of activations that may be kept; stages before which there are more start from an earlier one."""

Values = dict[str, np.ndarray]


class Stages:
    """A network in stages, and the activations before the one it has got to.

    Attributes:
        layers: of each stage, in the order of the network.
        batches: places of their samples.
        rows: of each, with what fills it up.
    """

    def __init__(self, model: ir.Model, layers: Sequence[FactorLayer], samples: Samples) -> None:
        """Take apart a network; its weights may change later, its nodes may not."""
        self.model, self.samples = model, samples
        shapes = concrete_shapes(model.clone())
        levels = _levels(model, layers)
        used = sorted({levels[layer.node.outputs[0]] for layer in layers})
        self.stage_of = {value: bisect_right(used, level) for value, level in levels.items()}
        self._last_use: dict[ir.Value, int] = {}
        for node in model.graph:
            stage = max((self.stage_of[value] for value in node.outputs), default=0)
            for value in _read(node):
                self._last_use[value] = max(stage, self._last_use.get(value, 0))
        self.layers: list[list[FactorLayer]] = [[] for _ in used]
        for layer in layers:
            self.layers[self.stage_of[layer.node.outputs[0]] - 1].append(layer)
        self._sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="onnxcompress-")
        self._whole = session(model)
        read = list(batched(samples, self._whole))
        self.batches, self.rows = [places for places, _ in read], [len(rows) for _, rows in read]
        self._known = [str(value.name) for value in model.graph.inputs]
        self._types: dict[str, np.dtype] = {}
        self._kept: int | None = None

    def before(self, stage: int, names: Sequence[str]) -> Iterator[Values]:
        """Batch by batch, values that are computed up to a stage; those that its later run needs are kept.

        Args:
            stage: from 0; not smaller than at the last call.
            names: of the values.
        """
        border = self._border(stage)
        keep = len(self.samples) * sum(self._sizes.get(name, 0) for name in border) <= DISK
        wanted = list(dict.fromkeys([*names, *(border if keep else [])]))
        computed = [name for name in wanted if name not in self._known]
        runnable = session(self._part(computed)) if computed else None
        for number, known in enumerate(self._inputs()):
            values = dict(known)
            if runnable is not None:
                values |= _run(runnable, known, computed)
            if keep:
                with self._file(stage, number).open("wb") as file:
                    for name in border:
                        np.save(file, values[name])
                        self._types[name] = values[name].dtype
            yield {name: values[name] for name in names}
        if keep:
            if self._kept is not None and self._kept != stage:
                for number in range(len(self.batches)):
                    self._file(self._kept, number).unlink()
            self._known, self._kept = border, stage

    def rest(self, names: Sequence[str]) -> Iterator[Values]:
        """Batch by batch, values that are computed from what is kept with the weights as they are now."""
        computed = [name for name in names if name not in self._known]
        runnable = session(self._part(computed))
        for known in self._inputs():
            yield known | _run(runnable, known, computed)

    def _part(self, names: Sequence[str]) -> ir.Model:
        """The part of the network that computes these values from those that are kept."""
        graph = ir.convenience.extract(self.model.graph, self._known, names)
        graph.opset_imports.update(self.model.graph.opset_imports)
        functions = [function.clone() for function in self.model.functions.values()]
        part = ir.Model(graph, ir_version=self.model.ir_version, functions=functions)
        part = rewrite_lrn(part, lrn_nodes(part))  # LRN nodes are slow
        for value in part.graph.inputs:
            if str(value.name) in self._types:  # inference does not know those of all operators
                value.dtype = ir.DataType.from_numpy(self._types[str(value.name)])
            if value.shape is not None:
                value.shape = ir.Shape([None] * len(value.shape))
        return part

    def _inputs(self) -> Iterator[Values]:
        if self._kept is None:
            for _, feeds in fed(self.samples, self._whole):
                yield dict(feeds)
        else:
            for number in range(len(self.batches)):
                with self._file(self._kept, number).open("rb") as file:
                    values = {name: np.load(file) for name in self._known}
                yield values

    def _file(self, stage: int, batch: int) -> Path:
        return Path(self._folder.name) / f"{stage}-{batch}"

    def _border(self, stage: int) -> list[str]:
        return [
            str(value.name)
            for value, found in self.stage_of.items()
            if found <= stage and (self._last_use.get(value, 0) > stage or value.is_graph_output())
        ]


def _run(runnable: Runnable, known: Values, names: Sequence[str]) -> Values:
    feeds = {value.name: known[value.name] for value in runnable.get_inputs()}
    return dict(zip(names, run(runnable, feeds), strict=True))


def _levels(model: ir.Model, layers: Sequence[FactorLayer]) -> dict[ir.Value, int]:
    """The level of every value that is computed from the network's inputs, and of these (0).

    It is that of what the value is computed from, one more behind a layer. All applications of a layer have
    the level of the last: a pass over the network finds it, the next one takes the others there, and what
    follows from them. So there are as many passes as it takes if each of these layers leads to the next.
    Weights that are applied to what they gave would need more and more; they keep the order of the network.
    """
    applied = {each.node: number for number, layer in enumerate(layers) for each in layer.applications}
    last = [0] * len(layers)
    for _ in range(1 + sum(len(layer.applications) > 1 for layer in layers)):
        levels = dict.fromkeys(model.graph.inputs, 0)
        for node in model.graph:
            level = max((levels.get(value, 0) for value in _read(node)), default=0)
            if node in applied:
                number = applied[node]
                last[number] = max(level, last[number])
                level = last[number] + 1
            levels |= dict.fromkeys(node.outputs, level)
    return levels


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, the branches of an If and the bodies of loops included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _read(inner)
