"""max_samples="auto" counts what a fit keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import FitSettings, Task, choose_base_solver, fit_hypersolver
from sklearn_hyper.hypersolvers import fit as hypersolver_fit
from sklearn_hyper.training import correction_fit, targets

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")


def wave(t, z):
    return torch.tanh(z.roll(1, -1))


IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 2, 8, 8)).astype(np.float32))


def fit(x, **params):
    return fit_hypersolver(
        Task(NeuralODE(wave).eval(), x), FitSettings(**{"max_epochs": 1, "random_state": 0} | params)
    )


def fit_within(monkeypatch, budget, x=IMAGES, **params):
    """Rows that a fit takes under a budget, and the bytes of the sets that it keeps."""
    kept = []
    for name in ("residual_set", "state_set"):
        original = getattr(correction_fit, name)

        def measured(*args, original=original):
            data = original(*args)
            held = [*data.targets, *data.valid_targets]
            tensors = [part for target in held for part in _tensors(target.residual)]
            tensors += [tensor for part in (data.train, data.valid) for tensor in (part.task.x, part.states)]
            sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
            kept.append(sum(sizes.values()))
            return data

        monkeypatch.setattr(correction_fit, name, measured)
    monkeypatch.setattr(targets, "_MEMORY_BUDGET", budget)
    return fit(x, **params).n_samples, kept[0]


def _tensors(residual):
    return residual.z, residual.target, *residual.stages


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "params",
    [
        {"base_solver": "ab2", "n_steps": 4},
        {"base_solver": "heun", "n_steps": 2, "finetune": None},
        {"n_steps": 4, "fit_n_steps": (2, 6)},
        {"base_solver": "nonstationary", "n_steps": 3, "finetune": None},
        {"base_solver": "heun", "n_steps": 3, "loss": "trajectory", "finetune": None},
        {"base_solver": "nonstationary", "n_steps": 3},
    ],
    ids=lambda params: "-".join(map(str, params.values())),
)
def test_what_is_kept_stays_within_the_budget_and_fills_it(monkeypatch, params, dtype):
    budget = 2**22 if params["base_solver" if "base_solver" in params else "n_steps"] != "nonstationary" else 2**20
    n, kept = fit_within(monkeypatch, budget, IMAGES.to(dtype), **params)
    assert 2 < n < len(IMAGES)
    # Besides, states are there twice on the way, and float64 ones where targets are noisy.
    assert 0.15 * budget < kept <= budget


def test_learned_coefficients_keep_their_own_mesh_and_no_more(monkeypatch):
    """Three times and two targets of two stages at most, not 49 and 48: all rows of these images fit in a GiB."""
    asked, most = [], hypersolver_fit.max_rows

    def recorded(*args):
        asked.append(most(*args))
        return 4

    monkeypatch.setattr(hypersolver_fit, "max_rows", recorded)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 10, 32, 32)).astype(np.float32))
    fast = fit(x, n_steps=2)
    state, gib = x[0].numel() * x.element_size(), 2**30
    assert gib / (state * (3 + 2 * (2 + 2))) < asked[0] <= gib / (state * 2)
    assert fast.n_samples == 4


def test_a_larger_state_takes_fewer_rows_and_learned_coefficients_more():
    def rows(size, **params):
        x, settings = torch.zeros(2, size, dtype=torch.float64), FitSettings(**params)
        method = choose_base_solver(settings, size).method
        return targets.max_rows(Task(NeuralODE(wave), x), x, method, settings)

    ab2, learned = {"base_solver": "ab2"}, {"base_solver": "nonstationary", "finetune": None}
    assert rows(4000, **ab2) == pytest.approx(rows(8000, **ab2) * 2, rel=0.02)
    assert rows(4000, **learned, n_steps=2) > 8 * rows(4000, **ab2, n_steps=2)
    assert rows(4000, base_solver="rk4") < rows(4000, base_solver="midpoint")


def test_max_samples_of_ones_own_is_taken_as_it_is():
    params = {"base_solver": "euler", "n_steps": 3, "max_samples": 17}
    assert fit(IMAGES[:30, 0], **params).n_samples == 17 and fit(IMAGES[:10, 0], **params).n_samples == 10
