"""What the verbs give back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcompress.measure.closeness import Closeness
from onnxcompress.measure.cost import Cost
from onnxcompress.plan import Plan
from onnxcompress.training.finetuning import Finetuned


@dataclass(frozen=True)
class Stage:
    """A network on its way.

    Attributes:
        name: ``original``, ``pruned`` (``rewritten`` when nothing was), ``decomposed``, ``trained``; or
            ``simplified`` where that was enough.
        model: the network.
        cost: of it.
        training: what training did; None for other stages.
    """

    name: str
    model: ir.Model
    cost: Cost
    training: Finetuned | None = None


@dataclass(frozen=True)
class Fitted:
    """What calibration samples were used for, each for one purpose.

    Attributes:
        fit: number of samples that weights were fitted to.
        choose: number of those that ranks and filters were chosen by.
        report: number of those that nothing was, on which `closeness` was measured.
        closeness: of the result to the original.
        unfitted: layers whose weights could not be fitted, with the reason.
        expected_damage: of the plan, before the repair, as `Closeness.damage`; None without a target.
    """

    fit: int
    choose: int
    report: int
    closeness: Closeness
    unfitted: Mapping[str, str] = field(default_factory=dict)
    expected_damage: float | None = None


@dataclass(frozen=True)
class Point:
    """One network of a trade-off.

    Attributes:
        share: of the original's cost that was asked for.
        macs, params: that it has.
        fitted: what was measured of it.
        shortfall: what was asked for and could not be done; empty when all was.
    """

    share: float
    macs: int
    params: int
    fitted: Fitted
    shortfall: str = ""


@dataclass(frozen=True)
class Compressed:
    """The result of a verb.

    Attributes:
        stages: the original first, then one per stage that changed something.
        plan: what was done; `apply` does it again.
        unknown: operators without a pruning rule that held channels back, by node.
        shortfall: what was asked for and could not be done; empty when all was.
        fitted: what calibration data were used for; None without any.
    """

    stages: tuple[Stage, ...]
    plan: Plan
    unknown: dict[str, str] = field(default_factory=dict)
    shortfall: str = ""
    fitted: Fitted | None = None

    @property
    def model(self) -> ir.Model:
        """The network after the last stage; the original itself when there was nothing to do."""
        return self.stages[-1].model
