"""Fields of other libraries: evaluations, errors and milliseconds before and after.

    pip install -c constraints.txt -e ".[interop]"
    python examples/benchmarks/adapters.py [--out adapters.json] [--only torchcfm ...]

For each library a small field is trained for some seconds, in the library's own classes; so are fields of kinds that
users write by hand: energies, graphs, attention, states that are tuples, guidance. Then

- "own adaptive" is the library's solver as it is by default or in its examples (DDIM takes 50 steps, EDM's Heun 18);
- "own fixed" is its best fixed solver with as many evaluations as ours (where it has one); torchdiffeq solves fields
  written by hand, by dopri5 at 1e-5, or the better of midpoint and rk4;
- "ours" is a hypersolver through ``sklearn_hyper.adapters``, fitted with its defaults.

The error is the median over 1,000 fresh rows of the 2-norm of the end's error against dopri5 at 1e-6 in float64, or, for
densities, of the log density's error in nats. Milliseconds are the median of five calls for 1,000 rows, on one thread.
Evaluations are calls of the field for the whole batch.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.machinery
import math
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from _results import Results, parser
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from torchdiffeq import odeint

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.adapters import (
    PytreeField,
    from_denoiser,
    from_sbi,
    from_torchcde,
    from_torchdyn,
    from_velocity,
    from_zuko,
)
from sklearn_hyper.numerics import ConditioningWarning, RungeKutta, resolve_base_solver

N, K = 1000, 4
N_FIT = 300
"""Rows that the larger fields, of graphs and of energies, are fitted on."""
Solve = Callable[[], Tensor]


# ---------------------------------------------------------------------- measuring
@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    """Count the calls of a module."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handle = module.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def median_ms(solve: Solve) -> float:
    """Median time of five calls, after one that warms up."""
    solve()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        solve()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def measured(solve: Solve, exact: Tensor, net: nn.Module | None = None, evaluations: int | None = None) -> dict:
    """Evaluations, error and milliseconds of a solve."""
    if net is not None:
        with counting(net) as calls:
            found = solve()
        evaluations = calls[0]
    else:
        found = solve()
    error = (found.double() - exact).reshape(len(exact), -1).norm(dim=1).median()
    return {"evaluations": evaluations, "error": float(error), "ms": median_ms(solve)}


