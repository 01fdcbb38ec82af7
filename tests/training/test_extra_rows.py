"""Rows to fit on beside the given ones: where they come from, what is held out, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_hypersolvers import ROUGH_FITS, make_learner, make_regressor
from small_tasks import fit_settings, rows, turn_task

from sklearn_hyper import HypersolverRegressor, MLPCorrection, NeuralODE
from sklearn_hyper.hypersolvers import Task, fit_hypersolver
from sklearn_hyper.modules.copies import frozen_copy
from sklearn_hyper.modules.model_file import ModelFileError
from sklearn_hyper.numerics import resolve_base_solver
from sklearn_hyper.training.correction_fit import CorrectionFit
from sklearn_hyper.training.extra_rows import draw_between, draw_extra_rows, draw_from_box, draw_nearby
from sklearn_hyper.training.plan import Run

pytestmark = ROUGH_FITS
EULER = resolve_base_solver("euler")


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (80, 2))


def prepared(how, task=None, **changes):
    fit = CorrectionFit([task or turn_task()], EULER, fit_settings(extra_rows=how, **changes)).prepare()
    return fit.sets[0]


def extra(how, task, n_steps=2):
    return draw_extra_rows(task, [Run(EULER, n_steps)], fit_settings(extra_rows=how), np.random.default_rng(0))


# ---------------------------------------------------------------------- where they come from
def test_a_box_reaches_a_tenth_of_the_range_beyond_the_rows():
    x = torch.tensor([[0.0, 10.0], [1.0, 30.0], [0.5, 20.0]])
    drawn = draw_from_box(x, 4000, np.random.default_rng(0))
    low, high = drawn.amin(dim=0), drawn.amax(dim=0)
    torch.testing.assert_close(low, torch.tensor([-0.1, 8.0]), rtol=0.01, atol=0.01)
    torch.testing.assert_close(high, torch.tensor([1.1, 32.0]), rtol=0.01, atol=0.01)
    assert (drawn[:, 0] < 0).float().mean() == pytest.approx(0.1 / 1.2, abs=0.02)  # evenly


def test_nearby_rows_are_moved_by_a_share_of_each_features_deviation():
    x = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 0])
    drawn = draw_nearby(x, 20000, np.random.default_rng(0))
    expected = x.std(dim=0, correction=0) * (1 + 0.3**2) ** 0.5
    torch.testing.assert_close(drawn.std(dim=0), expected, rtol=0.03, atol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)], ids=["features", "images"])
def test_rows_between_lie_on_lines_through_pairs_and_a_quarter_beyond(shape):
    """Of two rows there is one line: where on it a drawn row lies, and which end is nearer, are known."""
    x = torch.stack([torch.zeros(shape), torch.ones(shape)])
    drawn, nearer = draw_between(x, 4000, np.random.default_rng(0))
    place = drawn.flatten(1)
    assert (place == place[:, :1]).all()
    assert place.min() >= -0.25 and place.max() <= 1.25 and place.min() < -0.2 and place.max() > 1.2
    inside = (place[:, 0] != 0) & (place[:, 0] != 1)  # both rows of a pair may be the same one
    assert torch.equal(nearer[inside] == 1, place[inside, 0] > 0.5)


def test_the_worst_have_larger_errors_of_the_base_solver_than_those_drawn():
    task = turn_task(100)
    kept = extra("worst", task)
    errors = {}
    for name, x in {"kept": kept.task.x, "drawn": draw_from_box(task.x, 200, np.random.default_rng(0))}.items():
        z = x
        for _ in range(2):
            z = z + 0.5 * task.neural_ode.vector_field(torch.tensor(0.0), z)
        errors[name] = (z - task.neural_ode(x)).norm(dim=1)
    assert len(errors["kept"]) == 100
    assert errors["kept"].min() > errors["drawn"].quantile(0.4)  # one in two is kept, by errors beside the size


@pytest.mark.parametrize("how", ["box", "worst", lambda X, n, random_state: X[:n]], ids=["box", "worst", "function"])
def test_ends_are_those_of_dopri5(how):
    task = turn_task()
    drawn = extra(how, task)
    torch.testing.assert_close(drawn.ends[0], drawn.task.x)
    torch.testing.assert_close(drawn.ends[1], task.neural_ode(drawn.task.x), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- in a fit
@pytest.mark.parametrize("changes", [{}, {"loss": "trajectory", "finetune": None}], ids=["residuals", "solves"])
def test_they_are_trained_on_and_never_held_out(changes):
    plain, more = prepared(None, **changes), prepared("box", **changes)
    assert torch.equal(plain.valid.task.x, more.valid.task.x)
    assert len(more.train) == len(plain.train) + 54
    assert torch.equal(more.train.task.x[:54], plain.train.task.x)
    assert torch.equal(more.train.states[0, :54], plain.train.states[0])
    # Rows of the box are none of the rows given, and an epoch takes as many as before.
    assert not (more.train.task.x[54:, None] == turn_task().x).all(dim=2).any()
    assert more.train.task.epoch_rows == 54


def test_nothing_is_taken_from_rows_that_are_held_out():
    seen = []

    def remember(X, n, random_state):
        seen.append(X)
        return X[:n]

    data = prepared(remember)
    held_out = data.valid.task.x.numpy()
    assert len(seen) == 1 and len(seen[0]) == 54
    assert not (seen[0][:, None] == held_out).all(axis=2).any()


def test_a_fit_far_from_the_rows_gets_better(X):
    """A net that saw a small square only, in a field that is not linear; judged at the edge of its fringe."""
    far = np.random.default_rng(1).uniform(-1.15, 1.15, (400, 2))
    far = far[np.abs(far).max(axis=1) > 1]
    scores = {how: make_learner(extra_rows=how, max_epochs=30).fit(X).score(far) for how in (None, "box")}
    assert scores["box"] > scores[None]


def test_with_changes_of_weights_too(X):
    fast = make_regressor(base_solver="auto", correction="auto", extra_rows="worst", max_epochs=20).fit(X)
    assert fast.score(X) > fast.without_correction().score(X) and fast.n_samples_fit_ == 80


def test_they_follow_random_state_and_count_not_as_fitted_rows(X):
    one, same, other = (make_learner(extra_rows="box", random_state=seed).fit(X).predict(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    fitted = make_learner(extra_rows="box", max_epochs=1).fit(X).fitted_
    assert len(fitted.fitted_rows) == 80


def test_the_range_of_a_generalist_is_served(X):
    fast = make_learner(extra_rows="worst", fit_n_steps=(1, 4)).fit(X)
    assert set(fast.errors_) >= {1, 4}


# ---------------------------------------------------------------------- rows that do not serve
def escapes(t, z):
    """z' = z^2: from 1 on without end in the span."""
    return z**2


