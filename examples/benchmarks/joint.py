"""Training fields that are cheap to solve: `joint=`, beside penalties on the field, and what fast solvers make of them.

    python examples/benchmarks/joint.py [--tasks NAME ...] [--seeds SEED ...]

Tasks are a classifier of scikit-learn's digits and, if asked for, a density by maximum likelihood ("moons likelihood").
They are trained as in training.py: the same rows, start, batches and number of optimizer steps, on one thread. All but
the last solve by dopri5 at 1e-4 in training.

- "joint w": `joint=w`, with Euler's method in one step;
- "kinetic + jacobian w": RNODE's penalties (Finlay et al., 2020), both with this weight;
- "second derivative w": TayNODE's penalty of order two (Kelly et al., 2020), digits alone;
- "auto", "rk4, 1 step" and "hypersolved": other solvers of the training, digits alone. "hypersolved" solves by one step
  of a base solver and a correction that is refitted, every ten steps or when the field has moved.

On digits the penalties are means over features and over the states of four RK4 steps, with Hutchinson's noise for the
Jacobian. On moons they are the estimator's own.

Judged on rows that no fit saw: loss by dopri5 at 1e-6, accuracy, evaluations of dopri5 at 1e-4, and errors of one step
of Euler's method and of corrected steps ("HyperEuler", fitted in 60 epochs on 400 training rows). Errors are relative
to the states' norm on digits, and mean absolute ones of log densities in nats on moons. "CPU s" are those of the
training.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from _results import Results, parser, spread
from skorch.callbacks import Callback
from training import TASKS, judge, load, measure_once

from sklearn_hyper.hypersolvers import FitSettings, Task, fit_hypersolver
from sklearn_hyper.metrics import CountedField
from sklearn_hyper.numerics import FixedMesh, resolve_base_solver

DIGITS, MOONS = "digits", "moons likelihood"
SEEDS = (10, 11, 12)
WEIGHTS = {
    DIGITS: {"joint": (0.3, 3.0, 30.0), "kinetic + jacobian": (0.1, 1.0), "second derivative": (0.1, 1.0)},
    MOONS: {"joint": (0.3, 3.0, 30.0), "kinetic + jacobian": (0.01, 0.1)},
}
FIT = {"max_samples": 400, "max_epochs": 60, "base_solver": "euler"}
PLAIN = "none"
SOLVERS: dict[str, dict[str, Any]] = {
    "auto": {"solver": "auto"},
    "rk4, 1 step": {"solver": "rk4", "n_steps": 1},
    "hypersolved euler": {"solver": "hypersolved", "n_steps": 1},
    "hypersolved euler, every 10": {"solver": "hypersolved", "n_steps": 1, "refit_every": 10},
    "hypersolved midpoint": {"solver": "hypersolved", "n_steps": 1, "base_solver": "midpoint"},
}
SHOWN = {
    "loss": ".3f", "accuracy": ".3f", "dopri5_after": ".0f", "euler_1": ".3f", "hyper_euler_1": ".3f",
    "hyper_euler_2": ".3f", "cpu_seconds": ".1f",
}  # fmt: skip
HEADS = ("loss", "accuracy", "dopri5 after", "Euler", "HyperEuler, K = 1", "HyperEuler, K = 2", "CPU s")


class Penalty(Callback):
    """Adds the gradient of a penalty to that of the loss, batch by batch.

    Parameters
    ----------
    kind : str
    weight : float
    """

    def __init__(self, kind: str, weight: float):
        self.kind, self.weight = kind, weight

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.noise = torch.Generator().manual_seed(0)

    def on_grad_computed(self, net: Any, named_parameters: Any, batch: Any = None, **kwargs: Any) -> None:
        ode = net.module_.neural_ode
        mesh = FixedMesh.of(resolve_base_solver("rk4"), ode.t_span, 4)
        f, states = ode.vector_field, mesh.trajectory(ode.vector_field, ode.input_map(batch[0]))
        one_of = self._derivative if self.kind == "second derivative" else self._rnode
        terms = [one_of(f, torch.tensor(t), z) for t, z in zip(mesh.grid, states, strict=True)]
        (self.weight * sum(terms) / len(terms)).backward()

    def _rnode(self, f: Any, t: Any, z: Any) -> Any:
        e = torch.randn(z.shape, generator=self.noise)
        velocity = f(t, z)
        (product,) = torch.autograd.grad((velocity * e).sum(), z, create_graph=True)
        return velocity.square().mean() + product.square().mean()

    def _derivative(self, f: Any, t: Any, z: Any) -> Any:
        velocity = f(t, z)
        return torch.func.jvp(f, (t, z), (torch.ones_like(t), velocity))[1].square().mean()


def contenders(task: str) -> dict[str, dict[str, Any]]:
    """Parameters of every contender."""
    found: dict[str, dict[str, Any]] = {PLAIN: {}}
    for kind, weights in WEIGHTS[task].items():
        for weight in weights:
            name = f"{kind} {weight:g}"
            if kind == "joint":
                found[name] = {"joint": weight, "n_steps": 1}
            elif task == DIGITS:
                found[name] = {"callbacks": [("penalty", Penalty(kind, weight))]}
            else:
                found[name] = {"kinetic": weight, "jacobian": weight}
    return found | (SOLVERS if task == DIGITS else {})


def measure(name: str, contender: str, seed: int) -> dict[str, Any]:
    """Train once, fit fast solvers of the result, and judge both."""
    task = TASKS[name]
    X, y, _, given = load(name, seed)
    n_test = task.n_test
    rows, test = torch.from_numpy(X[:-n_test]), torch.from_numpy(X[-n_test:])
    params = {**task.params, **given, "max_epochs": task.epochs, "random_state": seed}
    estimator = task.kind(**params, **contenders(name)[contender])
    begin = time.process_time()
    estimator.fit(X[:-n_test], None if y is None else y[:-n_test])
    found: dict[str, Any] = {"cpu_seconds": time.process_time() - begin}
    # A flow's penalties are neither part of its density nor of what is judged.
    ode = estimator.flow_.density().eval() if name == MOONS else estimator.neural_ode_
    if name == MOONS:
        found["loss"] = -estimator.score(X[-n_test:])
    else:
        found["loss"] = judge(estimator.net_.module_, test, torch.from_numpy(y[-n_test:]))
        found["accuracy"] = estimator.score(X[-n_test:], y[-n_test:])
    counted = CountedField(ode.vector_field)
    with torch.no_grad():
        ode.solve(test, rtol=1e-4, field=counted)
        exact = ode.solve(test, rtol=1e-6)
    found["dopri5_after"] = counted.n_evaluations
    for n_steps in (1, 2):
        settings = FitSettings(**FIT, n_steps=n_steps, random_state=seed)
        fast = fit_hypersolver(Task(ode, rows), settings)
        found[f"hyper_euler_{n_steps}"] = error(estimator, name, fast.solve(test), exact)
        found[f"euler_{n_steps}"] = error(estimator, name, fast.without_correction().solve(test), exact)
    return found


def error(estimator: Any, name: str, states: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean error of log densities, or of states relative to their norm."""
    if name == MOONS:
        return float((estimator.flow_.log_prob(states) - estimator.flow_.log_prob(exact)).abs().mean())
    return float((states - exact).norm(dim=1).mean() / exact.norm(dim=1).mean())


