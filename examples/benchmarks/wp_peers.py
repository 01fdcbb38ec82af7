"""Other packages on the problems of work_precision.py; runs in an environment that has them.

    INTERPRETER wp_peers.py JOBS.joblib ANSWERS.joblib

The environment: ``python -m venv PEERS; PEERS/bin/pip install -e . torchode torchdyn`` (torchdyn 1.0.6 and torchode 1.0.1 ran
beside torch 2.13). A job is a dict: "package", with "method" and "tolerance" (torchode) or "net" and "n_steps" (torchdyn).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import joblib
import torch
import torchode
from torch import Tensor
from torchdyn.numerics import odeint
from torchdyn.numerics.solvers.hyper import HyperEuler
from wp_problems import count_calls

from sklearn_hyper import NeuralODE
from sklearn_hyper.numerics.cost import time_interleaved


def torchode_solver(ode: NeuralODE, job: dict[str, Any]) -> Callable[[Tensor], tuple[Tensor, float]]:
    """Its solver steps every row by itself, so the field is mapped over rows, each with a time of its own."""
    methods = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}

    def solve(x: Tensor) -> tuple[Tensor, float]:
        z0, control = ode.input_map(x), ode.control(x)
        shape = z0.shape[1:]

        def one_row(t: Tensor, z: Tensor, *u: Tensor) -> Tensor:
            return ode.vector_field(t, z.reshape(1, *shape), *(v[None] for v in u)).reshape(-1)

        rows = torch.func.vmap(one_row)

        def field(t: Tensor, y: Tensor) -> Tensor:
            return rows(t, y) if control is None else rows(t, y, control)

        term = torchode.ODETerm(field)
        controller = torchode.IntegralController(atol=job["tolerance"], rtol=job["tolerance"], term=term)
        solver = torchode.AutoDiffAdjoint(methods[job["method"]](term=term), controller)
        ends = z0.new_tensor(ode.t_span).expand(len(z0), 2)
        solution = solver.solve(torchode.InitialValueProblem(y0=z0.flatten(1), t_eval=ends))
        evaluations = float(solution.stats["n_f_evals"].double().mean())
        return solution.ys[:, -1].reshape(z0.shape), evaluations

    return solve


def torchdyn_solver(ode: NeuralODE, job: dict[str, Any]) -> Callable[[Tensor], tuple[Tensor, float]]:
    """The package's HyperEuler with a g that was trained for this number of steps."""

    def solve(x: Tensor) -> tuple[Tensor, float]:
        z0, control = ode.input_map(x), ode.control(x)
        f = ode.vector_field if control is None else lambda t, z: ode.vector_field(t, z, control)
        mesh = torch.linspace(*ode.t_span, job["n_steps"] + 1)
        return odeint(f, z0, mesh, solver=HyperEuler(job["net"]))[1][-1], float("nan")

    return solve


def answer(ode: NeuralODE, job: dict[str, Any], rows: dict[str, Tensor]) -> dict[str, Any]:
    """Terminal states of the rows, and evaluations of f; or milliseconds, where the job asks for them."""
    solve = (torchode_solver if job["package"] == "torchode" else torchdyn_solver)(ode, job)
    if "batches" in job:
        x = rows["test"]
        return {
            "ms": {
                batch: time_interleaved({"ms": lambda some=some: solve(some)})["ms"]
                for batch in job["batches"]
                for some in [x.repeat(-(-batch // len(x)), *[1] * (x.ndim - 1))[:batch]]
            }
        }
    found = {part: solve(x) for part, x in rows.items()}
    nfe = found["test"][1]
    if nfe != nfe:
        nfe = count_calls(ode.vector_field, lambda: solve(rows["test"][:1]))
    return {"states": {part: states for part, (states, _) in found.items()}, "nfe": nfe}


def main() -> None:
    torch.set_num_threads(1)
    asked = joblib.load(sys.argv[1])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages' own
        answers = {name: answer(asked["neural_ode"], job, asked["rows"]) for name, job in asked["jobs"].items()}
    joblib.dump(answers, sys.argv[2])


if __name__ == "__main__":
    main()