def test_rows_that_cannot_be_solved_are_left_out():
    X = np.random.default_rng(0).uniform(-0.9, 0.9, (80, 1))
    task = Task(frozen_copy(NeuralODE(escapes)), torch.from_numpy(X))
    # The box ends at 1.08: some of its rows escape, and dopri5 gives up on them.
    kept = extra("box", task, n_steps=20)
    assert 0.5 * 80 < len(kept.task) <= 80 and kept.task.x.max() < 1.0


def test_an_error_says_where_none_can_be_solved(X):
    def unbounded(t, z):
        return torch.where(z.abs() > 5, z**3, -z)

    with pytest.raises(ValueError, match=r"from none of the 72 rows drawn.*extra_rows=None"):
        HypersolverRegressor(
            unbounded, extra_rows=lambda X, n, random_state: X[:n] + 50, n_steps=2, max_epochs=1, random_state=0
        ).fit(X)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda X, n, random_state: X[:n, :1],
            r"must return an array of numbers of shape \(n, 2\).*got shape \(72, 1\)",
        ),
        (lambda X, n, random_state: X[:0], r"got shape \(0, 2\)"),
        (lambda X, n, random_state: X[0], r"got shape \(2,\)"),
        (lambda X, n, random_state: X[:n].astype(str), r"got shape \(72, 2\) of <U"),
        (lambda X, n, random_state: np.where(X > 0.9, np.nan, X), r"rows that are not finite in float64 \(row"),
    ],
    ids=["width", "none", "flat", "text", "nan"],
)
def test_what_a_function_returns_is_checked(X, draw, message):
    with pytest.raises(ValueError, match=message):
        make_regressor(extra_rows=draw).fit(X)


