"""Whatever a field or a map is, writes into or reaches: the caller's arrays and modules stay as they were, and numbers are right."""

import functools
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_hypersolvers import ROUGH_FITS
from torch import nn
from user_fields import FIT, FORMS, Holder, Net, NoDropout, Potential

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)

pytestmark = ROUGH_FITS


each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def _state(net):
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return tensors, [module.training for module in net.modules()], [p.grad is None for p in net.parameters()]


def _assert_untouched(net, before):
    after = _state(net)
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert after[1:] == before[1:] and all(after[2])


@each_form
def test_hypersolvers_copy_and_freeze_all_that_a_field_reaches(form, X):
    net = Net()
    before = _state(net)
    fast = HypersolverRegressor(form(net), base_solver="heun", **FIT).fit(X)
    plain = HypersolverRegressor(net, base_solver="heun", **FIT).fit(X)
    _assert_untouched(net, before)
    predicted = fast.predict(X)
    np.testing.assert_array_equal(predicted, plain.predict(X))
    np.testing.assert_allclose(
        fast.predict(X[:1]), predicted[:1], rtol=1e-5, atol=1e-6
    )  # settled: no statistics of a batch
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(fast.predict(X), predicted)
    assert not any(p.requires_grad for p in fast.neural_ode_.parameters())


@each_form
def test_maps_too(form, X):
    net = Net()
    before = _state(net)
    inner = form(net)
    ode = NeuralODE(lambda t, z: -z, output_map=functools.partial(_apply, inner))
    fast = HypersolverRegressor(ode, base_solver="heun", **FIT).fit(X)
    _assert_untouched(net, before)
    expected = np.exp(-X.dtype.type(1)) * X
    reference = net.eval()(None, torch.from_numpy(expected)).detach().numpy()
    np.testing.assert_allclose(fast.reference(X), reference, rtol=1e-4, atol=1e-5)


def _apply(part, z):
    return part(None, z)


@each_form
def test_neural_odes_train_copies_of_all_that_a_field_reaches(form, X):
    net = NoDropout()
    before = _state(net)
    params = {"input_map": nn.Identity(), "max_epochs": 1, "validation_fraction": None, "random_state": 0}
    trained = [NeuralODERegressor(field, **params).fit(X, X[:, 0]) for field in (form(net), net)]
    _assert_untouched(net, before)
    np.testing.assert_array_equal(*(model.predict(X) for model in trained))
    moved = {name: p for name, p in trained[0].neural_ode_.named_parameters() if "layer" not in name}
    start = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert not torch.isin(torch.cat([p.detach().flatten() for p in moved.values()]), start).all()


@each_form
def test_flows_train_copies_of_all_that_a_field_reaches(form, X):
    net = NoDropout()
    before = _state(net)
    flows = [ContinuousNormalizingFlow(f, max_epochs=1, random_state=0).fit(X) for f in (form(net), net)]
    _assert_untouched(net, before)
    np.testing.assert_array_equal(*(flow.sample(5, random_state=0) for flow in flows))
    fast = HypersolverDensity(form(net), n_features=2, **FIT).fit(X)
    _assert_untouched(net, before)
    assert np.isfinite(fast.score(X))


ESTIMATORS = [
    lambda f: HypersolverRegressor(f),
    lambda f: HypersolverClassifier(NeuralODE(f), classes=[0, 1]),
    lambda f: HypersolverDensity(f, n_features=2),
    lambda f: NeuralODERegressor(f),
    lambda f: NeuralODEClassifier(f),
    lambda f: ContinuousNormalizingFlow(f),
]


@pytest.mark.parametrize("make", ESTIMATORS)
def test_every_estimator_refuses_a_function_that_calls_a_module(make, X):
    net = NoDropout()
    with pytest.raises(TypeError, match="vector_field is a function that calls the module net"):
        make(lambda t, z: net(t, z)).fit(X, (X[:, 0] > 0).astype(int))


