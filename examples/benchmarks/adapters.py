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
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from _before_and_after import (
    K,
    N,
    counting,
    do_without_torchvision,
    exact_end,
    hypersolved,
    match_flow,
    measured,
    median_ms,
    mlp,
    moons,
    no_grad,
    noise,
    train,
)
from _own_fields import OWN_FIELDS
from _results import Results, parser
from torch import Tensor, nn
from torchdiffeq import odeint

from sklearn_hyper import NeuralODE
from sklearn_hyper.adapters import (
    from_denoiser,
    from_sbi,
    from_torchcde,
    from_torchdyn,
    from_velocity,
    from_zuko,
)
from sklearn_hyper.numerics import ConditioningWarning, RungeKutta, resolve_base_solver


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


LIBRARIES: dict[str, Callable[[], dict[str, Any]]] = {
    "torchcfm": torchcfm, "flow_matching": flow_matching, "diffusers": diffusers, "edm": edm, "edm_mesh": edm_mesh, "torchdyn": torchdyn,
    "zuko": zuko, "sbi": sbi, "torchcde": torchcde, **OWN_FIELDS,
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
