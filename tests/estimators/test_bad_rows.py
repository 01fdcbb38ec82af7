"""Rows that dopri5 cannot solve: they are named, and the others keep their results."""

from __future__ import annotations

import copy
import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.estimators import UnsolvedRowsWarning
from sklearn_hyper.evaluation import agreement_scorer, neg_mape_scorer
from sklearn_hyper.numerics import ReferenceSolveError, reference_solution
from sklearn_hyper.numerics.row_search import solve_by_row
from sklearn_hyper.training import references

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
FIT = {"base_solver": "heun", "n_steps": 4, "max_epochs": 1, "random_state": 0}


def spoiled(rows, value=3.0):
    bad = X.copy()
    bad[rows] = value
    return bad


def cubic(t, z):
    """z' = z^3 / 10, that is z(t) = z_0 / sqrt(1 - t z_0^2 / 5): from 3 without end before t = 1."""
    return 0.1 * z**3


def exact(x):
    return x / np.sqrt(1 - 0.2 * x**2)


def undefined(t, z):
    """Not finite from zero on."""
    return z * (z / z)


def stiff(t, z):
    """A row's first number to the fourth power is the rate of the second."""
    return torch.stack([0 * z[:, 0], -(z[:, 0].abs() ** 4) * (z[:, 1] - t.cos())], dim=1)


