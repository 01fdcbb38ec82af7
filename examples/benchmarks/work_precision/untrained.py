"""Trials of solvers that are not trained: fixed steps, and adaptive ones of torchdiffeq and torchode."""

from __future__ import annotations

import torch
from _solving import count_calls, dopri5_solver, plain_solver

from sklearn_hyper.numerics import ReferenceSolveError

from .cells import Trial
from .contenders import Classical, Dopri5, Torchode
from .loading import LoadedProblem
from .measuring import Measured, make_row, measure
from .peer_jobs import TorchodeJob
from .place import Place
from .runs import Row, replace_counts


def measure_classical(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """Fixed-step methods over step counts."""
    runs = Classical().runs()
    solvers = (plain_solver(loaded.neural_ode, run.method, run.n_steps) for run in runs)
    return Measured([measure(loaded, run, solver.terminal_state) for run, solver in zip(runs, solvers, strict=True)])


def measure_dopri5(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """torchdiffeq's dopri5 over tolerances: the evaluations it makes on the test rows in one batch."""
    rows: list[Row] = []
    diverged = []
    for run in Dopri5().runs():
        solve = dopri5_solver(loaded.neural_ode, run.tolerance)
        try:
            row = measure(loaded, run, solve)
        except ReferenceSolveError as error:  # of a loose tolerance, on rows outside
            diverged.append(f"{run.tolerance:g}: {error}")
            continue
        with torch.no_grad():
            nfe = count_calls(loaded.neural_ode.vector_field, lambda solve=solve: solve(loaded.rows["test"]))
        rows.append(replace_counts(row, nfe, nfe * loaded.macs_f))
    return Measured(rows, {"diverged": "; ".join(diverged)} if diverged else {})


def measure_torchode(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """torchode's adaptive solvers; mean evaluations a row, each row having its own step sizes."""
    jobs = {run: TorchodeJob(run.method, run.tolerance) for run in Torchode().runs()}
    answers = place.ask_peers(loaded, jobs)
    return Measured([
        make_row(loaded, run, answer.nfe, answer.nfe * loaded.macs_f, answer.states)
        for run, answer in answers.items()
    ])  # fmt: skip
