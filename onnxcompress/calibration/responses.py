"""What layers give at sampled positions, computed in one pass over the data and kept on the disk."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.calibration.inside import values_inside
from onnxcompress.calibration.patches import patches, per_sample
from onnxcompress.calibration.samples import Samples
from onnxcompress.layers import FactorLayer
from onnxcompress.progress import Steps


class Responses:
    """Responses of layers, batch by batch, at the positions of `patches` with the seed (layer, batch).

    Layers are numbered as they are given. The files go when this does.

    Args:
        model: the network.
        layers: of it; each without `patches.obstacle`.
        samples: what it is run on.
        progress: called with (samples done, samples in all).
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[FactorLayer],
        samples: Samples,
        progress: Steps | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="onnxcompress-")
        self._batches = 0
        weights = [
            layer.weight.reshape(layer.groups, layer.sides[0], -1).astype(np.float32).swapaxes(1, 2)
            for layer in layers
        ]
        for batch, (places, values) in enumerate(
            values_inside(model, [layer.reads for layer in layers], samples)
        ):
            for number, layer in enumerate(layers):
                count = per_sample(layer, len(samples))
                y = patches(layer, values[layer.reads], count, (number, batch)) @ weights[number]
                if (bias := layer.bias) is not None:
                    y += bias.reshape(layer.groups, 1, -1).astype(np.float32)
                with self._file(number).open("ab") as file:
                    np.save(file, y)
            self._batches += 1
            if progress is not None:
                progress(int(places[-1]) + 1, len(samples))

    def of(self, number: int) -> Iterator[NDArray[np.float32]]:
        """Those of a layer, (groups, n, M / groups) of each batch."""
        with self._file(number).open("rb") as file:
            for _ in range(self._batches):
                yield np.load(file)

    def _file(self, number: int) -> Path:
        return Path(self._folder.name) / str(number)