class Cubic(nn.Module):
    """:func:`cubic` with a parameter, of which a training at no learning rate to speak of makes the same."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t, z):
        return self.rate * z**3


@pytest.fixture(scope="module")
def fast():
    return HypersolverRegressor(cubic, **FIT).fit(X)


@pytest.mark.parametrize(
    ("f", "value"), [(cubic, 3.0), (undefined, 0.0), (lambda t, z: z**2, 3.0)], ids=["cubic", "nan", "square"]
)
@pytest.mark.parametrize("rows", [[17], [0, 59], [3, 4, 30, 31, 40, 58]], ids=["one", "ends", "six"])
def test_bad_rows_are_found_and_the_others_solved(f, value, rows):
    z0 = torch.from_numpy(0.1 * spoiled(rows, 10 * value))

    def solve(some, limit):
        return reference_solution(f, z0[some], (0, 1), max_evaluations=limit)

    states, failed = solve_by_row(solve, len(z0))
    assert references.lost_rows(states) == rows and "dopri5" in failed
    good = np.setdiff1d(np.arange(60), rows)
    torch.testing.assert_close(states[:, good], solve(torch.from_numpy(good), 30_000), rtol=1e-5, atol=1e-5)


def test_a_stiff_row_does_not_take_the_others_with_it(monkeypatch):
    monkeypatch.setattr("sklearn_hyper.numerics.row_search.MAX_EVALUATIONS", 2000)
    monkeypatch.setattr("sklearn_hyper.numerics.row_search._GROUP_LIMIT", 500)
    z0 = torch.from_numpy(spoiled([8, 9], 30.0))
    states, failed = solve_by_row(lambda r, m: reference_solution(stiff, z0[r], (0, 1), max_evaluations=m), 60)
    assert references.lost_rows(states) == [8, 9] and "needed more than 2000 evaluations" in failed


def test_rows_that_hold_a_solve_up_are_named():
    with pytest.raises(ReferenceSolveError, match=r"from 1 of 60 rows \(row 5\) the field is stiff or") as raised:
        reference_solution(cubic, torch.from_numpy(spoiled([5])), (0, 1))
    assert raised.value.rows == (5,)
    assert pickle.loads(pickle.dumps(raised.value)).rows == (5,)


@pytest.mark.parametrize("rows", [[33], [1, 2, 59]])
def test_reference_gives_nan_for_bad_rows(fast, rows):
    named = ", ".join(map(str, rows))
    with pytest.warns(UnsolvedRowsWarning, match=rf"from {len(rows)} of 60 rows of X \(rows? {named}\)"):
        reference = fast.reference(spoiled(rows))
    good = np.setdiff1d(np.arange(60), rows)
    assert np.isnan(reference[rows]).all()
    np.testing.assert_allclose(reference[good], exact(X[good]), rtol=1e-5)


def test_only_ten_rows_are_listed_and_the_error_has_all(fast):
    rows = list(range(10, 22))
    with pytest.raises(ReferenceSolveError, match=r"12 of 60 rows \(rows 10, 11, .*, 19 and 2 more\)") as raised:
        fast.score(spoiled(rows))
    assert raised.value.rows == tuple(rows)


@pytest.mark.parametrize("method", ["score", "solver_report", "fit", "scorer"])
def test_single_results_name_the_bad_rows(fast, method):
    bad = spoiled([41])
    calls = {
        "score": fast.score,
        "solver_report": fast.solver_report,
        "fit": HypersolverRegressor(cubic, **FIT).fit,
        "scorer": lambda x: neg_mape_scorer(fast, x),
    }
    with pytest.raises(ReferenceSolveError, match=r"\(row 41\).*Leave those rows out") as raised:
        calls[method](bad)
    assert raised.value.rows == (41,)


@pytest.mark.parametrize("base_solver", ["heun", "nonstationary"])
def test_rows_are_those_of_the_x_that_was_passed(base_solver):
    many = np.concatenate([X, X])
    many[7::12] = 3.0
    hyper = HypersolverRegressor(cubic, **{**FIT, "base_solver": base_solver}, max_samples=40)
    with pytest.raises(ReferenceSolveError, match="of 120 rows") as raised:
        hyper.fit(many)
    assert max(raised.value.rows) > 40 and all(row % 12 == 7 for row in raised.value.rows)


def test_base_solver_overflow_names_rows():
    # dopri5 solves z' = -z^3 from 1e3; Euler's steps leave the range of numbers from there.
    bad = spoiled([7, 55], 1e3)
    with pytest.raises(ValueError, match=r"overflows from 2 of 60 rows of X \(rows 7, 55\)") as raised:
        HypersolverRegressor(lambda t, z: -(z**3), **{**FIT, "base_solver": "euler", "n_steps": 9}).fit(bad)
    assert raised.value.rows == (7, 55)


def test_a_field_that_no_row_can_be_solved_for_is_blamed_itself(fast):
    with pytest.raises(ReferenceSolveError, match=r"on this time span, from every row\. Loosen rtol"):
        fast.reference(np.full((50, 2), 3.0))


def test_a_whole_chunk_of_bad_rows_leaves_the_other_chunks(monkeypatch, fast):
    monkeypatch.setattr(references, "chunk_rows", lambda numel: 20)
    with pytest.warns(UnsolvedRowsWarning, match=r"from 20 of 60 rows"):
        reference = fast.reference(spoiled(slice(0, 20)))
    np.testing.assert_allclose(reference[20:], exact(X[20:]), rtol=1e-5)
    parallel = copy.copy(fast).set_params(n_jobs=2)
    with joblib.parallel_config(backend="threading"), pytest.raises(ReferenceSolveError) as raised:
        parallel.score(spoiled([5, 25, 59]))
    assert raised.value.rows == (5, 25, 59)


def test_a_cache_does_not_hide_the_error(tmp_path):
    fast = HypersolverRegressor(cubic, **FIT, memory=str(tmp_path)).fit(X)
    bad = spoiled([12])
    for _ in range(2):
        with pytest.warns(UnsolvedRowsWarning, match="row 12"):
            fast.reference(bad)
        with pytest.raises(ReferenceSolveError, match="row 12"):
            fast.score(bad)


class Logits(nn.Module):
    def forward(self, z):
        assert z.isfinite().all()  # an output map need not take nan
        return z


def test_output_maps_and_agreement():
    ode = NeuralODE(cubic, output_map=Logits())
    fast = HypersolverClassifier(ode, classes=["a", "b"], **FIT).fit(X)
    with pytest.warns(UnsolvedRowsWarning, match="row 2"):
        assert np.isnan(fast.reference(spoiled([2]))[2]).all()
    with pytest.raises(ReferenceSolveError, match="row 2"):
        agreement_scorer(fast, spoiled([2]))


def test_steps_of_a_pipeline_keep_the_numbers():
    field = NeuralODERegressor(Cubic(), input_map=nn.Identity(), max_epochs=1, lr=1e-9, random_state=0)
    slow = make_pipeline(FunctionTransformer(np.negative), field).fit(X, exact(X)[:, 0])
    with pytest.raises(ReferenceSolveError, match="row 19"):
        HypersolverRegressor(slow, **FIT).fit(spoiled([19]))
    with pytest.raises(ReferenceSolveError, match="row 19"):
        slow.predict(spoiled([19]))


@pytest.mark.parametrize("kind", [NeuralODERegressor, NeuralODEClassifier])
def test_neural_odes_number_rows_through_their_batches(kind):
    slow = kind(Cubic(), input_map=nn.Identity(), max_epochs=1, lr=1e-9, batch_size=2, random_state=0)
    slow.fit(X, (X[:, 0] > 0).astype(int))
    for method in [slow.predict_proba, slow.predict] if kind is NeuralODEClassifier else [slow.predict]:
        with pytest.raises(ReferenceSolveError, match=r"3 of 60 rows \(rows 1, 18, 44\)") as raised:
            method(spoiled([1, 18, 44], 4.0))
        assert raised.value.rows == (1, 18, 44)


def test_predictions_of_a_hypersolver_are_its_own(fast):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction = fast.predict(spoiled([30]))
    np.testing.assert_array_equal(np.delete(prediction, 30, axis=0), np.delete(fast.predict(X), 30, axis=0))


def test_flows_number_rows_through_their_batches():
    def fit(rate):
        return ContinuousNormalizingFlow(Cubic(rate), max_epochs=1, lr=1e-9, batch_size=2, random_state=0).fit(X)

    flow = fit(-0.1)  # decays from base to data, and so grows the other way round
    for method in (flow.score_samples, flow.transform):
        with pytest.raises(ReferenceSolveError, match=r"2 of 60 rows \(rows 17, 40\)") as raised:
            method(spoiled([17, 40], 40.0))
        assert raised.value.rows == (17, 40)
    with pytest.raises(ReferenceSolveError, match=r"\(row 33\)"):
        fit(0.1).inverse_transform(spoiled([33], 40.0))


def test_the_check_of_a_training_solver_names_rows_of_x():
    """One Euler step takes rows that dopri5 cannot."""
    slow = NeuralODERegressor(
        Cubic(), input_map=nn.Identity(), solver="euler", n_steps=1, max_epochs=1, lr=1e-9, random_state=0
    )
    with pytest.raises(ReferenceSolveError, match="of 60 rows") as raised:
        slow.set_params(validation_fraction=0.5).fit(spoiled(slice(0, 60, 6), 4.0), X[:, 0])
    assert raised.value.rows and all(row % 6 == 0 for row in raised.value.rows)


def shrinking(z):
    """Finite at the start of z' = z from rows below 20, and at its end from those below 20 / e."""
    return torch.log(20 - z)


