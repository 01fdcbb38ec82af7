"""Reference solves of a task: chunked, parallel, cached; rows that cannot be solved are named."""

import pickle

import numpy as np
import pytest
import torch
from bad_rows import cubic, spoiled, stiff, undefined
from bad_rows import exact as exact_cubic
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ThreadingBackend
from problems import LOGISTIC
from small_tasks import fit_settings, rows

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import SolveSettings, Task
from sklearn_hyper.numerics import ReferenceSolveError, reference_solution
from sklearn_hyper.numerics.row_search import solve_by_row
from sklearn_hyper.training import references
from sklearn_hyper.training.references import chunk_rows, digest, lost_rows, solve_ends, solve_references


class Logistic(torch.nn.Module):
    """z' = rate z (1 - z), the rate being a weight."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate, dtype=torch.float64), requires_grad=False)

    def forward(self, t, z):
        return self.rate * LOGISTIC.f(t, z)


def logistic_task(n=40, dtype=torch.float64):
    x = torch.linspace(0.1, 0.9, n, dtype=dtype)[:, None]
    return Task(NeuralODE(Logistic().to(dtype), t_span=(0.0, 2.0)).eval(), x)


def labelled(t, z, *, label):
    """A rate of each row's own."""
    return label[:, None] * z * (1 - z)


TIMES = (0.0, 0.5, 1.1, 2.0)


def exact(task, times=TIMES):
    return torch.stack([LOGISTIC.exact(0.0, s, task.x.double()) for s in times])


# ---------------------------------------------------------------------- states
def test_states_at_all_times_are_within_the_tolerance():
    task = logistic_task()
    for rtol in (1e-4, 1e-9):
        states = solve_references(task, TIMES, SolveSettings(rtol=rtol))
        assert states.shape == (4, 40, 1)
        assert (states - exact(task)).abs().max() < 5 * rtol
    tight = solve_references(task, TIMES, SolveSettings(rtol=1e-3), rtol=1e-9, atol=1e-9)
    assert (tight - exact(task)).abs().max() < 1e-8


def test_ends_are_those_of_the_span():
    task = logistic_task()
    states = solve_ends(task, SolveSettings(rtol=1e-9))
    torch.testing.assert_close(states, exact(task, (0.0, 2.0)), rtol=1e-7, atol=1e-7)


def test_in_double_precision_whatever_the_module_is():
    task = logistic_task(dtype=torch.float32)
    states = solve_references(task, TIMES, SolveSettings(), rtol=1e-11, atol=1e-11, double=True)
    assert states.dtype == torch.float64 and (states - exact(task)).abs().max() < 1e-9
    assert task.neural_ode.dtype == torch.float32 == task.x.dtype


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_chunks_and_jobs_change_nothing_but_rounding(monkeypatch, n_jobs):
    task = logistic_task()
    whole = solve_references(task, TIMES, SolveSettings())
    monkeypatch.setattr(references, "chunk_rows", lambda numel: 7)
    with parallel_config("threading"):
        parts = solve_references(task, TIMES, SolveSettings(n_jobs=n_jobs))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


class WithoutGenerators(ThreadingBackend):
    """A backend like Ray's: it gives results all at once, in memory that is not to be written to."""

    supports_return_generator = False

    def retrieve_result_callback(self, out):
        results = super().retrieve_result_callback(out)
        for states, _ in results:
            states.flags.writeable = False
        return results


def test_a_backend_may_give_results_all_at_once(monkeypatch):
    monkeypatch.setattr(references, "chunk_rows", lambda numel: 7)
    register_parallel_backend("without generators", WithoutGenerators)
    with parallel_config("without generators", n_jobs=2):
        found = solve_references(logistic_task(), TIMES, SolveSettings())
    assert torch.equal(found, solve_references(logistic_task(), TIMES, SolveSettings()))


def test_chunks_are_by_the_size_of_a_state_alone():
    assert chunk_rows(1) == chunk_rows(16) == 8192
    assert chunk_rows(1024) == 128 and chunk_rows(10**9) == 32


@pytest.mark.parametrize("chunk", [100, 7])
def test_conditions_go_with_their_rows(monkeypatch, chunk):
    monkeypatch.setattr(references, "chunk_rows", lambda numel: chunk)
    x, rates = (
        torch.linspace(0.2, 0.8, 20, dtype=torch.float64)[:, None],
        torch.linspace(-1, 1, 20, dtype=torch.float64),
    )
    task = Task(NeuralODE(labelled), x, {"label": rates})
    states = solve_references(task, (0.0, 1.0), SolveSettings(rtol=1e-9))
    growth = 1 / (1 + (1 / x - 1) * torch.exp(-rates[:, None]))
    torch.testing.assert_close(states[-1], growth, rtol=1e-7, atol=1e-7)


# ---------------------------------------------------------------------- rows that cannot be solved
def spoiled_task(bad, n=50):
    x = rows(n)
    x[bad] = 3.0
    return Task(NeuralODE(cubic), x)


@pytest.mark.parametrize("chunk", [100, 8])
def test_lost_rows_are_named_or_nan(monkeypatch, chunk):
    monkeypatch.setattr(references, "chunk_rows", lambda numel: chunk)
    task = spoiled_task([3, 4, 41])
    with pytest.raises(ReferenceSolveError, match=r"3 of 50 rows \(rows 3, 4, 41\)") as raised:
        solve_ends(task, SolveSettings())
    assert raised.value.rows == (3, 4, 41)
    states = solve_references(task, (0.0, 1.0), SolveSettings(rtol=1e-9), keep_lost=True)
    assert lost_rows(states) == [3, 4, 41]
    good = np.setdiff1d(np.arange(50), [3, 4, 41])
    torch.testing.assert_close(states[-1][good], exact_cubic(task.x)[good], rtol=1e-6, atol=1e-6)