def exact_end(
    ode: NeuralODE, x: Tensor, condition: dict[str, Tensor] | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The output to six digits, in float64 where the net computes in it."""
    precise = copy.deepcopy(ode).to(dtype)
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in (condition or {}).items()}
    with torch.no_grad():
        return precise(x.to(dtype), rtol=1e-6, condition=given)


def hypersolved(
    ode: NeuralODE,
    x: Tensor,
    fresh: Tensor,
    exact: Tensor,
    *,
    steps: int = K,
    conditions: tuple[Any, Any] = (None, None),
    **options: Any,
) -> dict[str, Any]:
    """Fit on x, and measure on fresh rows, through the module that is deployed.

    ``conditions`` are those of the rows to fit on and of the fresh ones, ``options`` parameters of the estimator.
    """
    start = time.perf_counter()
    solver = HypersolverRegressor(ode, n_steps=steps, random_state=0, **options)
    fast = solver.fit(x, condition=conditions[0])
    seconds = time.perf_counter() - start
    module, base, given = fast.module_, fast.without_correction().module_, conditions[1]
    found = measured(no_grad(lambda: module(fresh, given)), exact, evaluations=steps)
    without = measured(no_grad(lambda: base(fresh, given)), exact, evaluations=steps)
    return found | {"without its correction": without["error"], "fit_s": seconds}


def by_torchdiffeq(ode: NeuralODE, fresh: Tensor, exact: Tensor, steps: int = K) -> dict[str, Any]:
    """The better of midpoint and rk4 with as many evaluations."""
    field, end = ode.vector_field, ode.t_span[1]
    solves = {}
    for method, stages in (("midpoint", 2), ("rk4", 4)):
        if steps % stages == 0:
            solve = no_grad(partial(odeint, field, fresh, torch.linspace(0, end, steps // stages + 1), method=method))
            solves[method] = measured(lambda solve=solve: solve()[-1], exact, evaluations=steps)
    best = min(solves, key=lambda method: solves[method]["error"])
    return solves[best] | {"method": best}


def by_dopri5(ode: NeuralODE, fresh: Tensor, exact: Tensor) -> dict[str, Any]:
    """torchdiffeq's dopri5 at 1e-5."""
    field, ends = ode.vector_field, torch.tensor([0.0, ode.t_span[1]])
    return measured(no_grad(lambda: odeint(field, fresh, ends, rtol=1e-5, atol=1e-5)[-1]), exact, field)


def no_grad(solve: Solve) -> Solve:
    return torch.no_grad()(solve)


# ---------------------------------------------------------------------- data and training
def moons(n: int, seed: int) -> Tensor:
    """Two moons, standardized."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(n, generator=generator) * torch.pi
    side = torch.randint(2, (n,), generator=generator)
    x = torch.stack([angle.cos() + side - 0.5, (1 - 2 * side) * (angle.sin() - 0.25)], dim=1)
    return (x + 0.05 * torch.randn(n, 2, generator=generator)) * torch.tensor([1.15, 2.0])


def noise(n: int, d: int = 2, seed: int = 1) -> Tensor:
    """Standard normal rows."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def train(module: nn.Module, loss_of: Callable[[int], Tensor], steps: int = 1500) -> None:
    """Adam with a falling rate."""
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def match_flow(module: nn.Module, velocity: Callable[[Tensor, Tensor], Tensor], data_at: int = 1) -> None:
    """Flow matching on the moons. ``velocity`` takes (times a row, states)."""
    data = moons(4096, 0)

    def loss(step: int) -> Tensor:
        rows, start = data[torch.randint(len(data), (256,))], torch.randn(256, 2)
        first, last = (start, rows) if data_at == 1 else (rows, start)
        t = torch.rand(256)
        state = (1 - t[:, None]) * first + t[:, None] * last
        return (velocity(t, state) - (last - first)).pow(2).mean()

    train(module, loss)


def mlp(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, n_out))


class Nothing(types.ModuleType):
    """A module in which every name is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def do_without_torchvision() -> None:
    """Put an empty module in torchvision's place where it was built for another torch: torchdyn only names it."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.models"):
            module = Nothing(name)
            module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
            sys.modules[name] = module


