"""Training a compressed network on its calibration samples, after the original or by labels."""

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcompress.calibration.samples import Parts
from onnxcompress.plan import Plan
from onnxcompress.preprocessing import Preprocessing
from onnxcompress.progress import Progress
from onnxcompress.training.finetuning import Finetuned, finetune, for_network
from onnxcompress.training.trainer import Recipe


@dataclass(frozen=True)
class Training:
    """What training a stage gets.

    Attributes:
        epochs: passes over the samples. After the responses of layers, on 800 images, GoogLeNet at a third of
            its MACs was still getting better on others with more steps (by Muon, divergence 0.161 before,
            0.135 after 6 epochs, 0.123 after 16). As many as should keep that, with 1000 images, within an
            hour on two slow cores (docs/training.md).
        recipe: how to train.
    """

    epochs: float = 12
    recipe: Recipe = field(default_factory=Recipe)


def trained(
    original: ir.Model,
    network: ir.Model,
    parts: Parts,
    training: Training,
    plan: Plan,
    *,
    preprocessing: Preprocessing | None = None,
    mirror: bool = True,
    progress: Progress | None = None,
) -> Finetuned:
    """Train after what the original's layers give; with labels, by these and by its class probabilities.

    Samples for fitting are trained on; those for choosing tell the best epoch.

    Args:
        original: the teacher.
        network: to train; not touched.
        parts: the samples.
        training: how.
        plan: that led from the original to the network.
        preprocessing: from image to array; None takes what the network carries.
        mirror: see `finetune`.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: as `finetune`.
    """
    data = parts.fit.data
    return finetune(
        network,
        data,
        teacher=original,
        labels=data.labels is not None,
        validation=parts.choose.data,
        plan=plan if data.labels is None else None,
        epochs=training.epochs,
        recipe=for_network(training.recipe, network),
        mirror=mirror,
        preprocessing=preprocessing,
        values=parts.choose.values,
        progress=progress,
    )


def in_words(result: Finetuned) -> str:
    """What training did, on one line."""
    validations = {epoch.number: epoch.validation for epoch in result.curve}
    before, after = validations.get(0), validations.get(result.best)
    count = len(result.curve) - 1
    words = f"{count} epoch{'s' * (count != 1)}, rate {result.rate:.2g}, "
    words += f"the weights after epoch {result.best}"
    if before is None or after is None:
        return words
    if before.top1 is not None and after.top1 is not None:
        words += f": top-1 {100 * before.top1:.1f} -> {100 * after.top1:.1f} %"
    elif before.damage is not None and after.damage is not None:
        words += f": damage {before.damage:.3g} -> {after.damage:.3g}"
    return f"{words} on the samples for choosing"
