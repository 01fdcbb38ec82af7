"""The benchmark itself runs for hours; here, that its pieces are right and that what it has written hangs together."""

import functools
import json
import math

import pytest
import torch
from _results import HERE, Results, raw_path, read_raw
from work_precision import cells as cell_lines
from work_precision import trained
from work_precision.cells import Timing, Trial, from_record, to_record
from work_precision.contenders import BUDGETS, FAMILIES, OF_OTHER_PACKAGES, Classical, Contender, Ours, PublishedRecipe
from work_precision.linear_solvers import BespokeNonStationary, LinearSolver
from work_precision.loading import LoadedProblem
from work_precision.place import Place
from work_precision.plan import GENERALIST, contenders_of, measured_once, trials
from work_precision.problems import PROBLEMS, SystemProblem
from work_precision.reaching import cost_to_reach
from work_precision.summary import summarise
from work_precision.tables import tables
from work_precision.trials import MEASURES, run_trial

from sklearn_hyper import NeuralODE
from sklearn_hyper.datasets import VanDerPol

SUMMARY = HERE / "work_precision.json"
needs_raw_cells = pytest.mark.skipif(not raw_path(SUMMARY).exists(), reason="source distributions have no raw cells")

N_ROWS = {"fit": 256, "valid": 32, "test": 32, "outside": 32}
TINY = SystemProblem("tiny", "physics", half_width=(2.0, 2.0))


@functools.cache
def tiny_problem():
    """Van der Pol's oscillator from a few rows; rivals train for an iteration."""
    draw = torch.Generator().manual_seed(0)
    rows = {part: 2 * torch.rand(n, 2, generator=draw) - 1 for part, n in N_ROWS.items()}
    loaded = LoadedProblem(TINY, NeuralODE(VanDerPol(mu=1.0)), rows, share=1e-9)
    loaded.references = loaded.solve_references()
    return loaded


class TinyPlace(Place):
    """Every problem is the tiny one."""

    def load(self, problem):
        return tiny_problem()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setitem(PROBLEMS, TINY.name, TINY)  # where lines look problems up
    return TinyPlace(str(tmp_path))


def measured(trial, place):
    """The outcome of a trial, after a check that its line says all of it."""
    outcome = run_trial(trial, place)
    assert from_record(json.loads(json.dumps(to_record(trial, outcome)))) == (trial, outcome)
    return outcome


def recorded():
    return Results(SUMMARY, "", measuring=False, cells_as=cell_lines)


# ---------------------------------------------------------------------- what is planned
def test_every_family_has_a_measure():
    assert set(MEASURES) == set(FAMILIES.values())


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_contenders_of_a_problem_have_names_of_their_own_and_survive_json(problem):
    contenders = contenders_of(problem)
    assert len({contender.label for contender in contenders}) == len(contenders)
    for contender in contenders:
        assert Contender.from_record(json.loads(json.dumps(contender.to_record()))) == contender


def test_the_cost_to_reach_an_error_is_interpolated_on_the_front():
    square = [(cost, cost**-2.0) for cost in (1, 4, 16)]
    for target in (0.5, 0.25, 0.01):
        assert cost_to_reach(square, target) == pytest.approx(target**-0.5)
    assert cost_to_reach([*square, (8, 0.9), (2, math.inf)], 0.25) == pytest.approx(2)  # behind the front
    assert cost_to_reach(square, 4.0) == 1  # the cheapest there is
    assert cost_to_reach(square, 1e-3) == cost_to_reach([], 0.1) == math.inf


def test_settings_of_ours_are_the_defaults_but_for_the_number_of_steps():
    assert Ours(4).settings() == {"base_solver": "auto", "n_steps": 4, "fit_n_steps": None}
    assert GENERALIST.settings() == {"base_solver": "auto", "n_steps": 4, "fit_n_steps": (1, 16)}


def test_later_seeds_have_only_what_a_seed_makes_a_difference_to():
    planned = list(trials(list(PROBLEMS.values()), 2, lambda contender: True))
    assert len(planned) == len(set(planned))
    second = [trial for trial in planned if trial.seed == 1]
    assert second
    assert not any(measured_once(trial.problem, trial.contender) for trial in second)
    assert {Ours(n_steps) for n_steps in (1, *BUDGETS)} == {
        trial.contender for trial in second if trial.problem == PROBLEMS["digits"]
    }


# ---------------------------------------------------------------------- measuring
@pytest.mark.parametrize(
    "contender",
    [
        contender
        for contender in contenders_of(PROBLEMS["van_der_pol"])
        if not isinstance(contender, (Ours, *OF_OTHER_PACKAGES))
    ],
    ids=lambda contender: contender.label,
)
def test_a_contender_is_built_and_measured(contender, place, monkeypatch):
    monkeypatch.setattr(Classical, "N_STEPS", {method: steps[:2] for method, steps in Classical.N_STEPS.items()})
    trial = Trial(TINY, contender, 0 if contender.seeded else None)
    outcome = measured(trial, place)
    assert len({row.run for row in outcome.rows}) == len(outcome.rows)
    assert all(row.test["median"] < 100 for row in outcome.rows)
    assert outcome.macs_f is None


@pytest.mark.parametrize("recipe", ["i", "ii"])
def test_a_published_recipe_is_built_and_measured(recipe, place, monkeypatch):
    for name in ("fit_published_hypereuler", "fit_published_hyperheun"):
        monkeypatch.setattr(trained, name, functools.partial(getattr(trained, name), iterations=1))
    outcome = measured(Trial(TINY, PublishedRecipe(recipe), 0), place)
    assert outcome.facts["iterations"] == 1
    assert {row.run.n_steps for row in outcome.rows} == ({1, 2, 4, 9} if recipe == "i" else {1, 2})


def test_ours_is_fitted_measured_and_kept_for_timing(place):
    trial = Trial(TINY, Ours(2), 0)
    outcome = measured(trial, place)
    own = next(row for row in outcome.rows if row.run.n_steps == 2)
    assert own.nfe == 2
    assert own.test["median"] < outcome.base.test["median"]
    assert place.model_path(TINY, "ours default 2 NFE").exists()


@pytest.mark.parametrize("n", range(2, 10))
def test_bns_starts_at_consistent_methods(n):
    loaded = tiny_problem()
    for base in BespokeNonStationary.bases(n):
        solver: LinearSolver = BespokeNonStationary(loaded, n, base)
        nodes, a, b = solver.tables()
        # On z' = 1 every state is its time, and on z' = 0 its start.
        ends = torch.cat([nodes[1:], nodes.new_ones(1)])
        torch.testing.assert_close(b.sum(dim=1), ends, rtol=0, atol=1e-5)
        torch.testing.assert_close(a, torch.ones(n))


# ---------------------------------------------------------------------- what was recorded
@needs_raw_cells
def test_recorded_cells_come_back_as_they_are():
    _, records = read_raw(raw_path(SUMMARY))
    assert [to_record(*from_record(record)) for record in records] == records
    kinds = {from_record(record)[0].kind for record in records}
    assert kinds == {Trial.kind, Timing.kind, "check"}


@needs_raw_cells
def test_summary_and_tables_are_those_of_the_recorded_cells(tmp_path):
    results = recorded()
    results.path, results.raw_path = tmp_path / SUMMARY.name, tmp_path / raw_path(SUMMARY).name
    results.write(summarise(results.cells, n_seeds=3))
    assert results.path.read_text() == SUMMARY.read_text()
    assert tables(results.summary) == SUMMARY.with_suffix(".md").read_text()
    assert read_raw(results.raw_path) == read_raw(raw_path(SUMMARY))
