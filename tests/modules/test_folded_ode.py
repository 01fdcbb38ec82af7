"""Live weights and folded ones: a hypersolved ODE can be trained, and folding it is a step of its own."""

import copy
import io
import pickle

import pytest
import torch
from problems import LEARNED
from small_corrections import Own, bound_to, make_hypersolved

from sklearn_hyper import ConvCorrection, MLPCorrection, NeuralODE, alpha_family
from sklearn_hyper.modules import FoldedODE, HypersolvedODE, MLPVectorField
from sklearn_hyper.numerics import CountedField, count_macs, resolve_base_solver
from sklearn_hyper.numerics.reference import reference_solution

GRID = (0.0, 0.3, 0.6, 1.0)

# name: (base solver, spec or module, kind of state)
CASES = {
    "euler": ("euler", MLPCorrection(hidden=6), "vector"),
    "matrix gate": ("heun", MLPCorrection(hidden=6), "planar"),
    "ab2": ("ab2", MLPCorrection(hidden=6), "vector"),
    "nonstationary": (LEARNED, MLPCorrection(hidden=6), "vector"),
    "image": ("euler", ConvCorrection(hidden=3), "image"),
    "image ab2": ("ab2", ConvCorrection(hidden=3), "image"),
    "family": (alpha_family(0.3), MLPCorrection(hidden=6, tableaus=["midpoint"]), "vector"),
    "image family": ("midpoint", ConvCorrection(hidden=3, tableaus=["heun"]), "image"),
    "controlled": ("heun", MLPCorrection(hidden=6), "controlled"),
    "own": ("euler", "bounded", "vector"),
    "bare own": ("midpoint", "bare", "vector"),
}


def make(case):
    """A hypersolved ODE and an input for it."""
    base_solver, spec, kind = CASES[case]
    return make_hypersolved(kind, base_solver, spec, GRID)


each_case = pytest.mark.parametrize("case", CASES)


# --- live weights ---------------------------------------------------------------------------------------------------


@each_case
def test_with_zero_weights_it_is_the_base_solver_exactly(case):
    module, x = make(case)
    base = HypersolvedODE(module.neural_ode, module.base_solver, None, GRID)
    assert not torch.allclose(module(x), base(x), rtol=1e-4)
    for parameter in module.correction.parameters():
        parameter.zero_()
    assert torch.equal(module(x), base(x)) and torch.equal(module.trajectory(x), base.trajectory(x))


@each_case
def test_changed_weights_of_field_maps_and_correction_change_the_output(case):
    module, x = make(case)
    ode = module.neural_ode
    for part in (ode.vector_field, ode.input_map, ode.output_map, module.correction):
        before = module(x)
        for parameter in part.parameters():
            parameter.mul_(1.1)
        assert not torch.allclose(module(x), before, rtol=1e-6)


@each_case
def test_gradients_reach_every_weight_and_are_difference_quotients(case):
    module, x = make(case)
    module.correction.requires_grad_(True)
    module(x).pow(2).sum().backward()
    parameters = list(module.correction.parameters())
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in parameters)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))

    def loss(step):
        moved = copy.deepcopy(module).requires_grad_(False)
        for parameter, direction in zip(moved.correction.parameters(), directions, strict=True):
            parameter.add_(direction, alpha=step)
        return moved(x).pow(2).sum()

    quotient = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(slope, quotient, rtol=1e-5, atol=1e-7)


@each_case
def test_training_it_lowers_the_terminal_error_and_its_fold_follows(case):
    module, x = make(case)
    ode = module.neural_ode
    target = reference_solution(ode.vector_field, ode.input_map(x), (0.0, 1.0), rtol=1e-8, atol=1e-8, x=ode.inputs(x).x)
    unit = (module.terminal_state(x) - target[-1]).pow(2).mean()
    optimizer = torch.optim.SGD(module.correction.requires_grad_(True).parameters(), lr=0.02)
    stale, losses = module.fold(), []
    before = stale(x)
    for _ in range(12):
        optimizer.zero_grad()
        losses.append((module.terminal_state(x) - target[-1]).pow(2).mean() / unit)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    torch.testing.assert_close(module.fold()(x), module(x).detach(), rtol=1e-10, atol=1e-12)
    assert torch.equal(stale(x), before)


# --- folds ----------------------------------------------------------------------------------------------------------


