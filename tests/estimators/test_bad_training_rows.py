"""Rows from which a Neural ODE or a flow cannot be trained or solved: they are named."""

from __future__ import annotations

import pytest
import torch
from bad_rows import Cubic, SquareRoots, X, spoiled
from small_hypersolvers import ROUGH_FITS
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.numerics import ReferenceSolveError

pytestmark = ROUGH_FITS


@pytest.mark.parametrize("kind", [NeuralODERegressor, NeuralODEClassifier])
def test_neural_odes_number_rows_through_their_batches(kind):
    slow = kind(Cubic(), input_map=nn.Identity(), max_epochs=1, lr=1e-9, batch_size=2, random_state=0)
    slow.fit(X, (X[:, 0] > 0).astype(int))
    for method in [slow.predict_proba, slow.predict] if kind is NeuralODEClassifier else [slow.predict]:
        with pytest.raises(ReferenceSolveError, match=r"3 of 60 rows \(rows 1, 18, 44\)") as raised:
            method(spoiled([1, 18, 44], 4.0))
        assert raised.value.rows == (1, 18, 44)


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


def test_a_trained_classifier_makes_no_label_of_nan():
    slow = NeuralODEClassifier(
        Cubic(-0.1), input_map=nn.Identity(), output_map=SquareRoots(2), max_epochs=1, random_state=0
    ).fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match=r"there is no label, since predict_proba gives nan for 1 of 60 .*\(row 9\)"):
        slow.score(spoiled([9], -2.0), X[:, 0] > 0)