# ---------------------------------------------------------------------- the libraries
def torchcfm() -> dict[str, Any]:
    """Conditional flow matching with its MLP and wrapper; its examples solve by dopri5 at 1e-4."""
    from torchcfm.models import MLP
    from torchcfm.utils import torch_wrapper

    net = MLP(dim=2, w=64, time_varying=True)
    match_flow(net, lambda t, x: net(torch.cat([x, t[:, None]], dim=1)))
    model, fresh = torch_wrapper(net), noise(N)
    ode = from_velocity(model, order="tx", t="scalar")
    exact = exact_end(ode, fresh)
    times = torch.linspace(0, 1, 2)
    even = torch.linspace(0, 1, K // 2 + 1)
    return {
        "own adaptive": measured(no_grad(lambda: odeint(model, fresh, times, rtol=1e-4, atol=1e-4)[-1]), exact, net),
        "own fixed": measured(no_grad(lambda: odeint(model, fresh, even, method="midpoint")[-1]), exact, net),
        "ours": hypersolved(ode, noise(2000, seed=2), fresh, exact),
    }


def flow_matching() -> dict[str, Any]:
    """A ModelWrapper and the ODESolver of flow_matching."""
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    class Model(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return self.model(torch.cat([x, t.expand(len(x))[:, None]], dim=1))

    net = mlp(3, 2)
    model = Model(net)
    match_flow(net, lambda t, x: model(x=x, t=t))
    ode, fresh = from_velocity(model, order="keywords"), noise(N)
    solver, exact = ODESolver(velocity_model=model), exact_end(ode, fresh)
    return {
        "own adaptive": measured(
            lambda: solver.sample(x_init=fresh, step_size=None, method="dopri5", atol=1e-5, rtol=1e-5), exact, net
        ),
        "own fixed": measured(lambda: solver.sample(x_init=fresh, step_size=2 / K, method="midpoint"), exact, net),
        "ours": hypersolved(ode, noise(2000, seed=2), fresh, exact),
    }


class Output:
    """What diffusers' models return."""

    def __init__(self, sample: Tensor):
        self.sample = sample


class Denoiser(nn.Module):
    """A net with the call of diffusers' U-Net: (sample, timestep, class_labels) to an object with a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 2)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Output:
        share = timestep.to(sample.dtype).expand(len(sample))[:, None] / 1000
        waves = [wave for k in (1, 2, 4) for wave in ((k * torch.pi * share).cos(), (k * torch.pi * share).sin())]
        return Output(self.net(torch.cat([sample, *waves], dim=1)))


def diffusers() -> dict[str, Any]:
    """A DDPM by diffusers' schedulers, of a net that predicts noise. DDIM takes 50 steps by default."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    model, data, options = Denoiser(), moons(4096, 0), {"clip_sample": False, "set_alpha_to_one": False}
    scheduler = DDIMScheduler(**options)

    def loss(step: int) -> Tensor:
        rows, drawn, t = data[torch.randint(len(data), (256,))], torch.randn(256, 2), torch.randint(1000, (256,))
        return (model(scheduler.add_noise(rows, drawn, t), t).sample - drawn).pow(2).mean()

    train(model, loss)
    ode, fresh = from_denoiser(model, "eps", schedule=scheduler), noise(N)
    exact = exact_end(ode, fresh)

    def run(kind: Any, steps: int, **given: Any) -> Tensor:
        own = kind(**given)
        own.set_timesteps(steps)
        x = fresh
        for t in own.timesteps:
            x = own.step(model(x, t).sample, t, x).prev_sample
        return x

    return {
        "own adaptive": measured(
            no_grad(lambda: run(DDIMScheduler, 50, timestep_spacing="linspace", **options)), exact, model
        ),
        "own fixed": measured(no_grad(lambda: run(DPMSolverMultistepScheduler, K)), exact, model),
        "ours": hypersolved(ode, noise(2000, seed=2), fresh, exact),
    }


class FourModes(nn.Module):
    """The exact denoiser of four normal modes: gets sigma, returns data."""

    def __init__(self) -> None:
        super().__init__()
        corners = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0]))
        self.register_buffer("modes", corners)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = 0.25**2 + sigma[:, None] ** 2
        apart = x[:, None] - self.modes
        weights = torch.softmax(-apart.pow(2).sum(2) / (2 * variance), dim=1)
        return (weights[..., None] * (self.modes + (0.25**2 / variance)[..., None] * apart)).sum(1)