def test_a_trained_tensor_that_is_no_parameter_is_refused(X):
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.weight = nn.Linear(2, 2), torch.eye(2, requires_grad=True)

        def forward(self, t, z):
            return self.layer(z) @ self.weight

    field = Loose()
    with pytest.raises(TypeError, match=r"requires gradients and is no parameter .*weight.*nn.Parameter"):
        NeuralODERegressor(field).fit(X, X[:, 0])
    HypersolverRegressor(field, **FIT).fit(X)
    assert field.weight.requires_grad and field.weight.grad is None


def test_a_parameter_outside_of_modules_is_refused_in_training_and_frozen_in_a_hypersolver(X):
    class Loose:
        def __init__(self):
            self.weight = nn.Parameter(torch.eye(2))

        def __call__(self, t, z):
            return z @ self.weight

    field = Loose()
    with pytest.raises(TypeError, match=r"no parameter .*weight.*of a module"):
        NeuralODERegressor(field, input_map=nn.Linear(2, 2)).fit(X, X[:, 0])
    fast = HypersolverRegressor(field, **FIT).fit(X)
    assert field.weight.grad is None and not fast.neural_ode_.vector_field.weight.requires_grad


def test_layers_that_are_made_when_they_are_called_first_are_frozen(X):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = None

        def forward(self, t, z):
            if self.net is None:
                self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            return self.net(z)

    fast = HypersolverRegressor(Late(), **FIT).fit(X)
    frozen = fast.neural_ode_.vector_field.net
    assert not any(p.requires_grad for p in frozen.parameters()) and not frozen[1].training


def test_lazy_layers_are_trained(X):
    lift = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2))
    assert np.isfinite(
        NeuralODERegressor(input_map=lift, max_epochs=1, random_state=0).fit(X, X[:, 0]).score(X, X[:, 0])
    )


def test_parts_that_share_a_module_share_its_copy(X):
    shared = nn.Linear(2, 2)
    field = Holder(None)
    field.nets = [lambda t, z: None]

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = shared

        def forward(self, t, z):
            return torch.tanh(self.layer(z))

    model = NeuralODERegressor(Shares(), input_map=shared, max_epochs=1, random_state=0).fit(X, X[:, 0])
    assert model.neural_ode_.vector_field.layer is model.neural_ode_.input_map is not shared


# ---------------------------------------------------------------------- writing in place
def _lift():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2))


@pytest.mark.parametrize(
    "fitted, methods",
    [
        (lambda X: HypersolverRegressor(NeuralODE(Net(), input_map=_lift()), **FIT).fit(X),
         ["predict", "transform", "trajectory", "reference", "score", "solver_report"]),
        (lambda X: HypersolverRegressor(lambda t, z: z.neg_(), **FIT).fit(X),
         ["predict", "transform", "trajectory", "reference", "score"]),
        (lambda X: NeuralODERegressor(input_map=_lift(), max_epochs=1).fit(X, X[:, 0]), ["predict"]),
        (lambda X: NeuralODEClassifier(input_map=_lift(), max_epochs=1).fit(X, X[:, 0] > 0), ["predict", "predict_proba"]),
        (lambda X: ContinuousNormalizingFlow(InplaceField(), max_epochs=1).fit(X), ["transform", "score_samples"]),
        (lambda X: HypersolverDensity(InplaceField(), n_features=2, **FIT).fit(X), ["transform", "score_samples"]),
    ],
)  # fmt: skip
def test_the_callers_arrays_stay_as_they_were(fitted, methods, X):
    before = X.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fitted(X)
    np.testing.assert_array_equal(X, before)
    for method in methods:
        getattr(model, method)(X)
        np.testing.assert_array_equal(X, before, err_msg=method)
        tensor = torch.from_numpy(before.copy())
        getattr(model, method)(tensor)
        np.testing.assert_array_equal(tensor.numpy(), before, err_msg=method)


class InplaceField(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t, z):
        return self.layer(z.mul_(1.0).tanh_())


