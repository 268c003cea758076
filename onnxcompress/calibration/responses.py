"""What layers give at sampled positions, computed in few passes over the data and kept on the disk."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.calibration.inside import values_inside
from onnxcompress.calibration.patches import patches, per_sample
from onnxcompress.calibration.samples import Samples
from onnxcompress.calibration.stages import DISK
from onnxcompress.layers import FactorLayer, reads
from onnxcompress.progress import Steps
from onnxcompress.threads import ahead


class Responses:
    """Responses of layers, batch by batch, at the positions of `patches` with the seed (layer, batch).

    Layers are numbered as they are given. As many as the disk has room for are computed in one pass. The
    files go when this does.

    Args:
        model: the network.
        layers: of it; each without `patches.obstacle`.
        samples: what it is run on.
        order: numbers of all layers, as they will be asked for.
        progress: called with (samples done, samples in all) in each pass.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[FactorLayer],
        samples: Samples,
        order: Sequence[int],
        progress: Steps | None = None,
    ) -> None:
        self._model, self._layers, self._samples, self._progress = model, layers, samples, progress
        self._order = list(order)
        self._folder = tempfile.TemporaryDirectory(prefix="onnxcompress-")
        self._kept: list[int] = []
        self._batches = 0

    def of(self, number: int) -> Iterator[NDArray[np.float32]]:
        """Those of a layer, (groups, n, M / groups) of each batch."""
        if number not in self._kept:
            self._compute_from(self._order.index(number))
        with self._file(number).open("rb") as file:
            for _ in range(self._batches):
                yield np.load(file)

    def _compute_from(self, place: int) -> None:
        """Of the layers from this place of the order on, in the place of those that are kept."""
        for number in self._kept:
            self._file(number).unlink()
        room, self._kept = DISK, []
        for number in self._order[place:]:
            layer = self._layers[number]
            room -= 4 * len(self._samples) * sum(per_sample(layer, len(self._samples))) * layer.shape[0]
            if room < 0 and self._kept:
                break
            self._kept.append(number)
        layers = {number: self._layers[number] for number in self._kept}
        weights = {
            number: layer.by_group.astype(np.float32).swapaxes(1, 2) for number, layer in layers.items()
        }
        self._batches = 0
        for places, values in ahead(values_inside(self._model, reads(layers.values()), self._samples)):
            for number, layer in layers.items():
                counts, seed = per_sample(layer, len(self._samples)), (number, self._batches)
                y = patches(layer, values, len(places), counts, seed) @ weights[number]
                if (bias := layer.bias) is not None:
                    y += bias.reshape(layer.groups, 1, -1).astype(np.float32)
                with self._file(number).open("ab") as file:
                    np.save(file, y)
            self._batches += 1
            if self._progress is not None:
                self._progress(int(places[-1]) + 1, len(self._samples))

    def _file(self, number: int) -> Path:
        return Path(self._folder.name) / str(number)
