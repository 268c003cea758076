import numpy as np
import pytest

from onnxcompress.caffe.solver import read_solver
from onnxcompress.errors import InputError
from onnxcompress.training.optimizers import OPTIMIZERS, Settings, clip, empty_state, orthogonal
from onnxcompress.training.schedules import Schedule, share
from onnxcompress.training.trainer import Recipe


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (Schedule("fixed"), {0: 1, 99: 1}),
        (Schedule("step", gamma=0.5, stepsize=10), {9: 1, 10: 0.5, 25: 0.25}),
        (Schedule("multistep", gamma=0.1, stepvalues=(5, 20)), {4: 1, 5: 0.1, 20: 0.01}),
        (Schedule("exp", gamma=0.9), {0: 1, 3: 0.729}),
        (Schedule("inv", gamma=0.1, power=0.5), {0: 1, 30: 0.5}),
        (Schedule("poly", power=2), {0: 1, 50: 0.25}),
        (Schedule("cosine"), {0: 1, 50: 0.5, 100: 0}),
        (Schedule("fixed", warmup=3), {0: 0.25, 2: 0.75, 3: 1}),
    ],
)
def test_schedules(schedule, shares):
    assert {step: share(schedule, step, 100) for step in shares} == pytest.approx(shares)


def test_sgd_has_the_form_of_caffe():
    w, state = np.array([1.0], np.float32), {"velocity": np.array([0.5], np.float32)}
    OPTIMIZERS["sgd"].update(w, np.array([2.0], np.float32), state, 0.1, 7, Settings(momentum=0.9))
    assert state["velocity"] == pytest.approx(0.9 * 0.5 + 0.1 * 2)
    assert w == pytest.approx(1 - 0.65)


def test_adams_first_steps_have_the_length_of_the_rate():
    w = {"w": np.zeros(3, np.float32)}
    state = empty_state("adam", w)["w"]
    for step in range(4):
        OPTIMIZERS["adam"].update(w["w"], np.array([5, -1e-3, 7], np.float32), state, 0.1, step, Settings())
        np.testing.assert_allclose(w["w"], np.array([-0.1, 0.1, -0.1]) * (step + 1), rtol=1e-3)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_the_nearest_orthogonal_matrix(shape):
    random = np.random.default_rng(1)
    u, _, v = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
    values = np.geomspace(1, 0.01, min(shape))
    found = orthogonal((u * values @ v).astype(np.float32))
    along = u.T @ found @ v.T
    assert np.all((np.diag(along) > 0.6) & (np.diag(along) < 1.3))
    np.testing.assert_allclose(along, np.diag(np.diag(along)), atol=1e-4)
    assert not orthogonal(np.zeros(shape, np.float32)).any()


def test_muon_moves_convolutions_by_the_rate_and_all_else_by_adam():
    random = np.random.default_rng(0)
    shapes = {"conv": (8, 4, 3, 3), "product": (8, 36), "bias": (8,)}
    w = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name, weight in w.items():
        g = random.standard_normal(weight.shape).astype(np.float32)
        OPTIMIZERS["muon"].update(weight, g, empty_state("muon", w)[name], 0.1, 0, Settings())
        by_adam = np.zeros_like(g)
        OPTIMIZERS["adam"].update(by_adam, g, empty_state("adam", w)[name], 0.1, 0, Settings())
        assert np.array_equal(weight, by_adam) == (name != "conv")
    assert np.sqrt(np.mean(w["conv"] ** 2)) == pytest.approx(0.1, rel=0.2)


def test_clipping_limits_the_joint_norm():
    gradients = {"a": np.full(4, 3, np.float32), "b": np.full(4, 4, np.float32)}
    clip(gradients, 20)
    assert gradients["a"][0] == 3
    clip(gradients, 1)
    assert np.linalg.norm(np.concatenate(list(gradients.values()))) == pytest.approx(1)


def test_a_rate_that_grows_without_bound_is_infinite():
    assert share(Schedule("exp", gamma=2.0), 5000, 10000) == np.inf


def test_solver(tmp_path):
    path = tmp_path / "solver.prototxt"
    path.write_text(
        'net: "train_val.prototxt"\nbase_lr: 0.01 # start\nlr_policy: "multistep"\ngamma: 0.2\n'
        "stepvalue: 30\nstepvalue: 40\nmomentum: 0.8\nweight_decay: 0.0005\nmax_iter: 50\niter_size: 4\n"
        "solver_mode: GPU\nrandom_seed: 3\nclip_gradients: 35\n"
    )
    recipe, steps = read_solver(path, Recipe(batch=2))
    assert steps == 50
    assert (recipe.optimizer, recipe.batch, recipe.iter_size, recipe.seed) == ("sgd", 2, 4, 3)
    assert recipe.rate == pytest.approx(0.01)
    assert recipe.weight_decay == pytest.approx(5e-4)
    assert recipe.settings.momentum == pytest.approx(0.8)
    assert recipe.clip_gradients == 35 / 4  # of the mean over iter_size runs
    assert share(recipe.schedule, 45, 50) == pytest.approx(0.04)


def test_the_old_name_of_a_solvers_type(tmp_path):
    path = tmp_path / "solver.prototxt"
    path.write_text("base_lr: 0.01 solver_type: ADAM")
    assert read_solver(path, Recipe())[0].optimizer == "adam-caffe"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_lr: 0.1 type: 'AdaGrad'", "type AdaGrad is not supported"),
        ("base_lr: 0.1 lr_policy: 'sigmoid'", "'sigmoid' is not one of"),
        ("layer { }", "solver has no field 'layer' in Caffe"),
        ("max_iter: 9", "names no base_lr"),
        ("base_lr: 0.1 momentun: 0.9", "solver has no field 'momentun' in Caffe"),
        ("base_lr: 0.1 momentum: nan", "momentum is nan"),
        ("base_lr: {", "solver.prototxt: truncated, or not a prototxt: line 1"),
        ("base_lr: 0.1 regularization_type: 'L1'", "only L2"),
        ("base_lr: 0.1 lr_policy: 'step'", "needs a stepsize"),
        ("base_lr: 0.1 lr_policy: 'inv' gamma: -1", "gamma: -1.0 is not a number of at least 0"),
        ("base_lr: 0.1 solver_type: NESTEROV", "type Nesterov is not supported"),
    ],
)
def test_bad_solvers(tmp_path, text, message):
    path = tmp_path / "solver.prototxt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_solver(path, Recipe())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "give a rate"),
        ({"optimizer": "rms"}, "'rms' is not one of"),
        ({"rate": -1.0}, "not a number above 0"),
        ({"batch": 0}, "at least 1"),
        ({"clip_gradients": 0.0}, "not above 0"),
    ],
)
def test_bad_recipes(options, message):
    with pytest.raises(InputError, match=message):
        Recipe(**options)
