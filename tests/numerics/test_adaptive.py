"""Steps chosen by their errors: how accurate, what they cost, and that a row is solved as it is alone."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from problems import DATA_CONTROLLED, FORCED, LOGISTIC, Recorder, largest, log_slope, named

from sklearn_hyper.numerics import (
    Adaptive,
    ButcherTableau,
    Correction,
    CountedField,
    FieldInputs,
    RungeKutta,
    StepLimitError,
    hypersolve,
    reference_solution,
    resolve_base_solver,
)

# Bogacki and Shampine's pair, a user's: its last stage is the first of the next step.
BOSH3 = RungeKutta(
    ButcherTableau(
        "bosh3",
        order=3,
        a=[[0, 0, 0, 0], [1 / 2, 0, 0, 0], [0, 3 / 4, 0, 0], [2 / 9, 1 / 3, 4 / 9, 0]],
        b=[2 / 9, 1 / 3, 4 / 9, 0],
        c=[0, 1 / 2, 3 / 4, 1],
        embedded=[7 / 24, 1 / 4, 1 / 3, 1 / 8],
    )
)
EULER, HEUN, RK3, RK4, ABM2 = map(resolve_base_solver, ("euler", "heun", "rk3", "rk4", "abm2"))
PAIRS = [*map(resolve_base_solver, ("midpoint", "heun", "ralston", "rk3")), BOSH3]
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7)


class Decay(Correction):
    """The exact residual of Euler's method for z' = -z, times ``share``."""

    takes_row_steps = True

    def __init__(self, share=1.0):
        self.share, self.seen = share, []

    def term(self, plan, s, z, stages, x):
        self.seen.append((plan.eps, s))
        eps = torch.as_tensor(plan.eps, dtype=z.dtype)
        return self.share * z * ((torch.expm1(-eps) + eps) / eps**2).reshape(-1, *[1] * (z.ndim - 1))


def decay(t, z):
    return -z


def steep(t, z):
    """A pulse at t = 1, a hundredth wide, which smooth stretches lead up to and away from."""
    return torch.exp(-(((t - 1) / 0.01) ** 2)).reshape(-1, 1) * 50 * torch.ones_like(z) - z


def solve_and_count(f, z0, stepping, correction=None, inputs=FieldInputs()):  # noqa: B008 - frozen
    counted = CountedField(f)
    return stepping.solve(counted, z0, correction, inputs), counted


# --- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
@pytest.mark.parametrize("method", **named(PAIRS))
def test_errors_fall_with_the_tolerance_and_steps_as_its_root(method, problem):
    """An estimate of order eps^p asks for steps like rtol^(1/p); the solution of order p then errs like rtol."""
    errors, evaluations = [], []
    for rtol in TOLERANCES:
        end, counted = solve_and_count(problem.f, problem.z0, Adaptive(method, problem.t_span, rtol, rtol))
        errors.append(largest(end - problem.exact(*problem.t_span, problem.z0)))
        evaluations.append(counted.n_evaluations)
    assert log_slope(TOLERANCES, errors) == pytest.approx(1, abs=0.25)
    assert log_slope(TOLERANCES, evaluations) == pytest.approx(-1 / method.order, abs=0.12)


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
def test_milne_s_estimate_controls_a_multistep_method(problem):
    errors = []
    for rtol in TOLERANCES:
        end = Adaptive(ABM2, problem.t_span, rtol, rtol).solve(problem.f, problem.z0)
        errors.append(largest(end - problem.exact(*problem.t_span, problem.z0)))
    assert log_slope(TOLERANCES, errors) == pytest.approx(2 / 3, abs=0.15)  # steps like its cube root, order 2


def test_the_correction_estimates_the_error_and_is_added():
    """With the exact residual the solution is exact, however long the steps; they are those of Euler's method."""
    z0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    exact, evaluations = z0 * np.exp(-2), []
    for rtol in (1e-2, 1e-4):
        stepping = Adaptive(EULER, (0.0, 2.0), rtol, rtol, times="none")
        end, counted = solve_and_count(decay, z0, stepping, Decay())
        assert largest(end - exact) < 1e-12
        evaluations.append(counted.n_evaluations)
        alone = Adaptive(EULER, (0.0, 2.0), rtol, rtol, times="none", adds_correction=False)
        estimated, also_counted = solve_and_count(decay, z0, alone, Decay())
        assert 0.01 * rtol**0.5 < largest(estimated - exact) < rtol**0.5
        assert also_counted.n_evaluations == pytest.approx(counted.n_evaluations, rel=0.1)
    assert evaluations[1] / evaluations[0] == pytest.approx(10, rel=0.25)  # eps^2 g


