"""Rows that dopri5 cannot solve: hypersolvers name them, and the others keep their results."""

from __future__ import annotations

import copy
import warnings

import joblib
import numpy as np
import pytest
import torch
from bad_rows import FIT, Cubic, SquareRoots, X, cubic, exact, spoiled
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from small_hypersolvers import ROUGH_FITS
from torch import nn

from sklearn_hyper import (
    HypersolverClassifier,
    HypersolverRegressor,
    NeuralODE,
    NeuralODERegressor,
)
from sklearn_hyper.estimators import UnsolvedRowsWarning
from sklearn_hyper.evaluation import agreement_scorer, neg_mape_scorer
from sklearn_hyper.numerics import ReferenceSolveError
from sklearn_hyper.training import references

pytestmark = ROUGH_FITS


@pytest.fixture(scope="module")
def fast():
    return HypersolverRegressor(cubic, **FIT).fit(X)


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


def test_predictions_of_a_hypersolver_are_its_own(fast):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction = fast.predict(spoiled([30]))
    np.testing.assert_array_equal(np.delete(prediction, 30, axis=0), np.delete(fast.predict(X), 30, axis=0))


# ---------------------------------------------------------------------- outputs that are no numbers
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


def test_a_fit_of_outputs_names_those_that_are_nan_at_the_base_solvers_states():
    """One Euler step of z' = -3 z goes to -2 z."""
    how = {**FIT, "base_solver": "euler", "n_steps": 1, "max_epochs": 2, "finetune": "output"}
    decay = NeuralODE(lambda t, z: -3 * z, output_map=lambda z: (z + 3).sqrt())
    with pytest.raises(ValueError, match=r"finetune='output'.* base_solver='euler' with n_steps=1 .*\(rows 5, 6\)"):
        HypersolverRegressor(decay, **how).fit(spoiled([5, 6], 2.0))


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
