"""``solver="auto"``: train through a cheap solver, compare it with dopri5 as it goes, and end with dopri5."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Protocol

import torch
from scipy.stats import beta
from sklearn.utils import Bunch
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import Tensor

from ..modules.neural_ode import NeuralODE
from ..numerics.correction import Correction
from ..numerics.methods import NAMES, resolve_base_solver
from ..numerics.protection import FieldInputs
from ..numerics.reference import MAX_EVALUATIONS, ReferenceSolveError
from ..numerics.stepping import FixedMesh
from .given_rows import Inputs, apart, times_of
from .nets import cosine_schedule

AUTO, DOPRI5, HYPERSOLVED = "auto", "dopri5", "hypersolved"
CERTIFIED_GAP = 0.005
"""Gap of the loss to dopri5's that a certified fit has at most: in nats, or in units of the targets' variance."""
_SHARE_OF_STD = 0.05
"""A gap is small, whatever the loss does, if it is this share of the loss's standard deviation over rows."""
_NEGLIGIBLE = 1e-5
"""A gap that is small whatever the rows: a fit of exact data has no deviation."""
_SHARE_OF_PROGRESS = 0.1
"""While the loss falls, a gap may be this share of what it fell by since half as many steps were taken."""
_CALM, _CALM_PROBES = 0.1, 2
"""A cheaper solver takes over once its gap was this share of what is allowed, or less, in so many probes on end."""
_PROBE_ROWS = 128
_FIRST_PROBE, _GROWTH, _LONGEST = 5, 1.4, 1 / 16
"""Steps before the second probe; later intervals grow with the steps taken, up to a share of the training."""
_PROBE_SHARE, _ADVANCE = 0.5, 8
"""Evaluations of all probes, as a share of those of batches, and how many probes may come before that.

A probe computes no gradients, so that its evaluations cost about a third.
"""
_PROBE_EVALUATIONS = 3000
"""Evaluations after which a probe is given up: the field has run away."""
_POLISH, _POLISH_LR = 0.06, 0.2
"""Share of the optimizer steps that dopri5 takes at the end, and their highest learning rate, as a share of ``lr``."""
_CONFIDENCE = 0.95
_MEASURED_AT_ONCE = 512


class Rung(NamedTuple):
    """A solver to train through."""

    solver: Any
    n_steps: int

    @property
    def n_evaluations(self) -> int:
        """Evaluations of f in a solve of a fixed-step solver."""
        return FixedMesh.of(resolve_base_solver(self.solver), (0.0, 1.0), self.n_steps).n_evaluations


DOPRI5_RUNG = Rung(DOPRI5, 0)
RUNGS = (
    Rung("euler", 1), Rung("midpoint", 1), Rung("rk4", 1), Rung("rk3", 2), Rung("rk4", 2), Rung("rk4", 3),
    Rung("rk4", 4), Rung("rk4", 6), Rung("rk4", 8),
)  # fmt: skip
"""Fixed-step solvers, by evaluations of f: 1, 2, 4, 6, 8, 12, 16, 24 and 32."""


class SolverSettings(Protocol):
    """Settings of a training that solves."""

    @property
    def solver(self) -> Any: ...
    @property
    def n_steps(self) -> int: ...
    @property
    def rtol(self) -> float: ...
    @property
    def atol(self) -> float | None: ...
    @property
    def base_solver(self) -> Any: ...
    @property
    def adjoint(self) -> bool: ...


