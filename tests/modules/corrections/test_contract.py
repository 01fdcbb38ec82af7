"""The contracts of a correction: what a net and a spec of one's own need, and how a plain module enters."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from problems import ANY_MESH, FORCED, largest, mesh
from sklearn.base import clone
from small_corrections import DOUBLE, SPAN, Emit, Own, apply, apply_folded, field, make_steps, plan_of, randomize
from torch import nn

from sklearn_hyper import HypersolverRegressor, MLPCorrection, NeuralODE
from sklearn_hyper.modules import (
    BoundedCorrection,
    CorrectionNet,
    CorrectionSpec,
    HypersolvedODE,
    NetInputs,
    ScaleSample,
)
from sklearn_hyper.modules.corrections import (
    FoldedCorrection,
    ModuleCorrection,
    as_module_correction,
    build_net,
    fit_units,
    user_part,
)
from sklearn_hyper.modules.corrections.building import OwnModule
from sklearn_hyper.modules.corrections.contract import PlainCorrection, UserNet
from sklearn_hyper.numerics import (
    Correction,
    FixedMesh,
    StepPlan,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)

GRID = (0.0, 0.25, 0.75, 1.0)


class Weighed(CorrectionNet):
    """A net of one's own: a number for every stage, and one for every kind of step; the stages in units of its task."""

    def __init__(self, n_stages, size=1.0):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(n_stages, dtype=DOUBLE))
        self.size, self.seen = size, []

    def forward(self, eps, s, z, stages, x, kind):
        self.seen.append(kind)
        return kind.order * sum(weight * stage for weight, stage in zip(self.weights, stages, strict=False)) / self.size

    def with_scales(self, sample):
        own = Weighed(len(self.weights), max(largest(step.stages[0]) for step in sample.residuals))
        own.weights = self.weights
        return own

    def covers(self, method):
        return method.main_kind.n_stages <= len(self.weights)


class WeighedSpec(CorrectionSpec):
    """A family of one's own, with a parameter."""

    def __init__(self, start=0.0):
        self.start = start

    def build(self, inputs):
        self.built_for = inputs
        net = Weighed(inputs.main_kind.n_stages)
        nn.init.constant_(net.weights, self.start)
        return net

    def get_params(self, deep=True):
        return {"start": self.start}


def net_inputs(steps, x=None):
    return NetInputs(steps[0].z, x, resolve_base_solver("heun").kinds, math.nan)


# --- a net of one's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base_solver", ["heun", "ab2", "abm2"])
def test_an_own_net_is_told_the_kind_of_every_step(base_solver):
    method, steps = resolve_base_solver(base_solver), make_steps((3,), base_solver)
    net = Weighed(method.n_stages)
    g = BoundedCorrection(net, fit_units(steps))
    hypersolve(field, steps[0].z, SPAN, 4, method, g)
    assert net.seen == [method.kind(k) for k in range(4)]


def test_an_own_net_is_scaled_bounded_and_folded_as_ours_are():
    steps = make_steps((3,), "ab2")
    net = Weighed(2)
    nn.init.normal_(net.weights)
    g = BoundedCorrection(net, fit_units(steps)).requires_grad_(False)
    assert g.net is net
    for step in steps:
        share = net(step.eps, step.time(), step.z, step.stages, None, step.kind) * g.units.scale(step.kind)
        limit = g.units.cap * abs(step.eps) ** -step.order * torch.stack(step.stages).norm(dim=2).amax(dim=0)
        expected = share * (limit / share.norm(dim=1)).clamp(max=1)[:, None]
        torch.testing.assert_close(apply(g, step), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(apply_folded(g.fold_step(plan_of(step)), step), expected, rtol=1e-12, atol=0)


def test_an_own_net_may_have_scales_for_every_task_and_share_its_weights():
    steps, net = make_steps((3,)), Weighed(2)
    nn.init.normal_(net.weights)
    large = [step.each(lambda t: 10 * t) for step in steps]
    one, other = (net.with_scales(ScaleSample(sample, None, SPAN)) for sample in (steps, large))
    assert one.weights is other.weights and other.size == pytest.approx(10 * one.size)
    torch.testing.assert_close(apply(other, large[1]), apply(one, steps[1]))


def test_what_an_own_net_does_not_say_has_defaults():
    class Constant(CorrectionNet):
        def forward(self, eps, s, z, stages, x, kind):
            return torch.ones_like(z)

    net, steps = Constant(), make_steps((3,))
    assert net.with_scales(ScaleSample(steps, None, SPAN)) is net
    assert all(net.covers(method) for method in ANY_MESH) and not net.takes_row_steps
    folded = net.fold(plan_of(steps[0]), torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE))
    assert torch.equal(apply_folded(folded, steps[0]), torch.tensor([[1.0, 2.0, 3.0]] * 6, dtype=DOUBLE))


