"""Taylor pruning with training in between, as the paper by Molchanov et al. (2017) does it."""

from dataclasses import replace

import onnx_ir as ir

from onnxcompress import preprocessing as prep
from onnxcompress.data import Data
from onnxcompress.errors import InputError
from onnxcompress.progress import Progress
from onnxcompress.pruning.iterative import prune_in_steps
from onnxcompress.pruning.taylor import score_by_taylor
from onnxcompress.training.finetuning import finetune, for_network
from onnxcompress.training.trainer import Recipe


def prune_and_train(
    network: ir.Model,
    data: Data,
    *,
    ratio: float,
    step: float = 0.05,
    steps: int = 100,
    labels: bool = False,
    limit: int | None = None,
    flops_weight: float = 0.0,
    scope: str = "global",
    round_to: int = 1,
    skip: tuple[str, ...] = (),
    recipe: Recipe | None = None,
    preprocessing: prep.Preprocessing | None = None,
    mirror: bool = True,
    progress: Progress | None = None,
) -> tuple[ir.Model, dict[str, list[int]], int]:
    """Score by Taylor expansion, remove some filters, train; until enough are gone.

    Args:
        network: a simplified classifier; not touched. Without `labels` it is also the teacher.
        data: to score and train on.
        ratio: share of the filters to remove in all, in [0, 1).
        step: share of the original filters to remove per round, in (0, 1).
        steps: of training after each round.
        labels: train by the data's labels.
        limit: score on so many samples, evenly spread.
        flops_weight: see `taylor_scores`.
        scope: as for `selection.select`, like the next two.
        round_to: layers keep a multiple of so many filters.
        skip: glob patterns of layer names that keep all their filters.
        recipe: of the training; a rate that is not given is found in the first round.
        preprocessing: the steps from image to array; None takes those that the network carries.
        mirror: see `finetune`.
        progress: called with (what is done, steps done, steps in all).

    Returns:
        As `iterative.prune_in_steps`.

    Raises:
        InputError: as `finetune`.
    """
    if not 0 < step < 1:
        raise InputError(f"step: {step} is not in (0, 1)")
    plan = for_network(recipe or Recipe(), network)

    def recover(pruned: ir.Model, progress: Progress | None) -> ir.Model:
        nonlocal plan
        result = finetune(
            pruned,
            data,
            teacher=None if labels else network,
            labels=labels,
            steps=steps,
            recipe=plan,
            mirror=mirror,
            preprocessing=preprocessing,
            progress=progress,
        )
        plan = replace(plan, rate=result.rate)
        return result.model

    return prune_in_steps(
        network,
        ratio=ratio,
        step=step,
        score=score_by_taylor(
            data, limit=limit, seed=plan.seed, flops_weight=flops_weight, preprocessing=preprocessing
        ),
        recover=recover,
        scope=scope,
        round_to=round_to,
        skip=skip,
        progress=progress,
    )