class TrainingSolver:
    """Solves in training, by a solver that may change as it goes, and counts evaluations.

    Parameters
    ----------
    ode : NeuralODE
    settings : SolverSettings
        ``solver="auto"`` begins with dopri5, until :class:`SolverControl` chooses; evaluation mode then always is
        dopri5, so that held-out losses are true.
    max_evaluations : int
        Evaluations of f after which a solve by dopri5 is given up.

    Attributes
    ----------
    n_evaluations : int
        Calls of f so far: in batches, on held-out rows and in probes, forward and in the adjoint's own solves.
    last_evaluations : int
        Those of the last solve.
    """

    def __init__(self, ode: NeuralODE, settings: SolverSettings, max_evaluations: int = MAX_EVALUATIONS):
        self.ode, self.settings, self.max_evaluations = ode, settings, max_evaluations
        self.n_evaluations = self.last_evaluations = 0
        self.controlled = is_controlled(settings.solver)
        self.correction: Correction | None = None
        fixed = not (self.controlled or is_dopri5(settings.solver))
        self.use(Rung(settings.solver, settings.n_steps) if fixed else DOPRI5_RUNG)

    def use(self, rung: Rung) -> None:
        """Solve by another solver from now on."""
        self.mesh = self._mesh(rung)
        self.rung = rung

    def correct(self, correction: Correction | None) -> None:
        """Solve by the settings' base solver and this correction from now on."""
        self.use(Rung(self.settings.base_solver, self.settings.n_steps))
        self.correction = correction

    def mesh_of(self, rung: Rung) -> FixedMesh:
        """Return the mesh of a fixed-step solver."""
        mesh = self._mesh(rung)
        assert mesh is not None
        return mesh

    def _mesh(self, rung: Rung) -> FixedMesh | None:
        if is_dopri5(rung.solver):
            return None
        return FixedMesh.of(resolve_base_solver(rung.solver), self.ode.t_span, rung.n_steps)

    def __call__(self, x: Inputs, training: bool = True) -> Tensor:
        """Return terminal states, or states (batch, n_times, ...) at the times of timed rows; differentiable."""
        if self.mesh is None or (self.controlled and not training):
            return self.by_dopri5(x)
        return self.by_mesh(self.mesh, x)

    def by_rung(self, rung: Rung, x: Inputs) -> Tensor:
        """Return the states by a fixed-step solver."""
        return self.by_mesh(self.mesh_of(rung), x)

    def by_dopri5(self, x: Inputs, max_evaluations: int | None = None) -> Tensor:
        """Return the states by dopri5 at the tolerances of the training."""
        before, settings = self.n_evaluations, self.settings
        params = [p for p in self.ode.parameters() if p.requires_grad] if settings.adjoint else None
        rows, condition = apart(x)
        states = self.ode.solve(
            rows, rtol=settings.rtol, atol=settings.atol, adjoint_params=params, times=times_of(x),
            field=self._counted, max_evaluations=max_evaluations or self.max_evaluations, condition=condition,
        )  # fmt: skip
        # Read now, before the adjoint's own solve adds to the count.
        self.last_evaluations = self.n_evaluations - before
        return states

    def by_mesh(self, mesh: FixedMesh, x: Inputs) -> Tensor:
        """Return the states by a fixed-step solver whose mesh is known."""
        before = self.n_evaluations
        (rows, condition), times = apart(x), times_of(x)
        z0, inputs = self.ode.input_map(rows), self.ode.inputs(rows, condition)
        if times is not None:
            states = self._at_times(mesh, z0, times, inputs)
        elif mesh is self.mesh and self.correction is not None:
            # A correction in the weights of the field has to see the field itself.
            states = mesh.solve(self.ode.vector_field, z0, self.correction, inputs)
            self.n_evaluations += mesh.n_evaluations
        else:
            states = mesh.solve(self._counted, z0, None, inputs)
        self.last_evaluations = self.n_evaluations - before
        return states

    def _at_times(self, mesh: FixedMesh, z0: Tensor, times: Tensor, inputs: FieldInputs) -> Tensor:
        lacks = times.isnan()
        at = torch.where(lacks, times[:, :1], times)  # a row has its first time, and pads with nan after its last
        states = mesh.states_at(self._counted, z0, at, None, inputs).transpose(0, 1)
        return states.masked_fill(lacks.reshape(*lacks.shape, *[1] * (z0.ndim - 1)), 0.0)

    def _counted(self, *args: Any, **condition: Any) -> Any:
        self.n_evaluations += 1
        return self.ode.vector_field(*args, **condition)


def is_auto(solver: Any) -> bool:
    """Return whether training chooses its solver as it goes."""
    return _is(solver, AUTO)