def test_a_function_gets_rows_as_the_neural_ode_takes_them_and_a_generator(X):
    calls = []

    def draw(X, n, random_state):
        calls.append((X.shape, X.dtype, n, random_state.uniform()))
        X[:] = 0  # its own copy
        return torch.from_numpy(random_state.normal(size=(n + 3, 2)))

    fast = make_regressor(extra_rows=draw, max_epochs=1, correction=MLPCorrection(hidden=4)).fit(X)
    clone(fast).fit(X)
    assert calls[0] == calls[1] and calls[0][:3] == ((72, 2), np.float64, 72)


@pytest.mark.parametrize("how", ["boxes", 3, True])
def test_another_value_is_refused_by_name(X, how):
    with pytest.raises(ValueError, match="'extra_rows' parameter of HypersolverRegressor must be"):
        make_regressor(extra_rows=how).fit(X)
    with pytest.raises(ValueError, match="extra_rows must be None, 'box', 'worst', 'between' or a function"):
        fit_hypersolver(turn_task(), fit_settings(extra_rows=how))


def test_a_box_of_images_is_refused_and_their_worst_are_drawn():
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    task = Task(frozen_copy(NeuralODE(lambda t, z: torch.sin(3 * z))), x)
    with pytest.raises(ValueError, match=r"extra_rows='box' draws every feature alone.*\(1, 4, 4\).*'worst'"):
        extra("box", task)
    assert extra("worst", task).task.x.shape == (40, 1, 4, 4)


def conditioned(rate):
    field = frozen_copy(NeuralODE(lambda t, z, rate: -rate * z))
    return Task(field, rows(40), {"rate": rate})


@pytest.mark.parametrize("how", ["box", "worst", lambda X, n, random_state: X[:n]], ids=["box", "worst", "function"])
def test_conditions_are_refused_where_no_row_says_which(how):
    with pytest.raises(ValueError, match=r"extra_rows=.* with a condition.*'between'"):
        fit_hypersolver(conditioned(torch.ones(40, 1, dtype=torch.float64)), fit_settings(extra_rows=how))


def test_rows_between_have_the_condition_of_the_nearer_row():
    task = conditioned(torch.arange(40, dtype=torch.float64)[:, None])
    drawn = extra("between", task, n_steps=40).task
    _, nearer = draw_between(task.x, 10, np.random.default_rng(0))
    assert set(drawn.condition["rate"][:, 0].long().tolist()) <= set(nearer.tolist())
    more = task.with_extra(drawn)
    assert len(more.condition["rate"]) == len(more) == 40 + len(drawn)
    fit_hypersolver(task, fit_settings(extra_rows="between", n_steps=40, max_epochs=1))


def test_rows_between_may_all_be_left_out(X):
    """From everywhere one Euler step ends further off than a state is large."""
    stiff = NeuralODE(lambda t, z: -60 * z)
    task = Task(frozen_copy(stiff), rows(40))
    assert len(extra("between", task, n_steps=1).task) == 0
    assert prepared("between", task, n_steps=1).train.task.x.shape == (36, 2)


def test_a_function_is_no_part_of_a_model_file(X, tmp_path):
    fast = make_regressor(extra_rows=lambda X, n, random_state: X[:n], max_epochs=1).fit(X)
    with pytest.raises(ModelFileError, match="extra_rows"):
        fast.save(tmp_path / "fast.safetensors")
    make_regressor(extra_rows="worst", max_epochs=1).fit(X).save(tmp_path / "fast.safetensors")
