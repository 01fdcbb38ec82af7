"""What a user sets of a correction: parameters, the budget that widths are chosen by, and families of methods."""

import math

import numpy as np
import pytest
import torch
from problems import OwnTwoStep, kind_of
from sklearn.base import clone
from small_corrections import DOUBLE, apply
from torch import nn

from sklearn_hyper import ConvCorrection, HypersolverRegressor, MLPCorrection, alpha_family
from sklearn_hyper.modules import MLPVectorField, NetInputs
from sklearn_hyper.modules.corrections import build_net, resolve_spec
from sklearn_hyper.modules.corrections.building import OwnModule
from sklearn_hyper.numerics import Residual, StepKind, count_macs, resolve_base_solver
from sklearn_hyper.numerics.tableaus import HEUN, MIDPOINT


def inputs_of(shape, x=None, max_macs=math.nan):
    return NetInputs(torch.zeros(6, *shape), x, resolve_base_solver("heun").kinds, max_macs)


# --- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        MLPCorrection(hidden=7, depth=3),
        MLPCorrection(tableaus=[alpha_family(0.3), "heun"]),
        ConvCorrection(hidden=5, kernel_size=1),
    ],
    ids=["mlp", "family", "conv"],
)
def test_specs_follow_the_parameter_protocol(spec):
    cloned = clone(spec)
    assert cloned == spec and cloned is not spec and type(spec)(**spec.get_params()) == spec
    assert cloned.set_params(hidden=9, gate=False) is cloned
    assert (cloned.hidden, cloned.gate) == (9, False) and spec.hidden != 9
    assert spec.set_params() is spec


@pytest.mark.parametrize("spec", [MLPCorrection(), ConvCorrection()], ids=str)
def test_unknown_parameters_are_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match=rf"{type(spec).__name__} has no parameter 'width'; .*'hidden'"):
        spec.set_params(width=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MLPCorrection(hidden=0), r"MLPCorrection.hidden must be an integer >= 1, got 0"),
        (MLPCorrection(hidden=2.5), r"MLPCorrection.hidden must be .* got 2.5"),
        (MLPCorrection(depth=0), r"MLPCorrection.depth must be an integer >= 1, got 0"),
        (MLPCorrection(depth=None), r"MLPCorrection.depth must be .* got None"),
        (MLPCorrection(activation="relu6"), r"MLPCorrection.activation must be one of .*'tanh'.* got 'relu6'"),
        (ConvCorrection(kernel_size=2), r"ConvCorrection.kernel_size must be odd, got 2"),
        (ConvCorrection(hidden=-1), r"ConvCorrection.hidden must be"),
    ],
)
def test_bad_specs_are_refused_when_built(spec, message):
    with pytest.raises(ValueError, match=message):
        spec.build(inputs_of((2, 3, 3)))


def test_numpy_integers_are_integers():
    assert MLPCorrection(hidden=np.int64(8)).build(inputs_of((3,))).layout.hidden == 8


def test_convolutions_need_image_states_and_inputs_of_their_size():
    with pytest.raises(ValueError, match=r"needs states of shape \(c, h, w\), got \(3,\)"):
        ConvCorrection().build(inputs_of((3,)))
    with pytest.raises(ValueError, match=r"x must be an image of .* \(4, 5\), got x of shape \(3,\)"):
        ConvCorrection().build(inputs_of((2, 4, 5), torch.zeros(6, 3)))


@pytest.mark.parametrize("gate", [True, False])
def test_a_layout_says_what_the_net_reads_and_returns(gate):
    """The state, x, and every stage; the correction, and for every stage its gate."""
    vector = MLPCorrection(hidden=5, gate=gate).build(inputs_of((6,), torch.zeros(6, 2))).layout
    assert (vector.n_state, vector.n_input, vector.n_stages) == (6, 2, 2)
    assert (vector.n_in, vector.n_out) == (6 + 2 + 2 * 6, 6 + 2 * gate)
    planar = MLPCorrection(hidden=64, gate=gate).build(inputs_of((2,))).layout
    assert planar.has_matrix_gate == gate and planar.n_out == 2 + 2 * 4 * gate
    image = ConvCorrection(hidden=5, gate=gate).build(inputs_of((3, 4, 4), torch.zeros(6, 1, 4, 4))).layout
    assert (image.n_in, image.n_out) == (3 + 1 + 2 * 3, 3 + 2 * gate)


def test_a_net_of_a_multistep_method_knows_the_families_of_its_start_up_steps():
    method = resolve_base_solver("ab4")
    net = MLPCorrection().build(NetInputs(torch.zeros(6, 3), None, method.kinds, math.nan))
    assert net.layout.n_stages == 4 and net.layout.other_families == ((3, 3),)
    assert net.layout.n_terms == 3  # s, eps, and whether it is a start-up step
    assert MLPCorrection().build(inputs_of((3,))).layout.other_families == ()


# --- what "auto" and others stand for -------------------------------------------------------------------------------


def test_auto_chooses_by_the_shape_of_the_state():
    assert resolve_spec("auto", torch.zeros(2, 3, 4, 4)) == ConvCorrection()
    assert resolve_spec("auto", torch.zeros(2, 3)) == resolve_spec("auto", torch.zeros(2, 3, 4)) == MLPCorrection()


def test_a_spec_is_itself_and_a_module_is_what_a_user_has_built():
    spec, module = MLPCorrection(hidden=3), nn.Linear(1, 1)
    assert resolve_spec(spec, torch.zeros(2, 3)) is spec
    own = resolve_spec(module, torch.zeros(2, 3))
    assert isinstance(own, OwnModule) and own.get_params() == {"module": module}


# --- families -------------------------------------------------------------------------------------------------------