def is_hypersolved(solver: Any) -> bool:
    """Return whether training solves by a base solver and a correction that is refitted as it goes."""
    return _is(solver, HYPERSOLVED)


def is_controlled(solver: Any) -> bool:
    """Return whether the solver of a training changes as it goes."""
    return is_auto(solver) or is_hypersolved(solver)


def is_dopri5(solver: Any) -> bool:
    """Return whether training solves by dopri5 alone."""
    return _is(solver, DOPRI5)


def control_of(net: NeuralNet) -> SolverControl | None:
    """Return the callback that chooses a net's solver, or None."""
    return dict(net.callbacks_).get("solver_control")


def _is(solver: Any, name: str) -> bool:
    return isinstance(solver, str) and solver == name


def check_training_solver(solver: Any, between: bool = False) -> None:
    """Refuse a solver that training does not know, or without states between its ends if asked, before any work."""
    if not (is_controlled(solver) or is_dopri5(solver)):
        try:
            method = resolve_base_solver(solver)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"solver={solver!r} is none that training knows: pass 'dopri5', 'auto', 'hypersolved', a "
                f"ButcherTableau, or the name of a fixed-step solver ({', '.join(NAMES)})."
            ) from error
        if between and not method.follows_trajectory:
            raise ValueError(
                f"solver={solver!r} approximates the state at the end of t_span alone, and t_eval asks for states "
                "before it: pass 'dopri5', 'auto', or another fixed-step solver, such as 'rk4'."
            )


def count_polish(n_steps: int) -> int:
    """Return how many of the optimizer steps of a training are left to dopri5."""
    return max(1, round(_POLISH * n_steps))


def polished_schedule(n_steps: int) -> LRScheduler:
    """Return a schedule with a cosine for the cheap solvers, and another, lower one, for dopri5 at the end."""
    return cosine_schedule(1, [n_steps - count_polish(n_steps), n_steps], [1.0, _POLISH_LR])


