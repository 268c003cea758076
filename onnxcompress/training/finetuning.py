"""The verb that trains: with labels, after a teacher, or both."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress import preprocessing as prep
from onnxcompress.data import Data, open_data
from onnxcompress.errors import InputError, naming
from onnxcompress.lrn import whole_bands
from onnxcompress.measure.accuracy import Accuracy, evaluate
from onnxcompress.model import load, simplify
from onnxcompress.plan import Plan, read_plan
from onnxcompress.progress import Progress, steps_of, within
from onnxcompress.shapes import fixed_sizes, taking
from onnxcompress.threads import one_blas_thread
from onnxcompress.training.batches import check_batch, shuffled
from onnxcompress.training.checkpoint import fingerprint_of
from onnxcompress.training.head import new_head as make_head
from onnxcompress.training.losses import Loss, Match, Term
from onnxcompress.training.parameters import Multipliers, current, trainable, with_weights
from onnxcompress.training.rates import DISTURBANCE, find_rate
from onnxcompress.training.runs import Epoch, Run, go, keeper, restored
from onnxcompress.training.teaching import Teaching, check_takes, shared_responses, teaching_of
from onnxcompress.training.trainer import Batch, Recipe, start, train
from onnxcompress.weights import files_of

HEAD_RATE = 10.0
"""By which a new classifier learns faster than the layers before it, as in Caffe's examples."""


@dataclass(frozen=True)
class Finetuned:
    """The result of training.

    Attributes:
        model: with the weights of the best epoch.
        best: its number: by the validation, the last of equal ones; the last one without.
        rate: the highest, given or found.
        curve: all epochs.
    """

    model: ir.Model
    best: int
    rate: float
    curve: tuple[Epoch, ...]