@each_case
def test_a_fold_agrees_with_the_live_module_and_shares_all_but_the_correction(case):
    module, x = make(case)
    folded = module.fold()
    assert isinstance(folded, FoldedODE) and folded.neural_ode is module.neural_ode
    assert (folded.n_steps, folded.grid, folded.base_solver) == (3, GRID, module.base_solver)
    for method in ("forward", "terminal_state", "trajectory"):
        torch.testing.assert_close(getattr(folded, method)(x), getattr(module, method)(x), rtol=1e-10, atol=1e-12)
    assert not {id(p) for p in folded.steps.parameters()} & {id(p) for p in module.correction.parameters()}
    assert not any(p.requires_grad for p in folded.steps.parameters())
    live = {name for name, _ in module.named_parameters()}
    assert any(name.startswith("correction.") for name in live)
    assert not any(name.startswith("correction") for name in folded.state_dict())


@each_case
def test_both_count_the_multiply_accumulates_that_they_make(case):
    module, x = make(case)
    folded = module.fold()
    for one in (module, folded):
        assert one.count_macs(x) == count_macs(one.terminal_state, x) - count_macs(one.neural_ode.input_map, x)
    assert folded.fold() is folded and folded.count_macs(x) > 0


@each_case
def test_folding_does_not_depend_on_what_is_trained_or_on_modes(case):
    module, x = make(case)
    expected = module.fold()(x)
    module.requires_grad_(True).train()
    folded = module.fold()
    assert module.training and module.neural_ode.vector_field.training and module.correction.training
    assert all(p.requires_grad for p in module.parameters()) and not folded.steps.training
    assert torch.equal(folded(x), expected)


def test_a_users_own_correction_is_kept_once_as_a_frozen_copy():
    for case in ("own", "bare own"):
        module, x = make(case)
        folded = module.requires_grad_(True).fold()
        kept = [part for part in folded.modules() if isinstance(part, Own)]
        assert len(kept) == 1 and kept[0] not in list(module.modules())
        assert torch.equal(folded(x), module(x)) and not any(p.requires_grad for p in folded.steps.parameters())


class Foldable(Own):
    """Has a fold of its own, which means something else."""

    def fold(self):
        raise AssertionError("not ours to call")


def test_a_method_of_the_users_own_that_is_called_fold_is_not_ours():
    ode = NeuralODE(MLPVectorField(3, hidden=4))
    module = HypersolvedODE(ode, resolve_base_solver("euler"), Foldable(3), GRID).eval()
    x = torch.randn(2, 3)
    assert torch.equal(module.fold()(x), module(x))


# --- both -----------------------------------------------------------------------------------------------------------


@each_case
def test_weights_make_the_round_trip_by_state_dict(case):
    module, x = make(case)
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        parameter.mul_(1.3)
    assert not torch.equal(other(x), module(x))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), module(x))
    folded, another = module.fold(), copy.deepcopy(module.fold())
    for parameter in another.parameters():
        parameter.mul_(1.3)
    another.load_state_dict(folded.state_dict())
    assert torch.equal(another(x), folded(x))


@each_case
def test_copies_and_pickles_of_both_compute_the_same_and_stand_alone(case):
    module, x = make(case)
    for one in (module, module.fold()):
        expected = one(x)
        copies = [copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
        for parameter in one.parameters():
            parameter.mul_(1.1)
        assert all(torch.equal(copied(x), expected) and type(copied) is type(one) for copied in copies)
    live = pickle.loads(pickle.dumps(module))
    for parameter in live.correction.parameters():
        parameter.zero_()
    assert torch.equal(live(x), HypersolvedODE(live.neural_ode, live.base_solver, None, GRID)(x))


@pytest.mark.parametrize("case", ["ab2", "nonstationary", "image", "image ab2", "family", "controlled", "own"])
def test_both_export(case):
    module, x = make(case)
    for one in (module, module.fold()):
        exported = torch.export.export(one, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
        torch.testing.assert_close(exported.module()(x[:3]), one(x[:3]), rtol=1e-10, atol=1e-12)


def test_both_evaluate_the_field_stages_times_steps():
    field = CountedField(lambda t, z: -z)
    g = bound_to(Own(3), torch.ones(2, 3), resolve_base_solver("heun"))
    module = HypersolvedODE(NeuralODE(field), resolve_base_solver("heun"), g, GRID).eval()
    for one in (module, module.fold()):
        field.n_evaluations = 0
        one(torch.ones(2, 3))
        assert field.n_evaluations == 2 * 3


def test_states_are_checked_at_every_call_and_meshes_once():
    module = HypersolvedODE(NeuralODE(lambda t, z: -z), resolve_base_solver("euler"), None, GRID)
    with pytest.raises(TypeError, match="z0 must be a floating-point tensor"):
        module(torch.ones(2, 1, dtype=torch.int64))
    assert not module.has_correction and not module.fold().has_correction
    with pytest.raises(ValueError, match=r"is not the mesh that base_solver='nonstationary' is made for"):
        HypersolvedODE(NeuralODE(lambda t, z: -z), LEARNED, None, (0.0, 0.4, 0.6, 1.0))
