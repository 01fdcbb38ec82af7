"""Warnings of bounds and tolerances: they point to the user's line, and their advice suits the method."""

import warnings

import numpy as np
import pytest
import torch
from calibrated import draw, make_generalist
from sklearn.datasets import make_moons
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from user_fields import decay

from sklearn_hyper import HypersolverClassifier, HypersolverDensity, HypersolverRegressor, NeuralODE
from sklearn_hyper.calibration import UnusualRowsWarning
from sklearn_hyper.estimators._base import UnsolvedRowsWarning

FAR = draw(20, 5, low=5.0, high=9.0)
BOUND = {"return_bound": True, "coverage": 0.9}
KEPT = {"tol": 0.1, "alpha": 0.1}


@pytest.fixture(scope="module")
def fast():
    return make_generalist(max_epochs=2).fit(draw(100, 0)).conformalize(draw(200, 1))


class Explodes(torch.nn.Module):
    """z' = z^2, whose solution leaves every bound at t = 1 / z."""

    def forward(self, t, z):
        return z * z


STIFF = np.array([[0.1, 0.2], [1.5, 0.3], [0.2, 0.3]])
SMALL = {"base_solver": "euler", "n_steps": 2, "max_epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def explosive():
    return HypersolverRegressor(Explodes(), **SMALL).fit(draw(60, 0, 0.1, 0.4)).conformalize(draw(100, 1, 0.1, 0.4))


@pytest.fixture(scope="module")
def classifier():
    fitted = HypersolverClassifier(NeuralODE(Explodes()), classes=[0, 1], **SMALL).fit(draw(60, 0, 0.1, 0.4))
    return fitted.conformalize(draw(100, 1, 0.1, 0.4))


@pytest.fixture(scope="module")
def flow():
    rows = make_moons(400, noise=0.1, random_state=0)[0]
    fitted = HypersolverDensity(decay, n_steps=2, max_epochs=20, max_samples=200, random_state=0)
    return fitted.fit(rows[:200]).conformalize(rows[200:], n_samples=60)


def caught(call, category):
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        call()
    (record,) = [record for record in records if issubclass(record.category, category)]
    return record


def far_draws(flow, monkeypatch):
    """Make base draws lie far from those of the calibration."""
    sample_base = flow.flow_.sample_base
    monkeypatch.setattr(flow.flow_, "sample_base", lambda *given: 100 + sample_base(*given), raising=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda fast: fast.predict(FAR, **BOUND),
        lambda fast: fast.transform(FAR, **BOUND),
        lambda fast: fast.trajectory(FAR, **BOUND),
        lambda fast: Pipeline([("same", FunctionTransformer()), ("fast", fast)]).predict(FAR, **BOUND),
    ],
    ids=["predict", "transform", "trajectory", "pipeline"],
)
def test_warnings_of_unusual_rows_point_to_the_users_line(fast, call):
    assert caught(lambda: call(fast), UnusualRowsWarning).filename == __file__


def test_so_do_those_of_frames(fast):
    framed = fast.without_correction().set_output(transform="pandas").conformalize(draw(200, 1))
    assert caught(lambda: framed.transform(FAR, **BOUND), UnusualRowsWarning).filename == __file__


@pytest.mark.parametrize("method", ["predict", "predict_set", "transform"])
def test_so_do_those_of_classifiers(classifier, method):
    how = {"coverage": 0.9} if method == "predict_set" else BOUND
    record = caught(lambda: getattr(classifier, method)(STIFF[[0, 2]] * 4 - 3, **how), UnusualRowsWarning)
    assert record.filename == __file__


def test_so_do_those_of_flows(flow, monkeypatch):
    assert caught(lambda: flow.score_samples(FAR, **BOUND), UnusualRowsWarning).filename == __file__
    far_draws(flow, monkeypatch)
    record = caught(lambda: flow.sample(20, **BOUND), UnusualRowsWarning)
    assert record.filename == __file__
    assert str(record.message).startswith("20 of 20 base draws (")


def test_so_do_those_of_rows_that_dopri5_cannot_solve(explosive, classifier):
    for call in (
        lambda: explosive.predict(STIFF, **KEPT),
        lambda: explosive.transform(STIFF, **KEPT),
        lambda: classifier.transform(STIFF, **KEPT),
    ):
        record = caught(call, UnsolvedRowsWarning)
        assert record.filename == __file__
        assert "1 of 3 rows of X (row 1)" in str(record.message)


def test_so_do_those_of_reports(fast, monkeypatch):
    keep = fast.calibration_.keep

    def lose_one(*given, **how):
        answer, unusual = keep(*given, **how)
        answer.ends[0] = np.nan
        return answer, unusual

    monkeypatch.setattr(fast.calibration_, "keep", lose_one)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always", UnsolvedRowsWarning)
        fast.solver_report(draw(40, 2), **KEPT)
    assert records
    assert {record.filename for record in records} == {__file__}


def test_advice_suits_the_method(fast):
    for call in (fast.predict, fast.transform):
        message = str(caught(lambda call=call: call(FAR, **BOUND), UnusualRowsWarning).message)
        assert "Pass bound='verified', which solves them twice, or calibrate on rows like these." in message
    message = str(caught(lambda: fast.trajectory(FAR, **BOUND), UnusualRowsWarning).message)
    assert message.endswith("their bound is infinite. Calibrate on rows like these.")


def test_a_verified_bound_warns_of_nothing(fast):
    _, bound = fast.predict(FAR, bound="verified", return_bound=True, coverage=0.9)
    assert np.isfinite(bound).all()