def test_a_family_is_the_base_solver_and_the_others_once():
    solver = resolve_base_solver("midpoint")
    family = MLPCorrection(tableaus=["heun", "midpoint", alpha_family(0.3), HEUN]).method_family(solver)
    assert [member.name for member in family] == ["midpoint", "heun", "alpha(0.3)"]
    assert MLPCorrection().method_family(solver) == OwnModule(nn.Linear(1, 1)).method_family(solver) == [solver]


@pytest.mark.parametrize("spec", [MLPCorrection, ConvCorrection])
@pytest.mark.parametrize(
    ("tableaus", "message"),
    [
        (["rk4"], r"tableaus holds 'rk4' \(order 4, 4 stages\), but base_solver is 'midpoint' \(order 2, 2 stages\)"),
        ([MIDPOINT, "euler"], r"tableaus holds 'euler' \(order 1, 1 stages\), but base_solver is 'midpoint'"),
        (["hoin"], r"tableaus holds 'hoin': base_solver='hoin' is unknown; valid names are euler, heun"),
        ([0.3], r"tableaus holds 0\.3: base_solver must be a name .*got float"),
        ("heun", r"tableaus must be None or a list of names and ButcherTableaus, got 'heun'"),
        (MIDPOINT, r"tableaus must be None or a list of names and ButcherTableaus, got ButcherTableau"),
        ([], r"tableaus must be None or a list of names and ButcherTableaus, got \[\]"),
    ],
    ids=["order", "stages", "unknown", "number", "string", "one tableau", "empty"],
)
def test_wrong_families_are_refused(spec, tableaus, message):
    with pytest.raises(ValueError, match=f"{spec.__name__}.{message}"):
        spec(tableaus=tableaus).method_family(resolve_base_solver("midpoint"))


def test_a_family_needs_methods_with_a_tableau():
    for method in (resolve_base_solver("ab2"), OwnTwoStep()):
        message = (
            rf"base_solver '{method.name}' has no Butcher tableau.*pass a ButcherTableau, or fit with tableaus=None"
        )
        with pytest.raises(ValueError, match=message):
            MLPCorrection(tableaus=["heun"]).method_family(method)


# --- the budget -----------------------------------------------------------------------------------------------------


def build_macs(spec, shape, max_macs, n_stages=2):
    z, kind = torch.zeros(1, *shape), kind_of(2, n_stages)
    net = build_net(spec, NetInputs(z, None, (kind,), max_macs))
    return count_macs(apply, net, Residual(0.0, 0.1, z, [z] * n_stages, kind, z))


BUDGETED = {
    "mlp": (MLPCorrection(), (6,)),
    "mlp-3": (MLPCorrection(depth=3), (10,)),
    "mlp-ungated": (MLPCorrection(gate=False), (3,)),
    "conv": (ConvCorrection(), (8, 8, 8)),
    "conv-2": (ConvCorrection(depth=2), (4, 6, 6)),
}
each_budgeted = pytest.mark.parametrize(("spec", "shape"), BUDGETED.values(), ids=BUDGETED)


@each_budgeted
def test_an_automatic_width_uses_the_budget_and_stays_within(spec, shape):
    narrow, wide, widest = (build_macs(clone(spec).set_params(hidden=h), shape, math.nan) for h in (23, 24, 64))
    assert build_macs(spec, shape, wide) == build_macs(spec, shape, wide + 1) == wide
    assert build_macs(spec, shape, wide - 1) == narrow
    assert build_macs(spec, shape, 1e12) == widest


def test_an_automatic_width_counts_the_matrix_gate():
    assert build_macs(MLPCorrection(depth=1), (4,), 500.0) <= 500
    assert build_macs(MLPCorrection(depth=1), (3,), 737.0) <= 737


@each_budgeted
def test_a_budget_out_of_reach_gives_the_narrowest_net_and_none_a_default(spec, shape):
    narrowest = build_macs(spec, shape, 1.0)
    assert 1 < narrowest <= build_macs(clone(spec).set_params(hidden=4), shape, 1.0)
    default = 16 if isinstance(spec, ConvCorrection) else 32
    assert build_macs(spec, shape, math.nan) == build_macs(clone(spec).set_params(hidden=default), shape, math.nan)


def test_a_fitted_automatic_correction_costs_a_tenth_of_the_field():
    f = MLPVectorField(2, hidden=64, depth=2).double()
    for parameter in f.parameters():  # a new field is so smooth that its residuals drown in the reference's noise
        parameter.data *= 3
    X = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    hypersolver = HypersolverRegressor(f, base_solver="heun", n_steps=1, fit_n_steps=1, max_epochs=1, random_state=0)
    fitted = hypersolver.fit(X)
    z, t = torch.zeros(1, 2, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE)
    macs_f = count_macs(fitted.neural_ode_.vector_field, t, z)
    for g in (fitted.correction_, fitted.module_.steps[0]):  # as it is trained, and folded as it runs
        macs_g = count_macs(g, 0.1, t, z, [z, z])
        assert 0.05 * macs_f < macs_g <= 0.1 * macs_f


class StartsWithMore(OwnTwoStep):
    """Its first step hands out three stages, the others two."""

    def kind(self, index):
        return super().kind(index) if index else StepKind(2, (0.0, 0.5, 1.0), (0.0, 0.5, 1.0))


@pytest.mark.parametrize("spec", [MLPCorrection(), ConvCorrection()], ids=lambda spec: type(spec).__name__)
def test_a_start_up_of_more_stages_than_the_rest_is_refused(spec):
    z = torch.zeros((2, 3) if isinstance(spec, MLPCorrection) else (2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"reads at most the 2 stages .* a start-up step has 3"):
        spec.build(NetInputs(z, None, StartsWithMore().kinds, math.nan))