def test_a_wrong_correction_costs_accuracy_in_proportion():
    z0 = torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for miss in (0.1, 0.01):
        stepping = Adaptive(EULER, (0.0, 2.0), 1e-3, 1e-3, times="none")
        errors.append(largest(stepping.solve(decay, z0, Decay(1 - miss)) - np.exp(-2)))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("times", ["shared", "rows"])
@pytest.mark.parametrize("method", **named([RK3, BOSH3]))
def test_time_may_run_backwards(method, times):
    """There and back; f is told the true times."""
    start, end = FORCED.t_span
    f = Recorder(FORCED.f) if times == "shared" else Recorder(lambda t, z: FORCED.f(t.reshape(-1, 1), z))
    there = FORCED.exact(start, end, FORCED.z0)
    back = Adaptive(method, (end, start), 1e-9, 1e-9, times=times).solve(f, there)
    assert largest(back - FORCED.z0) < 1e-7
    seen = torch.cat([t.reshape(-1) for t in f.times])
    assert seen.max() == end and start - 1e-12 <= seen.min() < start + 0.5


# --- rows -----------------------------------------------------------------------------------------------------------


def rows_of(problem):
    return lambda t, z, *inputs: problem.f(t.reshape(-1, 1), z, *inputs)


@pytest.mark.parametrize(("problem", "times"), [(LOGISTIC, "none"), (LOGISTIC, "rows"), (FORCED, "rows")])
@pytest.mark.parametrize("correction", [None, Decay()], ids=["pair", "correction"])
def test_a_row_is_solved_as_it_is_alone(problem, times, correction):
    """Bit for bit, with the same evaluations; those of a batch are the sum."""
    method = HEUN if correction is None else EULER
    z0 = torch.cat([problem.z0, 3 * problem.z0, torch.full_like(problem.z0[:1], 1e-3)])
    stepping = Adaptive(method, problem.t_span, 1e-3, 1e-3, times=times)
    together, counted = solve_and_count(rows_of(problem), z0, stepping, correction)
    alone = [solve_and_count(rows_of(problem), row[None], stepping, correction) for row in z0]
    assert torch.equal(together, torch.cat([end for end, _ in alone]))
    own = [count.n_evaluations for _, count in alone]
    assert len(set(own)) > 1
    assert counted.n_rows_evaluated == sum(own) and counted.n_evaluations < sum(own)


def test_rows_take_their_own_inputs_along():
    problem = DATA_CONTROLLED
    inputs = FieldInputs(problem.x, {"push": torch.tensor([[0.0], [1.0], [5.0]]).double()})

    def f(t, z, x, push):
        assert len(t) == len(z) == len(x) == len(push)
        return x * z * (1 - z) + push

    stepping = Adaptive(RK3, problem.t_span, 1e-6, 1e-6, times="rows")
    together, counted = solve_and_count(f, problem.z0, stepping, inputs=inputs)
    for row in range(3):
        own = slice(row, row + 1)
        assert torch.equal(stepping.solve(f, problem.z0[own], inputs=inputs.rows(own)), together[own])
    assert counted.n_rows_evaluated < 3 * counted.n_evaluations  # some have arrived earlier
    exact = reference_solution(
        lambda t, z: f(z, z, problem.x, inputs.condition["push"]), problem.z0, problem.t_span, rtol=1e-10
    )[-1]
    assert largest(together - exact) < 1e-5


