"""Seconds and evaluations of training by solver="auto", beside dopri5, adjoints, fixed-step solvers and others.

    python examples/benchmarks/training.py [--tasks NAME ...] [--seeds SEED ...] [--contenders NAME ...] [--data FOLDER]

Tasks are classifiers of scikit-learn's digits and, with --data, of 1,500 MNIST images at full resolution; a regression
(states of Lotka-Volterra, by their states three time units earlier); trajectories of Lotka-Volterra at twelve irregular
times of each row's own; a latent ODE (Rubanova et al., 2019), whose encoder reads noisy oscillations backwards; and two
densities and a table (scikit-learn's diabetes, ten features) by maximum likelihood. Each contender trains with the same rows, start, batches and number of optimizer steps,
on one thread. Its weights are kept at ten epochs, and judged afterwards: by dopri5 at 1e-6, on rows held out from all
fits. So no loss in here is one that a training solver tells of itself.

- to the target: CPU seconds and evaluations of f until the judged loss is below one that was set beforehand;
- whole: CPU seconds and evaluations of the whole fit, its loss, and its accuracy;
- gap: how far the training solver's own loss at the end is from dopri5's;
- dopri5 after: evaluations that dopri5 at 1e-4 needs on the result.

RNODE is dopri5 with penalties on the field's size and slope (Finlay et al., 2020), which keep it easy to solve. The
seminorm (Kidger et al., 2021) lets an adjoint choose its steps without looking at the parameters' gradients. Adjoints
are slow, and train with the first seed only. Multiple shooting (Massaroli et al., 2021) is torchdyn's, which has to be
installed for it; it has states at the ends of its segments alone, and so has no part in trajectories.

The constants of "auto" were chosen on tasks in here with seeds 0 to 2, so the seeds here are others. --beside is for
cells that are added on another day than those of dopri5: it measures dopri5 anew beside each of them, and "times
faster" is by these.
"""

from __future__ import annotations

import copy
import importlib
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from _results import Results, parser, spread
from images import RECIPES, load_images
from sklearn.datasets import load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn
from torchdiffeq import odeint_adjoint

from sklearn_hyper import ContinuousNormalizingFlow, NeuralODE, NeuralODEClassifier, NeuralODERegressor
from sklearn_hyper.datasets import LotkaVolterra, make_density
from sklearn_hyper.metrics import CountedField
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.training.given_rows import GivenRows, Inputs, apart, times_of

CONTENDERS: dict[str, dict[str, Any]] = {
    "auto": {"solver": "auto"},
    "dopri5 1e-4": {"solver": "dopri5", "rtol": 1e-4},
    "dopri5 1e-3": {"solver": "dopri5", "rtol": 1e-3},
    "adjoint 1e-4": {"solver": "dopri5", "rtol": 1e-4, "adjoint": True},
    "seminorm adjoint 1e-4": {"solver": "dopri5", "rtol": 1e-4, "adjoint": True},
    "euler, 4 steps": {"solver": "euler", "n_steps": 4},
    "midpoint, 2 steps": {"solver": "midpoint", "n_steps": 2},
    "rk4, 2 steps": {"solver": "rk4", "n_steps": 2},
    "multiple shooting": {"solver": "dopri5", "rtol": 1e-4},
    "RNODE, dopri5 1e-4": {"solver": "dopri5", "rtol": 1e-4, "kinetic": 0.01, "jacobian": 0.01},
}
BASELINE, SEMINORM, SHOOTING = "dopri5 1e-4", "seminorm adjoint 1e-4", "multiple shooting"
SLOW = ("adjoint 1e-4", SEMINORM)
N_JUDGED, N_TIMES = 10, 12
SEEDS = (10, 11, 12)


@dataclass(frozen=True)
class Task:
    """How a task is trained, and the loss to reach."""

    kind: type
    target: float
    epochs: int
    n_samples: int
    params: dict[str, Any]
    n_test: int = 500


