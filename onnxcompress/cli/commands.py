"""The verbs of the package, one command each."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.table import Table

import onnxcompress as verbs
from onnxcompress import plots, report
from onnxcompress.cli.networks import finish, read
from onnxcompress.cli.options import (
    CalibrationData,
    ChannelOrder,
    Criterion,
    Crop,
    Debug,
    IncludeGemm,
    IncludePointwise,
    Json,
    KeepAccuracy,
    Labels,
    Layers,
    Limit,
    Mean,
    Method,
    Model,
    Output,
    Quiet,
    Rank,
    Ratio,
    Resize,
    RoundTo,
    Scale,
    Scope,
    Seed,
    Skip,
    Stats,
    Target,
    Threads,
    Values,
    calibration_of,
    numbers,
    preprocessing_of,
    refuse,
    size,
)
from onnxcompress.cli.terminal import DONE, SHORT, guarded, progress_bar, show, stderr, stdout
from onnxcompress.drafts import write_text
from onnxcompress.errors import InputError
from onnxcompress.model import check_output, load, save
from onnxcompress.preprocessing import Preprocessing

P = ParamSpec("P")

BY_THE_PAPER = ("ratio", "criterion", "scope", "rank", "round_to", "include_pointwise", "include_gemm")
"""Options of pruning and decomposing one after the other."""

BY_A_SOLVER = ("epochs", "optimizer", "rate", "policy", "warmup", "weight_decay", "clip_gradients")
"""Options of training that a solver.prototxt has its own numbers for."""

FREE_POLICIES = ("cosine", "fixed", "poly")
"""Those that need no numbers of a solver."""

app = typer.Typer(
    name="onnxcompress",
    help=(
        "Make an exported CNN smaller and faster, straight from its ONNX file: remove whole filters, factor "
        "what is left (Tucker-2; under a budget CP), and measure what was gained and lost.\n\n"
        "Start with 'onnxcompress inspect model.onnx', then with some hundred images of the kind that it is "
        "for:\n\n"
        "onnxcompress compress model.onnx -o small.onnx --data images/ --target macs=0.5"
    ),
    epilog="Exit code: 0 done, 1 done but short of what was asked, 2 bad input or usage.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(verbs.__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Options before the command."""


def command(name: str) -> Callable[[Callable[P, int | None]], Callable[P, None]]:
    """Register a command."""
    return lambda function: app.command(name)(guarded(name, function))


@command("import-caffe")
def import_caffe(
    prototxt: Annotated[
        Path, typer.Argument(help="Network definition, deploy.prototxt.", show_default=False)
    ],
    caffemodel: Annotated[Path, typer.Argument(help="Its weights.", show_default=False)],
    output: Output,
    channel_order: Annotated[
        str, typer.Option(help="Order of the input's channels: BGR, RGB, GRAY.")
    ] = "BGR",
    mean: Annotated[
        str, typer.Option(help="Subtracted from pixels in 0…255; one or one per channel.")
    ] = "104,117,123",
    scale: Annotated[str, typer.Option(help="Multiplied after that; one or one per channel.")] = "1",
    resize: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH to which images are warped, or none.")
    ] = "256x256",
    crop: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH cut from the centre, or input (the network's).")
    ] = "input",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn a Caffe network into ONNX.

    It computes the same, and how its images are prepared goes into the file's metadata.
    """
    check_output(output, prototxt, caffemodel)
    preprocessing = Preprocessing(
        channel_order=channel_order,  # type: ignore[arg-type]  # checked there
        mean=numbers("mean", mean),
        scale=numbers("scale", scale),
        resize=size("resize", resize, "none"),
        crop=size("crop", crop, "input"),
    )
    model = verbs.import_caffe(prototxt, caffemodel, preprocessing=preprocessing)
    save(model, output)
    total = verbs.cost(model)
    show(
        {"output": str(output), "params": total.params, "macs": total.macs, "layers": len(total.layers)},
        [f"{output}: {report.millions(total.params)} parameters, {report.millions(total.macs)} MACs"],
        as_json,
        quiet,
    )


@command("inspect")
def inspect(
    model: Model,
    time: Annotated[bool, typer.Option("--time", help="Measure each layer in ONNX Runtime.")] = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="List the channels that are cut together.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what each layer costs and what is tied.

    VBMF: the ranks that 'decompose' would take; a single one is that of a layer which it factors only with
    --include-pointwise or --include-gemm.

    'free': the layer's filters can go by themselves. 'tied to': they go together with another layer's.
    'kept': they cannot go, and why. Nothing: it has none of its own, as a depthwise convolution.
    """
    with progress_bar(quiet) as advance:
        found = verbs.inspect(model, time=time, progress=advance)
    tables: list[Table | str] = [report.inspection_table(found)]
    if groups:
        tables.append(report.groups_table(found))
    for node, operator in found.unknown.items():
        tables.append(f"no pruning rule fits {operator} ('{node}'): what reaches it is kept whole")
    show(report.inspection_json(found), tables, as_json, quiet)


