"""A wrong correction shows before any solve: in shape, in what it is made of, and in what it does."""

import pytest
import torch
from small_tasks import Scaled, fit_settings, rows, turn_task
from torch import nn

from sklearn_hyper import MLPCorrection, NeuralODE
from sklearn_hyper.hypersolvers import Task
from sklearn_hyper.modules import CorrectionSpec
from sklearn_hyper.numerics import resolve_base_solver
from sklearn_hyper.training.correction_checks import check_correction
from sklearn_hyper.training.errors import BaseSolverOverflowError


def check(correction, base_solver="euler", n_rows=9, **changes):
    """On the two rows that a fit takes for it."""
    settings = fit_settings(base_solver=base_solver, n_steps=4, correction=correction, **changes)
    check_correction(turn_task().rows(slice(0, 2)), resolve_base_solver(base_solver), settings, n_rows)


class Of(nn.Module):
    """A correction that does with its layer whatever it is told."""

    def __init__(self, call):
        super().__init__()
        self.layer, self.call = nn.Linear(2, 2, dtype=torch.float64), call

    def forward(self, eps, s, z, stages, x=None):
        return self.call(self.layer, z, stages)


@pytest.mark.parametrize("base_solver", ["euler", "rk4", "ab3"])
@pytest.mark.parametrize("correction", ["auto", MLPCorrection(hidden=3), Of(lambda layer, z, stages: layer(stages[0]))])
def test_corrections_that_are_right_pass(correction, base_solver):
    check(correction, base_solver)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer, z, stages: layer(z)[:, :1], r"returns shape \(2, 1\), torch.float64 for a state of shape \(2, 2\)"),
        (lambda layer, z, stages: layer(z).float(), r"returns shape \(2, 2\), torch.float32"),
        (lambda layer, z, stages: (layer(z),), "returns tuple for a state"),
        (lambda layer, z, stages: layer(stages[3]), r"fails on a step of 'euler' with 1 stages: .*The contract"),
        (lambda layer, z, stages: layer(z.add_(1)), "writes in place into z, which the solver goes on with"),
        (lambda layer, z, stages: layer(stages[0].add_(1)), r"writes in place into stages\[0\]"),
        (lambda layer, z, stages: layer(nn.functional.dropout(z)), "is random or keeps a state"),
        (lambda layer, z, stages: layer(z - z.mean(0)), "mixes the rows of a batch"),
        (lambda layer, z, stages: layer(z / z.norm()), "mixes the rows of a batch"),
    ],
)  # fmt: skip
def test_calls_that_break_the_contract_are_named(call, message, solves):
    with pytest.raises(ValueError, match=message):
        check(Of(call))
    assert not solves


def test_start_up_steps_are_tried_too():
    with pytest.raises(ValueError, match=r"fails on a step of 'ab3' with 2 stages: .*start-up steps .* fewer stages"):
        check(Of(lambda layer, z, stages: layer(stages[2])), "ab3")


def test_a_net_that_begins_at_zero_hides_nothing():
    correction = Of(lambda layer, z, stages: layer(z - z.mean(0)))
    nn.init.zeros_(correction.layer.weight)
    nn.init.zeros_(correction.layer.bias)
    with pytest.raises(ValueError, match="mixes the rows of a batch"):
        check(correction)
    assert correction.layer.weight.abs().max() == 0  # what is tried is a copy


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2, dtype=torch.float64)]

    def forward(self, eps, s, z, stages, x=None):
        return self.layers[0](z)


class Nothing(nn.Module):
    def forward(self, eps, s, z, stages, x=None):
        return z


def test_what_would_not_be_trained_is_named():
    with pytest.raises(ValueError, match=r"a Listed, holds modules \(Linear\) in plain lists.*Use nn\.ModuleList"):
        check(Listed())
    with pytest.raises(ValueError, match="a Nothing, has no parameters: there is nothing to fit"):
        check(Nothing())


class Family(CorrectionSpec):
    """A user's own family of nets, which is judged as a module of the user's is."""

    def __init__(self, net):
        self.net = net

    def get_params(self, deep=True):
        return {"net": self.net}

    def build(self, inputs):
        return self.net


class Mixing(Scaled):
    def forward(self, eps, s, z, stages, x, kind):
        return super().forward(eps, s, z, stages, x, kind) * z.mean()


def test_nets_of_a_users_own_family_are_judged_too():
    check(Family(Scaled(0.5)))
    with pytest.raises(ValueError, match="a Mixing, mixes the rows of a batch"):
        check(Family(Mixing(0.5)))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, dtype=torch.float64)

    def forward(self, eps, s, z, stages, x=None):
        return self.norm(z)


def test_layers_that_need_more_than_one_row():
    check(Normed())
    with pytest.raises(
        ValueError, match="batch_size=1: a layer of correction cannot be trained on a batch of a single"
    ):
        check(Normed(), batch_size=1)
    with pytest.raises(ValueError, match="one row to train on: a layer of correction"):
        check(Normed(), n_rows=1)


def test_the_global_generators_stay_as_they_were():
    state = torch.get_rng_state()
    check("auto")
    assert torch.equal(torch.get_rng_state(), state)


def test_first_steps_that_overflow_are_the_base_solvers_fault():
    task = Task(NeuralODE(lambda t, z: 1e300 * torch.exp(100 + z)), rows(2))
    with pytest.raises(BaseSolverOverflowError, match="base_solver='euler' with n_steps=4 overflows"):
        check_correction(task, resolve_base_solver("euler"), fit_settings(n_steps=4))