@pytest.fixture(scope="module")
def of_logs():
    return HypersolverRegressor(NeuralODE(lambda t, z: z, output_map=shrinking), **FIT).fit(X)


def test_outputs_that_are_nan_at_the_end_are_named(of_logs):
    bad = spoiled([4, 31], 9.0)
    for method in (of_logs.score, of_logs.solver_report, lambda x: neg_mape_scorer(of_logs, x)):
        with pytest.raises(ValueError, match=r"not finite for 2 of 60 rows of X \(rows 4, 31\)\. Leave") as raised:
            method(bad)
        assert raised.value.rows == (4, 31)
    assert np.isnan(of_logs.reference(bad)[[4, 31]]).all()


@pytest.mark.parametrize("base_solver", ["heun", "nonstationary"])
def test_a_fit_of_outputs_names_those_that_are_nan(base_solver):
    how = {**FIT, "base_solver": base_solver, "max_epochs": 2, "finetune": "output"}
    with pytest.raises(ValueError, match=r"finetune='output'.*\(rows 8, 50\)") as raised:
        HypersolverRegressor(NeuralODE(lambda t, z: z, output_map=shrinking), **how).fit(spoiled([8, 50], 9.0))
    assert raised.value.rows == (8, 50)


def test_no_label_is_made_of_nan():
    class Logs(nn.Module):
        def forward(self, z):
            return torch.log(20 - z)

    fast = HypersolverClassifier(NeuralODE(lambda t, z: z, output_map=Logs()), classes=["a", "b"], **FIT).fit(X)
    bad = spoiled([0, 7], 9.0)
    assert np.isnan(fast.predict_proba(bad)).any(axis=1).nonzero()[0].tolist() == [0, 7]
    for method in (fast.predict, lambda x: fast.score(x, ["a"] * 60), lambda x: agreement_scorer(fast, x)):
        with pytest.raises(
            ValueError, match=r"there is no label, since .* gives nan for 2 of 60 .*\(rows 0, 7\)"
        ) as raised:
            method(bad)
        assert raised.value.rows == (0, 7)
    # An infinite logit is no nan: the least probable class has probability 0.
    least = HypersolverClassifier(
        NeuralODE(lambda t, z: 0 * z, output_map=lambda z: z.clamp(min=0).log()), classes=[0, 1], **FIT
    )
    assert least.fit(np.abs(X) + 0.1).predict(np.array([[0.0, 0.5], [0.5, 0.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_in_half_precision_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"output_map returns {dtype} for states of torch.float64"):
        HypersolverRegressor(NeuralODE(cubic, output_map=lambda z: z.to(dtype)), **FIT).fit(X)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("kind", [NeuralODERegressor, NeuralODEClassifier])
def test_training_names_rows_that_cannot_be_solved(kind, adjoint):
    slow = kind(
        Cubic(), input_map=nn.Identity(), max_epochs=1, batch_size=20, adjoint=adjoint, validation_fraction=0.3,
        random_state=0,
    )  # fmt: skip
    with pytest.raises(ReferenceSolveError, match=r"of 60 rows \(rows? ") as raised:
        slow.fit(spoiled([3, 12, 47, 58]), (X[:, 0] > 0).astype(int))
    assert len(raised.value.rows) > 1 and set(raised.value.rows) <= {3, 12, 47, 58}


def test_a_field_that_cannot_be_trained_from_any_row_is_blamed_itself():
    slow = NeuralODERegressor(Cubic(), input_map=nn.Identity(), max_epochs=1, random_state=0)
    with pytest.raises(ReferenceSolveError, match=r"the field is stiff or its solution grows .* Loosen rtol"):
        slow.fit(spoiled(slice(0, 60)), X[:, 0])


class Root(nn.Module):
    """Not a number where the first feature is below -2."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, *arguments):
        z = arguments[-1]
        return self.rate * z * (2 + z[:, :1]).sqrt()


@pytest.mark.parametrize("part", ["vector_field", "input_map"])
def test_training_names_rows_where_a_part_is_not_finite(part):
    parts = {"vector_field": Cubic(-0.1), "input_map": nn.Identity(), "output_map": nn.Linear(2, 1)} | {part: Root()}
    slow = NeuralODERegressor(**parts, max_epochs=1, random_state=0)
    bad = spoiled([21, 40], -3.0)
    with pytest.raises(ValueError, match=rf"{part} is not finite .* for 2 of 60 rows of X \(rows 21, 40\)"):
        slow.fit(bad, X[:, 0])


def test_flows_name_rows_in_training():
    grows = ContinuousNormalizingFlow(
        Cubic(-0.1), objective="likelihood", max_epochs=1, batch_size=20, validation_fraction=None, random_state=0
    )
    with pytest.raises(ReferenceSolveError, match=r"1 of 60 rows \(row 44\)") as raised:
        grows.fit(spoiled([44], 40.0))
    assert raised.value.rows == (44,)

    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

        def forward(self, t, z):
            return self.rate * torch.where(z > 4, torch.nan, z)

    for objective in ("flow_matching", "likelihood"):
        with pytest.raises(ValueError, match=r"vector_field is not finite .* of 60 rows of X \(rows 20, 59\)"):
            ContinuousNormalizingFlow(Clipped(), objective=objective, max_epochs=1).fit(spoiled([20, 59], 40.0))


def test_a_fit_of_outputs_names_those_that_are_nan_at_the_base_solvers_states():
    """One Euler step of z' = -3 z goes to -2 z."""
    how = {**FIT, "base_solver": "euler", "n_steps": 1, "max_epochs": 2, "finetune": "output"}
    decay = NeuralODE(lambda t, z: -3 * z, output_map=lambda z: (z + 3).sqrt())
    with pytest.raises(ValueError, match=r"finetune='output'.* base_solver='euler' with n_steps=1 .*\(rows 5, 6\)"):
        HypersolverRegressor(decay, **how).fit(spoiled([5, 6], 2.0))


class SquareRoots(nn.Module):
    """A logit that is nan for a first feature below -1."""

    def __init__(self, n_outputs):
        super().__init__()
        self.layer, self.n_outputs = nn.Linear(2, n_outputs), n_outputs

    def forward(self, x):
        return self.layer(x) + (1 + x[:, :1]).sqrt()


@pytest.mark.parametrize("kind", [NeuralNetClassifier, NeuralNetBinaryClassifier])
def test_no_label_is_made_of_a_nets_nan(kind):
    n_outputs = 2 if kind is NeuralNetClassifier else 1
    ode = NeuralODE(lambda t, z: -z, output_map=SquareRoots(n_outputs))
    criterion = {"criterion": nn.CrossEntropyLoss} if n_outputs == 2 else {}
    net = kind(ode, train_split=None, max_epochs=1, verbose=0, **criterion)
    net.fit(X.astype(np.float32), (X[:, 0] > 0).astype(np.int64 if n_outputs == 2 else np.float32))
    fast = HypersolverClassifier(net, **FIT).fit(X.astype(np.float32))
    bad = spoiled([2, 58], -9.0).astype(np.float32)
    for method in (fast.predict, lambda x: agreement_scorer(fast, x)):
        with pytest.raises(ValueError, match=r"there is no label.*\(rows 2, 58\)"):
            method(bad)


def test_a_trained_classifier_makes_no_label_of_nan():
    slow = NeuralODEClassifier(
        Cubic(-0.1), input_map=nn.Identity(), output_map=SquareRoots(2), max_epochs=1, random_state=0
    ).fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match=r"there is no label, since predict_proba gives nan for 1 of 60 .*\(row 9\)"):
        slow.score(spoiled([9], -2.0), X[:, 0] > 0)
