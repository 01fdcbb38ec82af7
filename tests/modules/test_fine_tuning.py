"""What estimators hand out is a live module: it can be fine-tuned, and the estimator stays as it is."""

import copy
import pickle

import numpy as np
import pytest
import torch
from small_corrections import Own
from small_hypersolvers import Swirl, make_regressor

from sklearn_hyper import HypersolverDensity, MLPCorrection
from sklearn_hyper.modules import FoldedODE, HypersolvedODE

X = np.random.default_rng(0).uniform(-1, 1, (40, 2))


@pytest.mark.parametrize("base_solver", ["euler", "ab2", "nonstationary"])
def test_fine_tuning_what_an_estimator_hands_out(base_solver):
    fast = make_regressor(base_solver=base_solver, n_steps=3, max_epochs=2, batch_size=8).fit(X)
    before, x = fast.predict(X), torch.from_numpy(X)
    module, target = fast.to_module(), torch.from_numpy(fast.reference(X))
    assert not any(p.requires_grad for p in module.parameters()) and not module.training
    np.testing.assert_allclose(module(x), before, rtol=1e-12, atol=1e-13)
    assert np.array_equal(module.fold()(x), before)
    optimizer = torch.optim.Adam(module.correction.requires_grad_(True).parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append((module(x) - target).pow(2).mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    torch.testing.assert_close(module.fold()(x), module(x).detach(), rtol=1e-10, atol=1e-12)
    assert np.array_equal(fast.predict(X), before)  # the estimator is left as it is


def test_swaps_and_fallbacks_hand_out_live_modules():
    fast = make_regressor(base_solver="heun", correction=MLPCorrection(hidden=4, tableaus=["midpoint"])).fit(X)
    x = torch.from_numpy(X)
    for one in (fast.with_solver("midpoint"), fast.with_solver(n_steps=2), fast.without_correction()):
        module = one.to_module()
        assert type(module) is HypersolvedODE and type(one.module_) is FoldedODE
        np.testing.assert_allclose(module(x), one.predict(X), rtol=1e-12, atol=1e-13)
        if one.correction_ is not None:
            for parameter in module.correction.parameters():
                parameter.data.zero_()
        assert np.array_equal(module(x), one.without_correction().predict(X))
    assert fast.without_correction().to_module().correction is None


def test_an_estimator_pickles_with_both():
    fast = make_regressor(correction=Own(2).double(), n_steps=3).fit(X)
    for other in (pickle.loads(pickle.dumps(fast)), copy.deepcopy(fast)):
        assert np.array_equal(other.predict(X), fast.predict(X))
        assert np.array_equal(other.to_module()(torch.from_numpy(X)), fast.to_module()(torch.from_numpy(X)))
        assert other.module_.neural_ode is other.neural_ode_


@pytest.fixture(scope="module")
def density():
    return HypersolverDensity(Swirl(), base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)


@pytest.mark.parametrize("direction", ["sampling", "density"])
def test_both_directions_of_a_flow_can_be_fine_tuned(density, direction):
    module, x = density.to_module(direction), torch.from_numpy(X)
    solver = module if direction == "sampling" else module.solver
    folded, expected = module.fold(), module(x)
    torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-12)
    solver.correction.requires_grad_(True)
    module(x).sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in solver.correction.parameters())
    with torch.no_grad():
        for parameter in solver.correction.parameters():
            parameter.zero_()
    base = density.without_correction()
    assert np.array_equal(module(x).detach(), base.inverse_transform(X) if module is solver else base.score_samples(X))
    assert torch.allclose(folded(x), expected)
    assert not folded.training and not folded.state_dict().keys() & {"correction.units.scale_0"}