SHOT, SHOTS = ("digits", "lotka_volterra"), {"n_segments": 4, "n_updates": 1}
"""Tasks of multiple shooting, which has states at its segments' ends alone, and its settings, found with seed 0."""
FLOW = {"objective": "likelihood"}
TASKS = {
    "digits": Task(NeuralODEClassifier, 0.25, 15, 1297, {}),
    "lotka_volterra": Task(NeuralODERegressor, 0.006, 40, 1000, {}),
    "lotka_volterra trajectories": Task(NeuralODERegressor, 0.2, 40, 1000, {"t_span": (0.0, 3.0)}),
    "latent ODE": Task(NeuralODERegressor, 0.25, 20, 1000, {"t_span": (0.0, 4.0)}),
    "moons likelihood": Task(ContinuousNormalizingFlow, 2.65, 30, 1000, FLOW),
    "checkerboard likelihood": Task(ContinuousNormalizingFlow, 4.05, 12, 2000, FLOW),
    "diabetes likelihood": Task(ContinuousNormalizingFlow, 9.2, 30, 342, FLOW, n_test=100),
    "mnist 28 x 28": Task(NeuralODEClassifier, 0.5, 4, 1500, {}, n_test=300),
}
IMAGES, FEW = "mnist 28 x 28", ("auto", "dopri5 1e-4", "dopri5 1e-3", "euler, 4 steps", "rk4, 2 steps")
"""Full resolution takes minutes a fit: some of the contenders take part. It needs --data."""


def load(
    name: str, seed: int, folder: str | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, dict[str, Any]]:
    """Rows, targets, their times if they have several, and what the estimator takes with this seed."""
    n, rng = TASKS[name].n_samples + TASKS[name].n_test, np.random.default_rng(seed)
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        order = rng.permutation(len(X))
        return X[order].astype(np.float32) / 16, y[order], None, {}
    if name == IMAGES:
        images = load_images("mnist", folder)
        torch.manual_seed(seed)
        params = RECIPES["mnist", "full"].build().get_params(deep=False)
        parts = {part: params[part] for part in ("vector_field", "input_map", "output_map", "lr")}
        return images.X_train[:n], images.y_train[:n], None, parts
    if name == "lotka_volterra trajectories":
        t_span = TASKS[name].params["t_span"]
        X = rng.uniform(0.5, 2.0, (n, 2)).astype(np.float32)
        times = np.sort(rng.uniform(*t_span, (n, N_TIMES)), axis=1)
        with torch.no_grad():
            true = NeuralODE(LotkaVolterra(), t_span=t_span)
            Y = true.solve(torch.from_numpy(X).double(), rtol=1e-8, times=torch.from_numpy(times)).float().numpy()
        torch.manual_seed(seed)
        return X, Y, times, {"vector_field": MLPVectorField(2, hidden=64, t_span=t_span), "input_map": nn.Identity()}
    if name == "latent ODE":
        t_span = TASKS[name].params["t_span"]
        X, Y, times = oscillations(n, t_span, rng)
        torch.manual_seed(seed)
        field, decoder = MLPVectorField(8, hidden=64, t_span=t_span), nn.Sequential(nn.Linear(8, 32), nn.Tanh())
        parts = {"input_map": Encoder(8), "output_map": decoder.append(nn.Linear(32, 1))}
        return X, Y, times, {"vector_field": field, **parts}
    if name == "diabetes likelihood":
        X = load_diabetes(scaled=False).data[rng.permutation(n)]
        return StandardScaler().fit(X[: TASKS[name].n_samples]).transform(X).astype(np.float32), None, None, {}
    if name == "lotka_volterra":
        X = rng.uniform(0.5, 2.0, (n, 2)).astype(np.float32)
        with torch.no_grad():
            Y = NeuralODE(LotkaVolterra(), t_span=(0.0, 3.0))(torch.from_numpy(X)).numpy()
        torch.manual_seed(seed)
        maps = {"input_map": nn.Identity(), "output_map": nn.Identity()}
        return X, Y, None, {"vector_field": MLPVectorField(2, hidden=64), **maps}
    return make_density(name.split()[0], n, random_state=seed).astype(np.float32), None, None, {}