@one_blas_thread
def finetune(
    model: ir.Model | str | Path,
    data: Data | str | Path,
    *,
    teacher: ir.Model | str | Path | None = None,
    labels: bool = False,
    validation: Data | str | Path | None = None,
    new_head: int | None = None,
    epochs: float = 10,
    steps: int | None = None,
    recipe: Recipe | None = None,
    temperature: float = 1.0,
    teacher_weight: float = 0.5,
    crop: bool = True,
    mirror: bool = True,
    zoom: float = 1.0,
    plan: Plan | str | Path | None = None,
    preprocessing: prep.Preprocessing | None = None,
    values: bool = False,
    checkpoint_file: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Finetuned:
    """Train the weights of a network; its shape stays.

    Args:
        model: a network with one input, or its path. Without labels and with a plan it needs no class scores.
        data: samples, or the path of what `open_data` takes.
        teacher: the network whose class probabilities are to be matched; most often the uncompressed one.
        labels: whether the data's labels are to be matched.
        validation: data after which the best epoch is chosen: by top-1 and, where that is the same, by
            cross-entropy; without labels by the damage to the teacher's answers, see `evaluate`.
        new_head: number of classes of a new task: the last layer gets new random weights.
        epochs: passes over the data.
        steps: instead of epochs.
        recipe: how to train; None takes the defaults. Where it names no optimizer it is muon after a teacher
            alone, and adam by labels.
        temperature: by which the class scores of both networks are divided before they are compared.
        teacher_weight: share of the teacher in the loss where there are labels too, in (0, 1).
        crop: take training images from anywhere in the larger image that preprocessing gives, not its centre.
        mirror: turn half of the training images left to right.
        zoom: show them enlarged by a random factor between 1 and this.
        plan: by which the network was made from the teacher, or its path. What is matched is then, instead of
            the class probabilities, what the teacher's layers give, as far as the network still has them.
        preprocessing: the steps from image to array; None takes those that the network carries.
        values: whether outputs that could be class scores are numbers; that needs a plan, and no labels.
        checkpoint_file: where the state is kept while training goes on. It stays there.
        resume: go on from the checkpoint, if there is one.
        progress: called with (what is done, steps done, steps in all).
        on_epoch: called after each epoch.

    Raises:
        InputError: when an option is out of range, data and networks do not fit each other, an operator has
            no gradient, or the loss is not finite any more.
    """
    recipe = _with_optimizer(recipe or Recipe(), labels)
    if new_head is not None and not labels:
        raise InputError("new-head: new classes are learnt from labels: give --labels")
    _check_options(teacher is not None, labels, plan is not None, values, temperature, teacher_weight)
    if steps is None:
        _check_epochs(epochs)
    data, validation = _opened(data, validation, labels, teacher is not None)
    plan_files = (Path(plan),) if isinstance(plan, str | Path) else ()
    if isinstance(plan, str | Path):
        plan = read_plan(plan)
    given = load(model)
    with naming(files_of(given)):
        network, multipliers = _to_train(given, new_head, recipe.seed)
        samples = _samples(network, recipe)
    if preprocessing is not None:
        prep.attach(network, preprocessing)
    preprocessing = prep.read(network)
    draw = shuffled(
        data,
        shape=fixed_sizes((network.graph.inputs[0].shape or ())[1:]),
        preprocessing=preprocessing,
        batch=recipe.batch * recipe.iter_size,
        seed=recipe.seed,
        crop=crop,
        mirror=mirror,
        zoom=zoom,
    )
    first, _ = draw(0)
    teaching, share = None, teacher_weight if labels else 1.0
    if teacher is not None:
        original = load(teacher)
        with naming(files_of(original)):
            teacher = whole_bands(simplify(original))
            check_takes(teacher, first.shape[1:])
            with naming(plan_files):
                teaching = teaching_of(teacher, network, plan, labels, temperature, share, first)
        multipliers = {name: each for name, each in multipliers.items() if name not in teaching.settled}
    by_labels = [Term(1 - share if teaching else 1.0)] if labels else []
    terms = [*by_labels, *(teaching.terms if teaching else [])]
    with naming(files_of(given)):
        loss = Loss(taking(network, first.shape[1:]), list(multipliers), terms, samples)
    batch_of = _batches(data, loss, teaching, labels, draw)
    per_epoch = len(data) // (recipe.batch * recipe.iter_size)
    total = _total(epochs, steps, per_epoch)
    path = None if checkpoint_file is None else Path(checkpoint_file)
    facts = [
        asdict(recipe),
        [asdict(term) for term in terms],
        total,
        (crop, mirror, zoom, values),
        None if plan is None else plan.prune,
        preprocessing and asdict(preprocessing),
    ]
    fingerprint = "" if path is None else fingerprint_of(facts, (data, validation), (network, teacher))
    run = (
        restored(path, fingerprint)
        if resume and path is not None and path.exists()
        else Run(start(current(network, list(multipliers)), recipe))
    )
    if run.rate is None:
        run.rate = recipe.rate or find_rate(
            loss,
            run.state,
            multipliers,
            batch_of,
            recipe,
            DISTURBANCE if plan is not None else 0.0,
            steps_of(progress, "looking for a rate"),
        )
    recipe = replace(recipe, rate=run.rate)
    go(
        run,
        train(loss, run.state, multipliers, batch_of, total, recipe),
        total=total,
        per_epoch=per_epoch,
        validate=_validation(
            network, validation, teacher, preprocessing, values, within(progress, "validation")
        ),
        keep=keeper(path, fingerprint),
        progress=steps_of(progress, "training"),
        on_epoch=on_epoch,
    )
    return Finetuned(with_weights(network, run.best_weights), run.best, run.rate, tuple(run.curve))


def _opened(
    data: Data | str | Path, validation: Data | str | Path | None, labels: bool, teacher: bool
) -> tuple[Data, Data | None]:
    """What is trained on and what tells the best epoch, which fit each other."""
    data = data if isinstance(data, Data) else open_data(data)
    if validation is None:
        return data, None
    validation = validation if isinstance(validation, Data) else open_data(validation)
    if validation.labels is None and not teacher:
        raise InputError(f"{validation.name}: validation data needs labels where there is no teacher")
    if labels:
        _check_classes(data, validation)
    return data, validation


def _to_train(given: ir.Model, new_head: int | None, seed: int) -> tuple[ir.Model, dict[str, Multipliers]]:
    """The simplified network, with a new classifier if one is wanted, and which weights learn how fast."""
    network, head = simplify(given), list[str]()
    if new_head is not None:
        network, head = make_head(network, new_head, seed)
    multipliers = trainable(network)
    for name in head:
        old = multipliers[name]
        multipliers[name] = Multipliers(HEAD_RATE * (old.rate or 1), old.decay)
    learning = {name: each for name, each in multipliers.items() if each.rate}
    if not learning:
        raise InputError("all weights are frozen: the multipliers of their learning rates are 0")
    return network, learning


def _total(epochs: float, steps: int | None, per_epoch: int) -> int:
    """The number of steps."""
    total = steps if steps is not None else round(epochs * per_epoch)
    if total < 1:
        given_as = f"epochs: {epochs}" if steps is None else f"steps: {steps}"
        raise InputError(f"{given_as} leaves no step to take")
    return total


def check_trainable(network: ir.Model, data: Data, epochs: float, recipe: Recipe) -> None:
    """See that a simplified network can be trained, before anything else is done with it.

    Args:
        network: which will be its own teacher's student.
        data: to train on: with labels by these and class probabilities, else after the responses of layers.
        epochs: see `finetune`.
        recipe: likewise.

    Raises:
        InputError: as `finetune`.
    """
    _check_epochs(epochs)
    recipe, labels = for_network(recipe, network), data.labels is not None
    batch = recipe.batch * recipe.iter_size
    check_batch(data, batch)
    _total(epochs, None, len(data) // batch)
    terms = [Term()] if labels else [Match(each.value) for each in shared_responses(network, network, {})]
    loss = Loss(network, list(trainable(network)), terms, _samples(network, recipe))
    if labels:
        _check_labels(data, loss)


def _with_optimizer(recipe: Recipe, labels: bool) -> Recipe:
    """The recipe with the optimizer that suits what is followed.

    Muon takes a network further than Adam in a few hundred steps. Without labels, back to its teacher; by
    labels it did worse where it learnt something new: GoogLeNet with a new classifier, small images, three
    epochs, each at the rate that was found: 84.6 % of its validation, by Adam 93.4 %.
    """
    return recipe if recipe.optimizer else replace(recipe, optimizer="adam" if labels else "muon")


def for_network(recipe: Recipe, network: ir.Model) -> Recipe:
    """A recipe whose batch is a multiple of that which the network's file fixes, if it does."""
    fixed = [value.shape[0] for value in network.graph.inputs if value.shape]
    if len(fixed) != 1 or not isinstance(fixed[0], int):
        return recipe
    return replace(recipe, batch=-(-recipe.batch // fixed[0]) * fixed[0])


def _check_epochs(epochs: float) -> None:
    if not 0 < epochs < np.inf:
        raise InputError(f"epochs: {epochs} is not a number above 0")


def _check_options(
    teacher: bool, labels: bool, plan: bool, values: bool, temperature: float, teacher_weight: float
) -> None:
    if not teacher and not labels:
        raise InputError("nothing to learn from: give --teacher, or --labels for data that has them, or both")
    if plan and not teacher:
        raise InputError("plan: the responses to be matched are those of a teacher: give --teacher, too")
    if values and (labels or not plan):
        raise InputError("values: numbers are trained after a teacher's layers: give --plan, and no --labels")
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature: {temperature} is not a number above 0")
    if not 0 < teacher_weight < 1:
        raise InputError(f"teacher-weight: {teacher_weight} is not in (0, 1)")


def _check_classes(data: Data, validation: Data) -> None:
    """Folders number their classes each for itself; the numbers mean the same only where the names do."""
    if data.classes and validation.classes and (others := set(data.classes) ^ set(validation.classes)):
        raise InputError(
            f"{validation.name}: a folder '{min(others)}' is only in one of this and {data.name}; classes "
            "are numbered in the order of their names, so both need the same"
        )


def _check_labels(data: Data, loss: Loss) -> None:
    if data.labels is None:
        raise InputError(f"{data.name}: has no labels; give labelled data, or --teacher without --labels")
    if loss.classes and (highest := data.labels.max()) >= loss.classes:
        raise InputError(
            f"{data.name}: label {highest}, but the network has {loss.classes} classes: "
            f"for a new task train it with finetune --new-head {highest + 1}"
        )


def _samples(network: ir.Model, recipe: Recipe) -> int:
    """Samples per run of the network, which a file may fix."""
    if len(network.graph.inputs) != 1 or network.graph.inputs[0].shape is None:
        raise InputError("only a network with one input of known rank can be trained")
    fixed = network.graph.inputs[0].shape[0]
    if not isinstance(fixed, int):
        return recipe.batch
    if recipe.batch % fixed:
        raise InputError(f"batch: the network takes {fixed} samples at a time; give a multiple of {fixed}")
    return fixed


def _batches(
    data: Data,
    loss: Loss,
    teaching: Teaching | None,
    labels: bool,
    draw: Callable[[int], tuple[np.ndarray, np.ndarray | None]],
) -> Callable[[int], Batch]:
    """A function from the number of a step to its samples and targets."""
    if labels:
        _check_labels(data, loss)
    eye = np.eye(loss.classes or 0, dtype=np.float32)

    def batch_of(step: int) -> Batch:
        x, drawn = draw(step)
        targets = [eye[drawn]] if labels else []
        return x, [*targets, *teaching.targets(x)] if teaching is not None else targets

    return batch_of


def _validation(
    network: ir.Model,
    data: Data | None,
    teacher: ir.Model | None,
    preprocessing: prep.Preprocessing | None,
    values: bool,
    progress: Progress | None,
) -> Callable[[dict[str, np.ndarray]], Accuracy | None]:
    def validate(weights: dict[str, np.ndarray]) -> Accuracy | None:
        if data is None:
            return None
        return evaluate(
            with_weights(network, weights),
            data,
            reference=teacher if values or data.labels is None else None,
            preprocessing=preprocessing,
            values=values,
            progress=progress,
        )

    return validate
