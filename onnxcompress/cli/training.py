"""The verb that trains a network."""

from pathlib import Path
from typing import Annotated

import typer

import onnxcompress as verbs
from onnxcompress.cli.networks import read
from onnxcompress.cli.options import (
    Images,
    Mirror,
    Model,
    Output,
    Values,
    preprocessing_of,
    refuse,
)
from onnxcompress.cli.terminal import Printed, progress_bar, show, stderr, stdout
from onnxcompress.errors import InputError
from onnxcompress.model import load, save
from onnxcompress.report.measured import epoch_line, finetuned_json

BY_A_SOLVER = ("optimizer", "rate", "policy", "weight_decay", "clip_gradients")
"""Options of training that a solver.prototxt has its own numbers for."""

FREE_POLICIES = ("cosine", "fixed", "poly")
"""Those that need no numbers of a solver."""


def finetune(
    context: typer.Context,
    model: Model,
    output: Output,
    *,
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
        typer.Option(
            help="Caffe's solver.prototxt, instead of --epochs and those from --optimizer on but --warmup."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Divides the class scores before teacher and network are compared.")
    ] = 1.0,
    teacher_weight: Annotated[
        float, typer.Option(help="Share of the teacher where there are labels too, in (0, 1).")
    ] = 0.5,
    random_crop: Annotated[bool, typer.Option(help="Take images from anywhere, not from the centre.")] = True,
    mirror: Mirror = True,
    zoom: Annotated[float, typer.Option(help="Show images enlarged by up to this factor.", min=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of order, crops and new weights.", min=0)] = 0,
    values: Values = False,
    images: Images,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same command was interrupted.")
    ] = False,
    printed: Printed,
) -> None:
    """Train the weights of a network.

    To do as a teacher does, by labels, or both.

    A teacher needs no labels: its answers are matched, or with --plan what each of its layers gives, which
    is better where samples are few.
    The state is kept in OUTPUT.checkpoint until the end, for --resume.
    """
    from onnxcompress.caffe.solver import read_solver
    from onnxcompress.training.schedules import Schedule

    network = read(model, output, data, teacher, val, solver, plan, write_plan=False)
    if solver is not None:
        refuse(context, BY_A_SOLVER, "does not go with --solver, which says it")
    elif policy not in FREE_POLICIES:
        known = ", ".join(FREE_POLICIES)
        raise InputError(f"--policy: '{policy}' is not one of {known}; Caffe's others come with --solver")
    if teacher is None:
        refuse(context, ("temperature",), "is for the answers of a --teacher, which is not given")
    if plan is not None:
        refuse(context, ("temperature",), "is for a teacher's answers; with --plan its layers are matched")
    if teacher is None or not labels:
        refuse(context, ("teacher_weight",), "is for --teacher and --labels together")
    recipe = verbs.Recipe(
        optimizer=optimizer,
        rate=rate,
        schedule=Schedule(policy, warmup=warmup),
        weight_decay=weight_decay,
        clip_gradients=clip_gradients,
        batch=batch,
        seed=seed,
    )
    steps = None
    if solver is not None:
        recipe, steps = read_solver(solver, recipe)
        if steps is not None:
            refuse(context, ("epochs",), "does not go with the max_iter of --solver")
    preprocessing = preprocessing_of(network, data, images, printed)
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    if checkpoint.exists() and not resume:
        raise InputError(f"{checkpoint}: of a run that was interrupted: --resume goes on, or remove it")
    if resume and not checkpoint.exists() and not printed.quiet:
        stderr.print(f"{checkpoint}: there is none, training starts anew", markup=False, soft_wrap=True)

    def tell(epoch: verbs.Epoch) -> None:
        if printed.tables and (epoch.number or epoch.validation):
            stdout.print(epoch_line(epoch), markup=False, soft_wrap=True)

    try:
        with progress_bar(printed) as advance:
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
                preprocessing=preprocessing,
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
        {"output": str(output)} | finetuned_json(result),
        [f"{output}: the weights after epoch {result.best}, highest rate {result.rate:g}"],
        printed,
    )