def summarise(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over seeds, by task and contender."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, cell in cells.items():
        task, contender, _ = name.split(": ")
        entry = found.setdefault(task, {}).setdefault(contender, {})
        for key in SHOWN:
            if cell.get(key) is not None:
                entry.setdefault(key, []).append(cell[key])
    return {
        task: {name: {key: spread(values) for key, values in entry.items()} for name, entry in entries.items()}
        for task, entries in found.items()
    }


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown: medians over seeds."""
    lines: list[str] = []
    for task, entries in summary.items():
        lines += [f"## {task}", "", "| trained with | " + " | ".join(HEADS) + " |", "|" + " --- |" * (len(HEADS) + 1)]
        for name, entry in entries.items():
            shown = [f"{entry[key]['median']:{form}}" if key in entry else "-" for key, form in SHOWN.items()]
            lines.append("| " + " | ".join([name, *shown]) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__, "joint.json", cache=False)
    options.add_argument("--tasks", nargs="+", default=[DIGITS], choices=[DIGITS, MOONS], metavar="NAME")
    options.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    options.add_argument("--summary", action="store_true", help="make summary and tables from the cells")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = Results(
        arguments.out, "python examples/benchmarks/joint.py", fresh=arguments.fresh, measuring=not arguments.summary
    )
    for task in () if arguments.summary else arguments.tasks:
        measure_once(task, None)
        for seed in arguments.seeds:
            for contender in contenders(task):
                results.cell(f"{task}: {contender}: {seed}", lambda t=task, c=contender, seed=seed: measure(t, c, seed))
    results.write(summarise(results.cells))
    results.path.with_suffix(".md").write_text(tables(results.summary))


if __name__ == "__main__":
    main()
