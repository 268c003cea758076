"""Second moments of what every layer reads, streamed through the network in one pass over the data."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxcompress.calibration.inside import values_inside
from onnxcompress.calibration.patches import fitted_layers, patches, per_sample, too_wide
from onnxcompress.calibration.samples import Samples
from onnxcompress.drafts import replacing
from onnxcompress.errors import InputError
from onnxcompress.layers import FactorLayer, reads
from onnxcompress.model import check_output
from onnxcompress.progress import Steps
from onnxcompress.threads import ahead, gram
from onnxcompress.weights import weights_of

Array = NDArray[np.float64]

ARRAYS = ("mean", "covariance", "zeros", "rows")
"""Of `Moments`, as they are kept in a file."""


@dataclass(frozen=True)
class Moments:
    """Of the patches that one layer reads, by group.

    Attributes:
        count: patches seen.
        mean: shape (groups, d) with d = C / groups · kernel.
        covariance: E[(x − mean)(x − mean)ᵀ], shape (groups, d, d), float32, shrunk toward its diagonal by
            d / (d + 10 · count): few patches show less correlation than they seem to (Ledoit and Wolf 2004).
            Of a layer that is too wide for it (see `patches.too_wide`) of shape (groups, 0, 0).
        zeros: share of values ≤ 0, shape (groups, d).
        rows: of such a layer the patches less their mean, shape (groups, count, d), float32; of others none.
    """

    count: int
    mean: Array
    covariance: NDArray[np.float32]
    zeros: Array
    rows: NDArray[np.float32]


def shrinkage(width: int, count: int) -> float:
    """Share by which a covariance of so many patches is drawn to its diagonal."""
    return width / (width + 10 * count)


class Accumulator:
    """Moments of patches that arrive in parts. The first part's mean is taken off all, for accuracy.

    Args:
        wide: whether the patches themselves are kept instead of their products.
    """

    def __init__(self, wide: bool) -> None:
        self.count = 0
        self.parts: list[NDArray[np.float32]] | None = [] if wide else None

    def add(self, x: NDArray[np.float32]) -> None:
        """Take in patches, shape (groups, n, d)."""
        if not self.count:
            groups, _, width = x.shape
            self.shift = x.mean(axis=1, keepdims=True)
            self.first, self.zeros = np.zeros((groups, width)), np.zeros((groups, width))
            size = 0 if self.parts is not None else width
            self.second: NDArray[np.float32] = np.zeros((groups, size, size), np.float32)
        self.count += x.shape[1]
        self.zeros += (x <= 0).sum(axis=1)
        x = x - self.shift
        self.first += x.sum(axis=1, dtype=np.float64)
        if self.parts is not None:
            self.parts.append(x)
        else:
            for second, part in zip(self.second, x, strict=True):
                second += gram(part)

    def moments(self) -> Moments:
        """Those of all patches so far."""
        mean, zeros = self.first / self.count, self.zeros / self.count
        if self.parts is not None:
            rows = np.concatenate(self.parts, axis=1) - mean[:, None].astype(np.float32)
            return Moments(self.count, mean + self.shift[:, 0], self.second, zeros, rows)
        covariance: NDArray[np.float32] = np.asarray(
            self.second / self.count - mean[:, :, None] * mean[:, None, :], np.float32
        )
        diagonal = np.einsum("gii->gi", covariance).copy()
        covariance *= 1 - shrinkage(covariance.shape[1], self.count)
        np.einsum("gii->gi", covariance)[:] = diagonal
        none = np.zeros((len(mean), 0, mean.shape[1]), np.float32)
        return Moments(self.count, mean + self.shift[:, 0], covariance, zeros, none)


def statistics(
    model: ir.Model, layers: list[FactorLayer], samples: Samples, progress: Steps | None = None
) -> dict[str, Moments]:
    """Moments of the patches that each layer reads.

    Args:
        model: a simplified network.
        layers: of it; those that cannot be fitted to data (`patches.obstacle`) are left out.
        samples: what it is run on, once.
        progress: called with (samples done, samples in all).

    Returns:
        by layer. Memory: Σ groups · d² numbers and two batches of activations, however many samples.
    """
    wanted = fitted_layers(layers)
    if not wanted:
        return {}
    found = {layer.name: Accumulator(bool(too_wide(layer))) for layer in wanted}
    for places, values in ahead(values_inside(model, reads(wanted), samples)):
        for number, layer in enumerate(wanted):
            counts, seed = per_sample(layer, len(samples)), (number, int(places[0]))
            found[layer.name].add(patches(layer, values, len(places), counts, seed))
        if progress is not None:
            progress(int(places[-1]) + 1, len(samples))
    return {name: accumulator.moments() for name, accumulator in found.items()}


def kept_statistics(
    path: str | Path | None,
    model: ir.Model,
    layers: list[FactorLayer],
    samples: Samples,
    progress: Steps | None = None,
) -> dict[str, Moments]:
    """The same, from a file where they are kept; written to it where they are not.

    Raises:
        InputError: when the file is of another network or other samples, or is none of this kind.
    """
    if path is None:
        return statistics(model, layers, samples, progress)
    check_output(path)
    path, key = Path(path), _key(model, samples)
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["key"]) != key:
                    raise InputError(
                        f"{path}: statistics of another network or other data; give another file"
                    )
                return {
                    str(name): Moments(
                        int(file[f"{index}.count"]), *(file[f"{index}.{each}"] for each in ARRAYS)
                    )
                    for index, name in enumerate(file["layers"])
                }
        except InputError:
            raise
        except Exception:  # a damaged file may raise about anything
            raise InputError(f"{path}: not a file of statistics: give the name of a new one") from None
    found = statistics(model, layers, samples, progress)
    arrays: dict[str, np.ndarray] = {"key": np.array(key), "layers": np.array(list(found))}
    for index, moments in enumerate(found.values()):
        arrays[f"{index}.count"] = np.array(moments.count)
        arrays |= {f"{index}.{each}": getattr(moments, each) for each in ARRAYS}
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return found


def _key(model: ir.Model, samples: Samples) -> str:
    """Tells networks and data apart by their content."""
    digest = hashlib.sha256()
    for node in model.graph:
        digest.update(f"{node.op_type} {node.name} {sorted(map(str, node.attributes.values()))}".encode())
        for value in node.inputs:
            digest.update(f" {value.name if value is not None else ''}".encode())
            if (array := weights_of(value)) is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
    for name, array in samples.arrays.items():
        digest.update(name.encode())
        for number in samples.chosen:
            digest.update(np.ascontiguousarray(array[number]).tobytes())
    return f"{digest.hexdigest()} {len(samples)}"