def test_shared_steps_are_those_of_the_worst_row():
    z0 = torch.tensor([[0.1], [3.0]], dtype=torch.float64)
    cubic = lambda t, z: -(z**3)  # noqa: E731
    shared = Adaptive(RK3, (0.0, 2.0), 1e-5, 1e-5)
    (together, both), (worst, alone), (_, easy) = (
        solve_and_count(cubic, rows, shared) for rows in (z0, z0[1:], z0[:1])
    )
    assert both.n_evaluations == alone.n_evaluations > easy.n_evaluations
    assert largest(together[1:] - worst) < 1e-15
    assert both.n_rows_evaluated == 2 * both.n_evaluations


def test_f_gets_its_time_as_it_takes_it():
    for times, shape in [("shared", torch.Size([])), ("none", torch.Size([])), ("rows", torch.Size([3]))]:
        f = Recorder(rows_of(LOGISTIC))
        Adaptive(HEUN, LOGISTIC.t_span, 1e-1, 1e-1, times=times).solve(f, LOGISTIC.z0)
        assert f.times[0].shape == shape and f.times[0].dtype == torch.float64
        assert times != "none" or all(t == LOGISTIC.t_span[0] for t in f.times)


def test_a_correction_gets_steps_of_its_own_for_each_row_or_numbers():
    z0 = torch.tensor([[0.1], [5.0]], dtype=torch.float64)
    for times, kind in [("none", torch.Tensor), ("shared", float)]:
        correction = Decay()
        Adaptive(EULER, (0.0, 1.0), 1e-2, 1e-3, times=times).solve(decay, z0, correction)
        eps, s = correction.seen[1]
        assert isinstance(eps, kind) and (s.ndim == 1) is (times == "none")


# --- cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", **named([HEUN, RK3, BOSH3]))
def test_steep_stretches_make_steps_fail_and_failed_steps_keep_their_first_stage(method):
    """f is evaluated once at each state: at the start of a step that is repeated it is known."""
    evaluated = []

    def f(t, z):
        evaluated.append((t.item(), z.item()))
        return steep(t, z)

    stepping = Adaptive(method, (0.0, 2.0), 1e-3, 1e-3, max_step=0.05)
    end = stepping.solve(f, torch.ones(1, 1, dtype=torch.float64))
    assert end.item() == pytest.approx(np.exp(-2) + 50 * 0.01 * np.pi**0.5 * np.exp(-1), rel=1e-2)
    times = [t for t, _ in evaluated]
    latest = list(itertools.accumulate(times, max))
    assert sum(t < before - 1e-3 for t, before in zip(times[1:], latest, strict=False)) > 3  # went back: steps failed
    assert len(set(evaluated)) == len(evaluated)


def test_evaluations_are_counted_exactly():
    """Steps that pass cost all stages; without a failure these are all. A last stage at the end is the next first."""
    z0 = LOGISTIC.z0
    for method, stages, first in [(RK3, 3, 0), (BOSH3, 3, 1)]:
        stepping = Adaptive(method, LOGISTIC.t_span, 1e-1, 1e-1, max_step=0.1)  # every step passes
        _, counted = solve_and_count(LOGISTIC.f, z0, stepping)
        assert counted.n_evaluations == 15 * stages + first
    stepping = Adaptive(RK3, LOGISTIC.t_span, 1e-1, 1e-1, max_step=0.1, times="none")
    assert solve_and_count(LOGISTIC.f, z0, stepping)[1].n_rows_evaluated == 3 * 15 * 3
    counted = CountedField(LOGISTIC.f)
    stepping.trajectory(counted, z0)
    assert counted.n_rows_evaluated == 3 * (15 * 3 + 1)  # f at the end, for the interpolation


