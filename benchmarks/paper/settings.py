"""How much is done: the operating points of every arm, and the training that each of them gets."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """The experiment's size.

    Attributes:
        points: settings by arm, see `arms.ARMS`; those near the headline first.
        steps: of training that every network gets, whatever its arm.
        rounds: of iterative pruning; they share half of the steps.
        scored: images that a round's Taylor importance is computed on.
        calibration: images that filters and ranks are chosen and weights fitted on, where that is done.
        batch: samples in a step.
        task_epochs: of fine-tuning to the task, before any compression.
        side: of the images, in pixels; None: as the network has it.
        seeds: at the points that the headline rests on, for the first network; the others have one.
    """

    points: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "pruning": ("0.35", "0.2", "0.5", "0.65"),
            "Tucker": ("vbmf:1.2", "vbmf:1.6", "vbmf:0.8", "vbmf:0.5"),
            "both": ("0.3 vbmf:1.4", "0.15 vbmf:1.6", "0.45 vbmf:1.2", "0.6 vbmf:1"),
            "ours, parameters": ("params=0.05", "params=0.08", "params=0.03", "params=0.25"),
            "ours, MACs": ("macs=0.12", "macs=0.08", "macs=0.2", "macs=0.35"),
        }
    )
    steps: int = 300
    rounds: int = 5
    scored: int = 200
    calibration: int = 1000
    batch: int = 8
    task_epochs: float = 6
    side: int | None = None
    seeds: int = 3


FULL = Settings()

QUICK = Settings(
    points={
        "pruning": ("0.2", "0.3", "0.4", "0.6"),
        "Tucker": ("vbmf:1.6", "vbmf:1.3", "vbmf:1", "vbmf:0.6"),
        "both": ("0.2 vbmf:1.6", "0.3 vbmf:1.3", "0.4 vbmf:0.9", "0.6 vbmf:0.8"),
        "ours, parameters": ("params=0.3", "params=0.15", "params=0.08"),
        "ours, MACs": ("macs=0.4", "macs=0.25", "macs=0.15"),
    },
    steps=240,
    rounds=4,
    scored=96,
    task_epochs=3,
    side=128,
    seeds=1,
)

DIGITS = Settings(
    points={
        "pruning": ("0.25", "0.4", "0.6"),
        "Tucker": ("vbmf:2.5", "vbmf:1.5", "vbmf:0.7"),
        "both": ("0.2 vbmf:2.5", "0.35 vbmf:2", "0.5 vbmf:1.5"),
        "ours, parameters": ("params=0.1", "params=0.05", "params=0.03"),
        "ours, MACs": ("macs=0.1", "macs=0.06", "macs=0.04"),
    },
    steps=160,
    rounds=4,
    scored=96,
    batch=32,
    seeds=1,
)
