"""The verbs that make a network smaller, one command each."""

from pathlib import Path
from typing import Annotated

import typer

import onnxcompress as verbs
from onnxcompress.cli.networks import finish, read
from onnxcompress.cli.options import (
    CalibrationData,
    Criterion,
    IncludeGemm,
    IncludePointwise,
    KeepAccuracy,
    Labels,
    Layers,
    Method,
    Model,
    Output,
    Rank,
    Ratio,
    RoundTo,
    Samples,
    Scope,
    Seed,
    Skip,
    Stats,
    Target,
    calibration_of,
    refuse,
)
from onnxcompress.cli.terminal import Printed, progress_bar
from onnxcompress.pruning.activations import DATA_CRITERIA

BY_THE_PAPER = ("ratio", "criterion", "scope", "rank", "include_pointwise", "include_gemm")
"""Options of pruning and decomposing one after the other."""


def prune(
    context: typer.Context,
    model: Model,
    output: Output,
    *,
    ratio: Ratio = 0.3,
    criterion: Criterion = "",
    scope: Scope = "layer",
    round_to: RoundTo = 1,
    skip: Skip = [],  # noqa: B006  # typer's way to repeat an option
    seed: Seed = 0,
    iterative: Annotated[
        bool, typer.Option("--iterative", help="Go by Taylor importance in rounds, and train after each.")
    ] = False,
    step: Annotated[float, typer.Option(help="Share of the filters that goes in a round.")] = 0.05,
    finetune_steps: Annotated[int, typer.Option(help="Of training after each round.", min=1)] = 100,
    flops_weight: Annotated[
        float,
        typer.Option(
            help="Taylor: what each million FLOPs of a filter (2 per MAC) takes off its importance.", min=0
        ),
    ] = 0.0,
    labels: Labels = False,
    data: CalibrationData = None,
    stats: Stats = None,
    samples: Samples,
    layers: Layers = False,
    printed: Printed,
) -> int:
    """Remove whole filters.

    Everything tied to them goes with them. With --data, the weights that stay are fitted so that the network
    gives what it gave. Writes OUTPUT, and the plan beside it as .plan.yaml.

    onnxcompress prune model.onnx -o out.onnx --criterion taylor --iterative --ratio 0.4 --data images/

    removes them in rounds of --step, with --finetune-steps of training after each: by the labels with
    --labels, else to give the answers that the network itself gave.
    """
    network = read(model, output, data, stats)
    if not iterative:
        refuse(context, ("step", "finetune_steps"), "applies to --iterative, which is not given")
    if not iterative and criterion != "taylor":
        refuse(context, ("flops_weight", "labels"), "applies to Taylor importance: give --criterion taylor")
    if iterative or criterion not in ("", *DATA_CRITERIA):
        refuse(context, ("stats",), "applies to criteria that need the statistics of the data")
    calibration = calibration_of(context, network, data, samples, printed, stats, labels)
    with progress_bar(printed) as advance:
        result = verbs.prune(
            network,
            ratio=ratio,
            criterion=criterion,
            scope=scope,
            round_to=round_to,
            skip=skip,
            seed=seed,
            step=step if iterative else None,
            finetune_steps=finetune_steps,
            flops_weight=flops_weight,
            data=calibration,
            progress=advance,
        )
    return finish(result, output, layers, printed)


def decompose(
    context: typer.Context,
    model: Model,
    output: Output,
    *,
    rank: Rank = "vbmf",
    round_to: RoundTo = 1,
    skip: Skip = [],  # noqa: B006
    include_pointwise: IncludePointwise = False,
    include_gemm: IncludeGemm = False,
    data: CalibrationData = None,
    stats: Stats = None,
    samples: Samples,
    layers: Layers = False,
    printed: Printed,
) -> int:
    """Factor convolutions, transposed ones too, by Tucker-2.

    Each becomes 1×1, core, 1×1. Writes OUTPUT, and the plan beside it as .plan.yaml.

    Layers with up to 4 input channels are factored on their output side only; layers that share weights
    share the factors. Depthwise layers and those whose chain would not have fewer MACs stay as they are.
    """
    network = read(model, output, data, stats)
    calibration = calibration_of(context, network, data, samples, printed, stats)
    with progress_bar(printed) as advance:
        result = verbs.decompose(
            network,
            rank=rank,
            round_to=round_to,
            skip=skip,
            include_pointwise=include_pointwise,
            include_gemm=include_gemm,
            data=calibration,
            progress=advance,
        )
    return finish(result, output, layers, printed)