def test_a_whole_chunk_of_lost_rows_leaves_the_others(monkeypatch):
    monkeypatch.setattr(references, "chunk_rows", lambda numel: 10)
    states = solve_references(spoiled_task(slice(10, 20)), (0.0, 1.0), SolveSettings(), keep_lost=True)
    assert lost_rows(states) == [*range(10, 20)]


def test_a_field_that_no_row_can_be_solved_for_is_given_up_early(monkeypatch, solves):
    monkeypatch.setattr(references, "chunk_rows", lambda numel: 64)
    with pytest.raises(ReferenceSolveError, match="from every row"):
        solve_references(spoiled_task(slice(None), 1000), (0.0, 1.0), SolveSettings(), keep_lost=True)
    assert sum(solve.n_rows for solve in solves) < 1000


def test_states_without_an_axis_but_the_batchs_may_be_lost_too():
    assert lost_rows(torch.tensor([[0.0, 1.0, 2.0], [1.0, torch.nan, 3.0]])) == [1]


# ---------------------------------------------------------------------- the cache
def test_a_cached_solve_is_not_made_again_and_failures_stay_failures(tmp_path, solves):
    settings = SolveSettings(memory=str(tmp_path))
    first = solve_references(logistic_task(), TIMES, settings)
    n = len(solves)
    assert torch.equal(solve_references(logistic_task(), TIMES, settings), first) and len(solves) == n
    for _ in range(2):
        with pytest.raises(ReferenceSolveError, match="row 12"):
            solve_ends(spoiled_task([12]), settings)


@pytest.mark.parametrize("change", ["rate", "rows", "times", "rtol", "state_size"])
def test_whatever_a_solve_depends_on_is_part_of_its_key(tmp_path, solves, change):
    task, times, settings = logistic_task(), TIMES, SolveSettings(memory=str(tmp_path))
    solve_references(task, times, settings)
    n = len(solves)
    if change == "rate":
        task.neural_ode.vector_field.rate += 1
    elif change == "rows":
        task.x[7] += 0.01
    elif change == "times":
        times = (0.0, 2.0)
    elif change == "rtol":
        settings = SolveSettings(memory=str(tmp_path), rtol=1e-7)
    else:
        task.neural_ode.state_size = (3.0,)
    solve_references(task, times, settings)
    assert len(solves) == n + 1


def test_conditions_are_part_of_the_key(tmp_path, solves):
    settings = SolveSettings(memory=str(tmp_path))
    x = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)[:, None]

    def solve(rate):
        return solve_ends(
            Task(NeuralODE(labelled), x, {"label": torch.full((6,), rate, dtype=torch.float64)}), settings
        )

    one, n = solve(1.0), len(solves)
    assert torch.equal(solve(1.0), one) and len(solves) == n
    assert not torch.equal(solve(2.0), one) and len(solves) == n + 1


def test_a_fingerprint_is_of_what_is_computed():
    x = rows(20)
    one, same, other = NeuralODE(Logistic()), NeuralODE(Logistic()), NeuralODE(Logistic(2.0))
    assert digest(one, x) == digest(same, x) != digest(other, x)
    assert digest(one) == digest(same) != digest(NeuralODE(Logistic(), t_span=(0.0, 2.0)))


def test_settings_of_a_fit_are_settings_of_its_solves():
    task = logistic_task()
    assert torch.equal(solve_ends(task, fit_settings(rtol=1e-5)), solve_ends(task, SolveSettings(rtol=1e-5)))


# ---------------------------------------------------------------------- the search for lost rows
@pytest.mark.parametrize(
    ("f", "value"), [(cubic, 3.0), (undefined, 0.0), (lambda t, z: z**2, 3.0)], ids=["cubic", "nan", "square"]
)
@pytest.mark.parametrize("rows", [[17], [0, 59], [3, 4, 30, 31, 40, 58]], ids=["one", "ends", "six"])
def test_bad_rows_are_found_and_the_others_solved(f, value, rows):
    z0 = torch.from_numpy(0.1 * spoiled(rows, 10 * value))

    def solve(some, limit):
        return reference_solution(f, z0[some], (0, 1), max_evaluations=limit)

    states, failed = solve_by_row(solve, len(z0))
    assert references.lost_rows(states) == rows and "dopri5" in failed
    good = np.setdiff1d(np.arange(60), rows)
    torch.testing.assert_close(states[:, good], solve(torch.from_numpy(good), 30_000), rtol=1e-5, atol=1e-5)


def test_a_stiff_row_does_not_take_the_others_with_it(monkeypatch):
    monkeypatch.setattr("sklearn_hyper.numerics.row_search.MAX_EVALUATIONS", 2000)
    monkeypatch.setattr("sklearn_hyper.numerics.row_search._GROUP_LIMIT", 500)
    z0 = torch.from_numpy(spoiled([8, 9], 30.0))
    states, failed = solve_by_row(lambda r, m: reference_solution(stiff, z0[r], (0, 1), max_evaluations=m), 60)
    assert references.lost_rows(states) == [8, 9] and "needed more than 2000 evaluations" in failed


def test_rows_that_hold_a_solve_up_are_named():
    with pytest.raises(ReferenceSolveError, match=r"from 1 of 60 rows \(row 5\) the field is stiff or") as raised:
        reference_solution(cubic, torch.from_numpy(spoiled([5])), (0, 1))
    assert raised.value.rows == (5,)
    assert pickle.loads(pickle.dumps(raised.value)).rows == (5,)
