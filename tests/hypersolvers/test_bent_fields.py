"""A correction that lives in the field, not beside it, is a spec of a user's own: no file of the library changes."""

import copy

import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.hypersolvers import FitSettings, Task, fit_hypersolver, fit_hypersolvers, refit_hypersolver
from sklearn_hyper.modules import CorrectionSpec
from sklearn_hyper.modules.corrections import ModuleCorrection


class Decay(nn.Module):
    """f = -rate z."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t, z):
        return -self.rate * z


class BentDecay(ModuleCorrection):
    """The field with a rate of its own in every step, off the field's by eps^p."""

    def __init__(self, n_steps):
        super().__init__()
        self.change = nn.Parameter(torch.zeros(n_steps))

    def field(self, f, plan):
        return lambda t, z: f(t, z) * (1 + plan.eps**plan.kind.order * self.change[plan.k])


class BentSpec(CorrectionSpec):
    learns_residuals = False

    def __init__(self, n_steps=2):
        self.n_steps = n_steps

    def get_params(self, deep=True):
        return {"n_steps": self.n_steps}

    def build(self, inputs):
        raise AssertionError("there is no net to build")

    def corrections(self, neural_odes, inputs, samples):
        return [BentDecay(self.n_steps) for _ in neural_odes]


@pytest.fixture
def x():
    return torch.linspace(0.5, 1.5, 60)[:, None]


SETTINGS = FitSettings(
    base_solver="euler", n_steps=2, correction=BentSpec(), lr=0.1, max_epochs=60, batch_size=16, random_state=0
)


def error(fitted, x):
    return float((fitted.solve(x) - fitted.reference(x)).abs().max())


def test_it_is_trained_through_the_solver_and_costs_no_term(x):
    fitted = fit_hypersolver(Task(NeuralODE(Decay()).eval(), x), SETTINGS)
    assert isinstance(fitted.correction, BentDecay)
    assert error(fitted, x) < 0.05 * error(fitted.without_correction(), x)
    assert {row["stage"] for row in fitted.history} == {"terminal"} and fitted.delta == {}
    # exp(-1/2) = 1 - eps (1 + eps change), in both steps; only their product is seen at the end.
    factors = 1 - 0.5 * (1 + 0.5 * fitted.correction.change)
    assert float(factors.prod()) == pytest.approx(float(torch.exp(torch.tensor(-1.0))), rel=1e-2)


def test_its_fold_is_a_frozen_copy_that_reports_and_exports(x):
    fitted = fit_hypersolver(Task(NeuralODE(Decay()).eval(), x), SETTINGS)
    _, base, ours = fitted.report(x)
    assert (base.nfe, ours.nfe) == (2, 2) and ours.l2_max < base.l2_max
    live = fitted.to_module()
    assert torch.equal(live(x), fitted.predict(x)) and torch.equal(live.fold()(x), fitted.predict(x))
    exported = torch.export.export(live.fold(), (x,)).module()
    torch.testing.assert_close(exported(x), fitted.predict(x))


def test_it_refits_and_shares_nothing_between_tasks(x):
    ode = NeuralODE(Decay()).eval()
    fitted = fit_hypersolver(Task(ode, x), SETTINGS)
    before = copy.deepcopy(fitted.correction.change)
    faster = refit_hypersolver(fitted, x, NeuralODE(Decay(1.2)).eval())
    assert error(faster, x) < 0.1 * error(faster.without_correction(), x)
    assert torch.equal(fitted.correction.change, before)
    both = fit_hypersolvers([Task(ode, x), Task(NeuralODE(Decay(0.5)).eval(), x)], SETTINGS)
    assert all(error(one, x) < 0.2 * error(one.without_correction(), x) for one in both)


def test_an_estimator_takes_it_as_any_other_correction(x):
    fast = HypersolverRegressor(
        Decay(), base_solver="euler", n_steps=2, correction=BentSpec(), lr=0.1, batch_size=16, max_epochs=60,
        random_state=0,
    ).fit(x.numpy())  # fmt: skip
    assert fast.score(x.numpy()) > 0.1 * fast.without_correction().score(x.numpy())
    assert fast.get_params()["correction__n_steps"] == 2


def test_the_given_field_is_left_as_it_was(x):
    field = Decay()
    fit_hypersolver(Task(NeuralODE(field).eval(), x), SETTINGS)
    assert field.rate.grad is None and field.rate.requires_grad and field.rate.item() == 1