def compress(
    context: typer.Context,
    model: Model,
    output: Output,
    *,
    target: Target = "",
    keep_accuracy: KeepAccuracy = None,
    method: Method = "",
    ratio: Ratio = 0.3,
    criterion: Criterion = "",
    scope: Scope = "layer",
    rank: Rank = "vbmf",
    round_to: RoundTo = 1,
    skip: Skip = [],  # noqa: B006
    include_pointwise: IncludePointwise = False,
    include_gemm: IncludeGemm = False,
    seed: Seed = 0,
    finetune: Annotated[
        bool,
        typer.Option("--finetune", help="Train the weights at the end; without a budget after each stage."),
    ] = False,
    epochs: Annotated[float, typer.Option(help="Of --finetune: passes over the data.", min=0)] = 12,
    labels: Labels = False,
    data: CalibrationData = None,
    stats: Stats = None,
    samples: Samples,
    layers: Layers = False,
    printed: Printed,
) -> int:
    """Prune and decompose.

    With --data and --target (or --keep-accuracy), how many filters go and at which ranks layers are factored
    is chosen together, layer by layer, under that one budget, and the weights are fitted so that the network
    gives what it gave:

    onnxcompress compress model.onnx -o small.onnx --data images/ --target macs=0.5

    Runtimes take longer for each MAC where channels are no multiple of 8 or 16. --round-to 8 gains speed by
    that, and at the same MACs loses more.

    Without a target: prune, then decompose what is left, in the order of Goyal et al. (2019), with the
    options --ratio … --include-gemm.

    --finetune then trains the weights, so that the layers give what the original's do, or with --labels by
    the labels and the original's answers. The epoch that does best on the samples for choosing is taken. To
    be able to interrupt the training, compress without it and call finetune --plan, which has --resume.

    LRN is written as banded convolutions, which is exact and faster.
    Writes OUTPUT, and the plan beside it as .plan.yaml.
    """
    network = read(model, output, data, stats)
    if target or keep_accuracy is not None:
        refuse(
            context,
            BY_THE_PAPER,
            "does not go with --target and --keep-accuracy",
        )
        if not finetune:
            refuse(context, ("seed",), "changes nothing without --finetune where there is a budget")
    elif criterion not in ("", *DATA_CRITERIA):
        refuse(context, ("stats",), "applies to criteria that need the statistics of the data")
    if not finetune:
        refuse(context, ("epochs",), "applies to --finetune, which is not given")
    if not finetune and criterion != "taylor":
        refuse(context, ("labels",), "applies to --finetune and to --criterion taylor")
    calibration = calibration_of(context, network, data, samples, printed, stats, labels)
    with progress_bar(printed) as advance:
        result = verbs.compress(
            network,
            target=target,
            keep_accuracy=keep_accuracy,
            method=method,
            ratio=ratio,
            criterion=criterion,
            scope=scope,
            rank=rank,
            round_to=round_to,
            skip=skip,
            include_pointwise=include_pointwise,
            include_gemm=include_gemm,
            seed=seed,
            training=verbs.Training(epochs, verbs.Recipe(seed=seed)) if finetune else None,
            data=calibration,
            progress=advance,
        )
    return finish(result, output, layers, printed)


def apply(
    context: typer.Context,
    model: Model,
    plan: Annotated[Path, typer.Argument(help="Plan, as prune, decompose or compress wrote it, or edited.")],
    output: Output,
    *,
    data: CalibrationData = None,
    samples: Samples,
    layers: Layers = False,
    printed: Printed,
) -> int:
    """Do what a plan says, no more and no less."""
    network = read(model, output, plan, data, write_plan=False)
    calibration = calibration_of(context, network, data, samples, printed)
    with progress_bar(printed) as advance:
        result = verbs.apply(network, plan, data=calibration, progress=advance)
    return finish(result, output, layers, printed, write_plan=False)