def test_an_output_map_with_one_buffer_gives_results_of_their_own(X):
    buffer = torch.empty(1000, 2)
    ode = NeuralODE(lambda t, z: -z, output_map=lambda z: buffer[: len(z)].copy_(z))
    fast = HypersolverRegressor(ode, base_solver="heun", batch_size=2, **FIT).fit(X)
    plain = HypersolverRegressor(NeuralODE(lambda t, z: -z), base_solver="heun", batch_size=2, **FIT).fit(X)
    first, kept = fast.predict(X), plain.predict(X)
    fast.predict(-X)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(fast.reference(X), np.exp(-1) * X, rtol=1e-5)


def test_fields_in_place_are_solved_as_those_that_are_not(X):
    def writes(t, z):
        return z.mul_(-1.0 - t)

    def clean(t, z):
        return z * (-1.0 - t)

    own, expected = (HypersolverRegressor(f, base_solver="rk4", **FIT).fit(X) for f in (writes, clean))
    np.testing.assert_allclose(own.predict(X), expected.predict(X), rtol=1e-6)
    np.testing.assert_allclose(own.reference(X), X * np.exp(-1.5), rtol=1e-5)
    module = own.to_module()
    program = torch.export.export(module, (torch.from_numpy(X),))
    torch.testing.assert_close(program.module()(torch.from_numpy(X)), module(torch.from_numpy(X)))


def test_a_field_that_works_in_place_on_large_batches_alone(X):
    def now_and_then(t, z):
        return z.mul_(-(1 + t)) if len(z) > 16 else z * (-1 - t)

    fast = HypersolverRegressor(now_and_then, base_solver="rk4", **FIT).fit(X)
    np.testing.assert_allclose(fast.predict(X), X * np.exp(-1.5), atol=5e-3)
    np.testing.assert_allclose(fast.reference(X), X * np.exp(-1.5), rtol=1e-5)


# ---------------------------------------------------------------------- what torch cannot copy
def test_old_weight_norm_and_cached_activations_train(X):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.layer = nn.utils.weight_norm(nn.Linear(2, 2))

        def forward(self, t, z):
            self.last = torch.tanh(self.layer(z))
            return self.last

    field = Field()
    field(None, torch.ones(1, 2)).sum().backward()
    node = NeuralODEClassifier(field, input_map=nn.Identity(), max_epochs=1, random_state=0).fit(X, X[:, 0] > 0)
    assert np.isfinite(HypersolverClassifier(node, **FIT).fit(X).predict_proba(X)).all()
    assert np.isfinite(HypersolverRegressor(clone(node).fit(X, X[:, 0] > 0), **FIT).fit(X).score(X))


def test_fits_and_predictions_inside_inference_mode(X):
    def outside():
        return HypersolverRegressor(Potential(), **FIT).fit(X)

    expected = outside()
    with torch.inference_mode():
        inside = outside()
        np.testing.assert_array_equal(inside.predict(X), expected.predict(X))
        assert inside.score(X) == expected.score(X)
        inside.solver_report(X)
        flow = ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(X)
        assert np.isfinite(HypersolverDensity(flow, **FIT).fit(X).score_samples(X)).all()


class FunctionalPotential(Potential):
    def forward(self, t, z):
        return -torch.func.vmap(torch.func.grad(lambda q: self.energy(q).sum()))(z)


@pytest.mark.parametrize("field", [Potential, FunctionalPotential])
def test_fields_that_differentiate_inside(field, X):
    fast = HypersolverRegressor(field(), base_solver="heun", **FIT).fit(X)
    _, base, own = fast.solver_report(X)
    # Forward 16 + 8 products, backward as many.
    assert base.macs == 4 * (2 * 24) and own.l2_mean <= base.l2_mean
    node = NeuralODERegressor(field(), input_map=nn.Identity(), max_epochs=1, random_state=0).fit(X, X[:, 0])
    assert np.isfinite(HypersolverRegressor(node, **FIT).fit(X).score(X))
    density = HypersolverDensity(field(), n_features=2, **FIT).fit(X)
    assert np.isfinite(density.score_samples(X)).all()