def test_a_net_has_to_say_what_it_computes():
    with pytest.raises(TypeError, match=r"abstract method '?forward'?"):
        type("Silent", (CorrectionNet,), {})()


def test_coverage_is_asked_of_the_net():
    g = BoundedCorrection(Weighed(2), fit_units(make_steps((3,))))
    assert [g.covers(resolve_base_solver(name)) for name in ("euler", "ab2", "heun", "rk3")] == [
        True,
        True,
        True,
        False,
    ]


def test_an_own_net_copies_and_pickles_inside_its_correction():
    steps = make_steps((3,))
    net = Weighed(2)
    nn.init.normal_(net.weights)
    g = BoundedCorrection(net, fit_units(steps))
    for other in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        assert torch.equal(apply(other, steps[1]), apply(g, steps[1])) and other.net.weights is not net.weights


# --- a plain module -------------------------------------------------------------------------------------------------


def test_a_user_s_module_is_called_without_the_kind():
    steps, module = make_steps((3,)), Emit(2.0)
    net = UserNet(module)
    assert torch.equal(apply(net, steps[0]), 2 * steps[0].z)
    assert net.module is module and not net.takes_row_steps and net.covers(resolve_base_solver("rk4"))
    assert net.with_scales(ScaleSample(steps, None, SPAN)) is net


def test_a_user_s_module_reads_x():
    class Reads(nn.Module):
        def forward(self, eps, s, z, stages, x=None):
            return x + eps * s

    step, x = make_steps((3,))[1], torch.randn(6, 3, dtype=DOUBLE)
    for g in (UserNet(Reads()), BoundedCorrection(Reads(), fit_units([step]))):
        assert apply(g, step, x).isfinite().all()
    assert torch.equal(apply(UserNet(Reads()), step, x), x + step.eps * step.s)


@pytest.mark.parametrize("base_solver", ["euler", "ab3", "abm2_pec"])
def test_a_bare_module_is_g_itself(base_solver):
    """Neither scaled nor bounded: as if the function had been passed to the loop."""
    g = randomize(Own(1), 0.5).double().eval()
    plain = as_module_correction(g)
    assert isinstance(plain, PlainCorrection) and plain.net.module is g
    solve = (FORCED.f, FORCED.z0, FORCED.t_span, 4, base_solver)
    assert torch.equal(hypersolve_trajectory(*solve, plain), hypersolve_trajectory(*solve, g))
    assert largest(hypersolve(*solve, plain) - hypersolve(*solve)) > 1e-3


def test_a_bare_module_is_kept_once_by_a_fold_as_a_frozen_copy():
    g = randomize(Own(1), 0.5).double().eval()
    plain = as_module_correction(g)
    stepping = FixedMesh(resolve_base_solver("heun"), mesh(FORCED.t_span, 4))
    folded = plain.fold(stepping.plans)
    assert isinstance(folded, FoldedCorrection) and len({id(step) for step in folded.steps}) == 1
    assert folded.steps[0] is not g and not any(p.requires_grad for p in folded.parameters())
    expected = stepping.solve(FORCED.f, FORCED.z0, plain).detach()
    assert torch.equal(stepping.solve(FORCED.f, FORCED.z0, folded), expected)
    nn.init.zeros_(g.layer.weight)
    assert torch.equal(stepping.solve(FORCED.f, FORCED.z0, folded), expected)


def test_what_a_solve_runs_already_stays_as_it_is():
    g = BoundedCorrection(Emit(), fit_units(make_steps((3,))))
    assert as_module_correction(g) is g and as_module_correction(None) is None
    assert isinstance(g, ModuleCorrection) and isinstance(g, Correction) and isinstance(g, nn.Module)


def test_folded_terms_are_those_of_their_steps():
    class Mark(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, eps, s, z, stages, x=None):
            return torch.full_like(z, self.value) * eps

    folded, z = FoldedCorrection([Mark(1.0), Mark(2.0), Mark(3.0)]), torch.zeros(2, 1)
    kind = resolve_base_solver("euler").main_kind
    found = [folded.term(StepPlan(k, 0.0, 0.5, kind), torch.tensor(0.0), z, [z], None)[0].item() for k in (2, 0, 1)]
    assert found == [1.5, 0.5, 1.0] and list(folded.steps) == folded._in_order


