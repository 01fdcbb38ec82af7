"""How time enters a field: what is probed, and what is stated and checked."""

import pytest
import torch

from sklearn_hyper import NeuralODE
from sklearn_hyper.modules import VectorFieldError
from sklearn_hyper.modules.row_times import choose_times

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)


def still(t, z):
    return torch.cat([z, t.expand(len(z), 1)], dim=1)[:, :2]  # takes the time, and drops it


def late(t, z):
    """Depends on time in the last tenth of the span alone."""
    return z * (1 + (t > 1.9))


def by_row(t, z):
    return z * torch.cos(t).reshape(-1, 1)


def crossed(t, z):
    """Runs on a vector of times, but row i does not get time i."""
    return z * torch.cos(t).flip(0).reshape(-1, 1) if t.ndim else z * torch.cos(t)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize(
    ("field", "row_times", "times"),
    [(still, None, "none"), (late, None, "shared"), (by_row, None, "shared"), (by_row, True, "rows"),
     (still, False, "shared"), (by_row, False, "shared")],
)  # fmt: skip
def test_time_enters_as_probed_or_stated(field, row_times, times, span):
    assert choose_times(NeuralODE(field, t_span=span), X, row_times=row_times) == times


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize(("field", "what"), [(still, "fails"), (crossed, "gives other values")])
def test_a_wrong_statement_is_refused(field, what, rows):
    """Also where there are as many rows as features, or one."""
    with pytest.raises(VectorFieldError, match=rf"row_times=True, but vector_field {what} with a vector of times"):
        choose_times(NeuralODE(field, t_span=(0.0, 2.0)), X[:rows], row_times=True)


def test_inputs_and_conditions_go_along():
    ode = NeuralODE(lambda t, z, x, rate: x * by_row(t, z) * rate, data_controlled=True)
    assert choose_times(ode, X, {"rate": torch.ones(6, 1)}, row_times=True) == "rows"
