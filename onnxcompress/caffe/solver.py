"""Caffe's solver.prototxt."""

import math
from dataclasses import replace
from pathlib import Path

from onnxcompress.caffe import prototxt
from onnxcompress.caffe.schema import SolverParameter
from onnxcompress.errors import InputError, naming
from onnxcompress.training.optimizers import Settings
from onnxcompress.training.schedules import Schedule
from onnxcompress.training.trainer import Recipe

OLD_TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
"""By the number that ``solver_type`` had for them."""


def read_solver(path: str | Path, recipe: Recipe) -> tuple[Recipe, int | None]:
    """A recipe as a solver has it, and its number of steps (``max_iter``), if it says one.

    Args:
        path: of the solver. What is not about the training itself (snapshots, tests, the network) is ignored.
        recipe: what no solver says: the batch, the steps in which the rate rises.

    Raises:
        InputError: when it cannot be read, or asks for what is not supported.
    """
    text = prototxt.read(Path(path))
    with naming((Path(path),)):
        solver = prototxt.parse(text, SolverParameter())
    for field, value in solver.ListFields():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path}: {field.name} is {value}; give a number")
    if not solver.HasField("base_lr"):
        raise InputError(f"{path}: names no base_lr; give a solver.prototxt")
    if solver.regularization_type != "L2":
        raise InputError(
            f"{path}: regularization_type {solver.regularization_type} is not supported, only L2"
        )
    names = {"SGD": "sgd", "Adam": "adam-caffe"}
    kind = OLD_TYPES[solver.solver_type] if solver.HasField("solver_type") else solver.type
    if kind not in names:
        raise InputError(f"{path}: type {kind} is not supported; give one of {', '.join(names)}")
    limit = solver.clip_gradients / max(solver.iter_size, 1)  # of the mean of these runs, not of their sum
    try:
        schedule = Schedule(
            policy=solver.lr_policy,
            gamma=solver.gamma,
            power=solver.power,
            stepsize=solver.stepsize,
            stepvalues=tuple(solver.stepvalue),
            warmup=recipe.schedule.warmup,
        )
        return replace(
            recipe,
            optimizer=names[kind],
            rate=solver.base_lr,
            schedule=schedule,
            settings=Settings(solver.momentum, solver.momentum2, solver.delta),
            weight_decay=solver.weight_decay,
            clip_gradients=limit if limit > 0 else None,
            iter_size=solver.iter_size,
            seed=recipe.seed if solver.random_seed < 0 else solver.random_seed,
        ), solver.max_iter or None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