class SolverControl(Callback):
    """Chooses the solver that a training differentiates.

    Every so often, dopri5 and the solver in use solve from the same training rows. If their losses differ by too much,
    the cheapest solver whose loss does not takes over. The last steps are dopri5's. Held-out rows are not looked at, so
    that they can tell afterwards how well the solvers agree.

    The net's module has a ``solver``, a :class:`TrainingSolver`, and ``row_losses(states, y)``.

    Parameters
    ----------
    n_steps : int
        Optimizer steps of the whole training.
    fewest : int, default 0
        Fewest evaluations of f in a solve by a solver to choose.

    Attributes
    ----------
    history_ : list of dict
        Every change of the solver, as ``solver_history_`` of :class:`NeuralODEClassifier`.
    """

    def __init__(self, n_steps: int, fewest: int = 0):
        self.polish_from, self.fewest = n_steps - count_polish(n_steps), fewest
        self.history_: list[dict[str, Any]] = []

    def watch(self, x: Inputs, y: Tensor | None, generator: torch.Generator) -> None:
        """Draw the rows to compare on, about a hundred, from those that training is about to begin with."""
        rows = torch.randperm(len(x), generator=generator)[:_PROBE_ROWS].to(x.device)
        self.probe_: tuple[Inputs, Any] | None = (x[rows], None if y is None else y[rows])

    def _probe(self) -> tuple[Inputs, Any]:
        assert self.probe_ is not None
        return self.probe_

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.step_ = self.next_ = self.probing_ = 0
        self.calm_ = 0
        self.losses_: list[tuple[int, float]] = []
        self.agreed_: dict[str, Tensor] | None = None

    def on_batch_begin(self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        if not training:
            return
        solver = net.module_.solver
        if self.step_ == self.polish_from:
            if solver.mesh is not None or not self.history_:
                self._change(net, DOPRI5_RUNG, "the polish")
        elif self.step_ < self.polish_from and self._is_due(solver):
            self._compare(net)
        self.step_ += 1

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if "valid_loss" not in net.history[-1] and not _validates(net):
            # Nothing is held out, and the solver's own loss cannot be trusted to tell which epoch was best.
            net.module_.eval()
            with torch.no_grad():
                x, y = self._probe()
                losses = net.module_.row_losses(net.module_.solver.by_dopri5(x), y)
            net.history.record("dopri5_loss", float(losses.mean()))

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.probe_ = self.agreed_ = None

    # ------------------------------------------------------------------ when
    def _is_due(self, solver: TrainingSolver) -> bool:
        if self.step_ == 0:
            return True
        if self.step_ < self.next_:
            return False
        return self.probing_ <= _PROBE_SHARE * (solver.n_evaluations - self.probing_) + self.advance_

    # ------------------------------------------------------------------ what
    def _compare(self, net: NeuralNet) -> None:
        """Compare the solver in use with dopri5, and take another where they disagree."""
        solver, module = net.module_.solver, net.module_
        module.eval()  # skorch's next step sets train mode again
        before = solver.n_evaluations
        x, y = self._probe()
        with torch.no_grad():
            try:
                exact = module.row_losses(solver.by_dopri5(x, _PROBE_EVALUATIONS), y)
            except ReferenceSolveError:
                above = self._above(net) if self.agreed_ else ()
                rung = above[0] if above else DOPRI5_RUNG
                self._go_back(net, rung, "dopri5 failed: back to weights that agreed", gap=math.inf)
            else:
                self._judge(net, exact, solver.last_evaluations)
        spent = solver.n_evaluations - before
        self.probing_ += spent
        if self.step_ == 0:
            self.advance_ = _ADVANCE * spent
        interval = min((_GROWTH - 1) * self.step_, _LONGEST * self.polish_from)
        self.next_ = self.step_ + max(_FIRST_PROBE, round(interval))

    def _judge(self, net: NeuralNet, exact: Tensor, n_evaluations: int) -> None:
        solver, loss, first = net.module_.solver, float(exact.mean()), self.step_ == 0
        allowed = self._allowed(exact)
        gap = math.inf if first else self._gap(net, solver.rung, exact)
        what = {"loss": loss, "allowed": allowed, "n_evaluations": n_evaluations}
        if gap <= allowed:
            self._agree(net, loss)
            self._lower_if_calm(net, exact, gap=gap, **what)
            return
        self.calm_ = 0
        rung = self._cheapest_within(net, exact, allowed, n_evaluations)
        if first:
            self._change(net, rung, "the start", **what)
        elif not loss - self.losses_[-1][1] <= allowed:  # what was gained since then was a lie
            self._go_back(net, rung, "the loss rose by dopri5: back to weights that agreed", gap=gap, **what)
            return
        else:
            self._change(net, rung, "the gap", gap=gap, **what)
        self._agree(net, loss)

    def _agree(self, net: NeuralNet, loss: float) -> None:
        self.losses_.append((self.step_, loss))
        self.agreed_ = copy.deepcopy(net.module_.state_dict())

    def _allowed(self, exact: Tensor) -> float:
        """Return the gap that is allowed: a share of what the loss fell by since half as many steps were taken."""
        loss = float(exact.mean())
        before = [one for step, one in self.losses_ if 2 * step <= self.step_]
        progress = before[-1] - loss if before else 0.0
        floor = max(_NEGLIGIBLE, min(CERTIFIED_GAP, _SHARE_OF_STD * float(exact.std(correction=0))))
        rounding = 16 * torch.finfo(exact.dtype).eps * (1 + abs(loss))
        return max(floor, _SHARE_OF_PROGRESS * progress) + rounding

    def _cheapest_within(self, net: NeuralNet, exact: Tensor, allowed: float, n_evaluations: int) -> Rung:
        for candidate in self._above(net):
            # Half of what is allowed, for training will use up what is left.
            if candidate.n_evaluations < n_evaluations and self._gap(net, candidate, exact) <= allowed / 2:
                return candidate
        return DOPRI5_RUNG

    def _lower_if_calm(self, net: NeuralNet, exact: Tensor, *, allowed: float, **what: Any) -> None:
        """Take a cheaper solver where the field has become easier: high learning rates make one hard for a while."""
        below = [
            rung
            for rung in RUNGS[: _place(net.module_.solver.rung)]
            if self.fewest <= rung.n_evaluations < what["n_evaluations"]
        ]
        if not below or self._gap(net, below[-1], exact) > _CALM * allowed:
            self.calm_ = 0
            return
        self.calm_ += 1
        if self.calm_ == _CALM_PROBES:
            self.calm_ = 0
            rung = next(rung for rung in below if self._gap(net, rung, exact) <= _CALM * allowed)
            self._change(net, rung, "a cheaper one would do", allowed=allowed, **what)

    def _above(self, net: NeuralNet) -> tuple[Rung, ...]:
        above = RUNGS if self.step_ == 0 else RUNGS[_place(net.module_.solver.rung) + 1 :]
        return tuple(rung for rung in above if rung.n_evaluations >= self.fewest)

    def _gap(self, net: NeuralNet, rung: Rung, exact: Tensor) -> float:
        if rung is DOPRI5_RUNG:
            return 0.0
        x, y = self._probe()
        own = net.module_.row_losses(net.module_.solver.by_rung(rung, x), y)
        return abs(float((own - exact).mean()))

    def _go_back(self, net: NeuralNet, rung: Rung, why: str, **what: Any) -> None:
        """Return to the last weights that were seen to agree, and take another solver."""
        if self.agreed_ is not None:
            net.module_.load_state_dict(self.agreed_)
            net.optimizer_.state.clear()
        self._change(net, rung, why, **what)

    def _change(self, net: NeuralNet, rung: Rung, why: str, **what: Any) -> None:
        net.module_.solver.use(rung)
        row = {"epoch": len(net.history), "step": self.step_, "solver": rung.solver, "n_steps": rung.n_steps or None}
        measured = {name: what.get(name) for name in ("gap", "allowed", "loss", "n_evaluations")}
        self.history_.append(row | {"why": why} | measured)


def _place(rung: Rung) -> int:
    return len(RUNGS) if rung is DOPRI5_RUNG else RUNGS.index(rung)


def _validates(net: NeuralNet) -> bool:
    return dict(net.callbacks_)["best_weights"].validate is not None


def measure_agreement(module: Any, x: Inputs, y: Tensor | None, exact: Tensor, held_out: bool) -> Bunch:
    """Compare the solver that a training ended with, and dopri5 at a tight tolerance.

    Parameters
    ----------
    module : nn.Module
        With a ``solver`` and ``row_losses``.
    x, y : Tensor
        Inputs, which may be timed, and their targets.
    exact : Tensor
        Their states by dopri5.
    held_out : bool
        Whether training has not seen the rows; bounds hold only then.

    Returns
    -------
    Bunch
        As ``agreement_`` of :class:`NeuralODEClassifier`.
    """
    solver: TrainingSolver = module.solver
    own: list[Tensor] = []
    evaluations: list[int] = []
    with torch.no_grad():
        for part in x.split(_MEASURED_AT_ONCE):
            own.append(solver(part))
            if solver.mesh is not None:
                solver.by_dopri5(part)
            evaluations.append(solver.last_evaluations)
        states = torch.cat(own)
        gap = abs(float((module.row_losses(states, y) - module.row_losses(exact, y)).mean()))
    difference, size = ((one.double().flatten(1)).norm(dim=1) for one in (states - exact, exact))
    error = difference / size.clamp(min=torch.finfo(size.dtype).tiny)
    p99 = float(torch.quantile(error, 0.99, interpolation="lower"))
    return Bunch(
        gap=gap,
        error_p99=p99,
        share_over=_upper_bound(int((error > p99).sum()), len(error)) if held_out else math.nan,
        n_evaluations=float(sum(evaluations) / len(evaluations)),
        n_rows=len(x),
        held_out=held_out,
        certified=gap <= CERTIFIED_GAP,
    )


def _upper_bound(k: int, n: int) -> float:
    """Return the share that is not exceeded at 95 %, where k of n were seen (Clopper and Pearson, 1934)."""
    return 1.0 if k == n else float(beta.ppf(_CONFIDENCE, k + 1, n - k))