class Encoder(nn.Module):
    """Reads observations (time, value) backwards by a GRU, and returns the latent state at the start.

    Parameters
    ----------
    n_states : int
    hidden : int, default 25
    """

    def __init__(self, n_states: int, hidden: int = 25):
        super().__init__()
        self.rnn = nn.GRU(2, hidden, batch_first=True)
        self.last = nn.Linear(hidden, n_states)

    def forward(self, observed: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = self.last(self.rnn(observed.flip(1))[1][0])
        return state


def oscillations(n: int, t_span: tuple[float, float], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Noisy damped oscillations: what an encoder sees of each, what is asked for, and the times of that.

    Seen are values at irregular times of each row's own in the first half of the span. Asked for are these, and as many
    in the second half.
    """
    half = sum(t_span) / 2
    seen, ahead = (np.sort(rng.uniform(*part, (n, N_TIMES)), axis=1) for part in ((t_span[0], half), (half, t_span[1])))
    times = np.concatenate([seen, ahead], axis=1)
    size, damping, frequency, phase = (
        rng.uniform(low, high, (n, 1)) for low, high in ((0.5, 1.5), (0.1, 0.6), (2.0, 4.0), (0.0, 2 * np.pi))
    )
    values = size * np.exp(-damping * times) * np.cos(frequency * times + phase) + 0.05 * rng.normal(size=times.shape)
    observed = np.stack([seen, values[:, :N_TIMES]], axis=2)
    return observed.astype(np.float32), values[..., None].astype(np.float32), times


class Keeps(Callback):
    """Keeps the weights of some epochs, with the CPU seconds and evaluations spent on them."""

    def __init__(self, every: int):
        self.every = every

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.kept: list[tuple[float, int, dict[str, Any]]] = []
        self.begin = time.process_time()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        now, epoch = time.process_time(), len(net.history)
        if epoch % self.every == 0 or epoch == net.max_epochs:
            weights = copy.deepcopy(net.module_.state_dict())
            self.kept.append((now - self.begin, net.module_.solver.n_evaluations, weights))
        self.begin += time.process_time() - now


class Shooting:
    """torchdyn's direct multiple shooting, in place of the solver of a training.

    Segments of the span are solved side by side, each by one step of rk4 from a guess of its first state. An update of
    the guesses (parareal) goes through the segments in turn by Euler's method, and adds how far rk4 was from it. Guesses
    are those that the same row had an epoch ago, and at first Euler's. On held-out rows there are as many updates as
    segments, which gives rk4's own solution.

    torchdyn's other solver, "msbackward", is left out: its update multiplies by the transposed Jacobian.

    Parameters
    ----------
    ode : NeuralODE
    rows : Tensor of shape (n_rows, n_features)
        All rows of the training.
    n_segments, n_updates : int
    """

    mesh = None

    def __init__(self, ode: Any, rows: torch.Tensor, n_segments: int, n_updates: int):
        from torchdyn.numerics import odeint_mshooting

        self.ode, self.n_evaluations, self.n_updates = ode, 0, n_updates
        self.shoot = partial(odeint_mshooting, self._field, solver="mszero", fine_steps=2)
        self.times = torch.linspace(*ode.t_span, n_segments + 1)
        self.place = {row.tobytes(): i for i, row in enumerate(rows.numpy())}
        self.guesses: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, training: bool = True) -> torch.Tensor:
        z0 = self.ode.input_map(x)
        start = torch.cat([z0, z0.new_full((len(z0), 1), self.ode.t_span[0])], dim=1)
        if not training:
            return self._solve(start, None, len(self.times) - 1)[-1, :, :-1]
        places = [self.place[row.tobytes()] for row in x.numpy()]
        known = [self.guesses[place] for place in places if place in self.guesses]
        guess = torch.cat([start[None], torch.stack(known, dim=1)[1:]]) if len(known) == len(places) else None
        states = self._solve(start, guess, self.n_updates)
        self.guesses |= dict(zip(places, states.detach().unbind(dim=1), strict=True))
        return states[-1, :, :-1]

    def _solve(self, start: torch.Tensor, guess: torch.Tensor | None, n_updates: int) -> torch.Tensor:
        # torchdyn makes one update more than maxiter.
        states: torch.Tensor = self.shoot(x=start, t_span=self.times, B0=guess, maxiter=n_updates - 1)[1]
        return states

    def _field(self, t: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The field, with time as the last state: torchdyn's own time starts anew in each segment."""
        self.n_evaluations += 1
        rows = states.reshape(-1, states.shape[-1])
        velocity = self.ode.vector_field(rows[:, -1], rows[:, :-1])
        return torch.cat([velocity, torch.ones_like(rows[:, :1])], dim=1).reshape(states.shape)


class Shoots(Callback):
    """Trains by multiple shooting."""

    def on_train_begin(self, net: Any, X: Any = None, **kwargs: Any) -> None:
        net.module_.solver = Shooting(net.module_.solver.ode, X, **SHOTS)


def seminorm() -> AbstractContextManager[Any]:
    """torchdiffeq's adjoints choose their steps by states alone, without the gradients of parameters."""
    options = {"norm": "seminorm", "dtype": torch.float64}
    adjoint = partial(odeint_adjoint, adjoint_options=options)
    return mock.patch("sklearn_hyper.numerics.reference.odeint_adjoint", adjoint)


def judge(module: Any, rows: Inputs, y: torch.Tensor | None) -> float:
    """The loss by dopri5 at 1e-6."""
    (x, _), times = apart(rows), times_of(rows)
    module.eval()
    with torch.no_grad():
        return float(module.row_losses(module.solver.ode.solve(x, rtol=1e-6, times=times), y).mean())


def fit(estimator: Any, X: np.ndarray, y: np.ndarray | None, times: np.ndarray | None) -> None:
    """Fit to what the task has."""
    estimator.fit(X, y) if times is None else estimator.fit(X, y, times)


def measure(name: str, contender: str, seed: int, folder: str | None) -> dict[str, Any]:
    """Train once, and judge."""
    task = TASKS[name]
    X, y, times, given = load(name, seed, folder)
    train, test = slice(0, len(X) - task.n_test), slice(len(X) - task.n_test, None)
    params = {**task.params, **given, **CONTENDERS[contender], "max_epochs": task.epochs, "random_state": seed}
    keeps = Keeps(max(1, task.epochs // N_JUDGED))
    shoots = [("shoots", Shoots())] if contender == SHOOTING else []
    estimator = task.kind(**params, callbacks=[*shoots, ("keeps", keeps)])
    begin = time.process_time()
    with seminorm() if contender == SEMINORM else nullcontext():
        fit(estimator, *(None if part is None else part[train] for part in (X, y, times)))
    seconds = time.process_time() - begin
    module, x = estimator.net_.module_, torch.from_numpy(X[test])
    target = None if y is None else torch.from_numpy(y[test])
    rows = x if times is None else GivenRows(x, times=torch.from_numpy(times[test]))
    found: dict[str, Any] = {
        "cpu_seconds": seconds, "evaluations": estimator.n_evaluations_, "loss": judge(module, rows, target),
        "reached": None, "epochs": [],
    }  # fmt: skip
    with torch.no_grad():
        own = float(module.row_losses(module.solver(rows, training=False), target).mean())
        counted = CountedField(module.solver.ode.vector_field)
        module.solver.ode.solve(x, rtol=1e-4, field=counted, times=times_of(rows))
    found |= {"gap": abs(own - found["loss"]), "dopri5_after": counted.n_evaluations}
    if task.kind is NeuralODEClassifier:
        found["accuracy"] = estimator.score(X[test], y[test])
    if contender == "auto":
        found["solvers"] = [f"{row['solver']} {row['n_steps'] or ''}".strip() for row in estimator.solver_history_]
        found["certified"] = estimator.agreement_.certified
    final = copy.deepcopy(module.state_dict())
    for spent, evaluations, weights in dict(estimator.net_.callbacks_)["keeps"].kept:
        module.load_state_dict(weights)
        loss = judge(module, rows, target)
        found["epochs"].append({"cpu_seconds": spent, "evaluations": evaluations, "loss": loss})
        if loss <= task.target and found["reached"] is None:
            found["reached"] = {"cpu_seconds": spent, "evaluations": evaluations}
    module.load_state_dict(final)
    return found


@cache
def measure_baseline(name: str, seed: int, folder: str | None) -> float:
    """CPU seconds of dopri5 at 1e-4 in this process."""
    return float(measure(name, BASELINE, seed, folder)["cpu_seconds"])


def summarise(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over seeds, by task and contender, and how many times faster than dopri5 at 1e-4."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, cell in cells.items():
        task, contender, _ = name.split(": ")
        entry = found.setdefault(task, {}).setdefault(contender, {})
        values = {
            key: cell.get(key)
            for key in ("cpu_seconds", "evaluations", "loss", "gap", "dopri5_after", "accuracy", "beside")
        }
        reached = cell["reached"] or {}
        values |= {f"{key}_to_target": reached.get(key) for key in ("cpu_seconds", "evaluations")}
        for key, value in values.items():
            entry.setdefault(key, []).append(value)
    for contenders in found.values():
        for entry in contenders.values():
            reached = [value for value in entry["cpu_seconds_to_target"] if value is not None]
            entry["n_reached"] = f"{len(reached)} of {len(entry['loss'])}"
            for key in [key for key in entry if key != "n_reached"]:
                known = [value for value in entry[key] if value is not None]
                entry[key] = spread(known) if known else None
    return found


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown: medians over seeds."""
    lines: list[str] = []
    for name, contenders in summary.items():
        baseline = contenders.get(BASELINE, {})
        lines += [f"## {name}, target {TASKS[name].target:g}", ""]
        heads = (
            "solver", "reached", "CPU s to it", "evaluations to it", "CPU s, whole", "times faster", "evaluations",
            "loss", "accuracy", "gap", "dopri5 after",
        )  # fmt: skip
        lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        for contender, entry in contenders.items():
            compared = entry.get("beside") or baseline.get("cpu_seconds")
            faster = compared["median"] / entry["cpu_seconds"]["median"] if compared else None
            shown = [
                contender, entry["n_reached"], _show(entry, "cpu_seconds_to_target", ".1f"),
                _show(entry, "evaluations_to_target", ".0f"), _show(entry, "cpu_seconds", ".1f"),
                "-" if faster is None else f"{faster:.1f}", _show(entry, "evaluations", ".0f"),
                _show(entry, "loss", ".4f"), _show(entry, "accuracy", ".3f"), _show(entry, "gap", ".1g"),
                _show(entry, "dopri5_after", ".0f"),
            ]  # fmt: skip
            lines.append("| " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines)


def _show(entry: dict[str, Any], key: str, form: str) -> str:
    return "-" if entry.get(key) is None else f"{entry[key]['median']:{form}}"


def main() -> None:
    options = parser(__doc__, "training.json", cache=False)
    options.add_argument("--tasks", nargs="+", choices=list(TASKS), metavar="NAME", help="default: all that have data")
    options.add_argument("--data", help=f"folder of mnist.npz, for {IMAGES!r}")
    options.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    options.add_argument(
        "--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME",
        help=f"default: all; {SHOOTING!r} needs torchdyn",
    )  # fmt: skip
    options.add_argument("--beside", action="store_true", help="to cells that are new, measure dopri5 anew beside them")
    options.add_argument("--summary", action="store_true", help="make summary and tables from the cells")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    # What fixed-step solvers and stiff flows warn of is what is measured here.
    warnings.simplefilter("ignore")
    results = Results(
        arguments.out, "python examples/benchmarks/training.py", fresh=arguments.fresh, measuring=not arguments.summary
    )
    if arguments.summary:
        write(results)
        return
    tasks = arguments.tasks or [task for task in TASKS if task != IMAGES or arguments.data]
    contenders = [one for one in arguments.contenders if one != SHOOTING or _has_torchdyn()]
    for task in tasks:
        measure_once(task, arguments.data)
        for seed in arguments.seeds:
            for contender in contenders:
                if _takes_part(contender, task, is_first=seed == arguments.seeds[0]):
                    one = task, contender, seed, arguments.data
                    results.cell(f"{task}: {contender}: {seed}", partial(_cell, *one, arguments.beside))
            write(results)


def _has_torchdyn() -> bool:
    """Import torchdyn, which takes seconds, before anything is measured."""
    try:
        importlib.import_module("torchdyn.numerics")
    except ImportError as error:
        print(f"{SHOOTING!r} is left out: {error}")
        return False
    return True


def _cell(task: str, contender: str, seed: int, folder: str | None, beside: bool) -> dict[str, Any]:
    found = measure(task, contender, seed, folder)
    return found | ({"beside": measure_baseline(task, seed, folder)} if beside else {})


def _takes_part(contender: str, task: str, is_first: bool) -> bool:
    """Whether a contender is one for this task and seed: RNODE's penalties are those of flows."""
    if task == IMAGES:
        return contender in FEW
    if "kinetic" in CONTENDERS[contender] and TASKS[task].kind is not ContinuousNormalizingFlow:
        return False
    if contender == SHOOTING:
        return task in SHOT
    return contender not in SLOW or is_first


def measure_once(task: str, folder: str | None) -> None:
    """Fit a moment, so that no contender pays for what the first fit in a process loads."""
    X, y, times, given = load(task, 0, folder)
    params = {**TASKS[task].params, **given, "solver": "rk4", "n_steps": 1, "max_epochs": 1}
    fit(TASKS[task].kind(**params), *(None if part is None else part[:200] for part in (X, y, times)))


def write(results: Results) -> None:
    """Write the summary, and the tables beside it."""
    results.write(summarise(results.cells))
    results.path.with_suffix(".md").write_text(tables(results.summary))


if __name__ == "__main__":
    main()
