"""Other packages on the problems; runs in an environment that has them.

    INTERPRETER -m work_precision.peers JOBS.joblib ANSWERS.joblib

The environment: ``python -m venv PEERS; PEERS/bin/pip install -e . torchode torchdyn`` (torchdyn 1.0.6 and torchode
1.0.1 ran beside torch 2.13).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import joblib
import torch
import torchode
from _solving import count_calls, repeat_rows
from torch import Tensor
from torchdyn.numerics import odeint
from torchdyn.numerics.solvers.hyper import HyperEuler

from sklearn_hyper import NeuralODE
from sklearn_hyper.numerics import time_interleaved

from .peer_jobs import Answer, Job, TorchdynJob, TorchodeJob

Solve = Callable[[Tensor], tuple[Tensor, float | None]]
"""From rows to terminal states and evaluations of f, None where the package does not count them."""


def torchode_solver(ode: NeuralODE, job: TorchodeJob) -> Solve:
    """Its solver steps every row by itself, so the field is mapped over rows, each with a time of its own."""
    methods = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}

    def solve(x: Tensor) -> tuple[Tensor, float]:
        z0, control = ode.input_map(x), ode.inputs(x).x
        shape = z0.shape[1:]

        def one_row(t: Tensor, z: Tensor, *u: Tensor) -> Tensor:
            return ode.vector_field(t, z.reshape(1, *shape), *(v[None] for v in u)).reshape(-1)

        rows = torch.func.vmap(one_row)

        def field(t: Tensor, y: Tensor) -> Tensor:
            return rows(t, y) if control is None else rows(t, y, control)

        term = torchode.ODETerm(field)
        controller = torchode.IntegralController(atol=job.tolerance, rtol=job.tolerance, term=term)
        solver = torchode.AutoDiffAdjoint(methods[job.method](term=term), controller)
        ends = z0.new_tensor(ode.t_span).expand(len(z0), 2)
        solution = solver.solve(torchode.InitialValueProblem(y0=z0.flatten(1), t_eval=ends))
        evaluations = float(solution.stats["n_f_evals"].double().mean())
        return solution.ys[:, -1].reshape(z0.shape), evaluations

    return solve


def torchdyn_solver(ode: NeuralODE, job: TorchdynJob) -> Solve:
    """The package's HyperEuler with a g that was trained for this number of steps."""

    def solve(x: Tensor) -> tuple[Tensor, None]:
        z0, control = ode.input_map(x), ode.inputs(x).x
        f = ode.vector_field if control is None else lambda t, z: ode.vector_field(t, z, control)
        mesh = torch.linspace(*ode.t_span, job.n_steps + 1)
        return odeint(f, z0, mesh, solver=HyperEuler(job.net))[1][-1], None

    return solve


def answer(ode: NeuralODE, job: Job, rows: dict[str, Tensor]) -> Answer:
    """What a job asks for."""
    solve = torchode_solver(ode, job) if isinstance(job, TorchodeJob) else torchdyn_solver(ode, job)
    if job.batches:
        return Answer(
            milliseconds={batch: _milliseconds(solve, repeat_rows(rows["test"], batch)) for batch in job.batches}
        )
    found = {part: solve(x) for part, x in rows.items()}
    nfe = found["test"][1]
    if nfe is None:
        nfe = count_calls(ode.vector_field, lambda: solve(rows["test"][:1]))
    return Answer({part: states for part, (states, _) in found.items()}, nfe)


def _milliseconds(solve: Solve, x: Tensor) -> float:
    return time_interleaved({"ms": lambda: solve(x)})["ms"]


def main() -> None:
    torch.set_num_threads(1)
    asked = joblib.load(sys.argv[1])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages' own
        answers = {name: answer(asked["neural_ode"], job, asked["rows"]) for name, job in asked["jobs"].items()}
    joblib.dump(answers, sys.argv[2])


if __name__ == "__main__":
    main()
