"""How close a network stays to the one it came from, without labels."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.calibration.samples import Samples, fed
from onnxcompress.measure.damage import Damage
from onnxcompress.outputs import are_scores, grades, judged
from onnxcompress.runtime import own, run, session


@dataclass(frozen=True)
class Closeness:
    """Of two networks' outputs on the same samples.

    Attributes:
        damage: mean of `damage` over the samples.
        agreement: share of the samples with the same best class; None without class scores.
        classes: number of classes that are the best of some sample; 0 without class scores.
    """

    damage: float
    agreement: float | None
    classes: int = 0

    @property
    def kept(self) -> float:
        """The agreement; of networks without classes, the share of the outputs' variance that is right."""
        return self.agreement if self.agreement is not None else max(0.0, 1 - self.damage)


def closeness(original: ir.Model, network: ir.Model, samples: Samples) -> Closeness:
    """Run both networks over the samples."""
    first, second = session(grades(original)), session(grades(network))
    damage, same, best = Damage(samples.values), [], set[int]()
    for places, feeds in fed(samples, first):
        a, b = (
            [own(y, len(places), len(next(iter(feeds.values())))) for y in judged(run(runnable, feeds))]
            for runnable in (first, second)
        )
        damage.add(a, b)
        scores = next((pair for pair in zip(a, b, strict=True) if are_scores(pair[0].shape)), None)
        if scores is not None and not samples.values:
            classes, others = (each.reshape(each.shape[:2]).argmax(axis=1) for each in scores)
            finite = np.isfinite(scores[1]).reshape(len(others), -1).all(axis=1)
            same.append(finite & (classes == others))
            best.update(classes.tolist())
    agreement = float(np.concatenate(same).mean()) if same else None
    return Closeness(float(damage.of_samples().mean()), agreement, len(best))