class Bend(ModuleCorrection):
    """A correction in the field's own weights: it bends the field instead of adding a term, and has nothing to fold."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=DOUBLE))

    def field(self, f, plan):
        return lambda t, z: f(t, z) + self.shift[plan.k]


def test_a_correction_in_the_field_s_weights_runs_and_trains():
    bend, z0 = Bend(), torch.ones(2, 1, dtype=DOUBLE)
    module = HypersolvedODE(NeuralODE(lambda t, z: -z), resolve_base_solver("heun"), bend, GRID)
    assert module.correction is bend
    expected = hypersolve(lambda t, z: -z, z0, None, None, "heun", grid=GRID)
    assert torch.equal(module(z0), expected)
    module(z0).sum().backward()
    assert (bend.shift.grad > 0.1).all()  # live weights, in every step
    nn.init.constant_(bend.shift, 0.5)
    assert largest(module(z0) - hypersolve(lambda t, z: 0.5 - z, z0, None, None, "heun", grid=GRID)) < 1e-14


def test_what_cannot_be_folded_is_kept_as_a_frozen_copy():
    """Not left out: the fold predicts what the live module does, and stays as it is when that goes on training."""
    bend, z0 = Bend(), torch.ones(2, 1, dtype=DOUBLE)
    nn.init.constant_(bend.shift, 0.5)
    module = HypersolvedODE(NeuralODE(lambda t, z: -z), resolve_base_solver("heun"), bend, GRID)
    folded, expected = module.fold(), module(z0).detach()
    assert folded.has_correction and len(folded.steps) == 0
    for one in (folded, copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(one(z0), expected)
        assert not any(p.requires_grad for p in one.parameters()) and not one.folded.training
    nn.init.zeros_(bend.shift)
    assert torch.equal(folded(z0), expected) and largest(module(z0) - expected) > 0.1


# --- specs ----------------------------------------------------------------------------------------------------------


def test_an_own_spec_builds_a_net_from_what_it_will_read():
    spec, steps = WeighedSpec(0.5), make_steps((3,))
    inputs = net_inputs(steps)
    net = build_net(spec, inputs)
    assert isinstance(net, Weighed) and net.weights.tolist() == [0.5, 0.5] and spec.built_for is inputs
    assert inputs.main_kind is inputs.kinds[-1]


def test_an_own_spec_has_the_parameter_protocol():
    spec = WeighedSpec(0.5)
    assert clone(spec).get_params() == {"start": 0.5} and clone(spec) is not spec
    assert spec.set_params(start=1.0) is spec and spec.start == 1.0
    with pytest.raises(ValueError, match=r"WeighedSpec has no parameter 'width'; valid ones are \['start'\]"):
        spec.set_params(width=3)
    method = resolve_base_solver("heun")
    assert spec.method_family(method) == [method]
    with pytest.raises(TypeError, match=r"abstract method '?build'?|abstract methods '?build'?, '?get_params'?"):
        CorrectionSpec()


def test_nets_are_built_in_the_dtype_of_the_states_and_ready_to_train():
    class Frozen(CorrectionSpec):
        def build(self, inputs):
            return nn.Linear(3, 3).requires_grad_(False)

        def get_params(self, deep=True):
            return {}

    net = build_net(Frozen(), net_inputs(make_steps((3,))))
    assert isinstance(net, UserNet) and isinstance(net.module, nn.Linear)
    assert all(p.requires_grad and p.dtype == DOUBLE for p in net.parameters())


def test_a_user_s_module_is_copied_before_it_is_trained():
    module = Own(3)
    net = build_net(OwnModule(module), net_inputs(make_steps((3,))))
    assert net.module is not module and net.module.layer.weight.dtype == DOUBLE
    assert module.layer.weight.dtype == torch.float32
    assert OwnModule(module).get_params() == {"module": module}


def test_the_part_of_a_net_that_is_the_user_s_is_told():
    own, module = Weighed(2), Own(3)
    steps = make_steps((3,))
    assert user_part(own) is own and user_part(UserNet(module)) is module
    assert user_part(build_net(MLPCorrection(), net_inputs(steps))) is None
    assert user_part(UserNet(nn.Linear(3, 3))) is not None  # torch's, but the user's choice


def test_an_own_spec_and_an_own_net_can_be_fitted():
    """Through an estimator: Euler's residual of z' = -z is z / 2 to leading order, a weight on the only stage."""
    X = np.linspace(0.5, 1, 50)[:, None]
    for correction in (WeighedSpec(), Weighed(1)):
        fast = HypersolverRegressor(
            lambda t, z: -z, base_solver="euler", n_steps=2, correction=correction, lr=0.2, random_state=0
        ).fit(X)
        base = fast.without_correction()
        errors = [np.abs(one.predict(X) - fast.reference(X)).max() for one in (fast, base)]
        assert errors[0] < 0.3 * errors[1]
        assert isinstance(fast.correction_.net, Weighed) and fast.correction_.net.weights.item() != 0
