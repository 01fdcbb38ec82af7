"""max_samples="auto" counts what a fit keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.estimators import _hypersolver_fit
from sklearn_hyper.numerics.residuals import Residual
from sklearn_hyper.training import correction_fit, targets
from sklearn_hyper.training.objectives import Block, BlockStack

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def wave(t, z):
    return torch.tanh(z.roll(1, -1))


IMAGES = np.random.default_rng(0).normal(size=(300, 2, 8, 8)).astype(np.float32)


def fit_within(monkeypatch, budget, X=IMAGES, **params):
    """Rows that a fit takes under a budget, and the bytes of the sets that it keeps."""
    kept = []
    for name in ("residual_sets", "state_sets"):
        original = getattr(correction_fitting, name)

        def measured(*args, original=original):
            kept.append(original(*args))
            sizes = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for data in (kept[0].train, kept[0].valid)
                for tensor in (
                    data.x,
                    data.states,
                    *(part for block in data.blocks for part in _tensors(block.residual)),
                )
            }
            kept.append(sum(sizes.values()))
            return kept[0]

        monkeypatch.setattr(correction_fitting, name, measured)
    monkeypatch.setattr(fit_sets, "_MEMORY_BUDGET", budget)
    fast = HypersolverRegressor(wave, max_epochs=1, random_state=0, **params).fit(X)
    return fast.n_samples_fit_, kept[1]


def _tensors(residual):
    return residual.z, residual.target, *residual.stages


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
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
    n, kept = fit_within(monkeypatch, budget, IMAGES.astype(dtype), **params)
    assert 2 < n < len(IMAGES)
    # Besides, states are there twice on the way, and float64 ones where targets are noisy.
    assert 0.15 * budget < kept <= budget


def test_learned_coefficients_keep_their_own_mesh_and_no_more(monkeypatch):
    """Three times and two blocks of two stages at most, not 49 and 48: all rows of these images fit in a GiB."""
    asked = []
    most = _hypersolver_fit.max_rows

    def recorded(*args):
        asked.append(most(*args))
        return 4

    monkeypatch.setattr(_hypersolver_fit, "max_rows", recorded)
    X = np.random.default_rng(0).normal(size=(5, 10, 32, 32)).astype(np.float32)
    fast = HypersolverRegressor(wave, n_steps=2, max_epochs=1, random_state=0).fit(X)
    state, gib = X[0].nbytes, 2**30
    assert gib / (state * (3 + 2 * (2 + 2))) < asked[0] <= gib / (state * 2)
    assert fast.n_samples_fit_ == 4


def test_a_larger_state_takes_fewer_rows_and_learned_coefficients_more():
    def rows(size, **params):
        x = torch.zeros(2, size, dtype=torch.float64)
        fast = HypersolverRegressor(wave, **params)
        fast.device_ = "cpu"
        solver = fast._resolve_solver(size)
        ode = fit_sets.NeuralODE(wave)
        return fit_sets.max_rows(ode, x, x, solver, fast._settings(fast._fit_range()))

    ab2, learned = {"base_solver": "ab2"}, {"base_solver": "nonstationary", "finetune": None}
    assert rows(4000, **ab2) == pytest.approx(rows(8000, **ab2) * 2, rel=0.02)
    assert rows(4000, **learned, n_steps=2) > 8 * rows(4000, **ab2, n_steps=2)
    assert rows(4000, base_solver="rk4") < rows(4000, base_solver="midpoint")


def test_max_samples_of_ones_own_is_taken_as_it_is():
    fast = HypersolverRegressor(wave, base_solver="euler", n_steps=3, max_samples=17, max_epochs=1, random_state=0)
    assert fast.fit(IMAGES[:30, 0]).n_samples_fit_ == 17 and fast.fit(IMAGES[:10, 0]).n_samples_fit_ == 10


def test_stacking_lets_blocks_go():
    like = torch.arange(6.0).reshape(3, 2)
    blocks = [
        Block(Residual(0.1 * i, 0.5, like + i, [like * i], 1, like - i), None, torch.ones(1, 1)) for i in range(4)
    ]
    stack = BlockStack(list(blocks))
    for i in range(4):
        assert torch.equal(stack.z[i], like + i) and torch.equal(stack.target[i], like - i)
        assert torch.equal(stack.stages[0][i], like * i)