def test_steps_that_all_pass_at_their_longest_are_those_of_a_fixed_mesh():
    stepping = Adaptive(RK3, FORCED.t_span, 1.0, 1.0, max_step=0.25)
    expected = hypersolve(FORCED.f, FORCED.z0, FORCED.t_span, 8, RK3)
    assert largest(stepping.solve(FORCED.f, FORCED.z0) - expected) < 1e-14
    by_row = Adaptive(RK3, FORCED.t_span, 1.0, 1.0, max_step=0.25, times="rows")
    assert largest(by_row.solve(rows_of(FORCED), FORCED.z0) - expected) < 1e-14


def test_a_solve_repeats_bit_for_bit_and_pickles():
    stepping = Adaptive(HEUN, FORCED.t_span, 1e-4)
    first = stepping.solve(FORCED.f, FORCED.z0)
    assert torch.equal(stepping.solve(FORCED.f, FORCED.z0), first)
    assert torch.equal(pickle.loads(pickle.dumps(stepping)).solve(FORCED.f, FORCED.z0), first)


# --- states on the way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("times", ["shared", "rows"])
def test_states_on_the_way_come_at_equal_times(times, direction):
    span = FORCED.t_span[::direction]
    z0 = FORCED.exact(FORCED.t_span[0], span[0], FORCED.z0)
    grid, errors = np.linspace(*span, 8), []
    f = FORCED.f if times == "shared" else rows_of(FORCED)
    for rtol in (1e-4, 1e-7):
        stepping = Adaptive(RK3, span, rtol, rtol, times=times, n_outputs=7)
        states = stepping.trajectory(f, z0)
        assert states.shape == (8, 3, 1)
        assert torch.equal(states[0], z0) and torch.equal(states[-1], stepping.solve(f, z0))
        errors.append(largest(states - torch.stack([FORCED.exact(span[0], s, z0) for s in grid])))
        assert all(itertools.starmap(torch.equal, zip(stepping.iterate(f, z0), states[1:], strict=True)))
    assert errors[0] < 2e-3 and errors[1] < 5e-6


def test_the_interpolation_is_exact_for_cubics():
    stepping = Adaptive(RK3, (0.0, 2.0), 1e-3, 1e-3, n_outputs=9)
    states = stepping.trajectory(lambda t, z: 3 * t**2 * torch.ones_like(z), torch.zeros(2, 1, dtype=torch.float64))
    assert largest(states[:, 0, 0] - torch.linspace(0, 2, 10, dtype=torch.float64) ** 3) < 1e-13


# --- other states and gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_keep_their_dtype_and_may_have_any_shape(dtype):
    z0 = torch.linspace(0.1, 0.9, 12, dtype=dtype).reshape(2, 2, 3)
    for times in ("shared", "none"):
        end = Adaptive(RK3, LOGISTIC.t_span, 1e-5, times=times).solve(LOGISTIC.f, z0)
        assert end.dtype == dtype and end.shape == z0.shape
        assert largest(end - LOGISTIC.exact(*LOGISTIC.t_span, z0)) < 1e-4
    assert Adaptive(RK3, LOGISTIC.t_span, 1e-5, times="none").solve(LOGISTIC.f, z0[:0]).shape == (0, 2, 3)


def test_gradients_flow_through_the_steps_that_were_taken():
    z0 = LOGISTIC.z0.clone().requires_grad_(True)
    stepping = Adaptive(RK3, LOGISTIC.t_span, 1e-8, 1e-8, times="none")
    (found,) = torch.autograd.grad(stepping.solve(LOGISTIC.f, z0).sum(), z0)
    (expected,) = torch.autograd.grad(LOGISTIC.exact(*LOGISTIC.t_span, z0).sum(), z0)
    assert largest(found - expected) < 1e-6


# --- limits and refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", ["shared", "none"])
def test_rows_that_cannot_be_solved_are_named(times):
    """z' = z^2 from 1 is infinite at t = 1."""
    z0 = torch.tensor([[0.1], [1.0], [0.2], [2.0]], dtype=torch.float64)
    with pytest.raises(StepLimitError, match=r"needs steps shorter than .* Loosen the tolerance") as caught:
        Adaptive(RK3, (0.0, 1.5), 1e-3, 1e-3, times=times).solve(lambda t, z: z**2, z0)
    assert set(caught.value.rows) <= {1, 3} and 3 in caught.value.rows and caught.value.n_rows == 4