@command("prune")
def prune(
    context: typer.Context,
    model: Model,
    output: Output,
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
    limit: Limit = None,
    stats: Stats = None,
    values: Values = False,
    channel_order: ChannelOrder = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    layers: Layers = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
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
    preprocessing = preprocessing_of(network, channel_order, mean, scale, resize, crop)
    calibration = calibration_of(context, data, preprocessing, limit, stats, labels, values)
    with progress_bar(quiet) as advance:
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
    return finish(result, output, layers, as_json, quiet)


@command("decompose")
def decompose(
    context: typer.Context,
    model: Model,
    output: Output,
    rank: Rank = "vbmf",
    round_to: RoundTo = 1,
    skip: Skip = [],  # noqa: B006
    include_pointwise: IncludePointwise = False,
    include_gemm: IncludeGemm = False,
    data: CalibrationData = None,
    limit: Limit = None,
    stats: Stats = None,
    values: Values = False,
    channel_order: ChannelOrder = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    layers: Layers = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Factor convolutions, transposed ones too, by Tucker-2.

    Each becomes 1×1, core, 1×1. Writes OUTPUT, and the plan beside it as .plan.yaml.

    Layers with up to 4 input channels are factored on their output side only; layers that share weights
    share the factors. Depthwise layers and those whose chain would not have fewer MACs stay as they are.
    """
    network = read(model, output, data, stats)
    preprocessing = preprocessing_of(network, channel_order, mean, scale, resize, crop)
    calibration = calibration_of(context, data, preprocessing, limit, stats, values=values)
    with progress_bar(quiet) as advance:
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
    return finish(result, output, layers, as_json, quiet)


@command("compress")
def compress(
    context: typer.Context,
    model: Model,
    output: Output,
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
    limit: Limit = None,
    stats: Stats = None,
    values: Values = False,
    channel_order: ChannelOrder = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    layers: Layers = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Prune and decompose.

    With --data and --target (or --keep-accuracy), how many filters go and at which ranks layers are factored
    is chosen together, layer by layer, under that one budget, and the weights are fitted so that the network
    gives what it gave:

    onnxcompress compress model.onnx -o small.onnx --data images/ --target macs=0.5

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
    if not finetune:
        refuse(context, ("epochs",), "applies to --finetune, which is not given")
    if not finetune and criterion != "taylor":
        refuse(context, ("labels",), "applies to --finetune and to --criterion taylor")
    preprocessing = preprocessing_of(network, channel_order, mean, scale, resize, crop)
    calibration = calibration_of(context, data, preprocessing, limit, stats, labels, values)
    with progress_bar(quiet) as advance:
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
    return finish(result, output, layers, as_json, quiet)


@command("apply")
def apply(
    context: typer.Context,
    model: Model,
    plan: Annotated[Path, typer.Argument(help="Plan, as prune, decompose or compress wrote it, or edited.")],
    output: Output,
    data: CalibrationData = None,
    limit: Limit = None,
    stats: Stats = None,
    values: Values = False,
    channel_order: ChannelOrder = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    layers: Layers = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Do what a plan says, no more and no less."""
    network = read(model, output, plan, data, stats, write_plan=False)
    preprocessing = preprocessing_of(network, channel_order, mean, scale, resize, crop)
    calibration = calibration_of(context, data, preprocessing, limit, stats, values=values)
    with progress_bar(quiet) as advance:
        result = verbs.apply(network, plan, data=calibration, progress=advance)
    return finish(result, output, layers, as_json, quiet, write_plan=False)


@command("tradeoff")
def tradeoff(
    context: typer.Context,
    model: Model,
    data: Annotated[
        Path,
        typer.Option(help="Folder of images (labels are not used), .npz or .npy.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON to write.", show_default=False)],
    plot: Annotated[Path | None, typer.Option(help="PNG to draw.", show_default=False)] = None,
    kind: Annotated[str, typer.Option(help="Cost: macs, params or size (of the file).")] = "macs",
    shares: Annotated[str, typer.Option(help="Of the cost that may stay.")] = "0.8,0.65,0.5,0.4,0.3",
    skip: Skip = [],  # noqa: B006
    limit: Limit = None,
    stats: Stats = None,
    values: Values = False,
    channel_order: ChannelOrder = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Show how much is lost at which cost.

    Builds a network for each share, as 'compress --target' would, and measures it on samples that nothing was
    fitted to or chosen by.
    """
    for path in (output, plot):
        if path is not None:
            check_output(path, model, data, *([] if stats is None else [stats]))
    if plot is not None:
        plots.check_installed()
        if plot.suffix.lower() != ".png":
            raise InputError(f"{plot}: what is drawn is a PNG: give a name that ends in .png")
    network = load(model)
    preprocessing = preprocessing_of(network, channel_order, mean, scale, resize, crop)
    calibration = calibration_of(context, data, preprocessing, limit, stats, values=values)
    assert calibration is not None
    with progress_bar(quiet) as advance:
        points = verbs.tradeoff(
            network,
            data=calibration,
            kind=kind,
            shares=numbers("shares", shares),
            skip=skip,
            progress=advance,
        )
    content = report.tradeoff_json(points)
    write_text(output, json.dumps(content, indent=1) + "\n")
    if plot is not None:
        plots.tradeoff(points, kind, plot)
    short = [f"short of what was asked: {point.shortfall}" for point in points if point.shortfall]
    if short and quiet and not as_json:
        stderr.print(*short, sep="\n")
    show(content, [report.tradeoff_table(points), *short], as_json, quiet)
    return SHORT if short else DONE


@command("finetune")
def finetune(
    context: typer.Context,
    model: Model,
    output: Output,
    data: Annotated[
        Path,
        typer.Option(help="Images or arrays to train on, with or without labels.", show_default=False),
    ],
    teacher: Annotated[
        Path | None, typer.Option(help="Network whose answers are to be matched, most often the original.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="By which MODEL was made of the teacher: what its layers give is matched instead."),
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="The data's labels are to be matched.")] = False,
    val: Annotated[
        Path | None, typer.Option(help="Data that tells the best epoch; without it, the last is taken.")
    ] = None,
    new_head: Annotated[
        int | None, typer.Option(help="New random weights for the last layer, with so many classes.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.", min=0)] = 10,
    batch: Annotated[int, typer.Option(help="Samples per step.", min=1)] = 8,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="muon, adam or sgd; if not given, adam with --labels, else muon.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate: by muon and adam the share of its own size by which a weight moves, "
            "by sgd as in Caffe. Default: found by short trials."
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help="How the rate falls: cosine, fixed or poly (linearly); Caffe's others: --solver."),
    ] = "cosine",
    warmup: Annotated[int, typer.Option(help="Steps in which the rate rises.", min=0)] = 0,
    weight_decay: Annotated[float, typer.Option(help="Pull of the weights to zero.", min=0)] = 0.0,
    clip_gradients: Annotated[
        float | None, typer.Option(help="Largest norm of all gradients together.")
    ] = None,
    solver: Annotated[
        Path | None,
        typer.Option(help="Caffe's solver.prototxt, instead of --epochs and those from --optimizer on."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Divides the class scores before teacher and network are compared.")
    ] = 1.0,
    teacher_weight: Annotated[
        float, typer.Option(help="Share of the teacher where there are labels too, in (0, 1).")
    ] = 0.5,
    random_crop: Annotated[bool, typer.Option(help="Take images from anywhere, not from the centre.")] = True,
    mirror: Annotated[bool, typer.Option(help="Mirror half of the images.")] = True,
    zoom: Annotated[float, typer.Option(help="Show images enlarged by up to this factor.", min=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of order, crops and new weights.", min=0)] = 0,
    values: Values = False,
    channel_order: ChannelOrder = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same command was interrupted.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the weights, to do as a teacher does, by labels, or both.

    A teacher needs no labels: its answers are matched, or with --plan what each of its layers gives, which
    is better where samples are few.
    The state is kept in OUTPUT.checkpoint until the end, for --resume.
    """
    from onnxcompress.caffe.solver import read_solver
    from onnxcompress.training.schedules import POLICIES, Schedule

    network = read(model, output, data, teacher, val, solver, plan, write_plan=False)
    if solver is not None:
        refuse(context, BY_A_SOLVER, "does not go with --solver, which says it")
    elif policy in POLICIES and policy not in FREE_POLICIES:
        known = ", ".join(FREE_POLICIES)
        raise InputError(f"--policy: '{policy}' takes its numbers from --solver; without one give {known}")
    if teacher is None:
        refuse(context, ("temperature",), "is for the answers of a --teacher, which is not given")
    if teacher is None or not labels:
        refuse(context, ("teacher_weight",), "is for --teacher and --labels together")
    recipe = verbs.Recipe(
        optimizer=optimizer,
        rate=0.1 if solver is not None else rate,
        schedule=Schedule(policy, warmup=warmup),
        weight_decay=weight_decay,
        clip_gradients=clip_gradients,
        batch=batch,
        seed=seed,
    )
    steps = None
    if solver is not None:
        recipe, steps = read_solver(solver, recipe)
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    if checkpoint.exists() and not resume:
        raise InputError(f"{checkpoint}: of a run that was interrupted: --resume goes on, or remove it")
    if resume and not checkpoint.exists() and not quiet:
        stderr.print(f"{checkpoint}: there is none, training starts anew", markup=False, soft_wrap=True)

    def tell(epoch: verbs.Epoch) -> None:
        if not quiet and not as_json and (epoch.number or epoch.validation):
            stdout.print(report.epoch_line(epoch), markup=False, soft_wrap=True)

    try:
        with progress_bar(quiet) as advance:
            result = verbs.finetune(
                network,
                data,
                teacher=None if teacher is None else load(teacher),
                labels=labels,
                validation=val,
                new_head=new_head,
                epochs=epochs,
                steps=steps,
                recipe=recipe,
                temperature=temperature,
                teacher_weight=teacher_weight,
                crop=random_crop,
                mirror=mirror,
                zoom=zoom,
                plan=plan,
                preprocessing=preprocessing_of(network, channel_order, mean, scale, resize, crop),
                values=values,
                checkpoint_file=checkpoint,
                resume=resume,
                progress=advance,
                on_epoch=tell,
            )
    except KeyboardInterrupt:
        if not checkpoint.exists():
            raise
        raise InputError("interrupted; the same command with --resume goes on") from None
    save(result.model, output, original=network if new_head is None else None)
    checkpoint.unlink(missing_ok=True)
    show(
        {"output": str(output)} | report.finetuned_json(result),
        [f"{output}: the weights after epoch {result.best}, highest rate {result.rate:g}"],
        as_json,
        quiet,
    )


@command("evaluate")
def evaluate(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with labels.csv or a folder per class, or .npz with x and y.", show_default=False
        ),
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Network to compare with, most often the original.")
    ] = None,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(help="Samples per run.", min=1)] = 16,
    values: Values = False,
    channel_order: ChannelOrder = None,
    mean: Mean = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure accuracy and output error.

    Top-1 and top-5 on labelled data; with --reference, how close the outputs are to those of that network.
    """
    network = load(model)
    preprocessing = preprocessing_of(network, channel_order, mean, scale, resize, crop)
    with progress_bar(quiet) as advance:
        found = verbs.evaluate(
            network,
            data,
            reference=None if reference is None else load(reference),
            preprocessing=preprocessing,
            batch=batch,
            limit=limit,
            values=values,
            progress=partial(advance, "evaluating"),
        )
    show(asdict(found), [report.accuracy_table(found)], as_json, quiet)


@command("bench")
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files; ratios are to the first.", show_default=False)
    ],
    threads: Threads = 0,
    batch: Annotated[int, typer.Option(help="Samples per run.", min=1)] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs of each network.", min=1)] = 40,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time networks against each other.

    In ONNX Runtime on the CPU, in turns; ratios are to the first one.
    """
    networks = [load(model) for model in models]
    with progress_bar(quiet) as advance:
        found = verbs.bench(
            networks,
            threads=threads,
            batch=batch,
            runs=runs,
            progress=partial(advance, "timing"),
        )
    show({"networks": report.records(found)}, [report.latency_table(found)], as_json, quiet)