class LogSigma(nn.Module):
    """The probability flow of a denoiser in x over log sigma, as one writes it by hand."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z - self.model(z, t.exp().to(z.dtype).expand(len(z)))


def edm() -> dict[str, Any]:
    """Sigma from 80 to 0.002: our coordinates, log sigma, and Heun steps on EDM's own schedule (rho = 7)."""
    model, fresh, fitted = FourModes(), 80 * noise(N), 80 * noise(2000, seed=2)
    low, high = 0.002, 80.0
    ode = from_denoiser(model, "x0", schedule=(low, high))
    exact = exact_end(ode, fresh)

    def heun(steps: int) -> Tensor:
        """2 steps - 1 evaluations and one more: the last step is of Heun, too, as it does not end at 0."""
        shares = torch.linspace(0, 1, steps + 1)
        sigmas = (high ** (1 / 7) + shares * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        x = fresh
        for sigma, after in pairwise(sigmas):
            first = (x - model(x, sigma.expand(N))) / sigma
            there = x + (after - sigma) * first
            x = x + (after - sigma) / 2 * (first + (there - model(there, after.expand(N))) / after)
        return x

    by_hand = NeuralODE(LogSigma(model), t_span=(math.log(high), math.log(low))).eval()
    return {
        "own adaptive": measured(no_grad(lambda: heun(18)), exact, model),
        "own fixed": measured(no_grad(lambda: heun(K // 2)), exact, model),
        "ours": hypersolved(ode, fitted, fresh, exact),
        "ours in log sigma": hypersolved(by_hand, fitted, fresh, exact),
    }


class Sigma(nn.Module):
    """The probability flow of a denoiser in x over sigma, as EDM writes it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        sigma = t.to(z.dtype).expand(len(z))
        return (z - self.model(z, sigma)) / sigma[:, None]


class EDMHeun(RungeKutta):
    """Heun's method on EDM's schedule, in steps of two evaluations."""

    n_steps = K // 2

    def mesh(self, t_span: tuple[float, float], n_steps: int = K // 2) -> tuple[float, ...]:
        (start, end), rho = t_span, 7
        shares = (k / self.n_steps for k in range(1, self.n_steps))
        between = [(start ** (1 / rho) + s * (end ** (1 / rho) - start ** (1 / rho))) ** rho for s in shares]
        return (start, *between, end)


def edm_mesh() -> dict[str, Any]:
    """The same as edm in x over sigma, on EDM's own schedule: a base solver with a mesh of its own."""
    model, fresh, fitted = FourModes(), 80 * noise(N), 80 * noise(2000, seed=2)
    exact = exact_end(from_denoiser(model, "x0", schedule=(0.002, 80.0)), fresh)
    ode = NeuralODE(Sigma(model), t_span=(80.0, 0.002)).eval()
    method = EDMHeun(resolve_base_solver("heun").tableau)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditioningWarning)
        ours = hypersolved(ode, fitted, fresh, exact, steps=K // 2, base_solver=method)
    return {"ours on its schedule": ours | {"evaluations": K}}


def torchdyn() -> dict[str, Any]:
    """A torchdyn NeuralODE with a time-dependent net, trained as a flow; tsit5 at 1e-3 is its default."""
    do_without_torchvision()
    from torchdyn.core import NeuralODE as TorchdynODE
    from torchdyn.nn import DepthCat

    net = nn.Sequential(DepthCat(1), *mlp(3, 2))
    node = TorchdynODE(net, solver="tsit5", return_t_eval=False)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        net[0].t = t[:, None]
        return net(x)

    match_flow(net, velocity)
    net[0].t = None
    ode, fresh, ends = from_torchdyn(node), noise(N), torch.linspace(0, 1, 2)
    exact = exact_end(ode, fresh)
    fixed = TorchdynODE(net, solver="midpoint")
    even = torch.linspace(0, 1, K // 2 + 1)
    return {
        "own adaptive": measured(no_grad(lambda: node.trajectory(fresh, ends)[-1]), exact, net),
        "own fixed": measured(no_grad(lambda: fixed.trajectory(fresh, even)[-1]), exact, net),
        "ours": hypersolved(ode, noise(2000, seed=2), fresh, exact),
    }


def zuko() -> dict[str, Any]:
    """A CNF with a context (the scale of the moons): samples by the same base draws, and log densities."""
    import zuko

    flow = zuko.flows.CNF(features=2, context=1, hidden_features=(64, 64))
    data, scale = moons(4096, 0), torch.rand(4096, 1) + 0.5
    field = flow.transform.f

    def loss(step: int) -> Tensor:
        rows, start, t = torch.randint(4096, (256,)), torch.randn(256, 2), torch.rand(256)
        x = data[rows] * scale[rows]
        state = (1 - t[:, None]) * x + t[:, None] * start
        return (field(t, state, scale[rows]) - (start - x)).pow(2).mean()

    train(flow, loss)
    adapted, c = from_zuko(flow), torch.tensor([[0.8]])
    base, rows = noise(N), 0.8 * moons(N, 3)
    context = {"c": c.expand(N, 1)}
    exact = exact_end(adapted.sampling(), base, context)
    exact_log = adapted.flow.double().log_prob(exact_end(adapted.density(), rows, context)).float().detach()
    adapted = from_zuko(flow)
    start = time.perf_counter()
    fast = adapted.fit(data[:2000] * scale[:2000], scale[:2000], n_steps=K, random_state=0)
    seconds = time.perf_counter() - start
    own = flow(c[0])
    net = flow.transform.ode
    return {
        "own adaptive": measured(no_grad(lambda: own.transform.inv(base)), exact, net),
        "ours": measured(no_grad(lambda: fast.transform(c[0]).inv(base)), exact, evaluations=K) | {"fit_s": seconds},
        "own log_prob": measured(no_grad(lambda: own.log_prob(rows)), exact_log, net),
        "ours log_prob": measured(lambda: fast.log_prob(rows, c), exact_log, evaluations=K),
    }


def sbi() -> dict[str, Any]:
    """FMPE, with a net of two layers, on a two-moons simulator; one fit, then an observation that the fit has not seen."""
    from sbi.inference import FMPE
    from sbi.neural_nets import posterior_flow_nn
    from sbi.utils import BoxUniform

    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((3000,))

    def simulate(theta: Tensor) -> Tensor:
        angle = torch.pi * (torch.rand(len(theta)) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(len(theta))
        moon = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], dim=1)
        return moon + torch.stack([-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], dim=1) / 2**0.5

    x = simulate(theta)
    inference = FMPE(prior, posterior_flow_nn("mlp", hidden_features=64, num_layers=2))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as logs, contextlib.chdir(logs):
        warnings.simplefilter("ignore")
        inference.append_simulations(theta, x).train(max_num_epochs=80, show_train_summary=False)
    posterior = inference.build_posterior()
    x_o, base = torch.tensor([[-0.2, 0.1]]), noise(N)
    adapted = from_sbi(posterior)
    condition = {"condition": x_o.expand(N, 2)}
    # Its embedding of times is in float32 whatever the net is.
    exact = exact_end(adapted.sampling(), base, condition, torch.float32)
    start = time.perf_counter()
    fast = adapted.fit(theta[:2000], x[:2000], n_steps=K, random_state=0)
    seconds = time.perf_counter() - start
    potential = posterior.potential_fn
    own = potential.neural_ode(x_o)
    net = potential.vector_field_estimator.net
    rows = exact.float()
    exact_log = adapted.flow.log_prob(exact_end(adapted.density(), rows, condition, torch.float32)).detach()
    sampler = fast.sampler_.module

    def draw() -> Tensor:
        return posterior.sample((N,), x=x_o, show_progress_bars=False)

    with counting(net) as calls:
        draw()
    return {
        "own adaptive": measured(no_grad(lambda: own.transform.inv(base)), exact, net)
        | {"posterior.sample ms": median_ms(draw), "posterior.sample evaluations": calls[0]},
        "ours": measured(no_grad(lambda: sampler(base, condition)), exact, evaluations=K)
        | {"fit_s": seconds, "sample ms": median_ms(lambda: fast.sample(N, x_o))},
        "own log_prob": measured(no_grad(lambda: own.log_prob(rows).reshape(-1)), exact_log, net),
        "ours log_prob": measured(lambda: fast.log_prob(rows, x_o), exact_log, evaluations=K),
    }


def torchcde() -> dict[str, Any]:
    """A neural CDE on cubic splines of 12 points in two channels; cdeint takes dopri5 at 1e-4 and 1e-6 by default."""
    import torchcde

    class Func(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 12)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.net(z).tanh().reshape(-1, 4, 3)

    def paths(n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        phase, speed = (torch.rand(n, 1, generator=generator) for _ in range(2))
        t = torch.linspace(0, 1, 12).expand(n, 12)
        angle = 6 * (phase + (0.5 + speed) * t)
        return torchcde.natural_cubic_coeffs(torch.stack([t, angle.cos(), angle.sin()], dim=-1))

    func, initial = Func(), nn.Linear(3, 4)
    ode = from_torchcde(func, torchcde.CubicSpline, initial=initial, t_span=(0.0, 11.0))
    fresh = paths(N, 1)
    exact = exact_end(ode, fresh)
    control = torchcde.CubicSpline(fresh)

    def solve(**options: Any) -> Tensor:
        start = initial(control.evaluate(control.interval[0]))
        return torchcde.cdeint(X=control, func=func, z0=start, t=control.interval, adjoint=False, **options)[:, -1]

    fixed = no_grad(lambda: solve(method="midpoint", options={"step_size": 22 / K}))
    return {
        "own adaptive": measured(no_grad(solve), exact, func),
        "own fixed": measured(fixed, exact, func),
        "ours": hypersolved(ode, paths(2000, 2), fresh, exact),
    }


# ---------------------------------------------------------------------- fields that users write by hand
class Hamiltonian(nn.Module):
    """Hamilton's equations of a learned energy, by autograd inside."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = mlp(2, 1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.energy(z).sum(), z, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], dim=1)


def match_field(field: nn.Module, true: Callable[[Tensor], Tensor], draw: Callable[[int], Tensor], steps: int) -> None:
    """Train a field to be another one."""

    def loss(step: int) -> Tensor:
        z = draw(128)
        return (field(torch.rand(()), z) - true(z)).pow(2).mean()

    train(field, loss, steps)


def hamiltonian() -> dict[str, Any]:
    """A Hamiltonian net of a pendulum, whose energy is p**2 / 2 - 9.81 cos q, over one second."""
    field = Hamiltonian()

    def draw(n: int, seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return (2 * torch.rand(n, 2, generator=generator) - 1) * torch.tensor([1.5, 4.0])

    match_field(field, lambda z: torch.stack([z[:, 1], -9.81 * z[:, 0].sin()], dim=1), draw, 1500)
    ode, fresh = NeuralODE(field).eval(), draw(N, 1)
    exact = exact_end(ode, fresh)
    return {
        "own adaptive": by_dopri5(ode, fresh, exact),
        "own fixed": by_torchdiffeq(ode, fresh, exact),
        "ours": hypersolved(ode, draw(2000, 2), fresh, exact),
    }


class Lagrangian(nn.Module):
    """The Euler-Lagrange equations of a learned Lagrangian: derivatives of derivatives, and a linear solve."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 1)

    def lagrangian(self, q: Tensor, v: Tensor) -> Tensor:
        return 0.5 * v.square().sum() + self.net(torch.cat([q.cos(), v]))[0]

    def acceleration(self, q: Tensor, v: Tensor) -> Tensor:
        momentum = grad(self.lagrangian, 1)
        mass = jacrev(momentum, 1)(q, v)
        force = grad(self.lagrangian, 0)(q, v) - jacrev(momentum, 0)(q, v) @ v
        return torch.linalg.solve(mass, force)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        q, v = z.chunk(2, dim=1)
        return torch.cat([v, vmap(self.acceleration)(q, v)], dim=1)


def double_pendulum(z: Tensor) -> Tensor:
    """Two equal masses on equal rods, with g = 1."""
    (a, b), (v, w) = z[:, :2].unbind(1), z[:, 2:].unbind(1)
    apart = a - b
    mass = torch.stack([torch.full_like(a, 2.0), apart.cos(), apart.cos(), torch.ones_like(a)], dim=1).reshape(-1, 2, 2)
    force = torch.stack([-w.square() * apart.sin() - 2 * a.sin(), v.square() * apart.sin() - b.sin()], dim=1)
    return torch.cat([z[:, 2:], torch.linalg.solve(mass, force)], dim=1)


def lagrangian() -> dict[str, Any]:
    """A Lagrangian net of a double pendulum, over two units of time."""
    field = Lagrangian()

    def draw(n: int, seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return 2 * torch.rand(n, 4, generator=generator) - 1

    match_field(field, double_pendulum, draw, 400)
    ode, fresh = NeuralODE(field, t_span=(0.0, 2.0)).eval(), draw(N, 1)
    exact = exact_end(ode, fresh)
    return {
        "own adaptive": by_dopri5(ode, fresh, exact),
        "own fixed": by_torchdiffeq(ode, fresh, exact),
        "ours": hypersolved(ode, draw(N_FIT, 2), fresh, exact),
    }


N_NODES = 12
_RING = torch.stack([torch.arange(N_NODES), (torch.arange(N_NODES) + 1) % N_NODES])
_ONE_WAY = torch.cat([_RING, torch.tensor([[0, 3, 5], [6, 9, 11]])], dim=1)
EDGES = torch.cat([_ONE_WAY, _ONE_WAY.flip(0)], dim=1)
"""A ring with three chords, both ways."""


def oscillators(z: Tensor) -> Tensor:
    """Turning nodes in the plane that pull at their neighbours."""
    source, target = EDGES
    pull = torch.zeros_like(z).index_add(1, target, torch.tanh(2 * (z[:, source] - z[:, target])))
    turn = torch.stack([-z[..., 1], z[..., 0]], dim=-1)
    return 2 * turn + 0.5 * pull - 0.3 * z * (z.square().sum(-1, keepdim=True) - 1)


def nodes(n: int, seed: int | None = None) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return 1.2 * torch.randn(n, N_NODES, 2, generator=generator)


def on_nodes(field: nn.Module, evaluations: tuple[int, ...], beside: nn.Module | None = None) -> dict[str, Any]:
    """A field on nodes, at several numbers of evaluations; with a net beside it, at four."""
    match_field(field, oscillators, nodes, 800)
    ode, fresh, fitted = NeuralODE(field).eval(), nodes(N, 1), nodes(N_FIT, 2)
    exact = exact_end(ode, fresh)
    found = {"own adaptive": by_dopri5(ode, fresh, exact)}
    for steps in evaluations:
        name = "" if steps == K else f" {steps}"
        found[f"own fixed{name}"] = by_torchdiffeq(ode, fresh, exact, steps)
        found[f"ours{name}"] = hypersolved(ode, fitted, fresh, exact, steps=steps)
    if beside is not None:
        found["ours, a message-passing g"] = hypersolved(ode, fitted, fresh, exact, correction=beside)
    return found


def graph() -> dict[str, Any]:
    """Graph convolutions of torch_geometric; a state has the numbers of all nodes."""
    from torch_geometric.nn import GCNConv

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([GCNConv(2, 24), GCNConv(24, 24), GCNConv(24, 2)])
            self.own = nn.Linear(2, 2)
            self.register_buffer("edges", EDGES)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            first, second, last = self.layers
            h = second(first(z, self.edges).tanh(), self.edges).tanh()
            return last(h, self.edges) + self.own(z)

    class MessagePassing(nn.Module):
        """g of one layer of messages: it reads the node, its last stage, and those of its neighbours."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.own = GCNConv(5, 32), nn.Linear(32, 2), nn.Linear(5, 32)
            self.register_buffer("edges", EDGES)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

        def forward(self, eps: float, s: Tensor, z: Tensor, stages: list[Tensor], x: Tensor | None = None) -> Tensor:
            h = torch.cat([z, stages[-1], s.to(z.dtype).expand(*z.shape[:-1], 1)], dim=-1)
            return self.last((self.first(h, self.edges) + self.own(h)).tanh())

    return on_nodes(Field(), (2, 4, 8), MessagePassing())


def graph_attention() -> dict[str, Any]:
    """Graph attention of torch_geometric, which takes no batch axis: a batch is one graph without edges between."""
    from torch_geometric.nn import GATConv

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.own = GATConv(2, 16, heads=2), GATConv(32, 2), nn.Linear(2, 2)
            self.register_buffer("edges", EDGES)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            n, m, _ = z.shape
            edges = (self.edges[:, None] + m * torch.arange(n, device=z.device)[:, None]).reshape(2, -1)
            h = self.first(z.reshape(n * m, 2), edges).tanh()
            return self.last(h, edges).reshape(z.shape) + self.own(z)

    return on_nodes(Field(), (4,))


class Attention(nn.Module):
    """A transformer's block over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        h = self.embed(torch.cat([z, t.to(z.dtype).expand(*z.shape[:-1], 1)], dim=-1))
        return self.head(h + self.attention(h, h, h, need_weights=False)[0])


def attention() -> dict[str, Any]:
    """The same oscillators as tokens, each of which sees all others."""
    return on_nodes(Attention(), (2, 4, 8))


class SecondOrder(nn.Module):
    """Positions, velocities and the energy lost so far, as torchdiffeq takes them: a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.force = mlp(2, 2)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, v, _ = state
        return v, self.force(q) - 0.1 * v, 0.1 * v.square().sum(dim=1)


def tuples() -> dict[str, Any]:
    """A tuple of three through PytreeField; the net is a force, -4 sin q."""
    model = SecondOrder()

    def loss(step: int) -> Tensor:
        q = 2 * torch.randn(128, 2)
        return (model.force(q) + 4 * q.sin()).pow(2).mean()

    train(model.force, loss)
    start = noise(N), noise(N, seed=3), torch.zeros(N)
    field = PytreeField(model, example=start)
    ode, fresh = NeuralODE(field).eval(), field.pack(start)
    exact = exact_end(ode, fresh)
    ends, even = torch.tensor([0.0, 1.0]), torch.linspace(0, 1, K // 2 + 1)

    def solve(times: Tensor, **options: Any) -> Tensor:
        return field.pack(tuple(states[-1] for states in odeint(model, start, times, **options)))

    return {
        "own adaptive": measured(no_grad(lambda: solve(ends, rtol=1e-5, atol=1e-5)), exact, model),
        "own fixed": measured(no_grad(lambda: solve(even, method="midpoint")), exact, model),
        "ours": hypersolved(
            ode, field.pack((noise(2000, seed=2), noise(2000, seed=4), torch.zeros(2000))), fresh, exact
        ),
    }


class Labelled(nn.Module):
    """A velocity of a state, a time and a label, or None for no label."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.labels = mlp(7, 2), nn.Embedding(3, 4)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        label = torch.full((len(x),), 2) if label is None else label
        return self.net(torch.cat([x, t[:, None], self.labels(label)], dim=1))


class Guided(nn.Module):
    """Classifier-free guidance: two calls of the model, a label and a weight for every row."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, *, label: Tensor, weight: Tensor) -> Tensor:
        free = self.model(x, t, None)
        return free + weight[:, None] * (self.model(x, t, label) - free)


def guidance() -> dict[str, Any]:
    """Each moon is a class. Labels and guidance weights from 1 to 4 vary by row; evaluations are calls of the model."""
    model = Labelled()

    def loss(step: int) -> Tensor:
        label, start, t = torch.randint(2, (256,)), torch.randn(256, 2), torch.rand(256)
        angle = torch.rand(256) * torch.pi
        x = torch.stack([angle.cos() + label - 0.5, (1 - 2 * label) * (angle.sin() - 0.25)], dim=1)
        x = (x + 0.05 * torch.randn(256, 2)) * torch.tensor([1.15, 2.0])
        seen = torch.where(torch.rand(256) < 0.15, torch.tensor(2), label)
        state = (1 - t[:, None]) * start + t[:, None] * x
        return (model(state, t, seen) - (x - start)).pow(2).mean()

    def conditions(n: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight = 1 + 3 * torch.rand(n, generator=generator)
        return {"label": torch.randint(2, (n,), generator=generator), "weight": weight}

    train(model, loss)
    ode = from_velocity(Guided(model), order="xt", condition=["label", "weight"])
    fresh, condition = noise(N), conditions(N, 3)
    exact, field = exact_end(ode, fresh, condition), partial(ode.vector_field, **condition)
    ends, even = torch.linspace(0, 1, 2), torch.linspace(0, 1, K // 2 + 1)
    net = ode.vector_field.model.model  # type: ignore[union-attr]
    ours = hypersolved(ode, noise(2000, seed=2), fresh, exact, conditions=(conditions(2000, 4), condition))
    return {
        "own adaptive": measured(no_grad(lambda: odeint(field, fresh, ends, rtol=1e-5, atol=1e-5)[-1]), exact, net),
        "own fixed": measured(no_grad(lambda: odeint(field, fresh, even, method="midpoint")[-1]), exact, net),
        "ours": ours | {"evaluations": 2 * K},
    }


LIBRARIES: dict[str, Callable[[], dict[str, Any]]] = {
    "torchcfm": torchcfm, "flow_matching": flow_matching, "diffusers": diffusers, "edm": edm, "edm_mesh": edm_mesh, "torchdyn": torchdyn,
    "zuko": zuko, "sbi": sbi, "torchcde": torchcde, "hamiltonian": hamiltonian, "lagrangian": lagrangian,
    "graph": graph, "graph_attention": graph_attention, "attention": attention, "tuples": tuples, "guidance": guidance,
}  # fmt: skip


def main() -> None:
    options = parser(__doc__, "adapters.json", cache=False)
    options.add_argument("--only", nargs="*", choices=sorted(LIBRARIES), help="libraries to measure; by default all")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    results = Results(chosen.out, "python examples/benchmarks/adapters.py", fresh=chosen.fresh)
    for name in chosen.only or LIBRARIES:
        torch.manual_seed(0)
        results.cell(name, LIBRARIES[name])
        results.write(dict(results.cells))


if __name__ == "__main__":
    main()