def test_rows_that_need_too_many_steps_are_named():
    rates = torch.tensor([[1.0], [500.0], [1.0]], dtype=torch.float64)
    stepping = Adaptive(HEUN, (0.0, 1.0), 1e-2, 1e-2, times="none", max_attempts=60)
    with pytest.raises(StepLimitError, match=r"more than 60 steps from 1 of 3 rows \(row 1\)"):
        stepping.solve(lambda t, z, x: -x * z, torch.ones_like(rates), inputs=FieldInputs(rates))


def test_what_estimates_no_error_is_refused():
    with pytest.raises(ValueError, match="'rk4' does not estimate its error: pass a correction"):
        Adaptive(RK4, (0.0, 1.0), 1e-3).solve(decay, torch.ones(1, 1))
    with pytest.raises(ValueError, match="'ab2' does not estimate its error"):
        Adaptive(resolve_base_solver("ab2"), (0.0, 1.0), 1e-3).trajectory(decay, torch.ones(1, 1))


class Bends(Correction):
    """Changes f."""

    def field(self, f, plan):
        return lambda t, z: 2 * f(t, z)


class OfNumbers(Correction):
    """A correction that takes one step size."""

    def term(self, plan, s, z, stages, x):
        return z


@pytest.mark.parametrize(
    ("method", "times", "correction", "message"),
    [
        (ABM2, "shared", OfNumbers(), "remembers earlier steps, and a correction of it is made for equal ones"),
        (RK4, "shared", Bends(), "a Bends changes the weights of f"),
        (RK4, "none", OfNumbers(), "takes one step size for all rows; pass times='shared'"),
    ],
)
def test_corrections_that_cannot_run_are_refused(method, times, correction, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(method, (0.0, 1.0), 1e-3, times=times).solve(decay, torch.ones(1, 1), correction)
    if correction.takes_row_steps or times == "shared":
        return
    assert Adaptive(method, (0.0, 1.0), 1e-3).solve(decay, torch.ones(1, 1), correction).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ((RK3, (0.0, 1.0), 0.0), {}, "rtol must be a positive finite number, got 0.0"),
        ((RK3, (0.0, 1.0), 1e-3, -1.0), {}, "atol must be a positive finite number, got -1.0"),
        ((RK3, (0.0, 0.0), 1e-3), {}, "t_span must have two different ends"),
        (
            (RK3, (0.0, 1.0), 1e-3),
            {"times": "batch"},
            r"times must be one of \('shared', 'rows', 'none'\), got 'batch'",
        ),
        ((RK3, (0.0, 1.0), 1e-3), {"max_step": 0}, "max_step must be a positive finite number"),
        ((RK3, (0.0, 1.0), 1e-3), {"n_outputs": 0}, "n_outputs must be an integer >= 1"),
        ((ABM2, (0.0, 1.0), 1e-3), {"times": "rows"}, "'abm2' remembers earlier steps, which rows would have to share"),
    ],
)
def test_wrong_arguments_are_refused(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(*arguments, **changes)


def test_it_cannot_be_exported():
    class Solve(torch.nn.Module):
        def forward(self, z):
            return Adaptive(RK3, (0.0, 1.0), 1e-3, 1e-3).solve(decay, z)

    with pytest.raises(Exception, match="depend on the data, so it cannot be traced"):
        torch.export.export(Solve(), (torch.ones(2, 1),))


# --- steps that are proposed ----------------------------------------------------------------------------------------


class Proposes:
    """A step of a tenth of the state, whatever the tolerance; what it is asked from is kept."""

    def __init__(self, share=0.1, limit=math.inf):
        self.share, self.limit, self.seen = share, limit, []

    def propose(self, s, z, slopes, rtol):
        self.seen.append((s, z, slopes, rtol))
        return self.share * z.abs().amax(dim=1).double()


def test_proposed_steps_are_the_steps():
    """Euler's method with its exact residual: no error, and as many evaluations as the proposals make."""
    z0, proposer = torch.tensor([[1.0], [2.5], [0.5]], dtype=torch.float64), Proposes()
    stepping = Adaptive(EULER, (0.0, 2.0), 1e-3, times="none", proposer=proposer)
    end, counted = solve_and_count(decay, z0, stepping, Decay())
    assert largest(end - z0 * np.exp(-2)) < 1e-12
    own = []
    for z in z0[:, 0].tolist():
        left, n_steps = 2.0, 0
        while left > 1e-12:
            eps = left / np.ceil(left / (0.1 * z) * (1 - 1e-9))
            z, left, n_steps = z * np.exp(-eps), left - eps, n_steps + 1
        own.append(n_steps)
    assert len(set(own)) == 3 and counted.n_rows_evaluated == sum(own)
    for s, z, slopes, rtol in proposer.seen:
        assert len(s) == len(z) and torch.equal(slopes, -z) and rtol == 1e-3


def test_rows_that_share_their_steps_take_the_shortest_proposal():
    z0, alone = torch.tensor([[1.0], [2.5]], dtype=torch.float64), []
    for rows in (z0, z0[:1]):
        stepping = Adaptive(EULER, (0.0, 2.0), 1e-3, proposer=Proposes())
        alone.append(solve_and_count(decay, rows, stepping, Decay())[1].n_evaluations)
    assert alone[0] == alone[1]


def test_a_proposed_step_whose_correction_exceeds_the_limit_is_halved():
    """Euler's method misses exp(-eps) - 1 + eps of the state, and a tenth of the state is the limit.

    So steps of 1, 1/2 and 3/4 fail, and those of 1/4, 3/8 and 3/8 do not. f at their starts is not asked for again.
    """
    for limit, n_evaluations in ((math.inf, 1), (100.0, 3)):
        stepping = Adaptive(EULER, (0.0, 1.0), 1e-3, sizes=[1e-9], times="none", proposer=Proposes(10.0, limit))
        end, counted = solve_and_count(decay, torch.ones(1, 1, dtype=torch.float64), stepping, Decay())
        assert largest(end - np.exp(-1)) < 1e-12 and counted.n_evaluations == n_evaluations


@pytest.mark.parametrize("times", ["rows", "shared"])
def test_a_proposed_step_that_is_not_finite_is_halved(times):
    """Beyond a third, where f is not defined at the end of the step; f at its start is not asked for again."""

    class Broken(Correction):
        takes_row_steps = True

        def term(self, plan, s, z, stages, x):
            eps = torch.as_tensor(plan.eps, dtype=z.dtype).reshape(-1, 1)
            return torch.where(eps > 0.3, torch.nan, 0.0) * torch.ones_like(z)

    stepping = Adaptive(EULER, (0.0, 1.0), 1e-3, times=times, proposer=Proposes(100.0))
    end, counted = solve_and_count(rows_of(LOGISTIC), torch.full((2, 1), 0.5, dtype=torch.float64), stepping, Broken())
    assert end.isfinite().all() and counted.n_evaluations <= 6  # steps of 1/4, the first after three tries
    with pytest.raises(StepLimitError, match="needs steps shorter than"):
        stepping.solve(lambda t, z: z * torch.nan, end, Broken())


@pytest.mark.parametrize(
    ("method", "params", "correction", "message"),
    [
        (EULER, {"atol": 1e-3}, Decay(), r"atol=0\.001 with a proposer.*leave atol out"),
        (HEUN, {}, None, "a proposer chooses the steps of a corrected method: pass a correction"),
    ],
)
def test_what_a_proposer_cannot_work_with_is_refused(method, params, correction, message):
    with pytest.raises(ValueError, match=message):
        stepping = Adaptive(method, (0.0, 1.0), 1e-3, proposer=Proposes(), **params)
        stepping.solve(decay, torch.ones(1, 1), correction)
