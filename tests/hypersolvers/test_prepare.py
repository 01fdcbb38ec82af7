"""A user's Neural ODE is checked, frozen and settled before a fit relies on it."""

import re
import warnings

import pytest
import torch
from small_tasks import fit_settings, rows
from torch import nn
from user_fields import Locked

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import Task, fit_hypersolver
from sklearn_hyper.hypersolvers.prepare import prepare_neural_ode
from sklearn_hyper.modules.copies import PersistenceWarning
from sklearn_hyper.modules.field_probes import CopyingPart, GradientWarning
from sklearn_hyper.modules.neural_ode import VectorFieldError


class Field(nn.Module):
    """With what a fit must settle: weights to be frozen, a layer that is made when it is called first."""

    def __init__(self):
        super().__init__()
        self.layer, self.late = nn.Linear(2, 2, dtype=torch.float64), None

    def forward(self, t, z):
        if self.late is None:
            self.late = nn.Linear(2, 2, dtype=torch.float64)
        return torch.tanh(self.late(self.layer(z)))


def test_it_is_frozen_and_its_states_are_handed_back():
    ode, x = NeuralODE(Field(), input_map=lambda x: 2 * x), rows(30)
    z = prepare_neural_ode(ode, x, fit_settings())
    assert torch.equal(z, 2 * x[:2])
    assert not ode.training and ode.vector_field.late is not None
    assert not any(parameter.requires_grad for parameter in ode.parameters())


def test_outputs_are_checked_before_parts_are_probed():
    seen = []
    ode = NeuralODE(lambda t, z: seen.append("field") or -z)

    def check(z):
        seen.append("check")
        raise ValueError("no such outputs")

    with pytest.raises(ValueError, match="no such outputs"):
        prepare_neural_ode(ode, rows(30), fit_settings(), check)
    assert seen == ["field", "check"]


def test_parts_that_write_into_their_arguments_work_on_copies():
    ode, x = NeuralODE(lambda t, z: z.mul_(-1.0)), rows(30)
    prepare_neural_ode(ode, x, fit_settings())
    assert isinstance(ode.vector_field, CopyingPart)
    z = x.clone()
    ode.vector_field(torch.tensor(0.0), z)
    assert torch.equal(z, x)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda t, z: z - z.mean(0), "mixes the rows"),
        (lambda t, z: z[:, :1], r"must return a tensor like z .*got shape \(2, 1\)"),
        (lambda t, z: z * torch.rand(()), "random"),
    ],
    ids=["mixes", "shape", "random"],
)
def test_fields_that_no_solver_can_use_are_refused(field, message, solves):
    with pytest.raises(VectorFieldError, match=message):
        prepare_neural_ode(NeuralODE(field), rows(30), fit_settings())
    assert not solves


@pytest.mark.parametrize("changes", [{"memory": "cache"}, {"n_jobs": 2}], ids=str)
def test_what_cannot_be_pickled_is_refused_where_the_fit_pickles_it(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} needs to pickle neural_ode")):
        prepare_neural_ode(NeuralODE(Locked()), rows(30), fit_settings(**changes))
    with pytest.warns(PersistenceWarning, match="can be neither saved nor sent"):
        prepare_neural_ode(NeuralODE(Locked()), rows(30), fit_settings(n_jobs=1))


@pytest.mark.parametrize(
    ("changes", "differentiates"),
    [({}, True), ({"finetune": None}, False), ({"finetune": None, "loss": "trajectory"}, True),
     ({"finetune": None, "base_solver": "nonstationary"}, True)],
    ids=str,
)  # fmt: skip
def test_cut_gradients_matter_where_training_needs_them(changes, differentiates):
    ode, settings = NeuralODE(lambda t, z: torch.tanh(z.detach())), fit_settings(**changes)
    if differentiates:
        with pytest.warns(GradientWarning, match="wrong gradient"):
            prepare_neural_ode(ode, rows(30), settings)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepare_neural_ode(ode, rows(30), settings)


def test_what_is_prepared_can_be_fitted():
    ode, x, settings = NeuralODE(Field()), rows(40), fit_settings(max_epochs=3)
    prepare_neural_ode(ode, x, settings)
    assert fit_hypersolver(Task(ode, x), settings).solve(x).shape == (40, 2)
