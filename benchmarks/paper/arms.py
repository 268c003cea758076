"""The ways to compress: each from a task and a setting to a smaller network, with the same training.

Every network gets `Settings.steps` steps: by labels and after the uncompressed network, but for the rounds of
iterative pruning, which go by labels alone. Only how it is compressed differs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

import onnxcompress as oc
from benchmarks.paper.settings import Settings
from benchmarks.paper.tasks import Task
from onnxcompress.drafts import write_text
from onnxcompress.model import simplify
from onnxcompress.plan import Ranks, read_plan, to_yaml
from onnxcompress.progress import Progress
from onnxcompress.recovery.interleaved import prune_and_train


@dataclass(frozen=True)
class Run:
    """One network of an arm that is to be made.

    Attributes:
        task: what is compressed.
        settings: the experiment's size.
        seed: of order, augmentation and drawn numbers.
        folder: for checkpoints and statistics.
        progress: called with (what is done, steps done, steps in all).
        rate: of the training at the end, where another seed has found it; None: found on the first batches.
    """

    task: Task
    settings: Settings
    seed: int
    folder: Path
    progress: Progress
    rate: float | None = None

    def recipe(self) -> oc.Recipe:
        """How to train; the rate is found on the first batches."""
        return oc.Recipe(batch=self.settings.batch, seed=self.seed)


@dataclass(frozen=True)
class Outcome:
    """A compressed network.

    Attributes:
        model: after training.
        rate: of the training at the end.
        removed: number of filters by layer.
        ranks: by layer.
    """

    model: ir.Model
    rate: float
    removed: Mapping[str, int]
    ranks: Mapping[str, Ranks]


def pruning(run: Run, setting: str) -> Outcome:
    """Iterative Taylor pruning (Molchanov et al. 2017); the setting is the share of the filters that goes."""
    model, removed = _pruned(run, float(setting))
    return _trained(run, model, run.settings.steps // 2, removed, {})


def tucker(run: Run, setting: str) -> Outcome:
    """Tucker-2 (Kim et al. 2015); the setting is a rank rule."""
    result = oc.decompose(run.task.model, rank=setting, progress=run.progress)
    return _trained(run, result.model, run.settings.steps, {}, result.plan.decompose)


def both(run: Run, setting: str) -> Outcome:
    """Pruning, then Tucker-2 of what is left (Goyal et al. 2019); the setting has a share and a rank rule."""
    share, rank = setting.split()
    model, removed = _pruned(run, float(share))
    result = oc.decompose(model, rank=rank, progress=run.progress)
    return _trained(run, result.model, run.settings.steps // 2, removed, result.plan.decompose)


def ours(run: Run, setting: str) -> Outcome:
    """Filters and ranks chosen under one budget, weights fitted without labels; the setting is a target."""
    file = run.folder / "compressed" / f"{setting}.onnx"
    plan = file.with_suffix(".plan.yaml")
    if not plan.exists():  # the same for every seed
        statistics, limit = run.folder / "statistics.npz", run.settings.calibration
        calibration = oc.Calibration(run.task.train, stats=statistics, limit=limit)
        result = oc.compress(run.task.model, target=setting, data=calibration, progress=run.progress)
        file.parent.mkdir(exist_ok=True)
        oc.save(result.model, file)
        write_text(plan, to_yaml(result.plan))
    chosen = read_plan(plan)
    removed = {name: len(filters) for name, filters in chosen.prune.items()}
    return _trained(run, oc.load(file), run.settings.steps, removed, chosen.decompose)


ARMS: dict[str, Callable[[Run, str], Outcome]] = {
    "pruning": pruning,
    "Tucker": tucker,
    "both": both,
    "ours, parameters": ours,
    "ours, MACs": ours,
}


def _pruned(run: Run, share: float) -> tuple[ir.Model, dict[str, int]]:
    """The network without a share of its filters, after half of the training."""
    settings = run.settings
    model, filters, _ = prune_and_train(
        simplify(run.task.model),
        run.task.train,
        ratio=share,
        step=share / settings.rounds,
        steps=settings.steps // 2 // settings.rounds,
        labels=True,
        limit=settings.scored,
        recipe=run.recipe(),
        progress=run.progress,
    )
    return model, {name: len(indices) for name, indices in filters.items()}


def _trained(
    run: Run, model: ir.Model, steps: int, removed: Mapping[str, int], ranks: Mapping[str, Ranks]
) -> Outcome:
    """The network after the training that is left for it; best epoch by the validation part."""
    task = run.task
    found = oc.finetune(
        model,
        task.train,
        teacher=task.model,
        labels=True,
        validation=task.validation,
        steps=steps,
        recipe=replace(run.recipe(), rate=run.rate),
        progress=run.progress,
    )
    return Outcome(found.model, found.rate, removed, ranks)
